//! What the controllers of all tests asked the API server for, by its audit logs, is what the chart lets them: nothing else, and all of it.
//!
//! Runs after the other tests, in their world.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;

use nixos_host_e2e::{chart, world::run_directory};
use serde_json::Value;

/// A verb on a resource of an API group, of one name or of any.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    resource: String,
    verb: String,
    name: Option<String>,
}

fn texts(value: &Value) -> impl Iterator<Item = String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}

/// What the chart's Roles and ClusterRoles allow.
fn granted() -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let rendered = [false, true].map(|everywhere| chart::rights("anywhere", everywhere));
    for document in rendered.iter().flat_map(|text| text.split("\n---\n")) {
        let document: Value = serde_saphyr::from_str(document).unwrap();
        for rule in document["rules"].as_array().into_iter().flatten() {
            let names: Vec<_> = texts(&rule["resourceNames"]).map(Some).collect();
            let names = if names.is_empty() { vec![None] } else { names };
            for (group, resource) in
                texts(&rule["apiGroups"]).flat_map(|group| texts(&rule["resources"]).map(move |it| (group.clone(), it)))
            {
                for (verb, name) in texts(&rule["verbs"]).flat_map(|verb| names.iter().map(move |name| (verb.clone(), name.clone()))) {
                    rights.insert(Right { group: group.clone(), resource: resource.clone(), verb, name });
                }
            }
        }
    }
    rights
}

/// What was asked for, and whether it was allowed.
fn asked() -> BTreeSet<(Right, bool)> {
    let mut asked = BTreeSet::new();
    let planes = std::fs::read_dir(run_directory().join("control-plane")).expect("other tests ran in this world");
    let files = planes.flat_map(|plane| std::fs::read_dir(plane.unwrap().path()).unwrap()).map(|file| file.unwrap().path());
    for log in
        files.filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit") && name != "audit-policy.json"))
    {
        let text = std::fs::read_to_string(&log).unwrap();
        // A line that a killed API server was writing may be cut
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for event in
            events.filter(|event| event["user"]["username"].as_str().is_some_and(|user| user.ends_with(&format!(":{}", chart::RELEASE))))
        {
            let Some(decision) = event["annotations"]["authorization.k8s.io/decision"].as_str() else { continue };
            let object = |key: &str| event["objectRef"][key].as_str().map(str::to_owned);
            let path = || event["requestURI"].as_str().unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
            let subresource = object("subresource").map(|name| format!("/{name}")).unwrap_or_default();
            let resource = object("resource").map_or_else(path, |resource| resource + &subresource);
            let verb = event["verb"].as_str().unwrap().to_owned();
            asked.insert((
                Right { group: object("apiGroup").unwrap_or_default(), resource, verb, name: object("name") },
                decision == "allow",
            ));
        }
    }
    asked
}

#[test]
#[ignore = "after all other tests, in their world: make e2e"]
fn the_chart_grants_what_controllers_ask_for_and_nothing_else() {
    let (granted, asked) = (granted(), asked());
    assert!(!asked.is_empty(), "the audit logs have nothing of a controller");
    let covers = |right: &Right, request: &Right| {
        let of = |right: &Right| (right.group.clone(), right.resource.clone(), right.verb.clone());
        of(right) == of(request) && right.name.as_ref().is_none_or(|name| request.name.as_ref() == Some(name))
    };
    // Also what was refused: by an API server that has just started and has not read its Roles yet, which is no fault of the chart
    let missing: Vec<_> = asked.iter().filter(|(request, _)| !granted.iter().any(|right| covers(right, request))).collect();
    let spare: Vec<_> = granted.iter().filter(|right| !asked.iter().any(|(request, allowed)| *allowed && covers(right, request))).collect();
    assert!(missing.is_empty(), "controllers asked for what the chart does not grant: {missing:#?}");
    assert!(spare.is_empty(), "no controller of any test needed: {spare:#?}");
}
