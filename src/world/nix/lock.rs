//! The inputs of a flake, as its lock file has them: which may be fetched. PURE.
//!
//! What counts is `locked`, for that is what Nix fetches, whatever `original` says.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::error::ResolveError;
use super::message::cut;

/// The lock file, as `nix flake metadata --json` repeats it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Locks {
    #[serde(default)]
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    #[serde(default)]
    locked: Option<BTreeMap<String, Value>>,
}

impl Locks {
    /// Refuses inputs that Nix would read from the controller's own files, or fetch with another program.
    pub(super) fn check(&self, local: bool) -> Result<(), ResolveError> {
        let wrong = self.nodes.iter().find_map(|(name, node)| Some((name, problem(node.locked.as_ref()?, local)?)));
        match wrong {
            None => Ok(()),
            Some((input, problem)) => Err(ResolveError::ForbiddenInput { input: cut(input, 100), problem }),
        }
    }
}

/// What is wrong with one locked input, if anything is.
fn problem(locked: &BTreeMap<String, Value>, local: bool) -> Option<String> {
    let text = |name: &str| locked.get(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, url) = (text("type"), text("url"));
    let remote = |schemes: &[&str]| schemes.iter().any(|scheme| url.starts_with(scheme));
    let fine = match kind {
        "github" | "gitlab" | "sourcehut" => true,
        "git" => remote(&["https://", "ssh://", "http://", "git://"]) || local && (remote(&["file://"]) || url.starts_with('/')),
        "tarball" | "file" => remote(&["https://", "http://"]) || local && remote(&["file://"]),
        // Relative: a part of the source that names it.
        "path" => local || !text("path").starts_with('/') && !text("path").split('/').any(|part| part == ".."),
        _ => false,
    };
    (!fine).then(|| match kind {
        "path" | "file" | "git" | "tarball" => {
            let place = if url.is_empty() { text("path") } else { url };
            format!("is locked to {kind} {:?}, which is not a remote address", cut(place, 200))
        }
        _ => format!(
            "is locked with the type {:?}; allowed are git, github, gitlab, sourcehut, tarball and file over http(s)",
            cut(kind, 40)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(locked: &str, local: bool) -> Result<(), ResolveError> {
        let text =
            format!(r#"{{"nodes":{{"root":{{}},"x":{{"original":{{"type":"github"}},"locked":{locked}}}}},"root":"root","version":7}}"#);
        serde_json::from_str::<Locks>(&text).unwrap().check(local)
    }

    #[test]
    fn remote_inputs_are_allowed() {
        for locked in [
            r#"{"type":"github","owner":"a","repo":"b","rev":"c"}"#,
            r#"{"type":"git","url":"https://h/x"}"#,
            r#"{"type":"git","url":"ssh://git@h/x"}"#,
            r#"{"type":"tarball","url":"https://h/x.tar.gz"}"#,
            r#"{"type":"file","url":"https://h/x"}"#,
            r#"{"type":"path","path":"./sub"}"#,
        ] {
            check(locked, false).unwrap();
        }
    }

    #[test]
    fn local_inputs_need_the_operators_word_and_strange_ones_do_not_pass_at_all() {
        for locked in [
            r#"{"type":"path","path":"/etc"}"#,
            r#"{"type":"path","path":"../../etc"}"#,
            r#"{"type":"git","url":"file:///srv/x"}"#,
            r#"{"type":"git","url":"/srv/x"}"#,
            r#"{"type":"tarball","url":"file:///x.tar"}"#,
            r#"{"type":"file","url":"file:///etc/passwd"}"#,
        ] {
            assert!(matches!(check(locked, false), Err(ResolveError::ForbiddenInput { input, .. }) if input == "x"), "{locked}");
            check(locked, true).unwrap();
        }
        for locked in [r#"{"type":"hg","url":"https://h"}"#, r#"{"type":"indirect","id":"x"}"#, r#"{"type":"git","url":"ext::sh"}"#, "{}"] {
            assert!(check(locked, true).is_err(), "{locked}");
        }
    }
}
