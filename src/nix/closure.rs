//! What a system consists of: its store paths, each with what the store knows of it.

use super::StorePath;

/// What the store knows of one valid path: all that another store needs to take it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// The derivation that made it, if one is recorded.
    pub deriver: Option<StorePath>,
    /// The paths that it refers to, itself perhaps among them.
    pub references: Vec<StorePath>,
    /// SHA-256 of its NAR, as the store writes it: `sha256:<nix base 32>`.
    pub nar_hash: String,
    /// Bytes of its NAR.
    pub nar_size: u64,
    /// Signatures, `<key name>:<base 64>`.
    pub signatures: Vec<String>,
    /// What its content address is, for paths that have one.
    pub content_address: Option<String>,
}

/// A path and all that it refers to, each behind what it refers to, as a store wants to receive them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// What the closure is of.
    pub root: StorePath,
    /// The paths; references first, `root` last.
    pub paths: Vec<PathInfo>,
}

impl Closure {
    /// Bytes of all NARs together.
    pub fn nar_size(&self) -> u64 {
        self.paths.iter().map(|info| info.nar_size).sum()
    }
}
