//! Why a copy did not come to its end. What was confirmed stays on the host: the next copy sends the rest.

use std::io;
use std::time::Duration;

use super::local::LocalStoreError;
use super::nar::NarError;
use super::{Progress, Snapshot};
use crate::clock::human;
use crate::world::ssh::{Ended, ExecError, Exit};

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The receiving process could not be started, or the connection was lost.
    #[error("copying to the host, {}", done(.progress))]
    Connection {
        /// How far it was.
        progress: Snapshot,
        /// What happened.
        #[source]
        source: ExecError,
    },
    /// The host's disk is full.
    #[error("the host has no space left for the closure, {}: {stderr}", done(.progress))]
    StoreFull {
        /// How far it was.
        progress: Snapshot,
        /// The last that the host said.
        stderr: String,
    },
    /// The host's Nix wants signatures.
    #[error("the host does not trust this user to copy unsigned paths (root, sudo or a trusted user may): {stderr}")]
    Untrusted {
        /// The last that the host said.
        stderr: String,
    },
    /// There is no Nix on the host, or not where it is looked for.
    #[error("there is no nix-store on the host: {stderr}")]
    NoNix {
        /// The last that the host said.
        stderr: String,
    },
    /// The host ended the copy, for another reason.
    #[error("the host refused the copy ({exit}), {}: {stderr}", done(.progress))]
    Refused {
        /// How far it was.
        progress: Snapshot,
        /// How the receiving process ended.
        exit: Exit,
        /// The last that the host said.
        stderr: String,
    },
    /// What the host answers makes no sense.
    #[error("the host does not keep to the protocol")]
    Protocol(#[source] io::Error),
    /// Nothing moved for too long.
    #[error("nothing moved for {} s, {}", .after.as_secs_f32(), done(.progress))]
    Stalled {
        /// The bound.
        after: Duration,
        /// How far it was.
        progress: Snapshot,
    },
    /// It moved, and would have taken for ever.
    #[error("the copy is slower than {} KiB/s and was given up after {}, {}; the next try goes on from there", super::SLOWEST >> 10, human(*.after), done(.progress))]
    TooSlow {
        /// When it was given up.
        after: Duration,
        /// How far it was.
        progress: Snapshot,
    },
    /// Somebody cancelled it.
    #[error("the copy was cancelled, {}", done(.progress))]
    Cancelled {
        /// How far it was.
        progress: Snapshot,
    },
    /// The local store does not answer.
    #[error("asking the local store")]
    LocalStore(#[from] LocalStoreError),
    /// A path cannot be read from the local store.
    #[error("reading the closure from the local store")]
    Nar(#[from] NarError),
}

fn done(at: &Snapshot) -> String {
    format!("after {} of {} paths", at.paths, at.paths_total)
}

impl CopyError {
    /// What `ended` means, after `saw` on the channel.
    pub(super) fn explain(ended: Result<Ended, ExecError>, saw: io::Error, progress: &Progress) -> Self {
        let progress = progress.snapshot();
        let Ended { exit, stderr_tail: stderr } = match ended {
            Ok(ended) => ended,
            Err(source) => return Self::Connection { progress, source },
        };
        if stderr.contains("No space left on device") {
            Self::StoreFull { progress, stderr }
        } else if stderr.contains("lacks a signature by a trusted key") {
            Self::Untrusted { stderr }
        } else if exit == Exit::Status(127) {
            Self::NoNix { stderr }
        } else if exit.success() && stderr.is_empty() {
            Self::Protocol(saw)
        } else {
            Self::Refused { progress, exit, stderr }
        }
    }
}
