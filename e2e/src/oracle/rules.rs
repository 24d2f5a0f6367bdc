//! What must hold for every status that is ever written: kstatus, Flux's house rules, the API conventions, and "status never lies".
//! Pure, so that the rules are tested themselves.

use std::collections::BTreeMap;

use serde_json::Value;

/// The longest message that the API conventions allow.
const MESSAGE: usize = 32_768;

/// What is wrong with an object as it is now, given the same object as it was before.
pub fn violations(before: Option<&Value>, now: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(before) = before {
        no_change(before, now, &mut found);
        if before.get("status") == now.get("status") {
            return found;
        }
    }
    let Some(status) = now.get("status").filter(|status| !status.is_null()) else { return found };
    let generation = now.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
    let conditions: Vec<Condition<'_>> = status.get("conditions").and_then(Value::as_array).into_iter().flatten().map(Condition).collect();
    shape(&conditions, &mut found);
    kstatus(&conditions, &mut found);
    generations(status, &conditions, generation, &mut found);
    if let Some(before) = before {
        transitions(before, &conditions, &mut found);
    }
    truth(now, status, &conditions, &mut found);
    found
}

#[derive(Clone, Copy)]
struct Condition<'a>(&'a Value);

impl<'a> Condition<'a> {
    fn text(self, field: &str) -> &'a str {
        self.0.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn kind(self) -> &'a str {
        self.text("type")
    }

    fn status(self) -> &'a str {
        self.text("status")
    }

    fn generation(self) -> Option<i64> {
        self.0.get("observedGeneration").and_then(Value::as_i64)
    }
}

fn status_of<'a>(conditions: &[Condition<'a>], kind: &str) -> Option<&'a str> {
    conditions.iter().find(|condition| condition.kind() == kind).map(|condition| condition.status())
}

/// A write that changes nothing is a write too many.
fn no_change(before: &Value, now: &Value, found: &mut Vec<String>) {
    let essence = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
        }
        object
    };
    let version = |object: &Value| object.pointer("/metadata/resourceVersion").cloned();
    if version(before) != version(now) && essence(before) == essence(now) {
        found.push("a write that changed nothing".to_owned());
    }
}

fn shape(conditions: &[Condition<'_>], found: &mut Vec<String>) {
    let kinds: Vec<_> = conditions.iter().map(|condition| condition.kind()).collect();
    if !kinds.is_sorted() {
        found.push(format!("conditions are not sorted by type: {kinds:?}"));
    }
    if kinds.windows(2).any(|pair| pair[0] == pair[1]) {
        found.push(format!("a condition type appears twice: {kinds:?}"));
    }
    for condition in conditions {
        let kind = condition.kind();
        if !camel_case(kind) {
            found.push(format!("condition type {kind:?} is not PascalCase"));
        }
        if !["True", "False", "Unknown"].contains(&condition.status()) {
            found.push(format!("{kind} has status {:?}", condition.status()));
        }
        if !camel_case(condition.text("reason")) {
            found.push(format!("{kind} has reason {:?}, which is not CamelCase", condition.text("reason")));
        }
        if condition.text("message").chars().count() > MESSAGE {
            found.push(format!("{kind} has a message of {} characters", condition.text("message").chars().count()));
        }
        if condition.text("lastTransitionTime").is_empty() {
            found.push(format!("{kind} has no lastTransitionTime"));
        }
    }
}

fn camel_case(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_uppercase()) && text.chars().all(|letter| letter.is_ascii_alphanumeric())
}

fn kstatus(conditions: &[Condition<'_>], found: &mut Vec<String>) {
    let ready = status_of(conditions, "Ready");
    let reconciling = status_of(conditions, "Reconciling");
    let stalled = status_of(conditions, "Stalled");
    if ready.is_none() {
        found.push("Ready is missing".to_owned());
    }
    for (kind, status) in [("Reconciling", reconciling), ("Stalled", stalled)] {
        if let Some(status @ ("False" | "Unknown")) = status {
            found.push(format!("{kind} is {status}: it must be absent when it is not true"));
        }
    }
    if reconciling.is_some() && stalled.is_some() {
        found.push("Reconciling and Stalled at once".to_owned());
    }
    if stalled == Some("True") && ready != Some("False") {
        found.push(format!("Stalled, and Ready is {ready:?}"));
    }
    if ready == Some("Unknown") && reconciling != Some("True") {
        found.push("Ready is Unknown, and nothing is being done about it (no Reconciling)".to_owned());
    }
}

fn generations(status: &Value, conditions: &[Condition<'_>], generation: i64, found: &mut Vec<String>) {
    let Some(root) = status.get("observedGeneration").and_then(Value::as_i64) else {
        found.push("status.observedGeneration is missing".to_owned());
        return;
    };
    if root > generation {
        found.push(format!("status.observedGeneration {root} is ahead of metadata.generation {generation}"));
    }
    let ready = status_of(conditions, "Ready") == Some("True");
    for condition in conditions {
        let kind = condition.kind();
        match condition.generation() {
            None => found.push(format!("{kind} has no observedGeneration")),
            Some(observed) if observed > generation => {
                found.push(format!("{kind} has observedGeneration {observed}, ahead of metadata.generation {generation}"));
            }
            Some(observed) if ready && observed != root => {
                found.push(format!("Ready, and {kind} has observedGeneration {observed} where the root has {root}"));
            }
            Some(_) => {}
        }
    }
}

/// `lastTransitionTime` says when the status of a condition changed, and nothing else.
fn transitions(before: &Value, conditions: &[Condition<'_>], found: &mut Vec<String>) {
    let before: BTreeMap<_, _> = before
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|condition| (Condition(condition).kind(), Condition(condition)))
        .collect();
    for condition in conditions {
        let Some(old) = before.get(condition.kind()) else { continue };
        let (was, is) = (old.text("lastTransitionTime"), condition.text("lastTransitionTime"));
        if old.status() == condition.status() && was != is {
            found.push(format!("{} stayed {}, and its lastTransitionTime moved from {was} to {is}", condition.kind(), old.status()));
        }
        // Times have whole seconds in one format: text order is time order
        if is < was {
            found.push(format!("{}'s lastTransitionTime went back from {was} to {is}", condition.kind()));
        }
    }
}

/// What is called landed was read back from the host.
fn truth(now: &Value, status: &Value, conditions: &[Condition<'_>], found: &mut Vec<String>) {
    let system = |field: &str| status.pointer(&format!("/system/{field}")).and_then(Value::as_str);
    let flake = |field: &str| status.pointer(&format!("/flake/{field}/rev")).and_then(Value::as_str);
    let applied = status.pointer("/flake/applied").is_some_and(|applied| !applied.is_null());
    let (current, landed, desired) = (system("current"), system("landed"), system("desired"));
    if applied && landed.is_some() && current.is_some() && landed != current && system("bootDefault") != landed {
        found.push(format!(
            "flake.applied is there, and neither the current system {current:?} nor the boot default is the landed one {landed:?}"
        ));
    }
    if let (Some(revision), Some(rev)) = (status.get("revision").and_then(Value::as_str), flake("applied"))
        && !rev.starts_with(revision.rsplit('@').next().unwrap_or_default())
    {
        found.push(format!("revision {revision} is not of the applied {rev}"));
    }
    let drifted = status_of(conditions, "Drifted") == Some("True");
    if status_of(conditions, "Ready") != Some("True") || drifted {
        return;
    }
    let mode = now.pointer("/spec/activation/mode").and_then(Value::as_str).unwrap_or("Switch");
    if ["Switch", "Test"].contains(&mode) && (current.is_none() || current != desired) {
        found.push(format!("Ready in mode {mode}, and the current system is {current:?} where {desired:?} is desired"));
    }
    let boot_default = system("bootDefault").filter(|default| *default != "Unknown");
    if ["Switch", "Boot"].contains(&mode) && boot_default.is_some() && boot_default != desired {
        found.push(format!("Ready in mode {mode}, and the boot default is {boot_default:?} where {desired:?} is desired"));
    }
    if flake("attempted") != flake("applied") && mode == "Switch" {
        found.push(format!("Ready, and {:?} was attempted where {:?} is applied", flake("attempted"), flake("applied")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::violations;

    fn condition(kind: &str, status: &str) -> Value {
        json!({ "type": kind, "status": status, "reason": "Testing", "message": "", "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z" })
    }

    fn object(conditions: &[Value]) -> Value {
        let system =
            json!({ "current": "/nix/store/a", "desired": "/nix/store/a", "bootDefault": "/nix/store/a", "landed": "/nix/store/a" });
        let flake = json!({ "attempted": { "rev": "3f2a9c1d" }, "applied": { "rev": "3f2a9c1d" } });
        json!({
            "metadata": { "generation": 2, "resourceVersion": "1" },
            "spec": {},
            "status": { "observedGeneration": 2, "conditions": conditions, "system": system, "flake": flake, "revision": "main@3f2a9c1" },
        })
    }

    /// Ready, and nothing to say about it.
    fn good() -> Value {
        object(&[condition("Reachable", "True"), condition("Ready", "True")])
    }

    fn changed(pointer: &str, value: Value) -> Value {
        let mut object = good();
        *object.pointer_mut(pointer).expect("the pointer names a part of the object") = value;
        object
    }

    #[test]
    fn a_good_status_breaks_no_rule() {
        assert_eq!(violations(None, &good()), [""; 0]);
        assert_eq!(violations(None, &json!({ "metadata": { "generation": 1 } })), [""; 0]);
    }

    #[test]
    fn each_rule_is_seen_to_be_broken() {
        let mut elsewhere = changed("/status/system/current", json!("/nix/store/b"));
        elsewhere["status"]["system"]["bootDefault"] = json!("/nix/store/c");
        let cases = [
            (object(&[]), "Ready is missing"),
            (object(&[condition("Ready", "True"), condition("Reconciling", "False")]), "must be absent"),
            (object(&[condition("Ready", "False"), condition("Reconciling", "True"), condition("Stalled", "True")]), "at once"),
            (object(&[condition("Ready", "True"), condition("Stalled", "True")]), "Stalled, and Ready is"),
            (object(&[condition("Ready", "Unknown")]), "nothing is being done"),
            (object(&[condition("Ready", "True"), condition("Reachable", "True")]), "not sorted"),
            (object(&[condition("Ready", "True"), condition("Ready", "True")]), "twice"),
            (changed("/status/conditions/1/reason", json!("")), "not CamelCase"),
            (changed("/status/conditions/1/status", json!("Maybe")), "has status"),
            (changed("/status/conditions/1/message", json!("x".repeat(40_000))), "40000 characters"),
            (changed("/status/conditions/0/observedGeneration", json!(1)), "where the root has 2"),
            (changed("/status/conditions/0/observedGeneration", Value::Null), "no observedGeneration"),
            (changed("/status/observedGeneration", json!(3)), "ahead of"),
            (changed("/status/observedGeneration", Value::Null), "is missing"),
            (changed("/status/system/current", json!("/nix/store/b")), "where Some(\"/nix/store/a\") is desired"),
            (changed("/status/system/bootDefault", json!("/nix/store/b")), "boot default"),
            (changed("/status/flake/attempted/rev", json!("ffff")), "was attempted"),
            (changed("/status/revision", json!("main@0000000")), "is not of the applied"),
            (elsewhere, "nor the boot default is the landed one"),
        ];
        for (object, expected) in cases {
            let found = violations(None, &object);
            assert!(found.iter().any(|violation| violation.contains(expected)), "{expected:?} is not among {found:?} of {object}");
        }
    }

    #[test]
    fn a_transition_time_moves_with_the_status_and_only_then() {
        let moved = changed("/status/conditions/1/lastTransitionTime", json!("2026-01-01T00:00:01Z"));
        assert!(violations(Some(&good()), &moved)[0].contains("lastTransitionTime moved"));
        let mut failed = moved.clone();
        failed["status"]["conditions"][1]["status"] = json!("False");
        assert_eq!(violations(Some(&good()), &failed), [""; 0]);
        assert!(violations(Some(&failed), &good())[0].contains("went back"));
    }

    #[test]
    fn a_write_that_changes_nothing_is_seen() {
        let again = changed("/metadata/resourceVersion", json!("2"));
        assert_eq!(violations(Some(&good()), &again), ["a write that changed nothing"]);
        assert_eq!(violations(Some(&good()), &good()), [""; 0]);
    }
}
