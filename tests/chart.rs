//! The Helm chart's texts: one version, and a README that says what values.yaml says. `UPDATE=1 cargo test --test chart` writes the table anew.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{fs, path::PathBuf};

use serde_json::Value;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("charts/nixos-host-controller").join(name)
}

/// A table of all values by the comments above them. Each key is on a line of its own, with all of its default or with keys of its own below.
fn table(values: &str) -> String {
    let (mut rows, mut above, mut comment) = (String::from("| value | default | |\n|---|---|---|\n"), Vec::new(), Vec::new());
    for line in values.lines() {
        let text = line.trim_start();
        let depth = (line.len() - text.len()) / 2;
        if let Some(words) = text.strip_prefix('#') {
            comment.push(words.trim());
        } else if let Some((key, default)) = text.split_once(':') {
            above.truncate(depth);
            above.push(key);
            let default = default.trim();
            let shown = if default.is_empty() { String::new() } else { format!("`{default}`") };
            let words = comment.join(" ").replace('|', "\\|");
            assert!(default.is_empty() || !words.is_empty(), "values.yaml: {key} lacks a comment above it");
            if !words.is_empty() {
                let row = format!("| `{}` | {shown} | {words} |\n", above.join("."));
                rows += &row;
            }
            comment.clear();
        } else {
            // A paragraph that is of no key
            comment.clear();
        }
    }
    rows
}

#[test]
fn the_readme_lists_every_value_with_its_default() {
    let values = fs::read_to_string(file("values.yaml")).unwrap();
    let readme = fs::read_to_string(file("README.md")).unwrap();
    let (start, end) = ("<!-- values: generated -->\n", "<!-- /values -->");
    let (before, rest) = readme.split_once(start).expect("README.md has the start mark");
    let (_, after) = rest.split_once(end).expect("README.md has the end mark");
    let fresh = format!("{before}{start}{}{end}{after}", table(&values));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(file("README.md"), &fresh).unwrap();
    } else {
        assert!(fresh == readme, "the chart's README.md is stale: run UPDATE=1 cargo test --test chart");
    }
}

#[test]
fn chart_and_controller_have_one_version() {
    let chart: Value = serde_saphyr::from_str(&fs::read_to_string(file("Chart.yaml")).unwrap()).unwrap();
    assert_eq!(
        (chart["version"].as_str(), chart["appVersion"].as_str()),
        (Some(env!("CARGO_PKG_VERSION")), Some(env!("CARGO_PKG_VERSION")))
    );
}
