//! A look at a git remote: what a name leads to now. Nix itself answers with an old revision when the remote is gone.
//!
//! PURE: arguments, and what the answers mean.

use super::error::ResolveError;
use super::message::git_says;
use crate::nix::flake_ref::Follow;

/// What a name led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// The branch or tag, as people call it: `main`, `v1`. None when HEAD is no branch.
    pub(super) name: Option<String>,
    /// The commit: 40 or 64 hexadecimal digits.
    pub(super) rev: String,
}

/// The arguments of git.
pub(super) fn arguments(url: &str, follow: &Follow) -> Vec<String> {
    let patterns = match follow {
        Follow::Ref(name) => candidates(name),
        Follow::Default | Follow::Rev(_) => vec!["HEAD".to_owned()],
    };
    ["ls-remote", "--exit-code", "--symref", "--", url].map(str::to_owned).into_iter().chain(patterns).collect()
}

/// The full names that a name may mean, best first: a branch, then the commit behind an annotated tag, then a plain tag.
fn candidates(name: &str) -> Vec<String> {
    if name.starts_with("refs/") {
        vec![format!("{name}^{{}}"), name.to_owned()]
    } else {
        vec![format!("refs/heads/{name}"), format!("refs/tags/{name}^{{}}"), format!("refs/tags/{name}")]
    }
}

/// Reads `<rev>\t<name>` and `ref: <target>\t<name>` lines. Git matches patterns at the end of names: only exact ones count.
pub(super) fn parse(stdout: &str, follow: &Follow) -> Option<Seen> {
    let find = |wanted: &str| {
        let rev = stdout.lines().filter_map(|line| line.split_once('\t')).find(|(rev, name)| *name == wanted && is_rev(rev));
        rev.map(|(rev, _)| rev.to_owned())
    };
    let short = |full: &str| full.trim_start_matches("refs/heads/").trim_start_matches("refs/tags/").to_owned();
    if let Follow::Ref(name) = follow {
        let rev = candidates(name).iter().find_map(|candidate| find(candidate))?;
        return Some(Seen { name: Some(short(name)), rev });
    }
    let target = stdout.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
    Some(Seen { name: target.map(short), rev: find("HEAD")? })
}

fn is_rev(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What git's exit code and last words mean. Under `LC_ALL=C` it does not translate.
pub(super) fn failure(code: i32, stderr: &[String], follow: &Follow) -> ResolveError {
    if code == 2 {
        let name = if let Follow::Ref(name) = follow { name.as_str() } else { "HEAD" };
        return ResolveError::RefNotFound { name: name.to_owned() };
    }
    remote_failure(stderr)
}

/// What git's words about a remote mean, whoever started git. What is not known counts as unreachable.
pub(super) fn remote_failure(stderr: &[String]) -> ResolveError {
    let message = git_says(stderr);
    let says = |texts: &[&str]| stderr.iter().any(|line| texts.iter().any(|text| line.contains(text)));
    if says(&["Host key verification failed", "REMOTE HOST IDENTIFICATION HAS CHANGED"]) {
        ResolveError::HostKey { message }
    } else if says(&[
        "could not read Username",
        "could not read Password",
        "Authentication failed",
        "Permission denied (",
        "HTTP Basic: Access denied",
        "The requested URL returned error: 401",
        "The requested URL returned error: 403",
    ]) {
        ResolveError::CredentialsRefused { given: false, message }
    } else if says(&["not found", "does not appear to be a git repository", "does not exist", "Could not find repository"])
        && !says(&["Could not resolve host", "command not found"])
    {
        ResolveError::RepositoryNotFound { message }
    } else {
        ResolveError::Unreachable { message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0c8a64eb40bf19dfef1ea0cba74b353e69631762";
    const B: &str = "1d8a64eb40bf19dfef1ea0cba74b353e69631762";

    #[test]
    fn a_branch_goes_before_a_tag_and_a_commit_before_its_tag_object() {
        let follow = Follow::Ref("v1".into());
        let seen = |out: &str| parse(out, &follow).map(|seen| seen.rev);
        assert_eq!(seen(&format!("{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n")).unwrap(), B);
        assert_eq!(seen(&format!("{A}\trefs/heads/v1\n{B}\trefs/tags/v1\n")).unwrap(), A);
        assert_eq!(seen(&format!("{A}\trefs/tags/v1\n")).unwrap(), A);
        assert_eq!(seen(&format!("{A}\trefs/remotes/x/refs/heads/v1\n")), None);
        assert_eq!(seen("--upload-pack=x\trefs/heads/v1\n"), None);
        assert_eq!(arguments("https://h/x", &follow)[4..], ["https://h/x", "refs/heads/v1", "refs/tags/v1^{}", "refs/tags/v1"]);
    }

    #[test]
    fn head_is_known_by_its_branch() {
        let out = format!("ref: refs/heads/main\tHEAD\n{A}\tHEAD\n");
        assert_eq!(parse(&out, &Follow::Default), Some(Seen { name: Some("main".into()), rev: A.into() }));
        assert_eq!(parse(&format!("{A}\tHEAD\n"), &Follow::Default), Some(Seen { name: None, rev: A.into() }));
        let full = Follow::Ref("refs/heads/a/b".into());
        assert_eq!(parse(&format!("{A}\trefs/heads/a/b\n"), &full).unwrap().name.unwrap(), "a/b");
    }

    /// Captured from git 2.39 and OpenSSH 9.2, under LC_ALL=C.
    #[test]
    fn each_failure_is_told_by_what_git_says() {
        let of = |lines: &[&str]| failure(128, &lines.iter().map(|&l| l.to_owned()).collect::<Vec<_>>(), &Follow::Default);
        assert!(matches!(
            of(&["fatal: could not read Username for 'https://h': terminal prompts disabled"]),
            ResolveError::CredentialsRefused { .. }
        ));
        assert!(matches!(of(&["fatal: Authentication failed for 'https://h/x/'"]), ResolveError::CredentialsRefused { .. }));
        assert!(matches!(
            of(&[
                "git@h: Permission denied (publickey).",
                "fatal: Could not read from remote repository.",
                "Please make sure you have the correct access rights",
                "and the repository exists."
            ]),
            ResolveError::CredentialsRefused { .. }
        ));
        assert!(matches!(
            of(&["Host key verification failed.", "fatal: Could not read from remote repository."]),
            ResolveError::HostKey { .. }
        ));
        assert!(matches!(
            of(&["remote: Repository not found.", "fatal: repository 'https://h/x/' not found"]),
            ResolveError::RepositoryNotFound { .. }
        ));
        assert!(matches!(
            of(&["fatal: '/srv/x' does not appear to be a git repository", "fatal: Could not read from remote repository."]),
            ResolveError::RepositoryNotFound { .. }
        ));
        for line in [
            "fatal: unable to access 'https://h/x/': Could not resolve host: h",
            "fatal: unable to access 'https://h/x/': Failed to connect to h port 443 after 0 ms: Couldn't connect to server",
            "fatal: unable to access 'https://h/x/': Operation too slow. Less than 100 bytes/sec transferred the last 30 seconds",
            "ssh: connect to host h port 22: Connection refused",
        ] {
            let ResolveError::Unreachable { message } = of(&[line]) else { panic!("{line}") };
            assert_eq!(message, line);
        }
        assert!(matches!(failure(2, &[], &Follow::Ref("x".into())), ResolveError::RefNotFound { name } if name == "x"));
    }
}
