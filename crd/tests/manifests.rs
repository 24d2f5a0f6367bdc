//! The generated files are what the types say. `UPDATE=1 cargo test -p nixos-host-api` writes them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

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

#[test]
fn the_manifest_is_what_the_types_say() {
    let crd = nixos_host_api::custom_resource_definition().unwrap();
    let yaml = serde_saphyr::to_string(&crd).unwrap();
    fresh("manifests/nixoshosts.yaml", &format!("# Generated from crd/src by `UPDATE=1 cargo test -p nixos-host-api`.\n{yaml}"));
}

#[test]
fn the_manifest_is_small_enough_for_client_side_apply() {
    let size = nixos_host_api::custom_resource_definition().unwrap().to_string().len();
    assert!(size < 100 * 1024, "{size} bytes");
}

#[test]
fn the_readme_lists_every_reason() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- reasons: generated -->\n", "<!-- /reasons -->");
    let (before, rest) = readme.split_once(start).expect("README.md has the start mark");
    let (_, after) = rest.split_once(end).expect("README.md has the end mark");
    fresh("../README.md", &format!("{before}{start}{}{end}{after}", nixos_host_api::Reason::table()));
}
