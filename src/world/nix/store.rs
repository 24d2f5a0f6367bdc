//! What the local store has.

use std::collections::HashSet;
use std::error::Error;

use futures::future::BoxFuture;

use crate::nix::StorePath;

/// Says which store paths are valid: there, whole and registered.
pub trait StoreQuery: Send + Sync {
    /// Those of `paths` that are valid.
    fn valid<'a>(&'a self, paths: &'a [StorePath]) -> BoxFuture<'a, Result<HashSet<StorePath>, StoreQueryError>>;
}

/// The local store could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the local store which paths are valid")]
pub struct StoreQueryError(#[source] pub Box<dyn Error + Send + Sync>);
