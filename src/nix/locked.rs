//! A flake reference that has been resolved: one exact source tree.

use serde::{Deserialize, Serialize};

/// One exact revision of a flake. Same `fingerprint`, same source and same lock file: evaluating it is a function.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockedFlake {
    /// The reference that Nix evaluates without asking any remote, such as `git+https://host/repo?ref=HEAD&rev=…`.
    pub reference: String,
    /// The revision; a tarball or a plain directory has none.
    pub rev: Option<String>,
    /// The branch or tag that was followed to it, if one was.
    pub followed: Option<String>,
    /// Hash of the source tree, `sha256-<base 64>`.
    pub nar_hash: String,
    /// Nix's name for source and lock file together: 64 hexadecimal digits. What evaluations are remembered by.
    pub fingerprint: String,
    /// When the source was last modified, in seconds since 1970.
    pub last_modified: i64,
}

impl LockedFlake {
    /// What a person calls it: `main@3f2a9c1`, or `3f2a9c1`, or the first digits of its hash.
    pub fn short(&self) -> String {
        let digits = |text: &str| text.chars().take(7).collect::<String>();
        let rev = match &self.rev {
            Some(rev) => digits(rev),
            None => self.nar_hash.chars().take("sha256-".len() + 7).collect(),
        };
        match &self.followed {
            Some(name) => format!("{name}@{rev}"),
            None => rev,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(rev: Option<&str>, followed: Option<&str>) -> LockedFlake {
        LockedFlake {
            reference: "git+https://example.org/infra?ref=HEAD&rev=3f2a9c1d".into(),
            rev: rev.map(Into::into),
            followed: followed.map(Into::into),
            nar_hash: "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".into(),
            fingerprint: "0".repeat(64),
            last_modified: 0,
        }
    }

    #[test]
    fn the_short_name_says_what_was_followed_and_what_was_found() {
        assert_eq!(locked(Some("3f2a9c1d00"), Some("main")).short(), "main@3f2a9c1");
        assert_eq!(locked(Some("3f2a9c1d00"), None).short(), "3f2a9c1");
        assert_eq!(locked(None, None).short(), "sha256-47DEQpj");
    }
}
