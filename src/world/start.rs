//! Putting the world together, once, when the controller starts.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::copy::{LocalStore, NixStore};
use super::nix::{Nix, NixConfig, StartError, StoreQuery, StoreQueryError};
use super::{Effects, Lead, Machines, Peers, Real, Slots, World, exec};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::metrics::queue::Queue;
use crate::nix::StorePath;

/// How many of each kind of work at a time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Looks at hosts.
    pub looks: usize,
    /// Copies to hosts.
    pub copies: usize,
    /// Landings.
    pub landings: usize,
}

/// A question to the local store takes milliseconds; only a disk that hangs takes longer.
const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(60);

impl Real {
    /// Finds Nix. `config.store` is filled in.
    pub async fn start(mut config: NixConfig) -> Result<Self, StartError> {
        let store = Arc::new(LocalStore::new(local_store(), STORE_ANSWERS_WITHIN));
        config.store = Some(Arc::new(Asked(Arc::clone(&store))));
        Ok(Self { nix: Nix::start(config, exec::Processes::new()).await?, store })
    }
}

impl World {
    /// A world in which nothing was done yet.
    pub fn new(effects: Arc<dyn Effects>, metrics: Metrics, clock: Clock, lead: Lead, limits: Limits) -> Self {
        let slots = |name, slots, queue: &Queue| {
            metrics.slots(name, slots);
            Slots::new(slots, queue.clone(), clock.clone())
        };
        Self {
            looks: slots("looks", limits.looks, &metrics.queues.looks),
            copies: slots("copies", limits.copies, &metrics.queues.copies),
            landings: slots("landings", limits.landings, &metrics.queues.landings),
            effects,
            metrics,
            clock,
            lead,
            machines: Machines::default(),
            peers: Peers::default(),
        }
    }
}

/// How the local store is asked: by the nix-store on PATH, with nothing of our environment but where it is and how it is configured.
fn local_store() -> NixStore {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path).map(|dir| dir.join("nix-store")).find(|program| program.is_file());
    let kept = ["PATH", "NIX_CONF_DIR"];
    let environment = kept.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
    NixStore { program: program.unwrap_or_else(|| PathBuf::from("nix-store")), arguments: Vec::new(), environment: environment.collect() }
}

/// The local store, as Nix's driver asks it.
struct Asked(Arc<LocalStore>);

impl StoreQuery for Asked {
    fn valid<'a>(&'a self, paths: &'a [StorePath]) -> BoxFuture<'a, Result<HashSet<StorePath>, StoreQueryError>> {
        async move { self.0.valid(paths).await.map_err(|error| StoreQueryError(Box::new(error))) }.boxed()
    }
}
