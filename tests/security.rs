//! docs/security.md claims nothing that no test proves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::Path;

/// The names of all tests of the project that are run: those of the library that are ignored by `make nix`, others that are ignored by nobody.
fn tests(directory: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            tests(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                marked &= !line.starts_with("#[ignore") || path.components().any(|part| part.as_os_str() == "src");
                marked |= line == "#[test]" || line.starts_with("#[tokio::test");
                if let Some((_, rest)) = line.split_once("fn ")
                    && std::mem::take(&mut marked)
                {
                    names.push(rest.split('(').next().unwrap().to_owned());
                }
            }
        }
    }
}

#[test]
fn every_claim_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = Vec::new();
    for directory in ["src", "crd", "e2e", "tests"] {
        tests(&root.join(directory), &mut known);
    }
    let text = std::fs::read_to_string(root.join("docs/security.md")).unwrap();
    let claims: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("- ")).collect();
    assert!(claims.len() > 25, "the claims are found");
    for claim in claims {
        // Names of tests are told from other words in backticks by where they are: at the end.
        let (said, proof) = claim.split_once(". `").unwrap_or_else(|| panic!("no test proves this: {claim}"));
        for name in proof.split('`').map(str::trim).filter(|name| !name.is_empty()) {
            assert!(known.iter().any(|test| test == name), "there is no test {name}, which is to prove: {said}");
        }
    }
}
