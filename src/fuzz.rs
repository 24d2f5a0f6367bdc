//! Every parser of what a machine, Nix or git prints, by the name of its fuzz target: none of them panics, and each keeps its promises.
//!
//! Part of tests and of `make fuzz`, not of the controller.

use crate::host_build::BuildState;
use crate::landing::{HostStatus, Verification};
use crate::nix::{DrvPath, FlakeRef, StorePath};
use crate::world::ssh::HostKey;
use crate::world::{copy, nix};

/// A parser, and its promises.
pub type Target = fn(&[u8]);

/// All of them.
pub const TARGETS: [(&str, Target); 11] = [
    ("build_log", nix::fuzz::build_log),
    ("evaluation_log", nix::fuzz::evaluation_log),
    ("flake_metadata", nix::fuzz::flake_metadata),
    ("flake_reference", flake_reference),
    ("git_output", nix::fuzz::git_output),
    ("host_build", host_build),
    ("host_key", host_key),
    ("host_status", host_status),
    ("secret", nix::fuzz::secret),
    ("serve_protocol", copy::fuzz::serve_protocol),
    ("store_path", store_path),
];

/// Runs the target of this name.
///
/// # Panics
///
/// If the parser does not keep its promises, or there is none of this name.
pub fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    assert!(found.is_some(), "there is no fuzz target {name}");
    if let Some((_, target)) = found {
        target(data);
    }
}

/// What `landing.sh` prints on a machine.
fn host_status(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = (HostStatus::parse(&text), Verification::parse(&text));
}

/// What `build.sh` prints on a machine: of what it says no more is kept than is shown.
fn host_build(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let kept = match BuildState::parse(&text) {
        Some(BuildState::Failed(_, log)) => log,
        Some(BuildState::Running(line)) => vec![line],
        _ => Vec::new(),
    };
    assert!(kept.len() <= 40 && kept.iter().all(|line| line.chars().count() <= 300 && !line.contains(char::is_control)), "{kept:?}");
}

/// A store path is what it was parsed from, and nothing that a shell would read.
fn store_path(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(path) = text.parse::<StorePath>() {
        assert_eq!(path.as_str(), text);
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/+-._?=".contains(&b)), "{text}");
        assert_eq!(format!("/nix/store/{}-{}", path.hash_part(), path.name()), text);
    }
    let _ = (StorePath::containing(&text), text.parse::<DrvPath>());
}

/// A reference means the same to whoever reads it again, and has no character that could end it.
fn flake_reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (url, name) = text.split_once('\n').map_or((&*text, None), |(url, name)| (url, Some(name)));
    if let Ok(flake) = FlakeRef::new(url, None, name, true) {
        let reference = flake.reference(None);
        assert!(!reference.chars().any(|c| c.is_control() || c.is_whitespace() || "#\"'`$;\\".contains(c)), "{reference:?}");
        let again = FlakeRef::new(&reference, None, None, true).map(|flake| flake.reference(None));
        assert_eq!(again.as_ref(), Ok(&reference), "of {url:?}");
        assert!(flake.git_url().is_none_or(|url| !url.starts_with('-')), "{reference:?}");
    }
}

/// A host key is the same when it is read again as it is shown.
fn host_key(data: &[u8]) {
    if let Ok(key) = String::from_utf8_lossy(data).parse::<HostKey>() {
        assert!(key.to_string().parse::<HostKey>().is_ok_and(|again| again == key), "{key}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn every_crash_that_fuzzing_found_stays_fixed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (name, target) in TARGETS {
            assert!(root.join(format!("fuzz_targets/{name}.rs")).exists(), "{name} is fuzzed");
            let seeds = files(&root.join("seeds").join(name));
            assert!(!seeds.is_empty(), "{name} has a seed");
            for file in seeds.into_iter().chain(files(&root.join("crashes").join(name))) {
                target(&std::fs::read(&file).unwrap());
            }
        }
        assert_eq!(files(&root.join("fuzz_targets")).len(), TARGETS.len(), "each target has its file");
    }
}
