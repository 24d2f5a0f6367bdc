use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{files, known, list, text};

const PANELS: [&str; 7] = ["stat", "timeseries", "bargauge", "state-timeline", "table", "text", "row"];
/// Identifiers of Grafana's units.
const UNITS: [&str; 8] = ["none", "percentunit", "s", "bytes", "Bps", "ops", "reqps", "dateTimeFromNow"];
const BUILT_IN: [&str; 5] = ["__rate_interval", "__range", "__data", "__url_time_range", "datasource"];
const WIDTH: u64 = 24;

fn dashboards() -> BTreeMap<String, Value> {
    let files = files("charts/nixos-host-controller/files/dashboards", "json");
    files.into_iter().map(|(name, text)| (name, serde_json::from_str(&text).unwrap())).collect()
}

/// Every panel that shows data.
fn panels(dashboard: &Value) -> Vec<Value> {
    list(&dashboard["panels"]).into_iter().filter(|panel| !["text", "row"].contains(&text(panel, "type"))).collect()
}

fn variables(dashboard: &Value) -> Vec<Value> {
    list(&dashboard["templating"]["list"])
}

/// The variables that a text uses: `$name`, `${name}`, `${name.field}`.
fn used(text: &str) -> BTreeSet<String> {
    let after = text.split('$').skip(1).map(|after| after.trim_start_matches('{'));
    after.map(|after| after.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap().to_owned()).collect()
}

#[test]
fn there_are_three_with_an_identity_each() {
    let found = dashboards();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["controller", "fleet", "host"]);
    let identities: BTreeSet<&str> = found.values().map(|dashboard| text(dashboard, "uid")).collect();
    assert!(identities.len() == 3 && identities.iter().all(|uid| uid.len() <= 40));
    for (name, dashboard) in &found {
        assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36 && !text(dashboard, "title").is_empty(), "{name}");
        assert!(dashboard["id"].is_null(), "{name}: an id belongs to one Grafana");
    }
}

#[test]
fn panels_have_their_own_ids_and_places() {
    for (name, dashboard) in dashboards() {
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeMap::new());
        for panel in list(&dashboard["panels"]) {
            let title = text(&panel, "title").to_owned();
            assert!(PANELS.contains(&text(&panel, "type")), "{name}: {title} is of an unknown type");
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{name}: {title} has the id of another one");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a place"));
            assert!(w > 0 && h > 0 && x + w <= WIDTH, "{name}: {title} is out of the grid");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                let other = taken.insert(cell, title.clone());
                assert_eq!(other, None, "{name}: {title} lies over another one");
            }
        }
    }
}

#[test]
fn panels_say_what_they_show_in_which_unit_and_from_where() {
    for (name, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            let whose = format!("{name}: {}", text(&panel, "title"));
            assert!(text(&panel, "description").ends_with('.'), "{whose}");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(UNITS.contains(&text(defaults, "unit")), "{whose}");
            let steps = list(&defaults["thresholds"]["steps"]);
            let values: Vec<Option<f64>> = steps.iter().map(|step| step["value"].as_f64()).collect();
            assert!(values.first() == Some(&None) && values.is_sorted(), "{whose}: {values:?}");
            let targets = list(&panel["targets"]);
            let letters: BTreeSet<&str> = targets.iter().map(|target| text(target, "refId")).collect();
            assert!(!targets.is_empty() && letters.len() == targets.len(), "{whose}");
            for source in targets.iter().chain([&panel]) {
                assert_eq!(source["datasource"]["uid"], "${datasource}", "{whose}");
            }
            for target in &targets {
                known(&whose, text(target, "expr"));
            }
        }
    }
}

#[test]
fn variables_that_are_used_exist_and_those_that_exist_are_used() {
    for (name, dashboard) in dashboards() {
        let mut defined = BTreeSet::new();
        for variable in variables(&dashboard) {
            let query = variable["query"]["query"].as_str().unwrap_or_default();
            assert!(used(query).is_subset(&defined), "{name}: {query} uses what is not known yet");
            match text(&variable, "type") {
                "datasource" => assert_eq!(variable["query"], "prometheus"),
                "query" => {
                    assert_eq!(variable["datasource"]["uid"], "${datasource}");
                    let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
                    known(&name, inside.and_then(|inside| inside.rsplit_once(',')).expect("label_values(metric, label)").0);
                }
                other => panic!("{name}: a variable of type {other}"),
            }
            assert!(defined.insert(text(&variable, "name").to_owned()), "{name}: a variable is there twice");
        }
        let used = used(&dashboard.to_string());
        let built_in: BTreeSet<String> = BUILT_IN.map(str::to_owned).into();
        assert_eq!(&used - &built_in, &defined - &built_in, "{name}");
    }
}

#[test]
fn the_table_of_hosts_leads_to_the_dashboard_of_one() {
    let found = dashboards();
    let links = found["fleet"].to_string();
    let (_, link) = links.split_once("/d/").expect("there is a link");
    let (uid, query) = link.split_once("/?").unwrap();
    assert_eq!(uid, text(&found["host"], "uid"));
    let query = query.split_once('"').unwrap().0;
    let given: Vec<&str> = query.split('&').filter_map(|part| part.strip_prefix("var-")?.split('=').next()).collect();
    assert_eq!(given, variables(&found["host"]).iter().map(|variable| text(variable, "name")).collect::<Vec<_>>());
}
