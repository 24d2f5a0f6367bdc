//! Alerts, their tests and pages, and dashboards: that they fit each other, the metrics that the controller exports, and Grafana's model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod alerts;
mod dashboards;
mod promql;

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A path of the repository.
fn path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// The files of a directory with an extension: name without it, and content.
fn files(directory: &str, extension: &str) -> Vec<(String, String)> {
    let found = std::fs::read_dir(path(directory)).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = found.filter(|file| file.extension().is_some_and(|found| found == extension)).collect();
    found.sort();
    found.iter().map(|file| (file.file_stem().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(file).unwrap())).collect()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// All rules of the chart.
fn rules() -> Vec<Value> {
    let groups = files("charts/nixos-host-controller/files/rules", "yaml")
        .iter()
        .flat_map(|(_, text)| list(&yaml(text)["groups"]))
        .collect::<Vec<_>>();
    groups.iter().flat_map(|group| list(&group["rules"])).collect()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// A text that has to be there.
fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().filter(|text| !text.is_empty()).unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// Fails unless each metric of a query is one that the controller exports or that a rule records, with labels that it has.
fn known(whose: &str, query: &str) {
    let recorded: Vec<String> = rules().iter().filter_map(|rule| Some(rule["record"].as_str()?.to_owned())).collect();
    let found = promql::metrics(query);
    assert!(!found.is_empty(), "{whose} asks for no metric: {query}");
    for (metric, labels) in found {
        if recorded.contains(&metric) {
            continue;
        }
        let series = nixos_host_controller::metrics::catalogue::ALL.iter().find(|series| promql::names(series).contains(&metric));
        let series = series.unwrap_or_else(|| panic!("{whose}: {metric} is not exported"));
        for label in labels {
            let has = series.labels.contains(&&*label) || ["job", "instance", "le"].contains(&&*label);
            assert!(has, "{whose}: {metric} has no label {label}");
        }
    }
}
