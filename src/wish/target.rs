//! `spec.connection`, its Secrets and the host keys that were trusted, as a way to the machine. PURE.

use nixos_host_api::{Connection, HostKeyPolicy as Policy, Jump, LocalRef, Reason};

use super::{Given, SSH_KEY, Secret, listed};
use crate::stage::{Failure, chain};
use crate::world::ssh::{HostKey, HostKeyPolicy, PrivateKey, Target};

/// What the machine and its jump host have in common.
struct Endpoint<'c> {
    /// The field below `spec`.
    field: &'static str,
    addresses: &'c [String],
    port: Option<u16>,
    user: Option<&'c str>,
    ssh_key_ref: &'c LocalRef,
    host_keys: &'c [String],
    policy: Option<Policy>,
}

pub(super) fn target(connection: &Connection, given: Given<'_>) -> Result<Target, Failure> {
    let Connection { addresses, port, user, ssh_key_ref, host_keys, host_key_policy, jump } = connection;
    let (port, user, policy) = (*port, user.as_deref(), *host_key_policy);
    let machine = Endpoint { field: "connection", addresses, port, user, ssh_key_ref, host_keys, policy };
    let jump = jump.as_ref().zip(given.jump_key).map(|(jump, key)| through(jump, key, given.jump_host_key)).transpose()?;
    Ok(Target { jump, ..endpoint(&machine, given.ssh_key, given.host_key)? })
}

fn through(jump: &Jump, key: Secret<'_>, recorded: Option<&str>) -> Result<Box<Target>, Failure> {
    let Jump { addresses, port, user, ssh_key_ref, host_keys, host_key_policy } = jump;
    let (port, user, policy) = (*port, user.as_deref(), *host_key_policy);
    let host = Endpoint { field: "connection.jump", addresses, port, user, ssh_key_ref, host_keys, policy };
    endpoint(&host, key, recorded).map(Box::new)
}

fn endpoint(at: &Endpoint<'_>, key: Secret<'_>, recorded: Option<&str>) -> Result<Target, Failure> {
    Ok(Target {
        addresses: at.addresses.to_vec(),
        port: at.port.unwrap_or(22),
        user: at.user.unwrap_or("root").into(),
        key: private_key(at, key)?,
        host_keys: host_keys(at, recorded)?,
        jump: None,
    })
}

fn host_keys(at: &Endpoint<'_>, recorded: Option<&str>) -> Result<HostKeyPolicy, Failure> {
    let parsed = |line: &str| {
        let wrong = |error| Failure::new(Reason::InvalidSpec, format!("spec.{}.hostKeys: {}", at.field, chain(&error)));
        line.parse::<HostKey>().map_err(wrong)
    };
    let pinned = at.host_keys.iter().map(|line| parsed(line)).collect::<Result<Vec<_>, _>>()?;
    if !pinned.is_empty() || at.policy != Some(Policy::TrustOnFirstUse) {
        return Ok(HostKeyPolicy::Pinned(pinned));
    }
    let wrong = |error| Failure::new(Reason::InvalidSpec, format!("the host key in status for spec.{}: {}", at.field, chain(&error)));
    let recorded = recorded.map(|line| line.parse::<HostKey>().map_err(wrong)).transpose()?;
    Ok(HostKeyPolicy::TrustOnFirstUse { recorded })
}

fn private_key(at: &Endpoint<'_>, secret: Secret<'_>) -> Result<PrivateKey, Failure> {
    let invalid = |problem: String| {
        let (field, name) = (at.field, &at.ssh_key_ref.name);
        Failure::new(Reason::SecretInvalid, format!("spec.{field}.sshKeyRef: Secret {name:?}{problem}"))
    };
    let data = secret.as_ref().map_err(Clone::clone)?;
    let bytes = data.get(SSH_KEY).ok_or_else(|| invalid(format!(" has no key {SSH_KEY:?}; it has {}", listed(data))))?;
    PrivateKey::parse(&String::from_utf8_lossy(bytes)).map_err(|error| invalid(format!(", key {SSH_KEY:?}: {}", chain(&error))))
}

#[cfg(test)]
mod tests {
    use nixos_host_api::NixOSHostSpec;

    use super::*;
    use crate::wish::{HostId, SecretData, Wish};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";

    /// The wish for a spec whose jump host is `jump`.
    fn wish(jump: &serde_json::Value, jump_host_key: Option<&str>) -> Result<Wish, Failure> {
        let spec = serde_json::json!({
            "flake": {"url": "github:a/b"},
            "connection": {"addresses": ["h"], "sshKeyRef": {"name": "k"}, "hostKeys": [KEY], "jump": jump},
        });
        let spec: NixOSHostSpec = serde_json::from_value(spec).unwrap();
        let secret = |text: &str| Ok(SecretData::from([(SSH_KEY.to_owned(), text.as_bytes().to_vec())]));
        let (ssh_key, jump_key) = (secret(&crate::world::ssh::some_private_key()), secret("garbage"));
        let jump_key = if jump["sshKeyRef"]["name"] == "bad" { &jump_key } else { &ssh_key };
        let id = HostId { namespace: "infra".into(), name: "web".into(), uid: "u".into(), created: 0 };
        let given = Given { ssh_key: &ssh_key, jump_key: Some(jump_key), credentials: None, gpg_keys: None, host_key: None, jump_host_key };
        Wish::new(id, &spec, given, false)
    }

    #[test]
    fn a_jump_host_has_an_address_a_user_and_host_keys_of_its_own() {
        let jump = serde_json::json!({"addresses": ["b"], "port": 2200, "user": "jump", "sshKeyRef": {"name": "k"}, "hostKeys": [KEY]});
        let target = wish(&jump, None).unwrap().target;
        let jump = target.jump.unwrap();
        assert_eq!((jump.addresses, jump.port, jump.user.as_str()), (vec!["b".to_owned()], 2200, "jump"));
        assert_eq!((target.port, target.user.as_str()), (22, "root"));
        let trusting = serde_json::json!({"addresses": ["b"], "sshKeyRef": {"name": "k"}, "hostKeyPolicy": "TrustOnFirstUse"});
        assert!(wish(&trusting, None).unwrap().target.trusts_anybody());
        assert!(!wish(&trusting, Some(KEY)).unwrap().target.trusts_anybody(), "what was recorded is insisted on");
    }

    #[test]
    fn what_is_wrong_with_a_jump_host_names_its_field() {
        let wrong = |patch: serde_json::Value| wish(&patch, None).unwrap_err().message;
        let key = wrong(serde_json::json!({"addresses": ["b"], "sshKeyRef": {"name": "bad"}, "hostKeys": [KEY]}));
        assert!(key.starts_with("spec.connection.jump.sshKeyRef: Secret \"bad\", key \"ssh-privatekey\""), "{key}");
        let host_key = wrong(serde_json::json!({"addresses": ["b"], "sshKeyRef": {"name": "k"}, "hostKeys": ["b ssh-ed25519 AAAA"]}));
        assert!(host_key.starts_with("spec.connection.jump.hostKeys: "), "{host_key}");
    }
}
