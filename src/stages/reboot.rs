//! Reboot: how Activate lands a system that needs another kernel than was booted. The host boots it once.
//!
//! Input: the order. Effect: the host gives the system an entry in its boot menu, starts that once, and is waited for; after it the boot
//! default is the old system still, until Commit. Output: the same activation, to be verified and committed, or reverted by another boot.
//! One change never means two boots into the new system: what came back with the old one is rejected.

use std::time::Duration;

use nixos_host_api::{LandingRef, Mode, Reason, RebootPolicy};

use super::activate::{self, Activate, Activation};
use super::copy::Copied;
use super::order::{self, Order};
use crate::clock::human;
use crate::landing::{self, Client, Goal, HostStatus, LandingState};
use crate::nix::StorePath;
use crate::observe::{Observed, connect_within, landing_failure};
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage};
use crate::world::Link;

/// Between two looks for a host that reboots.
const LOOK: Duration = Duration::from_secs(1);

/// Whether the system has to be booted to land: the units that have failed so far, if so.
pub async fn needed<R>(pass: &mut Pass<'_, R>, observed: &Observed, copied: &Copied) -> Result<Option<Vec<String>>, Stop> {
    let activation = pass.wish.activation;
    if let Some(begun) = order::begun(pass) {
        if begun.reboot != Some(true) {
            return Ok(None);
        }
        if has_gone(&observed.host, &begun) || once(&observed.host, &copied.toplevel) {
            return Ok(Some(begun.failed_units));
        }
        // The machine has not gone. Perhaps it was never to: what it had booted was to be taken over, and a person was quicker. That is no leave to reboot.
        pass.findings.records.forget(Activate::NAME);
    }
    if activation.mode != Mode::Switch {
        return Ok(None);
    }
    if once(&observed.host, &copied.toplevel) {
        // Somebody chose it from the boot menu, or an earlier pass was forgotten with the status.
        return Ok(Some(Vec::new()));
    }
    if activation.reboot == RebootPolicy::Never {
        return Ok(None);
    }
    let needs = Client::new(&observed.session, &pass.wish.target.user).needs(&copied.toplevel).await;
    let needs = needs.map_err(|error| landing_failure(&error))?;
    Ok(needs.reboot.then_some(needs.failed))
}

/// Reboots the host into the system unless that was done, waits for it, and has it wait for a commit.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, observed: Observed, copied: Copied, failed: Vec<String>) -> Result<Activation, Stop> {
    let Copied { toplevel } = copied;
    let stage = Activate(Order::of(pass, &toplevel));
    let Some(_permit) = pass.cancel.run_until_cancelled(pass.world.landings.acquire(&pass.wish.id.namespace)).await else {
        return Err(Stop::Cancelled);
    };
    pass.begin(&stage, format!("rebooting into {}, once", toplevel.name()))?;
    let mut begun = match order::begun(pass) {
        Some(begun) => activate::again(pass, &observed.host, begun).await?,
        None => activate::begin(pass, &stage, &observed, &toplevel, Some(failed)).await?,
    };
    let booted = booted(pass, observed, &mut begun, &toplevel).await;
    activate::finish(pass, &stage, begun, toplevel, booted).await
}

/// Until the system has been booted and waits for a commit.
async fn booted<R: Reporter>(
    pass: &mut Pass<'_, R>,
    observed: Observed,
    begun: &mut LandingRef,
    toplevel: &StorePath,
) -> Result<(HostStatus, Link), Failure> {
    let Observed { session, host } = observed;
    let waits = host.landing.as_ref().is_some_and(|landing| landing.id == begun.id && landing.state == LandingState::Activated);
    if waits {
        return Ok((host, session));
    }
    let (host, session) = if once(&host, toplevel) { (host, session) } else { reboot(pass, session, begun, toplevel).await? };
    if let Some(failure) = came_back(&host, begun) {
        return Err(failure);
    }
    pass.saw(host.clone());
    // From here on another boot id means that the host restarted while it was verified.
    begun.boot_id = host.boot_id.unwrap_or_default();
    pass.findings.records.landing(Activate::NAME, Some(begun.clone()));
    pass.reporter.intend(&pass.findings).await?;
    let host = adopt(pass, &session, begun).await?;
    Ok((host, session))
}

/// Tells the host to go, and waits until it is back.
async fn reboot<R: Reporter>(
    pass: &mut Pass<'_, R>,
    session: Link,
    begun: &LandingRef,
    toplevel: &StorePath,
) -> Result<(HostStatus, Link), Failure> {
    let ordered = Client::new(&session, &pass.wish.target.user).land(&ordered(pass, begun, toplevel.clone(), Goal::Reboot)).await;
    match ordered {
        // Whether the host has taken it over is unknown: its boot id tells.
        Err(error) if !error.is_no_answer() => return Err(landing_failure(&error)),
        _ => {}
    }
    drop(session);
    pass.reporter.doing(&pass.findings, Reason::Rebooting, format!("waiting for the machine to come back with {}", toplevel.name()));
    let within = pass.wish.activation.reboot_within;
    let back = tokio::time::timeout(within, back(pass, begun)).await;
    back.unwrap_or_else(|_| Err(not_back(begun, &format!("for {}", human(within)))))
}

/// The host after its boot, or as it is when it gave the boot up.
async fn back<R>(pass: &Pass<'_, R>, begun: &LandingRef) -> Result<(HostStatus, Link), Failure> {
    loop {
        let session = connect_within(pass.world, pass.wish, pass.wish.activation.reboot_within).await;
        if let Ok(session) = session
            && let Ok(host) = Client::new(&session, &pass.wish.target.user).status().await
        {
            if host.boot_id.as_deref() != Some(&*begun.boot_id) {
                return Ok((host, session));
            }
            let landing = host.landing.as_ref().filter(|landing| landing.id == begun.id);
            if landing.is_none_or(|landing| landing.state.is_final() || !landing.active && landing.state != LandingState::Rebooting) {
                order::end(&host, begun, "")?;
                return Err(Failure::new(Reason::HostError, "the machine did not take the order to reboot"));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The landing goes on after the boot under the same identity: the host waits for a commit, and goes back by another boot without one.
pub async fn adopt<R>(pass: &Pass<'_, R>, session: &Link, begun: &LandingRef) -> Result<HostStatus, Failure> {
    let system = begun.system.parse().map_err(|_| Failure::new(Reason::InternalError, "status.stages names no store path"))?;
    let order = ordered(pass, begun, system, Goal::Booted(begun.failed_units.clone()));
    Client::new(session, &pass.wish.target.user).land(&order).await.map_err(|error| landing_failure(&error))
}

fn ordered<R>(pass: &Pass<'_, R>, begun: &LandingRef, new: StorePath, goal: Goal) -> landing::Order {
    let activation = pass.wish.activation;
    landing::Order {
        id: begun.id.clone(),
        epoch: pass.world.lead.epoch(),
        new,
        goal,
        activate_within: activation.activate_within,
        commit_within: activation.commit_within,
    }
}

/// PURE. Whether the host has been told to go, or has gone.
fn has_gone(host: &HostStatus, begun: &LandingRef) -> bool {
    host.boot_id.as_deref() != Some(&*begun.boot_id) || host.landing.as_ref().is_some_and(|landing| landing.id == begun.id)
}

/// PURE. Whether the host has booted this system and would boot another one next.
fn once(host: &HostStatus, system: &StorePath) -> bool {
    host.current.as_ref() == Some(system)
        && host.booted.as_ref() == Some(system)
        && host.boot_default.as_ref().is_some_and(|default| default != system)
}

/// PURE. Whether the host has booted for this landing, and waits for what follows.
pub fn booted_once(host: &HostStatus, begun: &LandingRef) -> bool {
    let system = begun.system.parse();
    begun.reboot == Some(true) && system.is_ok_and(|system| once(host, &system))
}

/// PURE. Why a landing by reboot has failed, if the host has booted since, and not what it should have.
pub fn came_back(host: &HostStatus, begun: &LandingRef) -> Option<Failure> {
    let another_boot = host.boot_id.as_deref() != Some(&*begun.boot_id);
    let with = host.booted.as_ref().filter(|booted| booted.as_str() != begun.system)?;
    (begun.reboot == Some(true) && another_boot)
        .then(|| Failure::new(Reason::RebootFailed, format!("the machine was rebooted into {} and came back with {with}", begun.system)))
}

fn not_back(begun: &LandingRef, how_long: &str) -> Failure {
    let message = format!(
        "the machine was rebooted into {} and does not answer since ({how_long}); the next power cycle boots the old system",
        begun.system
    );
    Failure::new(Reason::RebootHostNotBack, message)
}

/// What is to be said of a host that cannot be reached: whether it was rebooted last.
pub fn last_seen<R>(pass: &Pass<'_, R>, failure: &Failure) -> Failure {
    match order::begun(pass) {
        Some(begun) if begun.reboot == Some(true) && failure.reason == Reason::Unreachable => not_back(&begun, &failure.message),
        _ => failure.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "/nix/store/00000000000000000000000000000000-nixos-system-web-old";
    const NEW: &str = "/nix/store/11111111111111111111111111111111-nixos-system-web-new";

    fn host(boot_id: &str, booted: &str, default: &str) -> HostStatus {
        HostStatus {
            boot_id: Some(boot_id.into()),
            current: booted.parse().ok(),
            booted: booted.parse().ok(),
            boot_default: default.parse().ok(),
            ..HostStatus::default()
        }
    }

    fn begun() -> LandingRef {
        LandingRef {
            id: "a".into(),
            boot_id: "1".into(),
            system: NEW.into(),
            revision: "main".into(),
            rev: None,
            reboot: Some(true),
            failed_units: vec![],
        }
    }

    #[test]
    fn the_boot_tells_what_became_of_it() {
        assert!(booted_once(&host("2", NEW, OLD), &begun()));
        assert!(!booted_once(&host("2", NEW, NEW), &begun()), "it has been committed");
        assert!(!booted_once(&host("2", NEW, "Unknown"), &begun()), "nothing is known of the boot after it");
        assert_eq!(came_back(&host("2", NEW, OLD), &begun()), None);
        assert_eq!(came_back(&host("1", OLD, OLD), &begun()), None, "it has not gone yet");
        assert_eq!(came_back(&host("2", OLD, OLD), &begun()).map(|failure| failure.reason), Some(Reason::RebootFailed));
    }

    #[test]
    fn what_was_only_written_down_is_no_leave_to_reboot() {
        assert!(!has_gone(&host("1", OLD, OLD), &begun()));
        assert!(has_gone(&host("2", OLD, OLD), &begun()), "it came back with the old system: that is not tried again");
        let landing = crate::landing::Landing {
            id: "a".into(),
            active: true,
            state: LandingState::Staging,
            exit: None,
            code: String::new(),
            why: String::new(),
            old: None,
            new: None,
            left: None,
        };
        assert!(has_gone(&HostStatus { landing: Some(landing), ..host("1", OLD, OLD) }, &begun()));
    }

    #[test]
    fn another_landing_is_not_one_by_reboot() {
        let begun = LandingRef { reboot: None, ..begun() };
        assert!(!booted_once(&host("2", NEW, OLD), &begun));
        assert_eq!(came_back(&host("2", OLD, OLD), &begun), None);
    }
}
