//! Many NixOSHosts at a time, each with a fault of its own: applied together, so that a test of many faults takes as long as one.

use nixos_host_e2e::scenario::{Scenario, condition, merge};
use nixos_host_e2e::until;
use serde_json::{Value, json};

use crate::{SOON, message};

/// One NixOSHost with a fault.
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: String,
    /// What is different from a good one.
    pub(crate) patch: Value,
    /// The reason of `Ready=False`.
    pub(crate) reason: &'static str,
    /// What the message names, each of it exactly once.
    pub(crate) says: Vec<String>,
}

/// A fault, and what is to be said about it.
pub(crate) fn case(name: &str, reason: &'static str, says: &[&str], patch: Value) -> Case {
    Case { name: name.to_owned(), patch, reason, says: says.iter().map(|&text| text.to_owned()).collect() }
}

/// A NixOSHost for the configuration `web-1` on a machine that refuses connections: what is wrong with the flake shows before that does.
pub(crate) fn nowhere(scenario: &Scenario, name: &str, patch: &Value) -> Value {
    let mut manifest = scenario.manifest(0);
    let there = json!({
        "metadata": {"name": name},
        "spec": {"flake": {"attribute": "web-1"}, "connection": {"addresses": ["127.0.0.1"], "port": 1}},
    });
    merge(&mut manifest, &there);
    merge(&mut manifest, patch);
    manifest
}

/// Applies all of them in one go.
pub(crate) fn apply_all(scenario: &Scenario, cases: &[Case]) {
    let items: Vec<Value> = cases.iter().map(|case| nowhere(scenario, &case.name, &case.patch)).collect();
    scenario.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
}

/// Waits until each of them has its own reason, and holds what they say against what they should say.
pub(crate) async fn each_says_so(scenario: &Scenario, cases: &[Case]) {
    let objects = until("each to have its own reason", SOON, || async {
        let list = scenario.kubectl.get(&["nixoshosts"]);
        let objects: Vec<Value> = cases.iter().map(|case| find(&list, &case.name)).collect();
        let wrong: Vec<String> =
            objects.iter().zip(cases).filter(|(object, case)| !has(object, case)).map(|(object, case)| shown(object, case)).collect();
        if wrong.is_empty() { Ok(objects) } else { Err(wrong.join("\n")) }
    })
    .await;
    let wrong: Vec<String> = objects.iter().zip(cases).flat_map(|(object, case)| misspoken(object, case)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn find(list: &Value, name: &str) -> Value {
    let items = list["items"].as_array().expect("a list has items");
    items.iter().find(|item| item["metadata"]["name"] == name).cloned().unwrap_or_else(|| panic!("there is no NixOSHost {name}"))
}

fn has(object: &Value, case: &Case) -> bool {
    condition(object, "Ready").is_some_and(|ready| ready["status"] == "False" && ready["reason"] == case.reason)
}

fn shown(object: &Value, case: &Case) -> String {
    format!("{} should be {}: {}", case.name, case.reason, condition(object, "Ready").unwrap_or(&Value::Null))
}

/// What is not as it should be: parts that are missing or repeated, and a failure of which nobody says what follows.
fn misspoken(object: &Value, case: &Case) -> Vec<String> {
    let text = message(object, "Ready");
    let name = &case.name;
    let counted = case.says.iter().map(|part| (part, text.matches(part.as_str()).count()));
    let mut wrong: Vec<String> =
        counted.filter(|(_, count)| *count != 1).map(|(part, count)| format!("{name}: {part:?} is there {count} times: {text}")).collect();
    let (stalled, reconciling) = (message(object, "Stalled"), message(object, "Reconciling"));
    let follows = [&stalled, &reconciling].into_iter().any(|text| text.contains("is tried again about") || text.contains("Held until"));
    if !follows {
        wrong.push(format!("{name}: nobody says what follows: Stalled {stalled:?}, Reconciling {reconciling:?}"));
    }
    wrong
}
