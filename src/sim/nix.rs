//! The simulated Nix and Git: one flake, whose branch has a system for each revision.

use super::Sim;
use super::catalogue::{Behaviour, System};
use super::process::Fate;
use crate::nix::{Closure, LockedFlake, PathInfo, StorePath};
use crate::world::nix::{Build, BuildError, Evaluate, EvaluateError, Evaluated, ResolveError};

fn lost(fate: Fate) -> bool {
    matches!(fate, Fate::LostBefore | Fate::LostAfter | Fate::Silence)
}

impl Sim {
    /// What the followed branch leads to.
    pub(super) fn resolve(&self, fate: Fate) -> Result<LockedFlake, ResolveError> {
        if lost(fate) {
            return Err(ResolveError::Unreachable { message: "connection timed out".into() });
        }
        let rev = self.head().revision();
        Ok(LockedFlake {
            reference: format!("git+https://git.example.org/infra?ref=main&rev={rev}"),
            nar_hash: format!("sha256-{rev}"),
            fingerprint: rev.clone(),
            rev: Some(rev),
            followed: Some("main".into()),
            last_modified: 0,
        })
    }

    /// The system of a revision.
    pub(super) fn evaluate(fate: Fate, request: &Evaluate) -> Result<Evaluated, EvaluateError> {
        let system = request.flake.rev.as_deref().and_then(System::of_revision);
        let failed = || EvaluateError::FetchFailed { message: "an input could not be fetched".into() };
        let system = system.filter(|_| !lost(fate)).ok_or_else(failed)?;
        let drv = format!("{}.drv", system.path()).parse().map_err(|_| failed())?;
        Ok(Evaluated {
            drv,
            out: system.path().clone(),
            system: Some("x86_64-linux".into()),
            nixos_version: None,
            kernel_version: None,
            host_name: None,
            cached: false,
        })
    }

    /// Builds it.
    pub(super) fn build(&self, fate: Fate, request: Build) -> Result<StorePath, BuildError> {
        if lost(fate) {
            return Err(BuildError::OutOfDisk { message: "no space left on device".into() });
        }
        let system = System::of(request.out.as_str());
        if system.is_some_and(|system| self.behaviour(system) == Behaviour::DoesNotBuild) {
            return Err(BuildError::BuilderFailed { drv: request.drv.to_string(), message: "exit code 1".into(), log: Vec::new() });
        }
        Ok(request.out)
    }

    /// Three paths: two that systems share, and the system.
    pub(super) fn closure(root: &StorePath) -> Closure {
        let info = |path: StorePath| PathInfo {
            path,
            deriver: None,
            references: Vec::new(),
            nar_hash: String::new(),
            nar_size: 1,
            signatures: Vec::new(),
            content_address: None,
        };
        Closure { root: root.clone(), paths: vec![info(root.clone()), info(root.clone()), info(root.clone())] }
    }
}
