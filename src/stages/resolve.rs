//! Resolve: the flake reference becomes one revision.
//!
//! Input: the reference, whose credentials, and what a revision has to prove. Effect: one look at the remote for all who ask within an
//! interval; nothing for a revision that is pinned and known. Output: the locked flake.

use nixos_host_api::Reason;
use serde::Serialize;

use crate::nix::LockedFlake;
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage, chain};
use crate::wish::Wish;
use crate::world::nix::{self, ResolveError};

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Resolve {
    flake: String,
    credentials: Option<String>,
    signers: Option<String>,
    allow_downgrade: bool,
}

impl Stage for Resolve {
    const NAME: &'static str = "Resolve";
    const DOING: Reason = Reason::Resolving;
}

impl Resolve {
    /// The inputs that a wish gives.
    pub fn of(wish: &Wish) -> Self {
        Self {
            flake: wish.flake.to_string(),
            credentials: wish.credentials.as_ref().map(|credentials| credentials.digest().to_owned()),
            signers: wish.signers.as_ref().map(|signers| signers.digest().to_owned()),
            allow_downgrade: wish.allow_downgrade,
        }
    }
}

/// The part of an interval for which a look at the remote is good. Less than the shortest jittered interval, so that a single host looks anew each time.
const FRESH: f64 = 0.85;

/// The revision that is wanted now; a person who asks has the remote looked at whatever is known.
pub async fn locked<R: Reporter>(pass: &Pass<'_, R>) -> Result<LockedFlake, Stop> {
    let (wish, now) = (pass.wish, pass.world.clock.now());
    let fresh_since = if pass.retry { Some(now) } else { now.checked_sub(wish.interval.mul_f64(FRESH)) };
    let demands = wish.demands(pass.findings.followed.as_ref());
    let request = nix::Resolve { flake: wish.flake.clone(), credentials: wish.credentials.clone(), fresh_since, demands };
    pass.world.effects.resolve(&request, pass.cancel).await.map_err(|error| failure(wish, &error))
}

fn failure(wish: &Wish, error: &ResolveError) -> Stop {
    let reason = match error {
        ResolveError::Cancelled => return Stop::Cancelled,
        ResolveError::RefNotFound { .. } => Reason::RefNotFound,
        ResolveError::RevNotFound { .. } => Reason::RevisionNotFound,
        ResolveError::Unreachable { .. } | ResolveError::TimedOut { .. } => Reason::RepositoryUnreachable,
        ResolveError::RepositoryNotFound { .. } => Reason::RepositoryNotFound,
        ResolveError::CredentialsRefused { .. } => Reason::CredentialsRefused,
        ResolveError::HostKey { .. } => Reason::RepositoryHostKey,
        ResolveError::Downgrade { .. } => Reason::DowngradeRefused,
        ResolveError::Signature { .. } => Reason::SignatureRefused,
        ResolveError::NotAFlake { .. } => Reason::NotAFlake,
        ResolveError::LockFileOutOfDate { .. } | ResolveError::UnlockedInput { .. } => Reason::LockFileOutOfDate,
        ResolveError::ForbiddenInput { .. } => Reason::EvaluationForbidden,
        ResolveError::Process(_) | ResolveError::Other { .. } => Reason::ResolveFailed,
    };
    let flake = match reason {
        // These name what was looked for themselves.
        Reason::RefNotFound | Reason::RevisionNotFound => wish.flake.reference(None),
        _ => wish.flake.to_string(),
    };
    Failure::new(reason, format!("spec.flake: {flake}: {}", chain(error))).into()
}
