//! Copying closures to hosts, over the protocol of `nix-store --serve`.
//!
//! One command on the host receives everything: asked once what it lacks, then sent it without a pause, path after
//! path, each straight from the file system, while its answers are read beside. Latency counts once per copy, not once
//! per path, and memory does not grow with the closure.

mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod local;
mod nar;
mod order;
mod process;
mod push;
mod serve;
mod stream;
mod substitute;
#[cfg(test)]
mod tests;
mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub use error::CopyError;
pub use local::{LocalStore, LocalStoreError, NixStore};
pub use nar::NarError;
pub use push::push;

/// What to do around a copy, and how long to wait.
#[derive(Debug, Clone)]
pub struct Options {
    /// The GC root on the host, linked before the copy: an absolute path below `/nix/var/nix/gcroots`.
    pub gc_root: String,
    /// A directory on the host that does not outlive a boot; says which process copies.
    pub state_directory: String,
    /// Let the host fetch what it lacks from its own caches first, for this long at most.
    pub substitute_on_host: Option<Duration>,
    /// Give up when nothing has moved for this long. A link must carry 96 KiB in that time: OpenSSH reports no smaller
    /// progress.
    pub stall: Duration,
    /// What the store paths here are below: `/`, unless the store was moved.
    pub root: PathBuf,
}

impl Options {
    /// A copy rooted at `gc_root`, without substitution, given up after 60 s of silence.
    pub fn new(gc_root: impl Into<String>) -> Self {
        Self {
            gc_root: gc_root.into(),
            state_directory: "/run/nixos-host-controller".into(),
            substitute_on_host: None,
            stall: Duration::from_secs(60),
            root: "/".into(),
        }
    }
}

/// Bytes a second below which a copy only holds a place that others wait for: what arrived stays, and the next try sends the rest.
const SLOWEST: u64 = 16 << 10;

/// What every copy may take, however small.
const GRACE: Duration = Duration::from_secs(600);

/// How far a copy is, for whoever looks.
#[derive(Debug, Default)]
pub struct Progress {
    paths: AtomicU64,
    paths_total: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
    signs_of_life: AtomicU64,
    waived: AtomicBool,
}

/// One look at a [`Progress`]. The totals are 0 until the host has said what it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Paths that the host has confirmed.
    pub paths: u64,
    /// Paths that it lacks.
    pub paths_total: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Bytes of NARs that it lacks.
    pub bytes_total: u64,
}

impl Progress {
    /// How far it is now.
    pub fn snapshot(&self) -> Snapshot {
        let bytes_total = self.bytes_total.load(Ordering::Relaxed);
        Snapshot {
            paths: self.paths.load(Ordering::Relaxed),
            paths_total: self.paths_total.load(Ordering::Relaxed),
            // What surrounds the NARs is sent, too, and is of no interest.
            bytes: self.bytes.load(Ordering::Relaxed).min(bytes_total),
            bytes_total,
        }
    }

    fn expect(&self, paths: u64, bytes: u64) {
        self.paths_total.store(paths, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
        self.alive();
    }

    fn sent(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.alive();
    }

    fn confirmed(&self) {
        self.paths.fetch_add(1, Ordering::Relaxed);
        self.alive();
    }

    fn alive(&self) {
        self.signs_of_life.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends when the copy has taken longer than all that it has to send takes at [`SLOWEST`]; gives that time.
    async fn too_slow(&self) -> Duration {
        let mut waited = Duration::ZERO;
        loop {
            let may_take = GRACE + Duration::from_secs(self.bytes_total.load(Ordering::Relaxed) / SLOWEST);
            if waited >= may_take {
                return waited;
            }
            tokio::time::sleep(may_take.saturating_sub(waited)).await;
            waited = may_take;
        }
    }

    /// While `waived`, silence is no fault: something else bounds the wait.
    fn waive(&self, waived: bool) {
        self.waived.store(waived, Ordering::Relaxed);
    }

    /// Ends when there was no sign of life for `stall` (a quarter more at most).
    async fn stalled(&self, stall: Duration) {
        let mut silent = 0;
        while silent < 4 {
            let before = self.signs_of_life.load(Ordering::Relaxed);
            tokio::time::sleep(stall / 4).await;
            let dead = self.signs_of_life.load(Ordering::Relaxed) == before && !self.waived.load(Ordering::Relaxed);
            silent = if dead { silent + 1 } else { 0 };
        }
    }
}

/// What a copy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Paths sent, each confirmed by the host.
    pub paths: u64,
    /// Bytes of their NARs.
    pub bytes: u64,
    /// Paths that the host had already, or fetched by itself.
    pub skipped: u64,
}
