//! From a locked flake and an attribute to a derivation: evaluated once, with all others of that flake, and remembered.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Evaluate;
use super::batch::{Batch, Derived};
use super::driver::Driver;
use super::error::EvaluateError;
use super::flight::Flights;
use super::gather::Gather;
use super::memo::Memo;
use crate::nix::{DrvPath, StorePath};

/// Failures that are remembered; all are forgotten when there are more.
const FAILURES: usize = 5000;

/// What a host's configuration evaluates to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The derivation of the toplevel.
    pub drv: DrvPath,
    /// Its output, as the store reads it from the derivation.
    pub out: StorePath,
    /// The system that it is built on, such as `x86_64-linux`.
    pub system: Option<String>,
    /// The version of NixOS, or its label.
    pub nixos_version: Option<String>,
    /// The version of its kernel.
    pub kernel_version: Option<String>,
    /// `networking.hostName`.
    pub host_name: Option<String>,
    /// It was remembered: nothing was evaluated for it.
    #[serde(skip)]
    pub cached: bool,
}

/// A host that waits for its flake to be evaluated.
struct Order {
    attribute: String,
    cancel: CancellationToken,
    reply: oneshot::Sender<Result<Evaluated, EvaluateError>>,
}

/// Evaluates hosts' configurations.
pub(super) struct Evaluations {
    driver: Arc<Driver>,
    memo: Arc<Memo<Evaluated>>,
    failures: Arc<Mutex<HashMap<String, EvaluateError>>>,
    flights: Flights<String, Result<Evaluated, EvaluateError>>,
    gather: Gather<String, Order>,
}

impl Evaluations {
    pub(super) fn new(driver: Arc<Driver>) -> Self {
        let memo = Arc::new(Memo::open(driver.config.data_dir.join("evaluated.json")));
        Self { driver, memo, failures: Arc::default(), flights: Flights::default(), gather: Gather::default() }
    }

    pub(super) async fn evaluate(&self, request: Evaluate, cancel: &CancellationToken) -> Result<Evaluated, EvaluateError> {
        let key = self.key(&request);
        if let Some(evaluated) = self.remembered(&key).await {
            self.driver.tally.remembered.fetch_add(1, Ordering::Relaxed);
            return Ok(evaluated);
        }
        if request.retry {
            guard(&self.failures).remove(&key);
        } else if let Some(error) = guard(&self.failures).get(&key) {
            return Err(error.clone());
        }
        let order = |token: CancellationToken| {
            let (reply, answer) = oneshot::channel();
            self.place_order(&request, Order { attribute: request.attribute.clone(), cancel: token.clone(), reply });
            async move {
                tokio::select! {
                    () = token.cancelled() => Err(EvaluateError::Cancelled),
                    answer = answer => answer.unwrap_or(Err(EvaluateError::Cancelled)),
                }
            }
        };
        // The same host with other credentials is other work: they may reach other inputs.
        let flight = format!("{key} {}", self.driver.scope(request.credentials.as_ref()));
        self.flights.join(flight, cancel, order).await.unwrap_or(Err(EvaluateError::Cancelled))
    }

    /// What an evaluation is a function of. The fingerprint covers the source and its lock file.
    fn key(&self, request: &Evaluate) -> String {
        let building = self.driver.config.allow_import_from_derivation;
        format!("{} {} {building} {}", request.flake.fingerprint, self.driver.tools.version, request.attribute)
    }

    /// A remembered result, if the store still has its derivation or its output.
    async fn remembered(&self, key: &str) -> Option<Evaluated> {
        let evaluated = self.memo.get(key)?;
        match self.driver.valid(&[evaluated.drv.as_store_path().clone(), evaluated.out.clone()]).await {
            Ok(valid) if valid.is_empty() => {
                self.memo.forget(key);
                None
            }
            Ok(_) => Some(Evaluated { cached: true, ..evaluated }),
            Err(error) => {
                tracing::warn!(%error, "a remembered evaluation cannot be checked; evaluating again");
                None
            }
        }
    }

    /// Has the host evaluated with the others of its flake.
    fn place_order(&self, request: &Evaluate, order: Order) {
        let table = format!("{} {}", request.flake.fingerprint, self.driver.scope(request.credentials.as_ref()));
        let batch = Batch {
            driver: Arc::clone(&self.driver),
            flake: request.flake.clone(),
            credentials: request.credentials.clone(),
            namespace: request.namespace.clone(),
        };
        let (memo, failures) = (Arc::clone(&self.memo), Arc::clone(&self.failures));
        let prefix = self.key(&Evaluate { attribute: String::new(), ..request.clone() });
        let serve = move |(), orders| serve(batch.clone(), orders, prefix.clone(), Arc::clone(&memo), Arc::clone(&failures));
        self.gather.add(table, order, || async {}, serve);
    }
}

/// Evaluates the hosts of these orders together, remembers what is certain, and answers them.
async fn serve(
    batch: Batch,
    orders: Vec<Order>,
    prefix: String,
    memo: Arc<Memo<Evaluated>>,
    failures: Arc<Mutex<HashMap<String, EvaluateError>>>,
) {
    let mut replies: HashMap<String, Vec<_>> = HashMap::new();
    let mut waiters = Vec::new();
    for order in orders.into_iter().filter(|order| !order.cancel.is_cancelled()) {
        waiters.push(order.cancel);
        replies.entry(order.attribute).or_default().push(order.reply);
    }
    let cancel = CancellationToken::new();
    let all_left = async {
        join_all(waiters.iter().map(CancellationToken::cancelled)).await;
        cancel.cancel();
        std::future::pending::<()>().await;
    };
    let mut names: Vec<String> = replies.keys().cloned().collect();
    names.sort_unstable();
    if names.is_empty() {
        return;
    }
    let mut learned = false;
    let settle = |(name, result): (String, Result<Derived, EvaluateError>)| {
        let result = result.map(evaluated);
        match &result {
            Ok(evaluated) => {
                memo.put(format!("{prefix}{name}"), evaluated.clone());
                learned = true;
            }
            Err(error) if error.is_certain() => {
                let mut failures = guard(&failures);
                if failures.len() >= FAILURES {
                    failures.clear();
                }
                failures.insert(format!("{prefix}{name}"), error.clone());
            }
            Err(_) => (),
        }
        for reply in replies.remove(&name).into_iter().flatten() {
            drop(reply.send(result.clone())); // it may have left
        }
    };
    tokio::select! {
        () = batch.run(names, &cancel, settle) => (),
        () = all_left => (),
    }
    if learned {
        drop(tokio::task::spawn_blocking(move || memo.save()).await);
    }
}

fn evaluated(derived: Derived) -> Evaluated {
    let Derived { drv, out, done } = derived;
    Evaluated {
        drv,
        out,
        system: done.system,
        nixos_version: done.nixos_version,
        kernel_version: done.kernel_version,
        host_name: done.host_name,
        cached: false,
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
