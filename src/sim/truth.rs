//! What a status write says, held against what the host said: invariants (c), (e) and (g).

use nixos_host_api::{Class, Reason};
use serde_json::{Value, json};

use super::catalogue::System;
use super::process::Process;
use super::{Sim, Variant, lock};

/// The rules of the end-to-end tests' oracle: the same text, for every write here too.
#[expect(unreachable_pub, reason = "it is a module of the end-to-end tests' library")]
#[path = "../../e2e/src/oracle/rules.rs"]
mod rules;

fn condition<'v>(status: &'v Value, kind: &str) -> Option<&'v Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn applied(status: &Value) -> Option<System> {
    status.pointer("/flake/applied/rev").and_then(Value::as_str).and_then(System::of_revision)
}

impl Sim {
    /// A status was written.
    pub(super) fn wrote(&self, process: &Process, before: &Value, after: &Value) {
        let now = self.now();
        for broken in rules::violations(Some(before), after) {
            self.monitor(|monitor| monitor.broken(now, 'g', &broken));
        }
        let status = &after["status"];
        let reachable = condition(status, "Reachable").is_some_and(|condition| condition["status"] == "True");
        let current = status.pointer("/system/current").and_then(Value::as_str).and_then(System::of);
        let looks = lock(&process.looks).clone();
        let problem = if reachable {
            let read = |system: System| looks.iter().any(|look| look.current == system);
            let stays = |system: System| looks.iter().any(|look| look.current == system && !look.probation);
            match (current, applied(status)) {
                (Some(system), _) if !read(system) => Some(format!("{} is called current", system.name())),
                (_, Some(system)) if !stays(system) => Some(format!("{} is called applied", system.name())),
                _ => None,
            }
        } else {
            let before = applied(&before["status"]);
            let seen = self.monitor(|monitor| monitor.was_applied.clone());
            let known = |system: System| before == Some(system) || seen.contains(&system);
            applied(status).filter(|system| !known(*system)).map(|system| format!("{} is called applied", system.name()))
        };
        if let Some(problem) = problem {
            let said = format!("{problem} in a status of {}, and the host did not say so: {looks:?}", process.name);
            self.monitor(|monitor| monitor.broken(now, 'c', &said));
        }
        let last = status.pointer("/history/0/reason").and_then(Value::as_str);
        if last == Some(Reason::Interrupted.as_str()) && !self.monitor(|monitor| monitor.interrupted) {
            let said = format!("a status of {} says Interrupted, and nothing was", process.name);
            self.monitor(|monitor| monitor.broken(now, 'c', &said));
        }
        let held = condition(status, "Stalled").and_then(|stalled| stalled["reason"].as_str()?.parse::<Reason>().ok());
        let desired = status.pointer("/system/desired").and_then(Value::as_str).and_then(System::of);
        let handled = |object: &Value| object.pointer("/status/lastHandledReconcileAt").cloned();
        let asked = handled(before) != handled(after);
        let ready = condition(status, "Ready").is_some_and(|ready| ready["status"] == "True");
        self.monitor(|monitor| {
            monitor.was_applied.extend(applied(status));
            if asked {
                monitor.asked();
            }
            if let Some(system) = desired.filter(|system| ready && applied(status) == Some(*system)) {
                monitor.stayed(system);
            }
            if let Some(system) = desired.filter(|_| held.is_some_and(|reason| reason.class() == Class::Rejected)) {
                monitor.rejected(now, system);
            }
        });
    }

    /// A status as a controller would write it that is broken in this run's way.
    pub(super) fn broken(&self, before: &Value, mut status: Value) -> Value {
        let ready = |status: &Value| condition(status, "Ready").is_some_and(|ready| ready["status"] == "True");
        match self.variant {
            Some(Variant::AppliedIsAttempted) => {
                if let Some(attempted) = status.pointer("/flake/attempted").cloned() {
                    status["flake"]["applied"] = attempted;
                }
            }
            Some(Variant::ForgetsRecords) => {
                if let Some(status) = status.as_object_mut() {
                    status.remove("stages");
                }
            }
            Some(Variant::NoIntent) => {
                if let Some(stages) = status["stages"].as_array_mut() {
                    stages.retain(|stage| stage["landing"].is_null());
                }
            }
            Some(Variant::RequestIsNeverOver) => {
                if let Some(status) = status.as_object_mut() {
                    status.remove("lastHandledReconcileAt");
                }
            }
            Some(Variant::ReadyTooEarly) if !ready(&status) => {
                let conditions = status["conditions"].as_array_mut();
                for condition in conditions.into_iter().flatten().filter(|condition| condition["type"] == "Ready") {
                    condition["status"] = json!("True");
                }
            }
            Some(Variant::MovesTransitions) => {
                for (place, condition) in status["conditions"].as_array_mut().into_iter().flatten().enumerate() {
                    let old = before.pointer(&format!("/status/conditions/{place}/lastTransitionTime"));
                    if old.is_some_and(|old| *old == condition["lastTransitionTime"]) {
                        condition["lastTransitionTime"] = json!("2030-01-01T00:00:00Z");
                    }
                }
            }
            _ => {}
        }
        status
    }
}
