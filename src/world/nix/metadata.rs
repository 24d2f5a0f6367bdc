//! What `nix flake metadata --json` says, and what its errors mean. PURE; the fields are the same in 2.26 and 2.34.

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::driver::hex;
use super::error::ResolveError;
use super::lock::Locks;
use super::log::{Error, first_error};
use super::look::remote_failure;

/// What is wanted of the answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    /// 64 hexadecimal digits: the source with its lock file.
    #[serde(default)]
    pub(super) fingerprint: String,
    pub(super) last_modified: i64,
    pub(super) locked: Locked,
    #[serde(default)]
    pub(super) locks: Locks,
}

/// The source.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Locked {
    pub(super) nar_hash: String,
    pub(super) rev: Option<String>,
    #[serde(default)]
    dir: String,
}

/// Reads the answer; what is not as it should be is an error, for it names what is evaluated.
pub(super) fn parse(stdout: &[u8]) -> Result<Metadata, ResolveError> {
    let odd = |what: &str| ResolveError::Other { message: format!("`nix flake metadata` gave {what}") };
    let mut metadata: Metadata = serde_json::from_slice(stdout).map_err(|error| odd(&format!("no metadata: {error}")))?;
    if !(metadata.locked.nar_hash.starts_with("sha256-") && metadata.locked.nar_hash.len() == 51) {
        return Err(odd("no narHash"));
    }
    if metadata.fingerprint.is_empty() {
        // 2.26 has none for a plain directory. Its content, the lock file in it, and where in it the flake is say as much.
        let text = format!("{} {}", metadata.locked.nar_hash, metadata.locked.dir);
        metadata.fingerprint = hex(&Sha256::digest(text));
    }
    if metadata.fingerprint.len() != 64 || !metadata.fingerprint.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(odd("no fingerprint"));
    }
    Ok(metadata)
}

/// What git says to Nix, and Nix does not mind.
const HARMLESS: [&str; 2] = ["fatal: Refusing to point HEAD", "fatal: cannot change to"];

/// What Nix's last words mean. Git's own lines stand among them, without a prefix; they tell more than Nix does.
pub(super) fn failure(stderr: &[String], rev: Option<&str>) -> ResolveError {
    let error = first_error(stderr);
    let message = error.as_ref().map(Error::text).unwrap_or_default();
    let harmless = |line: &str| HARMLESS.iter().any(|start| line.starts_with(start));
    let git: Vec<String> = stderr.iter().filter(|line| !line.starts_with("@nix ") && !harmless(line)).cloned().collect();
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    let git_says = |texts: &[&str]| git.iter().any(|line| texts.iter().any(|text| line.contains(text)));
    if says(&["cannot write modified lock file", "requires lock file changes", "lock file changes but they're not allowed"]) {
        // The controller takes no options from the person who reads this.
        ResolveError::LockFileOutOfDate { message: message.replace(" (use '--no-write-lock-file' to ignore)", "") }
    } else if says(&["contains unlocked input", "unlocked input", "cannot call 'getFlake' on unlocked", "is not locked"]) {
        ResolveError::UnlockedInput { message }
    } else if says(&["forbidden in restricted mode"]) {
        ResolveError::ForbiddenInput { input: "unknown".into(), problem: message }
    } else if says(&["flake.nix' does not exist", "is not a flake"])
        || (says(&["does not exist", "is not a directory"]) && !says(&["repository"]))
    {
        ResolveError::NotAFlake { message }
    } else if git_says(&["fatal: "]) && !git_says(&["not our ref", "did not send all necessary objects"]) {
        // Before what Nix makes of it: 2.26 says then that there is no such revision.
        remote_failure(&git)
    } else if git_says(&["fatal: "]) || says(&["Cannot find Git revision"]) {
        ResolveError::RevNotFound { rev: rev.unwrap_or("(none)").into(), message }
    } else if says(&["HTTP error 404"]) {
        ResolveError::RepositoryNotFound { message }
    } else if says(&["HTTP error 401", "HTTP error 403"]) {
        ResolveError::CredentialsRefused { given: false, message }
    } else if says(&["unable to download", "HTTP error"]) {
        ResolveError::Unreachable { message }
    } else {
        ResolveError::Other { message: if message.is_empty() { super::message::git_says(stderr) } else { message } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_both_versions_is_read() {
        for text in [include_str!("fixtures/metadata-2.26.json"), include_str!("fixtures/metadata-2.34.json")] {
            let metadata = parse(text.as_bytes()).unwrap();
            assert_eq!(metadata.fingerprint, "a8c6dc01533d76016b81594372086600cf5ce581a2e09151a0daecdaf2099129");
            assert_eq!(metadata.locked.rev.unwrap(), "0c8a64eb40bf19dfef1ea0cba74b353e69631762");
            assert_eq!(metadata.locked.nar_hash, "sha256-L4fSljL6aiKWnqP2yzJQis3FO53zWjGS0klfFN3+HUs=");
            assert_eq!(metadata.last_modified, 1_795_404_283);
            metadata.locks.check(false).unwrap();
        }
        for text in ["", "{}", r#"{"fingerprint":"x","lastModified":1,"locked":{"narHash":"y"}}"#] {
            assert!(parse(text.as_bytes()).is_err());
        }
    }

    fn of(nix: &str, git: &[&str]) -> ResolveError {
        let nix = format!("@nix {}", serde_json::json!({"action": "msg", "level": 0, "msg": format!("error: {nix}"), "raw_msg": nix}));
        let lines: Vec<String> = git.iter().map(|&line| line.to_owned()).chain([nix]).collect();
        failure(&lines, Some("abc"))
    }

    #[test]
    fn each_failure_is_told_by_what_nix_or_git_says() {
        use ResolveError as E;
        assert!(matches!(
            of("cannot write modified lock file of flake 'git+https://h/x' (use '--no-write-lock-file' to ignore)", &[]),
            E::LockFileOutOfDate { .. }
        ));
        assert!(matches!(
            of("flake 'path:/x' requires lock file changes but they're not allowed due to '--no-update-lock-file'", &[]),
            E::LockFileOutOfDate { .. }
        ));
        assert!(matches!(of("Lock file contains unlocked input '{}'", &[]), E::UnlockedInput { .. }));
        assert!(matches!(of("path '«git+https://h/x?ref=HEAD&rev=abc»/flake.nix' does not exist", &[]), E::NotAFlake { .. }));
        assert!(matches!(
            of("Cannot find Git revision 'abc' in ref 'HEAD' of repository 'h'!", &["fatal: remote error: upload-pack: not our ref abc"]),
            E::RevNotFound { .. }
        ));
        assert!(matches!(
            of("Failed to fetch git repository 'https://h/x'", &["fatal: Authentication failed for 'https://h/x/'"]),
            E::CredentialsRefused { .. }
        ));
        // 2.26 hides the truth behind a message about the revision.
        assert!(matches!(
            of(
                "resolving Git reference 'HEAD': revspec 'HEAD' not found",
                &["fatal: unable to access 'https://h/': Could not resolve host: h"]
            ),
            E::Unreachable { .. }
        ));
        assert!(matches!(of("unable to download 'https://h/x.tar.gz': HTTP error 404", &[]), E::RepositoryNotFound { .. }));
        assert!(matches!(of("unable to download 'https://h/x.tar.gz': HTTP error 401", &[]), E::CredentialsRefused { .. }));
        assert!(matches!(of("unable to download 'https://h/x.tar.gz': Couldn't connect to server (7)", &[]), E::Unreachable { .. }));
        assert!(matches!(of("access to URI 'path:/etc' is forbidden in restricted mode", &[]), E::ForbiddenInput { .. }));
    }
}
