//! Driving the Nix command line: resolve a flake, evaluate it, build it.
//!
//! Each is a shared service: equal requests join the one that runs, requests for one flake are evaluated together, and
//! requests for builds that come together are realised together. A waiter that is cancelled leaves; the work is
//! cancelled when the last one left.
//!
//! A flake is a stranger's program. It is evaluated with a cleared environment, in Nix's pure and restricted modes,
//! under Landlock, within a deadline and a memory budget; builds get no credential at all.

mod access;
mod admit;
mod agent;
mod batch;
mod blame;
mod build;
mod counters;
mod credentials;
mod driver;
mod error;
mod evaluate;
mod expression;
mod fetch;
mod fetched;
mod flight;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod gather;
mod heard;
mod history;
mod lock;
mod log;
mod look;
mod memo;
mod message;
mod metadata;
mod netrc;
mod outcome;
mod progress;
mod realise;
mod resolve;
mod roots;
mod scopes;
mod signers;
mod store;
mod tools;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::nix::{DrvPath, FlakeRef, LockedFlake, StorePath};
use crate::world::exec::{Count, Processes};

pub use admit::{Demands, Landed};
pub use counters::Counters;
pub use credentials::{Credentials, CredentialsError};
pub use driver::StartError;
pub use error::{BuildError, EvaluateError, ResolveError};
pub use evaluate::Evaluated;
pub use progress::{BuildProgress, Running};
pub use roots::{RootKind, RootName, Roots, RootsError};
pub use signers::{Signers, SignersError};
pub use store::{StoreQuery, StoreQueryError};

use build::Builds;
use driver::Driver;
use evaluate::Evaluations;
use resolve::Resolver;
use tools::Environment;

/// How Nix is driven.
#[derive(Clone)]
pub struct NixConfig {
    /// Where fetcher caches and remembered results live; characters that a shell or ssh could read otherwise are refused.
    pub data_dir: PathBuf,
    /// Flakes and inputs on the controller's own file system are allowed: every author of a host may then read its files.
    pub allow_local_flakes: bool,
    /// Evaluations may build (import from derivation).
    pub allow_import_from_derivation: bool,
    /// How long one evaluating process may take.
    pub evaluate_timeout: Duration,
    /// How long a look at a remote, and how long fetching a revision, may take.
    pub resolve_timeout: Duration,
    /// Bytes of memory for all evaluating processes together.
    pub evaluate_memory: u64,
    /// How many processes may evaluate at once, if memory allows.
    pub evaluations: usize,
    /// How many derivations one realising process may build at once (Nix's `max-jobs`).
    pub builds: usize,
    /// How many cores one build may use (Nix's `cores`); 0 means all.
    pub cores: usize,
    /// Builds run in Nix's sandbox, or fail where there cannot be one.
    pub sandbox: bool,
    /// More files and directories that evaluations may read, such as where Nix itself is installed.
    pub readable: Vec<PathBuf>,
    /// What says which store paths are valid; `None` starts `nix-store --check-validity` for each question.
    pub store: Option<Arc<dyn StoreQuery>>,
    /// What time it is.
    pub clock: Clock,
}

/// A flake to be resolved.
#[derive(Debug, Clone)]
pub struct Resolve {
    /// What `spec.flake` says.
    pub flake: FlakeRef,
    /// What `credentialsRef` leads to.
    pub credentials: Option<Arc<Credentials>>,
    /// A look at the remote made at or after this moment may be reused; `None` asks for a new one. A pinned revision
    /// that was resolved once needs none.
    pub fresh_since: Option<Instant>,
    /// What a revision has to prove before Nix reads any of it.
    pub demands: Demands,
}

/// A NixOS configuration to be evaluated.
#[derive(Debug, Clone)]
pub struct Evaluate {
    /// The flake.
    pub flake: LockedFlake,
    /// The name below `nixosConfigurations`.
    pub attribute: String,
    /// For private inputs; a build during evaluation never sees them.
    pub credentials: Option<Arc<Credentials>>,
    /// A failure that is remembered is tried again.
    pub retry: bool,
    /// Who asks: processes are shared out between these in turn.
    pub namespace: String,
}

/// A toplevel to be built.
#[derive(Debug, Clone)]
pub struct Build {
    /// The derivation.
    pub drv: DrvPath,
    /// Its output, as [`Evaluated`] has it.
    pub out: StorePath,
    /// The system that it is built on, such as `x86_64-linux`; `None` is not checked.
    pub system: Option<String>,
    /// How long building all of it may take.
    pub timeout: Duration,
    /// What keeps the derivation and the output from the garbage collector.
    pub root: RootName,
}

/// Nix, as this controller uses it. Cheap to clone.
#[derive(Clone)]
pub struct Nix {
    driver: Arc<Driver>,
    resolver: Arc<Resolver>,
    evaluations: Arc<Evaluations>,
    builds: Arc<Builds>,
}

impl Nix {
    /// Finds nix, nix-store, git and ssh on PATH, asks Nix what it can build, and prepares the data directory.
    pub async fn start(config: NixConfig, processes: Processes) -> Result<Self, StartError> {
        Self::start_with(config, processes, &std::env::vars_os().collect()).await
    }

    /// The same, with this for the controller's own environment.
    async fn start_with(config: NixConfig, processes: Processes, ours: &Environment) -> Result<Self, StartError> {
        let driver = Arc::new(Driver::start(config, processes, ours).await?);
        Ok(Self {
            resolver: Arc::new(Resolver::new(Arc::clone(&driver))),
            evaluations: Arc::new(Evaluations::new(Arc::clone(&driver))),
            builds: Arc::new(Builds::new(Arc::clone(&driver))),
            driver,
        })
    }

    /// The exact revision that a flake reference leads to now.
    pub async fn resolve(&self, request: &Resolve, cancel: &CancellationToken) -> Result<LockedFlake, ResolveError> {
        self.resolver.resolve(request, cancel).await
    }

    /// The derivation of a host's toplevel. Evaluated once for all that ask; remembered across restarts.
    pub async fn evaluate(&self, request: Evaluate, cancel: &CancellationToken) -> Result<Evaluated, EvaluateError> {
        self.evaluations.evaluate(request, cancel).await
    }

    /// Builds a toplevel, and keeps it from the garbage collector. What is built already starts no process.
    pub async fn build(
        &self,
        request: Build,
        progress: &watch::Sender<BuildProgress>,
        cancel: &CancellationToken,
    ) -> Result<StorePath, BuildError> {
        self.builds.build(request, progress, cancel).await
    }

    /// What keeps hosts' systems from the garbage collector.
    pub fn roots(&self) -> &Roots {
        &self.driver.roots
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.driver.tally.read()
    }

    /// The processes that were started, by program.
    pub fn processes(&self) -> Vec<Count> {
        self.driver.processes.counts()
    }

    /// Whether evaluations are confined by Landlock: the kernel has it, and no local flakes are allowed.
    pub fn confined(&self) -> bool {
        self.driver.processes.landlock() && !self.driver.config.allow_local_flakes
    }

    /// The version of Nix, such as `2.34.8`.
    pub fn version(&self) -> &str {
        &self.driver.tools.version
    }

    /// The systems that can be built here, our own first.
    pub fn systems(&self) -> &[String] {
        &self.driver.tools.systems
    }
}

#[cfg(test)]
mod real_tests;
