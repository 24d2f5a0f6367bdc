//! What the machine boots next, read by `src/landing/boot.sh` from trees as the boot loaders' builders leave them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SCRIPT: &str = concat!(include_str!("../src/landing/boot.sh"), "\"$@\"\n");

/// Calls a function of the script.
fn call(words: &[&str]) -> String {
    let output = Command::new("/bin/sh").args(["-uc", SCRIPT, "boot.sh"]).args(words).env("LC_ALL", "C").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn read(root: &Path) -> String {
    call(&["boot_default", root.to_str().unwrap()])
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

#[test]
fn what_grub_is_told_to_start_once_is_what_it_would_start() {
    for (case, entries) in [("grub", 3), ("grub-other-entries-first", 1), ("grub-reboot", 1)] {
        let tree = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/landing/testdata/boot").join(case).join("tree/boot/grub/grub.cfg");
        let menu = fs::read_to_string(&tree).unwrap();
        let mut systems: Vec<&str> =
            menu.split(" init=").skip(1).filter_map(|rest| rest.split_once("/init").map(|(path, _)| path)).collect();
        systems.sort_unstable();
        systems.dedup();
        assert!(systems.len() >= entries, "{case}: {systems:?}");
        for system in systems {
            let entry = call(&["grub_entry", tree.to_str().unwrap(), system]);
            let root = tempfile::tempdir().unwrap();
            let grub = root.path().join("boot/grub");
            fs::create_dir_all(&grub).unwrap();
            fs::write(grub.join("grub.cfg"), &menu).unwrap();
            fs::write(grub.join("grubenv"), format!("# GRUB Environment Block\nnext_entry={entry}\n####")).unwrap();
            assert_eq!(read(root.path()), system, "{case}: entry {entry:?}");
        }
        assert_eq!(call(&["grub_entry", tree.to_str().unwrap(), "/nix/store/none"]), "", "{case}");
    }
}
