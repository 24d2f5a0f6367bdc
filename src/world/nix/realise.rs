//! One `nix-store --realise` for all derivations that are wanted now; who failed is sorted out afterwards.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::blame::{Cause, causes, timed_out, told};
use super::build::unknown;
use super::driver::{Driver, NETWORK};
use super::error::BuildError;
use super::message::git_says;
use super::progress::{BuildProgress, Failure, Fault, Watcher};
use crate::nix::{DrvPath, StorePath};
use crate::world::exec::{Command, Ending, ExecError, Finished};

/// How often progress is told, and finished builds are looked at.
const TICK: Duration = Duration::from_millis(200);

/// A derivation that is wanted.
pub(super) struct Order {
    pub(super) drv: DrvPath,
    pub(super) out: StorePath,
    pub(super) timeout: Duration,
    pub(super) told: watch::Sender<BuildProgress>,
    pub(super) cancel: CancellationToken,
    /// Taken when it is answered.
    pub(super) reply: Option<oneshot::Sender<Result<StorePath, BuildError>>>,
}

impl Order {
    fn answer(&mut self, result: Result<StorePath, BuildError>) {
        if let Some(reply) = self.reply.take() {
            drop(reply.send(result)); // it may have left
        }
    }

    fn open(&self) -> bool {
        self.reply.is_some() && !self.cancel.is_cancelled()
    }
}

/// Builds all orders in one process. Each is answered when its own output is there, not when the slowest is.
pub(super) async fn realise(driver: &Driver, mut orders: Vec<Order>) {
    orders.retain(Order::open);
    let Some(time) = orders.iter().map(|order| order.timeout).max() else { return };
    let place = match driver.place(None) {
        Ok(place) => place,
        Err(error) => {
            return answer_all(&mut orders, &BuildError::Other { message: format!("cannot prepare a place for the process: {error}") });
        }
    };
    let args = arguments(driver, time, &orders);
    let confinement = driver.build_confinement(&place);
    let command = Command { confinement, ..driver.command(&driver.tools.nix_store, args, &place, &Access::none()) };
    // Each order's own time is looked at by the clock; this is for the process if nobody looks any more.
    let command = Command { time: time + TICK * 10, ..command };
    let (watcher, cancel) = (Mutex::new(Watcher::default()), CancellationToken::new());
    let began = driver.config.clock.now();
    let counted = driver.tally.builds.begin();
    let (mut causes, mut heard) = (Vec::new(), 0);
    let finished = {
        let run = driver.processes.run(command, |line| lock(&watcher).line(line, driver.config.clock.now()), &cancel);
        let mut run = std::pin::pin!(run);
        // Beside the process: who does not read what it prints stops it, and its clock.
        let mut asking = None;
        loop {
            tokio::select! {
                finished = &mut run => break finished,
                () = tokio::time::sleep(TICK) => {
                    tick(driver, &mut orders, &watcher, began);
                    asking = asking.or_else(|| question(driver, &orders, &watcher, &mut heard));
                }
                answer = answered(&mut asking) => match answer {
                    Answer::Built(valid) => answer_built(&mut orders, &valid, &watcher),
                    Answer::Causes(new) => {
                        answer_failed(&mut orders, &new, time);
                        causes.extend(new);
                    }
                },
            }
            if !orders.iter().any(Order::open) {
                cancel.cancel();
            }
        }
    };
    drop(counted);
    let watcher = watcher.into_inner().unwrap_or_else(PoisonError::into_inner);
    let left: Vec<CancellationToken> = orders.iter().map(|order| order.cancel.clone()).collect();
    tokio::select! {
        () = settle(driver, &mut orders, &watcher, finished, causes, time) => {}
        _ = join_all(left.iter().map(CancellationToken::cancelled)) => {}
    }
}

/// A question to the store, if something is to be asked: who failed, or else who is done. A single order is answered by the end of its process.
fn question<'d>(driver: &'d Driver, orders: &[Order], watcher: &Mutex<Watcher>, heard: &mut usize) -> Option<BoxFuture<'d, Answer>> {
    if orders.len() == 1 {
        return None;
    }
    let mut watcher = lock(watcher);
    let failures = watcher.failures().get(*heard..).unwrap_or_default().to_vec();
    if !failures.is_empty() {
        *heard += failures.len();
        return Some(causes(driver, failures).map(Answer::Causes).boxed());
    }
    watcher.take_news().then(|| {
        let outs: Vec<StorePath> = orders.iter().filter(|order| order.open()).map(|order| order.out.clone()).collect();
        async move { Answer::Built(driver.valid(&outs).await.unwrap_or_default()) }.boxed()
    })
}

/// What the store says.
enum Answer {
    /// These are there.
    Built(HashSet<StorePath>),
    /// These failed, and who needs them.
    Causes(Vec<Cause>),
}

/// The answer to the question, and there is none any more; never without one.
async fn answered(asking: &mut Option<BoxFuture<'_, Answer>>) -> Answer {
    let Some(question) = asking else { return std::future::pending().await };
    let answer = question.await;
    *asking = None;
    answer
}

fn arguments(driver: &Driver, time: Duration, orders: &[Order]) -> Vec<String> {
    let config = &driver.config;
    let (jobs, cores, seconds) = (config.builds.to_string(), config.cores.to_string(), time.as_secs().max(1).to_string());
    let fixed = ["--realise", "-k", "--log-format", "internal-json", "--max-jobs", &jobs, "--cores", &cores];
    let options = [
        ["--option", "fallback", "true"],
        ["--option", "timeout", &seconds],
        // How often Nix looks again for a lock that another of our processes holds; its default is 5 s.
        ["--option", "build-poll-interval", "1"],
    ];
    let args = fixed.into_iter().chain(options.into_iter().flatten()).chain(driver.sandbox()).chain(NETWORK);
    args.chain(orders.iter().map(|order| order.drv.as_str())).map(str::to_owned).collect()
}

/// Tells how far it is, and answers those whose own time is up.
fn tick(driver: &Driver, orders: &mut [Order], watcher: &Mutex<Watcher>, began: Instant) {
    let (progress, longest) = {
        let watcher = lock(watcher);
        (watcher.progress(), watcher.longest())
    };
    let elapsed = driver.config.clock.now().saturating_duration_since(began);
    for order in orders.iter_mut().filter(|order| order.open()) {
        order.told.send_if_modified(|told| {
            let changed = *told != progress;
            if changed {
                told.clone_from(&progress);
            }
            changed
        });
        if elapsed > order.timeout {
            order.answer(Err(timed_out(order.timeout, longest.clone())));
        }
    }
}

/// Answers those whose output the store has by now.
fn answer_built(orders: &mut [Order], valid: &HashSet<StorePath>, watcher: &Mutex<Watcher>) {
    for order in orders.iter_mut().filter(|order| order.open() && valid.contains(&order.out)) {
        lock(watcher).built(order.drv.as_str());
        order.answer(Ok(order.out.clone()));
    }
}

/// Answers those that need what failed just now: the others go on, and the slowest of them is not to be waited for.
fn answer_failed(orders: &mut [Order], causes: &[Cause], time: Duration) {
    for order in orders.iter_mut().filter(|order| order.open()) {
        if let Some(cause) = causes.iter().find(|cause| cause.concerns(order)) {
            order.answer(Err(told(&cause.failure, order, time)));
        }
    }
}

/// Answers all that are still open: by what the store has now, and what the log said.
async fn settle(
    driver: &Driver,
    orders: &mut [Order],
    watcher: &Watcher,
    finished: Result<Finished, ExecError>,
    mut known: Vec<Cause>,
    time: Duration,
) {
    let finished = match finished {
        Ok(finished) => finished,
        Err(error) => return answer_all(orders, &BuildError::Process(Arc::new(error))),
    };
    let open: Vec<&Order> = orders.iter().filter(|order| order.open()).collect();
    let paths: Vec<StorePath> = open.iter().flat_map(|order| [order.out.clone(), order.drv.as_store_path().clone()]).collect();
    let valid = match driver.valid(&paths).await {
        Ok(valid) => valid,
        Err(error) => return answer_all(orders, &unknown(&error)),
    };
    let own: Vec<Failure> = watcher.failures().iter().filter(|failure| failure.fault != Fault::Dependency).cloned().collect();
    // Whose fault it is has to be asked only where there are several.
    if own.len() > 1 {
        let unknown = own.iter().filter(|failure| !known.iter().any(|cause| cause.failure == **failure)).cloned().collect();
        known.extend(causes(driver, unknown).await);
    }
    for order in orders.iter_mut().filter(|order| order.reply.is_some()) {
        let result = if valid.contains(&order.out) {
            Ok(order.out.clone())
        } else if !valid.contains(order.drv.as_store_path()) && !order.cancel.is_cancelled() {
            Err(BuildError::DerivationGone { drv: order.drv.to_string() })
        } else {
            let cause = known.iter().find(|cause| cause.concerns(order)).map(|cause| &cause.failure).or_else(|| own.first());
            Err(failure(order, cause, watcher, &finished, time))
        };
        order.answer(result);
    }
}

fn failure(order: &Order, cause: Option<&Failure>, watcher: &Watcher, finished: &Finished, time: Duration) -> BuildError {
    match finished.ending {
        Ending::Cancelled => return BuildError::Cancelled,
        Ending::TimedOut => return timed_out(time, watcher.longest()),
        Ending::OutOfMemory => return BuildError::Other { message: "Nix ran out of memory".into() },
        Ending::Exited(_) | Ending::Killed(_) => (),
    }
    match cause {
        Some(cause) => told(cause, order, time),
        None => BuildError::Other { message: format!("nix-store --realise {}: {}", finished.ending, git_says(&finished.stderr)) },
    }
}

fn answer_all(orders: &mut [Order], error: &BuildError) {
    for order in orders {
        order.answer(Err(error.clone()));
    }
}

fn lock(watcher: &Mutex<Watcher>) -> MutexGuard<'_, Watcher> {
    watcher.lock().unwrap_or_else(PoisonError::into_inner)
}
