//! How a landing ended, in the words of conditions. PURE.

use nixos_host_api::Reason;

use super::status::{Landing, LandingState};
use crate::stage::Failure;

/// The failure that an ended landing means; `None` if it was committed or is still in flight.
///
/// `detail` is what the host or the verification said beyond the landing's own words.
pub fn failure(landing: &Landing, detail: &str) -> Option<Failure> {
    let went_back = match landing.state {
        LandingState::Reverted => "; the old system runs again",
        LandingState::Superseded => "; what they switched to was left alone",
        LandingState::Failed => "; going back failed, and the boot default is not the old system: the host needs a person",
        _ => return None,
    };
    let reason = match (landing.state, landing.code.as_str()) {
        (LandingState::Failed, _) => Reason::RevertFailed,
        (LandingState::Superseded, _) | (_, "superseded") => Reason::Superseded,
        (_, "activation-failed") if landing.exit == Some(1) => Reason::PreSwitchCheckFailed,
        (_, "activation-failed") => Reason::ActivationFailed,
        (_, "activation-timeout") => Reason::ActivationTimedOut,
        (_, "activation-killed" | "killed") => Reason::Interrupted,
        (_, "commit-failed") => Reason::CommitFailed,
        (_, "no-once") => Reason::RebootUnsupported,
        (_, "reboot-failed") => Reason::RebootFailed,
        _ => Reason::VerificationFailed,
    };
    let detail = if detail.trim().is_empty() { String::new() } else { format!("\n{}", detail.trim()) };
    Some(Failure::new(reason, format!("{}{went_back}{detail}", landing.why)))
}

/// The reason that a refusal before anything was touched means, by the script's word for it.
pub fn refusal(code: &str) -> Reason {
    match code {
        "busy" | "other" => Reason::HostBusy,
        "fenced" => Reason::Fenced,
        "not-ready" | "not-booted" => Reason::HostNotReady,
        "boot-default" => Reason::BootDefaultDiffers,
        "invalid" => Reason::NotANixOSSystem,
        _ => Reason::HostError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn landing(state: LandingState, code: &str, exit: Option<i32>) -> Landing {
        Landing {
            id: "a".into(),
            active: false,
            state,
            exit,
            code: code.into(),
            why: "what happened".into(),
            old: None,
            new: None,
            left: None,
        }
    }

    #[test]
    fn each_end_has_its_reason() {
        use LandingState::{Committed, Failed, Reverted, Superseded};
        let reason = |state, code, exit| failure(&landing(state, code, exit), "").map(|failure| failure.reason);
        assert_eq!(reason(Committed, "", Some(0)), None);
        assert_eq!(reason(Reverted, "activation-failed", Some(2)), Some(Reason::ActivationFailed));
        assert_eq!(reason(Reverted, "activation-failed", Some(1)), Some(Reason::PreSwitchCheckFailed));
        assert_eq!(reason(Reverted, "activation-timeout", None), Some(Reason::ActivationTimedOut));
        assert_eq!(reason(Reverted, "not-committed", Some(0)), Some(Reason::VerificationFailed));
        assert_eq!(reason(Reverted, "commit-failed", Some(0)), Some(Reason::CommitFailed));
        assert_eq!(reason(Superseded, "superseded", Some(0)), Some(Reason::Superseded));
        assert_eq!(reason(Failed, "activation-failed", Some(2)), Some(Reason::RevertFailed));
    }
}
