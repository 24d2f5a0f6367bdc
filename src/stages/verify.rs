//! Verify: the activated system is reachable over a new connection, and healthy; once more after a while, and then its health checks.
//!
//! Input: the activation. Effect: none, unless it is unhealthy: then the host is told to go back. Output: the new connection.

use std::time::{Duration, Instant};

use nixos_host_api::{FailedUnitsPolicy, LandingRef, Reason};
use serde::Serialize;

use super::activate::Activation;
use super::checks;
use super::order::{self, End, Order};
use crate::clock::human;
use crate::landing::{Client, HostStatus, LandingState, Verification};
use crate::nix::StorePath;
use crate::observe::{connect_within, landing_failure};
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage};
use crate::wish::for_checks;
use crate::world::Link;

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Verify(pub Order);

impl Stage for Verify {
    const NAME: &'static str = "Verify";
    const DOING: Reason = Reason::Verifying;

    fn key(&self) -> String {
        self.0.key()
    }
}

/// A system that proved itself.
#[derive(Debug)]
pub struct Verified {
    /// What is landing.
    pub order: Order,
    /// The same for status.
    pub landing: LandingRef,
    /// The system.
    pub toplevel: StorePath,
    /// A connection that was made after the activation: the commit goes over it.
    pub session: Link,
    /// What is to be said about a system that is kept all the same.
    pub note: String,
    /// With mode Boot: the host has committed by itself, since nothing was activated.
    pub committed: Option<HostStatus>,
}

/// Verifies the system, or brings the old one back.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, activation: Activation) -> Result<Verified, Stop> {
    let stage = Verify(activation.order.clone());
    let Activation { order, landing, toplevel, host, session } = activation;
    if host.landing.as_ref().is_some_and(|landing| landing.state == LandingState::Committed) {
        return Ok(Verified { order, landing, toplevel, session, note: String::new(), committed: Some(host) });
    }
    pass.reporter.doing(&pass.findings, Verify::DOING, format!("verifying {} over a new connection", toplevel.name()));
    let within = left(&host, pass.wish.activation.commit_within);
    let checking = pass.world.timed(Verify::NAME, check_twice(pass, &landing, &toplevel, within));
    let checked = tokio::time::timeout(within, checking).await;
    let checked = checked.unwrap_or_else(|_| Err(unreachable(within)));
    let result = match checked {
        Ok((session, note)) => Ok(Verified { order, landing, toplevel, session, note, committed: None }),
        Err(failure) => {
            let failure = late(failure, within, pass.wish.activation.commit_within);
            Err(give_up(pass, &landing, session, failure).await)
        }
    };
    pass.ended(&stage, result.map_err(Stop::Failed), |verified| verified.note.clone())
}

/// PURE. How long the host still waits: it counts from the end of the activation, which an earlier pass may have seen.
fn left(host: &HostStatus, commit_within: Duration) -> Duration {
    host.landing.as_ref().and_then(|landing| landing.left).map_or(commit_within, |left| left.min(commit_within))
}

/// What of `commitWithin` has passed before it says more of the controller than of the new system.
const LATE: Duration = Duration::from_secs(10);

/// PURE. What could not be shown in the little time that a controller which came late had is no fault of the new system.
fn late(failure: Failure, within: Duration, commit_within: Duration) -> Failure {
    let timing = matches!(failure.reason, Reason::VerificationFailed | Reason::HealthCheckFailed);
    if !timing || within + LATE > commit_within {
        return failure;
    }
    let message = format!("the controller came back only {} before the machine's deadline; {}", human(within), failure.message);
    Failure::new(Reason::Unattended, message)
}

fn unreachable(within: Duration) -> Failure {
    let message = format!("the new system did not prove itself over a new connection within {} (activation.commitWithin)", human(within));
    Failure::new(Reason::VerificationFailed, message)
}

/// Verifies over a new connection, and over another one after `settle`: late DHCP, firewalls and crash loops.
async fn check_twice<R: Reporter>(
    pass: &Pass<'_, R>,
    begun: &LandingRef,
    toplevel: &StorePath,
    within: Duration,
) -> Result<(Link, String), Failure> {
    let wish = pass.wish;
    let start = pass.world.clock.now();
    let (mut session, first) = started(pass, begun).await?;
    let mut note = check(&first, None, begun, toplevel, wish.activation.on_failed_units)?;
    if !wish.activation.settle.is_zero() {
        tokio::time::sleep(wish.activation.settle).await;
        (session, note) = look_again(pass, &first, begun, toplevel).await?;
    }
    loop {
        match check_health(pass, &session, within, start).await {
            Ok(notes) => return Ok((session, with(notes, note))),
            // Over a new connection, since the commit needs one too.
            Err(failure) if failure.reason == Reason::Unreachable => (session, note) = look_again(pass, &first, begun, toplevel).await?,
            Err(failure) => return Err(failure),
        }
    }
}

async fn look_again<R>(
    pass: &Pass<'_, R>,
    first: &Verification,
    begun: &LandingRef,
    toplevel: &StorePath,
) -> Result<(Link, String), Failure> {
    let (session, second) = look(pass).await?;
    let note = check(&second, Some(first), begun, toplevel, pass.wish.activation.on_failed_units)?;
    Ok((session, note))
}

/// The first look. A system that was just booted is still starting what may yet fail: half of the time is given to that.
async fn started<R>(pass: &Pass<'_, R>, begun: &LandingRef) -> Result<(Link, Verification), Failure> {
    let activation = &pass.wish.activation;
    let patience = pass.world.clock.now() + activation.commit_within / 2;
    loop {
        let (session, found) = look(pass).await?;
        if begun.reboot != Some(true) || found.running != "starting" || pass.world.clock.now() >= patience {
            return Ok((session, found));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Runs the health checks, if there are any, in what is left of `within`.
async fn check_health<R: Reporter>(pass: &Pass<'_, R>, session: &Link, within: Duration, start: Instant) -> Result<Vec<String>, Failure> {
    if pass.wish.checks.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = pass.wish.checks.iter().map(|check| check.name.as_str()).collect();
    pass.reporter.doing(&pass.findings, Verify::DOING, format!("running the health checks {}", names.join(", ")));
    let ago = pass.world.clock.now().saturating_duration_since(start);
    checks::run(pass, session, for_checks(within, ago)).await
}

/// All that is to be said about a system that is kept.
fn with(mut notes: Vec<String>, note: String) -> String {
    notes.push(note);
    notes.retain(|note| !note.is_empty());
    notes.join("\n")
}

async fn look<R>(pass: &Pass<'_, R>) -> Result<(Link, Verification), Failure> {
    // How often units were restarted means something only after a while.
    let restarts = !pass.wish.activation.settle.is_zero();
    loop {
        let session = connect_within(pass.world, pass.wish, pass.wish.activation.commit_within).await?;
        match Client::new(&session, &pass.wish.target.user).verify(restarts).await {
            Ok(found) => return Ok((session, found)),
            Err(error) if error.is_passing() => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(Failure::new(Reason::VerificationFailed, landing_failure(&error).message)),
        }
    }
}

/// PURE. What is wrong with an activated system; otherwise what is to be said about it.
fn check(
    found: &Verification,
    before: Option<&Verification>,
    begun: &LandingRef,
    toplevel: &StorePath,
    policy: FailedUnitsPolicy,
) -> Result<String, Failure> {
    let landing = found.host.landing.as_ref().filter(|landing| landing.id == begun.id);
    let Some(landing) = landing.filter(|landing| landing.state == LandingState::Activated) else {
        return Err(Failure::new(Reason::VerificationFailed, "the landing ended before the system was verified"));
    };
    if found.host.current.as_ref() != Some(toplevel) {
        return Err(Failure::new(Reason::Superseded, "somebody else switched the machine"));
    }
    if found.running == "maintenance" {
        return Err(Failure::new(Reason::VerificationFailed, "the machine is in maintenance (emergency or rescue) mode"));
    }
    let mut units = found.failed.clone();
    if let Some(before) = before {
        let looping = found.restarts.iter().filter(|(unit, count)| before.restarts.get(*unit).is_none_or(|earlier| earlier < count));
        units.extend(looping.map(|(unit, _)| format!("{unit} (restarting again and again)")));
    }
    units.dedup();
    if units.is_empty() && landing.exit != Some(4) {
        return Ok(String::new());
    }
    let units = if units.is_empty() {
        "switch-to-configuration reports a failed unit (exit 4)".into()
    } else {
        format!("units failed: {}", units.join(", "))
    };
    let message = format!("{units}\n{}", found.journal.join("\n"));
    match policy {
        FailedUnitsPolicy::Revert => Err(Failure::new(Reason::UnitsFailed, message)),
        FailedUnitsPolicy::Keep => Ok(message.trim_end().to_owned()),
    }
}

/// Tells the host to go back if it can be told, waits until the landing has ended, and says how.
async fn give_up<R: Reporter>(pass: &mut Pass<'_, R>, begun: &LandingRef, session: Link, failure: Failure) -> Failure {
    pass.reporter.doing(&pass.findings, Verify::DOING, format!("going back to the old system: {}", failure.message));
    // The old connection may still work where a new one does not; if neither does, the host goes back by itself.
    let failure = match order::settle(pass, &session, begun, End::Revert).await {
        Ok(host) => {
            pass.saw(host.clone());
            pass.findings.records.landing("Activate", None);
            match order::end(&host, begun, "") {
                // What the controller saw says more than that it asked the host to go back.
                Err(end) if matches!(end.reason, Reason::VerificationFailed | Reason::RebootFailed) => {
                    Failure::new(failure.reason, format!("{}; the old system runs again", failure.message))
                }
                Err(end) => end,
                Ok(()) => failure,
            }
        }
        Err(lost) => return lost,
    };
    pass.findings.ended.extend(order::ended(pass.wish, begun, Some(failure.clone())));
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::landing::Landing;

    const NEW: &str = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-nixos-system-web-26.05";

    fn begun() -> LandingRef {
        LandingRef {
            id: "a".into(),
            boot_id: "b".into(),
            system: NEW.into(),
            revision: "main".into(),
            rev: None,
            reboot: None,
            failed_units: vec![],
        }
    }

    fn found(exit: i32, failed: &[&str], restarts: u64) -> Verification {
        let landing = Landing {
            id: "a".into(),
            active: true,
            state: LandingState::Activated,
            exit: Some(exit),
            code: String::new(),
            why: String::new(),
            old: None,
            new: None,
            left: None,
        };
        let host = HostStatus { current: NEW.parse().ok(), landing: Some(landing), ..HostStatus::default() };
        let restarts = [("web.service".to_owned(), restarts)].into_iter().filter(|(_, n)| *n > 0).collect();
        Verification {
            host,
            running: "running".into(),
            failed: failed.iter().map(|unit| (*unit).to_owned()).collect(),
            restarts,
            journal: vec!["web.service: no such file".into()],
        }
    }

    fn verdict(found: &Verification, before: Option<&Verification>, policy: FailedUnitsPolicy) -> Result<String, Reason> {
        check(found, before, &begun(), &NEW.parse().unwrap(), policy).map_err(|failure| failure.reason)
    }

    #[test]
    fn a_healthy_system_passes() {
        assert_eq!(verdict(&found(0, &[], 0), Some(&found(0, &[], 0)), FailedUnitsPolicy::Revert), Ok(String::new()));
    }

    #[test]
    fn failed_units_revert_or_are_named() {
        use FailedUnitsPolicy::{Keep, Revert};
        assert_eq!(verdict(&found(4, &["web.service"], 0), None, Revert), Err(Reason::UnitsFailed));
        assert_eq!(verdict(&found(4, &[], 0), None, Revert), Err(Reason::UnitsFailed), "exit 4 counts even if nothing is failed now");
        let kept = verdict(&found(4, &["web.service"], 0), None, Keep).unwrap();
        assert!(kept.contains("web.service") && kept.contains("no such file"), "{kept}");
    }

    #[test]
    fn a_crash_loop_shows_at_the_second_look() {
        let (first, second) = (found(0, &[], 1), found(0, &[], 3));
        assert_eq!(verdict(&second, Some(&first), FailedUnitsPolicy::Revert), Err(Reason::UnitsFailed));
        assert_eq!(verdict(&first, Some(&first), FailedUnitsPolicy::Revert), Ok(String::new()), "an old restart is no loop");
    }

    #[test]
    fn somebody_elses_switch_is_not_ours_to_judge() {
        let mut other = found(0, &[], 0);
        other.host.current = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-nixos-system-other".parse().ok();
        assert_eq!(verdict(&other, None, FailedUnitsPolicy::Revert), Err(Reason::Superseded));
    }
}
