use std::collections::BTreeSet;

use nixos_host_api::{Class, Reason};

use crate::{files, known, list, path, rules, text, yaml};

fn alerts() -> Vec<serde_json::Value> {
    rules().into_iter().filter(|rule| rule["alert"].is_string()).collect()
}

#[test]
fn every_alert_has_a_severity_words_and_a_page() {
    let pages: BTreeSet<String> = files("docs/runbooks", "md").into_iter().map(|(name, _)| name).filter(|name| name != "README").collect();
    let index = std::fs::read_to_string(path("docs/runbooks/README.md")).unwrap();
    for alert in alerts() {
        let name = text(&alert, "alert");
        assert!(["info", "warning", "critical"].contains(&text(&alert["labels"], "severity")), "{name}");
        for key in ["summary", "description"] {
            assert!(text(&alert["annotations"], key).ends_with('.'), "the {key} of {name} is a sentence");
        }
        assert_eq!(text(&alert["annotations"], "runbook_url"), format!("https://nixoshost.dev/runbooks/{name}"));
        let page = std::fs::read_to_string(path(&format!("docs/runbooks/{name}.md"))).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut at = 0;
        for heading in [&*format!("# {name}\n"), "## Meaning\n", "## Impact\n", "## Diagnosis\n\n```console\n", "## Mitigation\n"] {
            at += page[at..].find(heading).unwrap_or_else(|| panic!("{name}.md has no {heading} where it belongs"));
        }
        let after = alert["for"].as_str().unwrap_or("at once");
        let row = format!("| [{name}]({name}.md) | {} | {after} |", text(&alert["labels"], "severity"));
        assert!(index.contains(&row), "docs/runbooks/README.md lacks {row}");
    }
    assert_eq!(pages, alerts().iter().map(|alert| text(alert, "alert").to_owned()).collect(), "a page for each alert, and no other");
}

#[test]
fn every_alert_is_tested_for_firing_and_for_keeping_quiet() {
    let groups: Vec<_> = files("e2e/tests/prometheus", "yaml").iter().flat_map(|(_, text)| list(&yaml(text)["tests"])).collect();
    let tests: Vec<_> = groups.iter().flat_map(|group| list(&group["alert_rule_test"])).collect();
    for alert in alerts() {
        let name = text(&alert, "alert");
        let expected: Vec<bool> =
            tests.iter().filter(|test| test["alertname"] == name).map(|test| !list(&test["exp_alerts"]).is_empty()).collect();
        assert!(expected.contains(&true) && expected.contains(&false), "{name}: {expected:?}");
    }
}

#[test]
fn rules_ask_for_what_is_exported() {
    for rule in rules() {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        known(name, text(&rule, "expr"));
    }
}

/// The reasons that an alert names.
fn reasons(alert: &str, operator: &str) -> BTreeSet<&'static str> {
    let alert = alerts().into_iter().find(|found| found["alert"] == alert).unwrap();
    let expression = text(&alert, "expr").to_owned();
    let (_, list) = expression.split_once(&format!("reason{operator}\"")).unwrap_or_else(|| panic!("no reason{operator} in {expression}"));
    let list = list.split_once('"').unwrap().0;
    list.split('|').map(|name| name.parse::<Reason>().unwrap_or_else(|()| panic!("{name} is no reason")).as_str()).collect()
}

#[test]
fn each_reason_to_be_stalled_belongs_to_exactly_one_alert() {
    let of =
        |class: Class| Reason::ALL.iter().filter(|reason| reason.class() == class).map(|reason| reason.as_str()).collect::<BTreeSet<_>>();
    let (rejected, credentials) = (reasons("NixOSHostRevisionRejected", "=~"), reasons("NixOSHostCredentials", "=~"));
    assert_eq!(rejected, of(Class::Rejected));
    assert!(credentials.is_subset(&of(Class::NeedsPerson)), "{credentials:?}");
    assert_eq!(reasons("NixOSHostStalled", "!~"), &rejected | &credentials);
    assert!(reasons("NixOSHostNotReady", "!~").is_subset(&of(Class::Normal)));
}
