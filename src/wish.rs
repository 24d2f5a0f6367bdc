//! What a resource asks for, checked once: nothing behind this reads the raw spec. PURE.

mod checks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nixos_host_api::{DriftPolicy, FailedUnitsPolicy, HostKeyPolicy as Policy, Mode, NixOSHostSpec, Reason, RebootPolicy};
use serde::Serialize;

use crate::nix::FlakeRef;
use crate::stage::{Failure, chain};
use crate::world::nix::Credentials;
use crate::world::ssh::{HostKey, HostKeyPolicy, PrivateKey, Target};

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
    /// The machine.
    pub target: Target,
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

impl Activation {
    /// What health checks may take when verifying began `ago`: the rest, but for the time that a commit needs to reach the host.
    pub fn for_checks(&self, ago: Duration) -> Duration {
        let kept = (self.commit_within / 4).min(Duration::from_secs(5));
        self.commit_within.saturating_sub(kept).saturating_sub(ago)
    }
}

/// The key of a Secret that holds an SSH key.
pub const SSH_KEY: &str = "ssh-privatekey";

/// Where a Secret comes from: its content, or why there is none.
pub type Secret<'s> = &'s Result<SecretData, Failure>;

impl Wish {
    /// Checks a spec. `recorded` is the host key of `status.hostKey`.
    pub fn new(
        id: HostId,
        spec: &NixOSHostSpec,
        ssh_key: Secret<'_>,
        credentials: Option<Secret<'_>>,
        recorded: Option<&str>,
        local_flakes: bool,
    ) -> Result<Self, Failure> {
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
            build_timeout: time_of("build.timeout", build.timeout.as_ref(), 3600)?,
            substitute_on_host: copy.substitute_on_host.unwrap_or(false),
            interval: time_of("interval", spec.interval.as_ref(), 600)?,
            on_drift: spec.on_drift.unwrap_or_default(),
            target: target(spec, ssh_key, recorded)?,
            credentials: credentials.map(|secret| credentials_of(spec, secret)).transpose()?,
            id,
            flake,
            attribute,
            activation,
        })
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
            format!("is not less than activation.commitWithin ({:?}): the machine would always go back", activation.commit_within);
        return Err(invalid("activation.settle", &format!("{:?}", activation.settle), &problem));
    }
    Ok(activation)
}

fn target(spec: &NixOSHostSpec, ssh_key: Secret<'_>, recorded: Option<&str>) -> Result<Target, Failure> {
    let connection = &spec.connection;
    let host_key = |line: &String| {
        line.parse::<HostKey>().map_err(|error| Failure::new(Reason::InvalidSpec, format!("spec.connection.hostKeys: {}", chain(&error))))
    };
    let pinned = connection.host_keys.iter().map(host_key).collect::<Result<Vec<_>, _>>()?;
    let trusts = connection.host_key_policy == Some(Policy::TrustOnFirstUse);
    let host_keys = if pinned.is_empty() && trusts {
        let recorded = recorded.map(str::parse::<HostKey>).transpose();
        HostKeyPolicy::TrustOnFirstUse {
            recorded: recorded.map_err(|error| Failure::new(Reason::InvalidSpec, format!("status.hostKey: {}", chain(&error))))?,
        }
    } else {
        HostKeyPolicy::Pinned(pinned)
    };
    let secret = &connection.ssh_key_ref.name;
    let data = ssh_key.as_ref().map_err(Clone::clone)?;
    let bytes = data.get(SSH_KEY).ok_or_else(|| {
        Failure::new(
            Reason::SecretInvalid,
            format!("spec.connection.sshKeyRef: Secret {secret:?} has no key {SSH_KEY:?}; it has {}", listed(data)),
        )
    })?;
    let key = PrivateKey::parse(&String::from_utf8_lossy(bytes)).map_err(|error| {
        Failure::new(Reason::SecretInvalid, format!("spec.connection.sshKeyRef: Secret {secret:?}, key {SSH_KEY:?}: {}", chain(&error)))
    })?;
    Ok(Target {
        addresses: connection.addresses.clone(),
        port: connection.port.unwrap_or(22),
        user: connection.user.clone().unwrap_or_else(|| "root".into()),
        key,
        host_keys,
        jump: None,
    })
}

fn credentials_of(spec: &NixOSHostSpec, secret: Secret<'_>) -> Result<Arc<Credentials>, Failure> {
    let name = spec.flake.credentials_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    let data = secret.as_ref().map_err(Clone::clone)?;
    let parsed = Credentials::parse(data)
        .map_err(|error| Failure::new(Reason::SecretInvalid, format!("spec.flake.credentialsRef: Secret {name:?}: {}", chain(&error))))?;
    Ok(Arc::new(parsed))
}

/// The keys of a Secret, for a message; never their values.
fn listed(data: &SecretData) -> String {
    let keys: Vec<&str> = data.keys().take(10).map(String::as_str).collect();
    if keys.is_empty() { "none".into() } else { keys.join(", ") }
}
