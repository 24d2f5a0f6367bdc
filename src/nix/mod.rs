//! Nix's nouns as validated types. PURE: nothing here starts a process or opens a file.

pub mod closure;
pub mod flake_ref;
pub mod locked;
pub mod store_path;

pub use closure::{Closure, PathInfo};
pub use flake_ref::{FlakeRef, FlakeRefError};
pub use locked::LockedFlake;
pub use store_path::{DrvPath, StorePath, StorePathError};
