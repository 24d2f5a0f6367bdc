//! What the host says: one new connection, one command. Reads only.

use std::time::Duration;

use nixos_host_api::Reason;

use crate::landing::{Client, HostStatus, LandingError, outcome};
use crate::stage::{Failure, chain};
use crate::wish::Wish;
use crate::world::ssh::{ConnectError, ConnectOptions, HostKeyPolicy, Target};
use crate::world::{Claim, Link, Peer, World};

/// A host that answered: the connection, and what it said over it.
#[derive(Debug)]
pub struct Observed {
    /// The pass's connection.
    pub session: Link,
    /// What the host says of itself.
    pub host: HostStatus,
}

/// Connects to the host and looks at it.
pub async fn observe(world: &World, wish: &Wish) -> Result<Observed, Failure> {
    let _permit = world.looks.acquire(&wish.id.namespace).await;
    let session = connect(world, wish).await?;
    let host = Client::new(&session, &wish.target.user).status().await.map_err(|error| landing_failure(&error))?;
    world.lead.saw(host.epoch.unwrap_or_default());
    checked(&host)?;
    Ok(Observed { session, host })
}

/// Refuses a machine that another resource manages.
pub fn claimed(world: &World, wish: &Wish, host: &HostStatus) -> Result<(), Failure> {
    let Some(machine) = &host.machine else { return Ok(()) };
    let name = format!("{}/{}", wish.id.namespace, wish.id.name);
    let claim = Claim { created: wish.id.created, uid: wish.id.uid.clone(), name };
    world.machines.claim(machine, &claim).map_err(|owner| {
        Failure::new(
            Reason::MachineConflict,
            format!(
                "the NixOSHost {}, which is older, manages a machine with the same /etc/machine-id: delete one of the two, or give the machine \
                 an id of its own if it was cloned",
                owner.name
            ),
        )
    })
}

/// A new connection to the host, starting with the address that answered last.
pub async fn connect(world: &World, wish: &Wish) -> Result<Link, Failure> {
    let mut target = wish.target.clone();
    if let Some(peer) = world.peers.get(&wish.id.uid) {
        recall(&mut target, &peer);
    }
    let session = world.connect(&target, &ConnectOptions::default()).await.map_err(|error| connect_failure(&error))?;
    world.peers.put(&wish.id.uid, session.peer());
    Ok(session)
}

/// PURE. The address that answered last comes first, and the first use is over: what was trusted then is insisted on, though the status may not
/// say so yet.
fn recall(target: &mut Target, peer: &Peer) {
    target.addresses.sort_by_key(|address| *address != peer.address);
    if let HostKeyPolicy::TrustOnFirstUse { recorded: recorded @ None } = &mut target.host_keys {
        *recorded = Some(peer.host_key.clone());
    }
    if let (Some(jump), Some(peer)) = (&mut target.jump, &peer.jump) {
        recall(jump, peer);
    }
}

/// The same, tried again until `within` has passed: the host may be in the middle of something.
pub async fn connect_within(world: &World, wish: &Wish, within: Duration) -> Result<Link, Failure> {
    let deadline = tokio::time::sleep(within);
    tokio::pin!(deadline);
    let mut pause = Duration::from_millis(200);
    loop {
        let failure = match connect(world, wish).await {
            Ok(session) => return Ok(session),
            Err(failure) => failure,
        };
        tokio::select! {
            biased;
            () = &mut deadline => return Err(failure),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(2)),
        }
    }
}

/// Refuses what cannot be managed at all.
fn checked(host: &HostStatus) -> Result<(), Failure> {
    if host.current.is_none() || host.nixos_version.is_none() {
        return Err(Failure::new(Reason::NotNixOS, "the machine has no /run/current-system with a nixos-version: it does not run NixOS"));
    }
    if !host.has_nix {
        return Err(Failure::new(
            Reason::NixMissing,
            "the machine has no nix-store command in /run/current-system/sw/bin: set nix.enable = true",
        ));
    }
    Ok(())
}

fn connect_failure(error: &ConnectError) -> Failure {
    let (field, machine, cause) = match error {
        ConnectError::Jump(cause) => ("spec.connection.jump", "the jump host", &**cause),
        cause => ("spec.connection", "the machine", cause),
    };
    let (reason, cure) = match cause {
        ConnectError::HostKeyMissing => {
            (Reason::HostKeyMissing, format!("; set {field}.hostKeys, or {field}.hostKeyPolicy: TrustOnFirstUse"))
        }
        ConnectError::HostKeyMismatch { .. } => {
            (Reason::HostKeyMismatch, format!("; if {machine} was reinstalled, correct {field}.hostKeys"))
        }
        ConnectError::Authentication { .. } => {
            (Reason::AuthenticationFailed, format!("; add the public half of {field}.sshKeyRef to that user's authorized keys"))
        }
        ConnectError::Resolve { .. }
        | ConnectError::Unreachable { .. }
        | ConnectError::Protocol { .. }
        | ConnectError::TimedOut { .. }
        | ConnectError::Jump(_) => (Reason::Unreachable, String::new()),
    };
    Failure::new(reason, format!("{}{cure}", chain(error)))
}

/// What an error of the landing protocol means to a person.
pub fn landing_failure(error: &LandingError) -> Failure {
    let reason = match error {
        error if error.is_no_answer() => Reason::Unreachable,
        LandingError::NotRoot { .. } => Reason::PrivilegeRefused,
        LandingError::Refused { code, .. } => outcome::refusal(code),
        LandingError::Exec(_) | LandingError::Protocol(_) => Reason::HostError,
    };
    let cure = match reason {
        Reason::PrivilegeRefused => {
            "; set security.sudo.wheelNeedsPassword = false on the machine (or noPass = true in security.doas.extraRules), or connect as root"
        }
        _ => "",
    };
    Failure::new(reason, format!("{}{cure}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::ssh::{HostKey, PrivateKey, some_private_key};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";

    fn target(addresses: [&str; 3], jump: Option<Target>) -> Target {
        Target {
            addresses: addresses.map(str::to_owned).into(),
            port: 22,
            user: "root".into(),
            key: PrivateKey::parse(&some_private_key()).unwrap(),
            host_keys: HostKeyPolicy::TrustOnFirstUse { recorded: None },
            jump: jump.map(Box::new),
        }
    }

    #[test]
    fn who_answered_last_is_tried_first_and_held_to_its_key_and_so_is_its_jump_host() {
        let key: HostKey = KEY.parse().unwrap();
        let mut wanted = target(["a", "b", "c"], Some(target(["x", "y", "z"], None)));
        let jump = Peer { address: "z".into(), host_key: key.clone(), jump: None };
        recall(&mut wanted, &Peer { address: "b".into(), host_key: key, jump: Some(Box::new(jump)) });
        assert!(!wanted.trusts_anybody());
        assert_eq!(wanted.addresses, ["b", "a", "c"]);
        assert_eq!(wanted.jump.unwrap().addresses, ["z", "x", "y"]);
    }
}
