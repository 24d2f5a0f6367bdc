//! What the machine boots next, read by `src/landing/boot.sh` from trees as the boot loaders' builders leave them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SCRIPT: &str = concat!(include_str!("../src/landing/boot.sh"), "boot_default \"$1\"\n");

fn read(root: &Path) -> String {
    let output = Command::new("/bin/sh").args(["-uc", SCRIPT, "boot_default"]).arg(root).env("LC_ALL", "C").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "reading {}", root.display());
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn cases() -> Vec<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/landing/testdata/boot");
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

#[test]
fn each_tree_gives_what_its_loader_would_start_or_unknown() {
    let wrong: Vec<_> = cases()
        .iter()
        .map(|case| (case.file_name().unwrap().to_owned(), read(&case.join("tree")), fs::read_to_string(case.join("expected")).unwrap()))
        .filter(|(_, found, expected)| found != expected.trim_end())
        .collect();
    assert!(wrong.is_empty(), "case, read, expected: {wrong:#?}");
}

#[test]
fn each_loader_is_read_and_each_has_trees_that_are_not_decided() {
    let expected = |loader: &str, known: bool| {
        cases().iter().any(|case| {
            let is_known = fs::read_to_string(case.join("expected")).unwrap().starts_with("/nix/store/");
            case.file_name().unwrap().to_str().unwrap().starts_with(loader) && is_known == known
        })
    };
    for loader in ["systemd-boot", "lanzaboote", "grub", "extlinux"] {
        assert!(expected(loader, true) && expected(loader, false), "{loader}");
    }
}
