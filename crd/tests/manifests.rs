//! The generated files are what the types say. `UPDATE=1 cargo test -p nixos-host-api` writes them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod reference;

use std::{env, fs, path::Path};

/// Compares a generated text with the file that holds it, or writes the file.
fn fresh(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "{} is stale: run UPDATE=1 cargo test -p nixos-host-api", path.display());
}

/// The same for the part of a file between two marks.
fn between(path: &str, name: &str, text: &str) {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (start, end) = (format!("<!-- {name}: generated -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&start).expect("the page has the start mark");
    let (_, after) = rest.split_once(&end).expect("the page has the end mark");
    fresh(path, &format!("{before}{start}{text}{end}{after}"));
}

#[test]
fn the_manifest_is_what_the_types_say() {
    let crd = nixos_host_api::custom_resource_definition().unwrap();
    let yaml = serde_saphyr::to_string(&crd).unwrap();
    let text = format!("# Generated from crd/src by `UPDATE=1 cargo test -p nixos-host-api`.\n{yaml}");
    fresh("manifests/nixoshosts.yaml", &text);
    // helm takes no file from outside of a chart
    fresh("../charts/nixos-host-controller/files/crds/nixoshosts.yaml", &text);
}

#[test]
fn the_manifest_is_small_enough_for_client_side_apply() {
    let size = nixos_host_api::custom_resource_definition().unwrap().to_string().len();
    assert!(size < 100 * 1024, "{size} bytes");
}

#[test]
fn every_field_of_fixed_values_says_what_each_of_them_means() {
    let crd = nixos_host_api::custom_resource_definition().unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let (mut fields, mut found) = (vec![("spec".to_owned(), spec)], 0);
    while let Some((path, schema)) = fields.pop() {
        let properties = schema["properties"].as_object().or_else(|| schema["items"]["properties"].as_object());
        fields.extend(properties.into_iter().flatten().map(|(name, schema)| (format!("{path}.{name}"), schema)));
        for value in schema["enum"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str) {
            found += 1;
            assert!(schema["description"].as_str().unwrap_or_default().contains(&format!("`{value}`")), "{path} says nothing of {value}");
        }
    }
    assert!(found > 20, "only {found} values were found");
}

#[test]
fn the_troubleshooting_page_lists_every_reason() {
    between("../docs/troubleshooting.md", "reasons", &nixos_host_api::Reason::reference());
}

#[test]
fn the_reference_is_what_the_types_say() {
    let crd = nixos_host_api::custom_resource_definition().unwrap();
    between("../docs/api.md", "fields", &reference::of(&crd));
}
