//! What a pass comes to: what its status says, and when there is another one. PURE.

use std::time::Duration;

use nixos_host_api::{Class, NixOSHost, Reason};

use crate::clock::human;
use crate::pipeline::{Findings, Stop, Verdict};
use crate::report::State;
use crate::stage::Failure;

/// What the host's task does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Another pass after this, or when something changes.
    After(Duration),
    /// Another pass at once: the resource changed meanwhile.
    Now,
    /// Nothing until something changes.
    Wait,
}

/// How a pass ended; `Err` if it was cut off by a change, which is what `cancelled` says.
pub(super) fn state(result: Result<Verdict, Stop>, cancelled: bool, object: &NixOSHost, findings: &mut Findings) -> Result<State, ()> {
    let failure = match result {
        Err(Stop::Cancelled) if cancelled => return Err(()),
        Err(Stop::Cancelled) => {
            // Nobody told this pass to end: what it waited for has panicked.
            Failure::new(Reason::InternalError, "work that several hosts wait for broke off; the controller's log says why")
        }
        Err(Stop::Failed(failure)) => failure,
        Ok(verdict) => {
            findings.records.settled();
            return Ok(State::Settled(verdict));
        }
    };
    findings.records.stopped(&failure);
    Ok(failed(failure, object, findings))
}

/// A failure, with what happens next in words. The delay is without its jitter, and no clock value: the same failure is the same status.
pub(super) fn failed(failure: Failure, object: &NixOSHost, findings: &Findings) -> State {
    let text = match failure.reason.class() {
        Class::Rejected => "Held until the spec or the revision changes, or reconcile.fluxcd.io/requestedAt asks.".to_owned(),
        _ => format!("{} is tried again about {} after each try.", failure.reason, human(backoff(object, findings))),
    };
    State::Failed(failure, text)
}

/// Longer after each failure in a row: 5 s, 10 s, 20 s … 10 min, but no longer than the interval, if that is a minute or more.
fn backoff(object: &NixOSHost, findings: &Findings) -> Duration {
    let failures = u32::try_from(findings.records.failures().clamp(1, 8)).unwrap_or(1);
    let longest = Duration::from_secs(600).min(interval(object).max(Duration::from_secs(60)));
    Duration::from_secs(5).saturating_mul(1 << (failures - 1)).min(longest)
}

fn interval(object: &NixOSHost) -> Duration {
    object.spec.interval.as_ref().and_then(|interval| interval.get().ok()).unwrap_or(Duration::from_secs(600))
}

/// When the next pass is.
pub(super) fn next(object: &NixOSHost, state: &Result<State, ()>, findings: &Findings, jitter: impl Fn(Duration) -> Duration) -> Next {
    match state {
        Err(()) => Next::Now,
        Ok(State::Suspended | State::Braked(_)) => Next::Wait,
        // Whether a host is back is looked at also while what it shall run is held.
        Ok(State::Failed(failure, _)) if failure.reason.class() != Class::Rejected || matches!(findings.host, Some(Err(_))) => {
            Next::After(jitter(backoff(object, findings)))
        }
        Ok(
            State::Settled(Verdict::UpToDate(_) | Verdict::RebootPending | Verdict::DryRun(_) | Verdict::Drift)
            | State::Failed(..)
            | State::Doing(..),
        ) => Next::After(jitter(interval(object))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(interval: &str) -> NixOSHost {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": {"name": "web", "namespace": "infra"},
            "spec": {"interval": interval, "flake": {"url": "github:a/b"}, "connection": {"addresses": ["h"], "sshKeyRef": {"name": "k"}}},
        }))
        .unwrap()
    }

    fn after(host: &NixOSHost, state: &Result<State, ()>, findings: &Findings) -> Next {
        next(host, state, findings, |time| time)
    }

    #[test]
    fn the_delay_that_is_told_is_the_one_that_is_waited_for() {
        for (interval, expected) in [
            ("5s", ["5s", "10s", "20s", "40s", "1m", "1m", "1m"]),
            ("2m", ["5s", "10s", "20s", "40s", "1m20s", "2m", "2m"]),
            ("1h", ["5s", "10s", "20s", "40s", "1m20s", "2m40s", "5m20s"]),
        ] {
            let (host, mut findings) = (host(interval), Findings::default());
            for delay in expected {
                let failure = Failure::new(Reason::Unreachable, "no answer");
                findings.records.failed("Observe", String::new(), &failure);
                let state = failed(failure, &host, &findings);
                let State::Failed(_, text) = &state else { panic!("{state:?}") };
                assert_eq!(text, &format!("Unreachable is tried again about {delay} after each try."));
                let delay = nixos_host_api::Duration::from(delay).get().unwrap();
                assert_eq!(after(&host, &Ok(state), &findings), Next::After(delay));
            }
        }
    }

    #[test]
    fn a_host_that_cannot_be_reached_is_looked_at_while_its_system_is_held() {
        let (host, mut findings) = (host("10m"), Findings::default());
        let (gone, broken) = (Failure::new(Reason::Unreachable, "no answer"), Failure::new(Reason::BuildFailed, "no such file"));
        findings.records.failed("Build", "k".into(), &broken);
        let mut pass = |looked: Option<&Failure>| {
            findings.records.forget(crate::stage::OBSERVE);
            findings.host = looked.map(|failure| Err(failure.clone()));
            if let Some(failure) = looked {
                findings.records.failed(crate::stage::OBSERVE, String::new(), failure);
            }
            let state = state(Err(Stop::Failed(broken.clone())), false, &host, &mut findings);
            after(&host, &state, &findings)
        };
        assert_eq!(pass(Some(&gone)), Next::After(Duration::from_secs(5)));
        assert_eq!(pass(None), Next::After(Duration::from_secs(600)));
    }

    #[test]
    fn what_broke_off_without_being_cancelled_is_a_failure_that_is_tried_later_and_later() {
        let (host, mut findings) = (host("10m"), Findings::default());
        let mut broke = |result, cancelled| {
            let state = state(result, cancelled, &host, &mut findings);
            let next = after(&host, &state, &findings);
            (state.map(|state| matches!(state, State::Failed(failure, _) if failure.reason == Reason::InternalError)), next)
        };
        let seconds = |seconds| Next::After(Duration::from_secs(seconds));
        assert_eq!(broke(Err(Stop::Cancelled), false), (Ok(true), seconds(5)));
        assert_eq!(broke(Err(Stop::Cancelled), true), (Err(()), Next::Now), "a change of the resource");
        assert_eq!(broke(Err(Stop::Cancelled), false), (Ok(true), seconds(10)));
        assert_eq!(broke(Ok(Verdict::RebootPending), false), (Ok(false), seconds(600)));
        assert_eq!(broke(Err(Stop::Cancelled), false), (Ok(true), seconds(5)), "what went well is forgotten");
    }
}
