//! What the controller's own store has, asked of one `nix-store --serve` that stays.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Mutex, oneshot};

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
    process: Arc<Mutex<Option<Process>>>,
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
        Self { nix, deadline, process: Arc::default() }
    }

    /// Those of `paths` that the store has.
    pub async fn valid(&self, paths: &[StorePath]) -> Result<HashSet<StorePath>, LocalStoreError> {
        let paths = paths.to_vec();
        let ask = self.ask(|process| async move { process.serve.valid(&paths.iter().collect::<Vec<_>>(), false, false).await }.boxed());
        Ok(ask.await?.into_iter().collect())
    }

    /// The closure of `root`, references first. An error if the store has not got it.
    pub async fn closure(&self, root: &StorePath) -> Result<Closure, LocalStoreError> {
        let asked = root.clone();
        let ask = self.ask(|process| {
            let infos = async move {
                let paths = process.serve.closure(&asked).await?;
                process.serve.infos(&paths).await
            };
            infos.boxed()
        });
        order::closure(root, ask.await?).map_err(|source| LocalStoreError::Closure { root: root.clone(), source })
    }

    /// Asks one question. Where the caller goes away half way it is asked to its end all the same, for a short while: the process, which is put back
    /// only after a whole answer, would be out of step and have to go.
    async fn ask<T, Q>(&self, question: Q) -> Result<T, LocalStoreError>
    where
        T: Send + 'static,
        Q: for<'p> FnOnce(&'p mut Process) -> BoxFuture<'p, io::Result<T>> + Send + 'static,
    {
        let asked = async {
            let mut kept = Arc::clone(&self.process).lock_owned().await;
            let mut process = match kept.take() {
                Some(process) => process,
                None => Process::start(&self.nix, &FORGETFUL)
                    .map_err(|source| LocalStoreError::Start { program: self.nix.program.clone(), source })?,
            };
            let (mut answer, answered) = oneshot::channel();
            tokio::spawn(async move {
                let result = tokio::select! {
                    biased;
                    result = question(&mut process) => result,
                    () = abandoned(&mut answer) => return,
                };
                let _ = answer.send(match result {
                    Ok(found) => {
                        *kept = Some(process);
                        Ok(found)
                    }
                    Err(source) => Err(LocalStoreError::Ask { stderr: process.stderr(), source }),
                });
            });
            answered.await.unwrap_or_else(|gone| Err(LocalStoreError::Ask { stderr: String::new(), source: io::Error::other(gone) }))
        };
        tokio::time::timeout(self.deadline, asked).await.unwrap_or(Err(LocalStoreError::TimedOut { after: self.deadline }))
    }
}

/// So long nobody has waited for the answer.
async fn abandoned<T>(answer: &mut oneshot::Sender<T>) {
    answer.closed().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
}
