//! `charts/argocd/values.yaml` is made of the Lua beside it: `UPDATE=1 cargo test --test argocd` writes it anew.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{fs, path::Path};

const ACTIONS: [&str; 5] = ["reconcile", "retry", "suspend", "resume", "rollback"];

const HEAD: &str = "\
# Values for the argo-cd chart: health and actions of a NixOSHost. Generated from resource_customizations/ beside it; do not edit.
# Without that chart: the keys below `cm` belong into `data` of the ConfigMap argocd-cm.
configs:
  cm:
";

/// A YAML block scalar's lines.
fn block(text: &str, indent: usize) -> String {
    let indent = " ".repeat(indent);
    text.lines().flat_map(|line| [if line.is_empty() { "" } else { &indent }, line, "\n"]).collect()
}

fn values(scripts: &Path) -> String {
    let read = |path: &str| fs::read_to_string(scripts.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut values = HEAD.to_owned();
    values += "    resource.customizations.health.nixoshost.dev_NixOSHost: |\n";
    values += &block(&read("health.lua"), 6);
    values += "    resource.customizations.actions.nixoshost.dev_NixOSHost: |\n      discovery.lua: |\n";
    values += &block(&read("actions/discovery.lua"), 8);
    values += "      definitions:\n";
    for action in ACTIONS {
        values += "        - name: ";
        values += action;
        values += "\n          action.lua: |\n";
        values += &block(&read(&format!("actions/{action}/action.lua")), 12);
    }
    values
}

#[test]
fn the_values_for_argo_cd_are_those_of_the_scripts() {
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/argocd");
    let (file, scripts) = (charts.join("values.yaml"), charts.join("resource_customizations/nixoshost.dev/NixOSHost"));
    let fresh = values(&scripts);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &fresh).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(there == fresh, "charts/argocd/values.yaml is stale: UPDATE=1 cargo test --test argocd");
    let actions = fs::read_dir(scripts.join("actions")).unwrap().filter(|entry| entry.as_ref().unwrap().path().join("action.lua").exists());
    assert_eq!(actions.count(), ACTIONS.len(), "each action's script is in the values");
}
