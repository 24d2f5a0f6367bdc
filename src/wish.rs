//! What a resource asks for, checked once: nothing behind this reads the raw spec. PURE.

mod checks;
mod target;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nixos_host_api::{BuildLocation, DriftPolicy, FailedUnitsPolicy, FollowedFlake, Mode, NixOSHostSpec, Reason, RebootPolicy};
use serde::Serialize;

use crate::clock::human;
use crate::nix::FlakeRef;
use crate::nix::flake_ref::{Follow, Source};
use crate::stage::{Failure, chain};
use crate::world::nix::{Credentials, Demands, Landed, Signers, SignersError};
use crate::world::ssh::Target;

pub use checks::{HealthCheck, Question};

/// The content of a Secret: its keys and their values.
pub type SecretData = BTreeMap<String, Vec<u8>>;

/// Which resource a pass is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: another one is another resource, whatever its name.
    pub uid: String,
    /// When it was created, in seconds since 1970.
    pub created: i64,
}

/// What a resource asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Whose.
    pub id: HostId,
    /// The flake, and what of it.
    pub flake: FlakeRef,
    /// The name below `nixosConfigurations`.
    pub attribute: String,
    /// For the flake and its inputs.
    pub credentials: Option<Arc<Credentials>>,
    /// By whom the commit must be signed.
    pub signers: Option<Arc<Signers>>,
    /// Whether what is followed may lead back.
    pub allow_downgrade: bool,
    /// The machine.
    pub target: Target,
    /// Where the system is built.
    pub build_on: BuildLocation,
    /// For the whole build.
    pub build_timeout: Duration,
    /// Whether the machine may fetch from its own caches first.
    pub substitute_on_host: bool,
    /// How to land.
    pub activation: Activation,
    /// What has to hold before a new system is committed.
    pub checks: Vec<HealthCheck>,
    /// What drift means.
    pub on_drift: DriftPolicy,
    /// Between two looks.
    pub interval: Duration,
}

/// How to land.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Activation {
    /// The activation goal.
    pub mode: Mode,
    /// For the activation.
    pub activate_within: Duration,
    /// For verifying and committing.
    pub commit_within: Duration,
    /// Between the two verifications; zero for only one.
    pub settle: Duration,
    /// What newly failed units mean.
    pub on_failed_units: FailedUnitsPolicy,
    /// Whether the machine may be rebooted.
    pub reboot: RebootPolicy,
    /// For the machine to come back from that.
    pub reboot_within: Duration,
}

/// What health checks may take when verifying began `ago` and has `within`: the rest, but for the time that a commit needs to reach the host.
pub fn for_checks(within: Duration, ago: Duration) -> Duration {
    let kept = (within / 4).min(Duration::from_secs(5));
    within.saturating_sub(kept).saturating_sub(ago)
}

/// The key of a Secret that holds an SSH key.
pub const SSH_KEY: &str = "ssh-privatekey";

/// Where a Secret comes from: its content, or why there is none.
pub type Secret<'s> = &'s Result<SecretData, Failure>;

/// What a wish is made of beside the spec.
#[derive(Debug, Clone, Copy)]
pub struct Given<'g> {
    /// Of `connection.sshKeyRef`.
    pub ssh_key: Secret<'g>,
    /// Of `connection.jump.sshKeyRef`; there if that is.
    pub jump_key: Option<Secret<'g>>,
    /// Of `flake.credentialsRef`; there if that is.
    pub credentials: Option<Secret<'g>>,
    /// Of `flake.verify.gpgKeysRef`; there if that is.
    pub gpg_keys: Option<Secret<'g>>,
    /// `status.hostKey`: what was trusted at first use.
    pub host_key: Option<&'g str>,
    /// `status.jumpHostKey`.
    pub jump_host_key: Option<&'g str>,
}

impl Wish {
    /// Checks a spec.
    pub fn new(id: HostId, spec: &NixOSHostSpec, given: Given<'_>, local_flakes: bool) -> Result<Self, Failure> {
        let flake = FlakeRef::new(&spec.flake.url, spec.flake.rev.as_deref(), spec.flake.reference.as_deref(), local_flakes)
            .map_err(|error| Failure::new(Reason::InvalidFlakeReference, error.to_string()))?;
        let attribute = spec.flake.attribute.clone().unwrap_or_else(|| id.name.clone());
        if attribute.chars().any(char::is_control) {
            return Err(invalid("flake.attribute", &attribute, "has control characters; it is a name below nixosConfigurations"));
        }
        let activation = activation(spec)?;
        let copy = spec.copy.clone().unwrap_or_default();
        let build = spec.build.clone().unwrap_or_default();
        Ok(Self {
            checks: checks::checks(&spec.health_checks, &activation)?,
            build_on: build.location.unwrap_or_default(),
            build_timeout: time_of("build.timeout", build.timeout.as_ref(), 3600)?,
            substitute_on_host: copy.substitute_on_host.unwrap_or(false),
            interval: time_of("interval", spec.interval.as_ref(), 600)?,
            on_drift: spec.on_drift.unwrap_or_default(),
            target: target::target(&spec.connection, given)?,
            credentials: given.credentials.map(|secret| credentials_of(spec, secret)).transpose()?,
            signers: signers(spec, &flake, given.gpg_keys)?,
            allow_downgrade: spec.flake.allow_downgrade.unwrap_or(false),
            id,
            flake,
            attribute,
            activation,
        })
    }

    /// The reference that is followed; `None` for a pinned revision.
    pub fn follows(&self) -> Option<String> {
        (!matches!(self.flake.follow(), Follow::Rev(_))).then(|| self.flake.to_string())
    }

    /// What a revision has to prove. `landed` is where the reference that was followed then led when it was last landed.
    pub fn demands(&self, landed: Option<&FollowedFlake>) -> Demands {
        let same = landed.filter(|landed| !self.allow_downgrade && self.follows().as_ref() == Some(&landed.reference));
        let not_behind = same.map(|landed| Landed { rev: landed.rev.clone(), last_modified: landed.last_modified });
        Demands { not_behind, signers: self.signers.clone() }
    }
}

fn invalid(field: &str, value: &str, problem: &str) -> Failure {
    let value: String = value.chars().take(120).collect();
    Failure::new(Reason::InvalidSpec, format!("spec.{field}: {value:?} {problem}"))
}

fn time_of(field: &str, value: Option<&nixos_host_api::Duration>, default: u64) -> Result<Duration, Failure> {
    let Some(value) = value else { return Ok(Duration::from_secs(default)) };
    value.get().map_err(|error| Failure::new(Reason::InvalidSpec, format!("spec.{field}: {error}")))
}

fn activation(spec: &NixOSHostSpec) -> Result<Activation, Failure> {
    let wanted = spec.activation.clone().unwrap_or_default();
    let activation = Activation {
        mode: wanted.mode.unwrap_or_default(),
        activate_within: time_of("activation.activateWithin", wanted.activate_within.as_ref(), 600)?,
        commit_within: time_of("activation.commitWithin", wanted.commit_within.as_ref(), 120)?,
        settle: time_of("activation.settle", wanted.settle.as_ref(), 5)?,
        on_failed_units: wanted.on_failed_units.unwrap_or_default(),
        reboot: wanted.reboot.unwrap_or_default(),
        reboot_within: time_of("activation.rebootWithin", wanted.reboot_within.as_ref(), 600)?,
    };
    if activation.settle >= activation.commit_within {
        let problem =
            format!("is not less than activation.commitWithin ({}): the machine would always go back", human(activation.commit_within));
        return Err(invalid("activation.settle", &human(activation.settle), &problem));
    }
    Ok(activation)
}

fn credentials_of(spec: &NixOSHostSpec, secret: Secret<'_>) -> Result<Arc<Credentials>, Failure> {
    let name = spec.flake.credentials_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    let data = secret.as_ref().map_err(Clone::clone)?;
    let parsed = Credentials::parse(data)
        .map_err(|error| Failure::new(Reason::SecretInvalid, format!("spec.flake.credentialsRef: Secret {name:?}: {}", chain(&error))))?;
    Ok(Arc::new(parsed))
}

fn signers(spec: &NixOSHostSpec, flake: &FlakeRef, gpg_keys: Option<Secret<'_>>) -> Result<Option<Arc<Signers>>, Failure> {
    let Some(verify) = &spec.flake.verify else { return Ok(None) };
    if !matches!(flake.source(), Source::Git { .. }) {
        return Err(invalid("flake.verify", &spec.flake.url, "is not fetched by git itself, so no signature would cover what is landed"));
    }
    let secret = verify.gpg_keys_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    let gpg_keys = match gpg_keys {
        None => SecretData::new(),
        Some(data) => data.as_ref().map_err(Clone::clone)?.clone(),
    };
    let signers = Signers::parse(&verify.ssh_keys, &gpg_keys).map_err(|error| match error {
        SignersError::Ssh { .. } => Failure::new(Reason::InvalidSpec, format!("spec.flake.verify.sshKeys: {error}")),
        SignersError::Gpg { .. } => {
            Failure::new(Reason::SecretInvalid, format!("spec.flake.verify.gpgKeysRef: Secret {secret:?}: {error}"))
        }
    })?;
    Ok(Some(Arc::new(signers)))
}

/// The keys of a Secret, for a message; never their values.
fn listed(data: &SecretData) -> String {
    let keys: Vec<&str> = data.keys().take(10).map(String::as_str).collect();
    if keys.is_empty() { "none".into() } else { keys.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(flake: &serde_json::Value) -> Wish {
        let spec = serde_json::json!({
            "flake": flake, "connection": {"addresses": ["h"], "sshKeyRef": {"name": "k"}, "hostKeyPolicy": "TrustOnFirstUse"},
        });
        let key = crate::world::ssh::some_private_key().into_bytes();
        let id = HostId { namespace: "n".into(), name: "web".into(), uid: "u".into(), created: 0 };
        let ssh_key = Ok(SecretData::from([(SSH_KEY.into(), key)]));
        let given = Given { ssh_key: &ssh_key, jump_key: None, credentials: None, gpg_keys: None, host_key: None, jump_host_key: None };
        Wish::new(id, &serde_json::from_value(spec).unwrap(), given, false).unwrap()
    }

    #[test]
    fn a_reference_does_not_lead_behind_what_was_landed_and_another_one_starts_anew() {
        let main = serde_json::json!({"url": "git+https://h/x", "ref": "main"});
        let landed = FollowedFlake { reference: wish(&main).follows().unwrap(), rev: Some("a".into()), last_modified: 7 };
        let demanded = |flake: serde_json::Value| wish(&flake).demands(Some(&landed)).not_behind;
        assert_eq!(demanded(main), Some(Landed { rev: Some("a".into()), last_modified: 7 }));
        for another in [
            serde_json::json!({"url": "git+https://h/x", "ref": "main", "allowDowngrade": true}),
            serde_json::json!({"url": "git+https://h/x", "ref": "next"}),
            serde_json::json!({"url": "git+https://h/x"}),
            serde_json::json!({"url": "git+https://h/y", "ref": "main"}),
            serde_json::json!({"url": "git+https://h/x?dir=y", "ref": "main"}),
            serde_json::json!({"url": "git+https://h/x", "rev": "0123456789012345678901234567890123456789"}),
        ] {
            assert_eq!(demanded(another.clone()), None, "{another}");
        }
    }

    #[test]
    fn only_what_git_itself_fetches_can_be_verified() {
        let verify = serde_json::json!({"sshKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFjvVUvVfEGyNj2xO6J9T5W4fYtI2xGqV0cZkQz2qjXh"]});
        assert!(wish(&serde_json::json!({"url": "git+https://h/x", "verify": verify})).demands(None).signers.is_some());
        for url in ["github:a/b", "https://h/x.tar.gz"] {
            let spec =
                serde_json::json!({"flake": {"url": url, "verify": verify}, "connection": {"addresses": [], "sshKeyRef": {"name": "k"}}});
            let spec: NixOSHostSpec = serde_json::from_value(spec).unwrap();
            let flake = FlakeRef::new(url, None, None, false).unwrap();
            let failure = signers(&spec, &flake, None).unwrap_err();
            assert!(failure.reason == Reason::InvalidSpec && failure.message.contains(url), "{failure}");
        }
    }
}
