//! Store paths: `/nix/store/<32 characters of base 32>-<name>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where store paths live. Nix can be built for another place; no binary cache then helps, so nobody does.
pub const STORE_DIR: &str = "/nix/store";

/// Nix's base 32: digits and lower-case letters without e, o, t, u.
const ALPHABET: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";

const HASH_LENGTH: usize = 32;

/// Nix refuses longer names (`StorePath::MaxPathLen`).
const MAX_NAME_LENGTH: usize = 211;

/// A path in the Nix store, checked: safe as an argument, and never with a leading dash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(String);

/// What is wrong with a text that should be a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// It is not directly below [`STORE_DIR`].
    #[error("{0:?} is not directly below {STORE_DIR}")]
    NotInStore(String),
    /// The part before the first dash is not 32 characters of Nix's base 32.
    #[error("{0:?} has no valid hash before its name")]
    BadHash(String),
    /// The name is empty, too long, starts with a dot and a dash, or has a character that Nix refuses.
    #[error("{0:?} has no valid name after its hash")]
    BadName(String),
    /// It should be a derivation, and does not end in `.drv`.
    #[error("{0:?} is not a derivation: it does not end in .drv")]
    NotADerivation(String),
}

impl StorePath {
    /// The whole path, as in `/nix/store/<hash>-<name>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 characters that name the content or the derivation.
    pub fn hash_part(&self) -> &str {
        &self.base_name()[..HASH_LENGTH]
    }

    /// What a person calls it: all behind the hash and its dash.
    pub fn name(&self) -> &str {
        &self.base_name()[HASH_LENGTH + 1..]
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.0[STORE_DIR.len() + 1..]
    }

    /// The store path that `path` lies in, itself or any depth below: `/nix/store/<hash>-<name>/bin/x`.
    pub fn containing(path: &str) -> Result<Self, StorePathError> {
        let inner = path
            .strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| StorePathError::NotInStore(path.to_owned()))?;
        let base = inner.split('/').next().unwrap_or_default();
        format!("{STORE_DIR}/{base}").parse()
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let base = text
            .strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .filter(|base| !base.contains('/'))
            .ok_or_else(|| StorePathError::NotInStore(text.to_owned()))?;
        let (hash, name) = base
            .split_once('-')
            .filter(|(hash, _)| hash.len() == HASH_LENGTH && hash.bytes().all(|b| ALPHABET.contains(&b)))
            .ok_or_else(|| StorePathError::BadHash(text.to_owned()))?;
        debug_assert_eq!(hash.len(), HASH_LENGTH);
        if !valid_name(name) {
            return Err(StorePathError::BadName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The rule of Nix's `checkName`: its characters, its length, and neither `.`, `..` nor one of them before a dash.
fn valid_name(name: &str) -> bool {
    let characters = |b: u8| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b);
    let dots = name.split('-').next().is_some_and(|first| first == "." || first == "..");
    !name.is_empty() && name.len() <= MAX_NAME_LENGTH && name.bytes().all(characters) && !dots
}

impl TryFrom<String> for StorePath {
    type Error = StorePathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.0
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A store path that is a derivation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "StorePath", into = "StorePath")]
pub struct DrvPath(StorePath);

impl DrvPath {
    /// The whole path.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The same, as any other store path.
    pub fn as_store_path(&self) -> &StorePath {
        &self.0
    }

    /// What a person calls it, without `.drv`.
    pub fn name(&self) -> &str {
        self.0.name().trim_end_matches(".drv")
    }
}

impl TryFrom<StorePath> for DrvPath {
    type Error = StorePathError;

    fn try_from(path: StorePath) -> Result<Self, Self::Error> {
        if path.name().rsplit_once('.').is_some_and(|(_, extension)| extension == "drv") {
            Ok(Self(path))
        } else {
            Err(StorePathError::NotADerivation(path.into()))
        }
    }
}

impl FromStr for DrvPath {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.parse::<StorePath>()?)
    }
}

impl From<DrvPath> for StorePath {
    fn from(drv: DrvPath) -> Self {
        drv.0
    }
}

impl fmt::Display for DrvPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1";

    #[test]
    fn a_store_path_has_a_hash_and_a_name() {
        let path: StorePath = HELLO.parse().unwrap();
        assert_eq!(path.hash_part(), "s66mzxpvicwk07gjbjfw9izjfa797vsw");
        assert_eq!(path.name(), "hello-2.12.1");
        assert_eq!(path.to_string(), HELLO);
    }

    #[test]
    fn what_is_no_store_path_is_refused_by_its_fault() {
        let wrong = |text: &str| text.parse::<StorePath>().unwrap_err();
        assert!(matches!(wrong("/etc/passwd"), StorePathError::NotInStore(_)));
        assert!(matches!(wrong(&format!("{HELLO}/bin/hello")), StorePathError::NotInStore(_)));
        assert!(matches!(wrong("/nix/store/e66mzxpvicwk07gjbjfw9izjfa797vsw-hello"), StorePathError::BadHash(_)));
        assert!(matches!(wrong("/nix/store/s66mzx-hello"), StorePathError::BadHash(_)));
        for name in ["", "a b", "a;b", "$(x)", "a\nb", ".", "..", "..-x", "ä", &"x".repeat(212)] {
            let text = format!("/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-{name}");
            assert!(matches!(wrong(&text), StorePathError::BadName(_)), "{name:?}");
        }
    }

    #[test]
    fn a_file_inside_a_store_path_names_that_path() {
        assert_eq!(StorePath::containing(&format!("{HELLO}/bin/hello")).unwrap().as_str(), HELLO);
        assert_eq!(StorePath::containing(HELLO).unwrap().as_str(), HELLO);
    }

    #[test]
    fn a_derivation_ends_in_drv() {
        let drv: DrvPath = format!("{HELLO}.drv").parse().unwrap();
        assert_eq!(drv.name(), "hello-2.12.1");
        assert!(matches!(HELLO.parse::<DrvPath>(), Err(StorePathError::NotADerivation(_))));
    }
}
