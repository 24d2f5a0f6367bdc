//! What the services did, for metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was done since the start, and what is being done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Looks at remotes (`git ls-remote`).
    pub looks: u64,
    /// Revisions fetched and locked (`nix flake metadata`).
    pub locks: u64,
    /// Evaluating processes started.
    pub evaluations: u64,
    /// Evaluating processes that run now.
    pub evaluating: u64,
    /// Answers given from memory instead of an evaluation.
    pub remembered: u64,
    /// Realising processes started.
    pub builds: u64,
    /// Realising processes that run now.
    pub building: u64,
}

/// Counts what is done.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) looks: AtomicU64,
    pub(super) locks: AtomicU64,
    pub(super) remembered: AtomicU64,
    pub(super) evaluations: Arc<Gauge>,
    pub(super) builds: Arc<Gauge>,
}

/// Something that is started, runs and ends.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    started: AtomicU64,
    running: AtomicU64,
}

/// Counted as running until it is dropped.
pub(super) struct Counted(Arc<Gauge>);

impl Gauge {
    pub(super) fn begin(self: &Arc<Self>) -> Counted {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tally {
    pub(super) fn read(&self) -> Counters {
        Counters {
            looks: self.looks.load(Ordering::Relaxed),
            locks: self.locks.load(Ordering::Relaxed),
            evaluations: self.evaluations.started.load(Ordering::Relaxed),
            evaluating: self.evaluations.running.load(Ordering::Relaxed),
            remembered: self.remembered.load(Ordering::Relaxed),
            builds: self.builds.started.load(Ordering::Relaxed),
            building: self.builds.running.load(Ordering::Relaxed),
        }
    }
}
