//! Landlock: what of the file system a process, and all that it starts, may use.

use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

/// The newest rules that are asked for; an older kernel enforces those of them that it knows.
const RULES: ABI = ABI::V6;

/// The parts of the file system that a process may use. What does not exist is not there to be used, and no error.
///
/// Never name `/proc` or `/proc/self` for a process that runs a stranger's program: the rules are made by the
/// controller, so `/proc/self` would be the controller's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Files and directories to read and execute, with all that is below.
    pub read: Vec<PathBuf>,
    /// Files and directories to do anything with, with all that is below.
    pub write: Vec<PathBuf>,
}

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel refused the rules.
    #[error("the kernel refused the Landlock rules")]
    Refused(#[from] RulesetError),
    /// The kernel took the rules, and enforces none of them.
    #[error("the kernel does not enforce the Landlock rules")]
    NotEnforced,
}

impl Confinement {
    /// Confines the calling thread, and all processes that it starts from now on; there is no way back.
    pub(super) fn apply(&self) -> Result<(), ConfineError> {
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RULES))?
            .scope(Scope::Signal | Scope::AbstractUnixSocket)?
            .create()?
            .add_rules(path_beneath_rules(&self.read, AccessFs::from_read(RULES)))?
            .add_rules(path_beneath_rules(&self.write, AccessFs::from_all(RULES)))?
            .restrict_self()?;
        if status.ruleset == RulesetStatus::NotEnforced { Err(ConfineError::NotEnforced) } else { Ok(()) }
    }
}

/// Whether this kernel enforces Landlock rules. Tried on a thread of its own, which ends confined.
pub(super) fn supported() -> bool {
    std::thread::spawn(|| Confinement::default().apply().is_ok()).join().unwrap_or(false)
}
