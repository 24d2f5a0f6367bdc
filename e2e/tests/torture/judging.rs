//! What must be true of a host and of its status, whatever was broken.

use std::time::{Duration, Instant};

use nixos_host_e2e::scenario::{condition, name};
use serde_json::Value;

use crate::faults::{Fault, Stage};
use crate::{ACTIVATE_WITHIN, COMMIT_WITHIN, Torture, Trial};

/// What a host has on top of its own deadlines to be back.
const GRACE: u64 = 30;
/// For the status to agree with the host: an interval, and the delays after failed tries.
const TRUE_WITHIN: Duration = Duration::from_secs(120);

impl Torture {
    /// The NixOSHost, once the API server answers.
    fn object(&self, index: usize) -> Option<Value> {
        let output = self.scenario.kubectl.attempt(&["get", "-o", "json", "--request-timeout=5s", "nixoshost", &name(index)]);
        serde_json::from_str(&output.stdout).ok()
    }

    /// Waits until the host has begun to activate `new`, from when on its deadlines count; or until it is known not to, as what was rejected before.
    pub(crate) async fn has_begun(&self, index: usize, new: &str) -> Result<bool, String> {
        let began = Instant::now();
        loop {
            if self.word(index, "new") == new && ["activating", "activated"].contains(&self.word(index, "state").as_str()) {
                return Ok(true);
            }
            let object = self.object(index).unwrap_or_default();
            if condition(&object, "Stalled").is_some_and(|stalled| stalled["observedGeneration"] == object["metadata"]["generation"]) {
                return Ok(true);
            }
            if began.elapsed() > TRUE_WITHIN {
                return Err(format!("never activated; status {}", object["status"]));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Within its own deadlines the host answers with no landing going on any more, and is on a system that it was or was to be on.
    pub(crate) async fn answers(&self, index: usize, (fault, stage): Trial, old: &str, new: &str) -> Result<(), String> {
        let limit = match stage {
            Some(Stage::Verify | Stage::Commit) => COMMIT_WITHIN + GRACE,
            _ => ACTIVATE_WITHIN + COMMIT_WITHIN + GRACE,
        };
        let ended =
            "case $(systemctl is-active nixos-host-controller-landing.service) in inactive|failed) readlink -f /run/current-system;; esac";
        let began = Instant::now();
        loop {
            let host = self.host(index);
            let found = if host.init().is_some() { host.ssh(&[ended]).stdout.trim().to_owned() } else { String::new() };
            if !found.is_empty() {
                let known = [old, new].contains(&&*found) || (fault == Fault::PersonSwitches && found == self.base(index));
                return if known { Ok(()) } else { Err(format!("runs {found:?}, neither {old} nor {new}")) };
            }
            if began.elapsed() > Duration::from_secs(limit) {
                return Err(format!("does not answer after {limit} s, or a landing goes on"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The status comes to say what the host runs: the new system, or one it had before, the old or the person's, with a reason.
    ///
    /// While the control plane itself is broken, for all hosts, nobody's status can become true: that time does not count.
    pub(crate) async fn is_true(&self, index: usize, fault: Fault, old: &str, new: &str) -> Result<String, String> {
        let (mut undisturbed, mut looked, mut last) = (Duration::ZERO, Instant::now(), Value::Null);
        loop {
            let host = self.host(index);
            if let Some(object) = self.object(index) {
                last = object;
            }
            if let Some(ready) = condition(&last, "Ready").filter(|ready| ready["observedGeneration"] == last["metadata"]["generation"])
                && host.init().is_some()
            {
                let (current, default) = (host.current_system(), host.boot_default());
                let told = last["status"]["system"]["current"] == current;
                if ready["status"] == "True" && told && current == *new && default == *new {
                    return Ok("new".to_owned());
                }
                let stalled = ready["status"] == "False" && condition(&last, "Stalled").is_some();
                let reason = ready["reason"].as_str().unwrap_or_default();
                if stalled && told && current == *old && default == *old {
                    return Ok(format!("old: {reason}"));
                }
                // Boots whatever was the default when it was switched to
                let persons = fault == Fault::PersonSwitches && current == self.base(index);
                if stalled && told && persons && [old, new].contains(&&*default) {
                    return Ok(format!("the person's: {reason}"));
                }
            }
            if undisturbed > TRUE_WITHIN {
                return Err(self.facts(index, &format!("old {old}, new {new}"), &last));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            undisturbed += if self.shared.try_lock().is_ok() { looked.elapsed() } else { Duration::ZERO };
            looked = Instant::now();
        }
    }

    /// All that is known of a host whose status is not true.
    fn facts(&self, index: usize, wanted: &str, last: &Value) -> String {
        let host = self.host(index);
        let mut facts = format!(
            "after {TRUE_WITHIN:?} of quiet: current {}, default {}, profile {}, {wanted}; last status {}\nthe landing:",
            host.current_system(),
            host.boot_default(),
            host.profile(),
            last["status"]
        );
        for word in ["id", "epoch", "state", "code", "why", "old", "new"] {
            facts.extend([" ", word, "=", &self.word(index, word)]);
        }
        let (log, host) = (self.scenario.controller().log(), name(index));
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&host)).collect();
        for line in &lines[lines.len().saturating_sub(60)..] {
            facts.extend(["\n", line]);
        }
        facts
    }
}
