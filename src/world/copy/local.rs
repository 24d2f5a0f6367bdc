//! What the controller's own store has, asked of one `nix-store --serve` that stays.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use tokio::sync::Mutex;

use super::order::{self, NoClosure};
use super::process::Process;
use crate::clock::human;
use crate::nix::{Closure, StorePath};

pub use super::process::NixStore;

/// A process that stays must not remember what another one may have changed since.
const FORGETFUL: [&str; 6] = ["--option", "narinfo-cache-positive-ttl", "0", "--option", "narinfo-cache-negative-ttl", "0"];

/// The controller's own store. One question at a time; the process is started by the first one, and again after any
/// failure.
#[derive(Debug)]
pub struct LocalStore {
    nix: NixStore,
    deadline: Duration,
    process: Mutex<Option<Process>>,
}

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LocalStoreError {
    /// The process cannot be started.
    #[error("starting {} --serve", .program.display())]
    Start {
        /// The program.
        program: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended, or answered what makes no sense.
    #[error("asking the local store{}{stderr}", if .stderr.is_empty() { "" } else { ": " })]
    Ask {
        /// The last of its standard error.
        stderr: String,
        /// How it shows.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the local store did not answer within {}", human(*.after))]
    TimedOut {
        /// The deadline.
        after: Duration,
    },
    /// What it answered is not the closure of `root`.
    #[error("listing the closure of {root}")]
    Closure {
        /// What the closure should be of.
        root: StorePath,
        /// What is wrong.
        #[source]
        source: NoClosure,
    },
}

impl LocalStore {
    /// A store asked by way of `nix`; each answer may take `deadline`, the wait for earlier questions included.
    pub fn new(nix: NixStore, deadline: Duration) -> Self {
        Self { nix, deadline, process: Mutex::new(None) }
    }

    /// Those of `paths` that the store has.
    pub async fn valid(&self, paths: &[StorePath]) -> Result<HashSet<StorePath>, LocalStoreError> {
        let paths: Vec<&StorePath> = paths.iter().collect();
        let valid = self.ask(async |process: &mut Process| process.serve.valid(&paths, false, false).await).await?;
        Ok(valid.into_iter().collect())
    }

    /// The closure of `root`, references first. An error if the store has not got it.
    pub async fn closure(&self, root: &StorePath) -> Result<Closure, LocalStoreError> {
        let infos = self
            .ask(async |process: &mut Process| {
                let paths = process.serve.closure(root).await?;
                process.serve.infos(&paths).await
            })
            .await?;
        order::closure(root, infos).map_err(|source| LocalStoreError::Closure { root: root.clone(), source })
    }

    /// Asks one question. The process is put back only after a whole answer: after anything else, also when the caller
    /// goes away half way, it is out of step and must go.
    async fn ask<T>(&self, question: impl AsyncFnOnce(&mut Process) -> io::Result<T>) -> Result<T, LocalStoreError> {
        let asked = async {
            let mut kept = self.process.lock().await;
            let mut process = match kept.take() {
                Some(process) => process,
                None => Process::start(&self.nix, &FORGETFUL)
                    .map_err(|source| LocalStoreError::Start { program: self.nix.program.clone(), source })?,
            };
            match question(&mut process).await {
                Ok(answer) => {
                    *kept = Some(process);
                    Ok(answer)
                }
                Err(source) => Err(LocalStoreError::Ask { stderr: process.stderr(), source }),
            }
        };
        match tokio::time::timeout(self.deadline, asked).await {
            Ok(result) => result,
            Err(_) => Err(LocalStoreError::TimedOut { after: self.deadline }),
        }
    }
}
