//! One `nix-store --realise` for all derivations that are wanted now; who failed is sorted out afterwards.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::build::{about, unknown};
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
    let mut failed = 0;
    let finished = {
        let run = driver.processes.run(command, |line| lock(&watcher).line(line, driver.config.clock.now()), &cancel);
        let mut run = std::pin::pin!(run);
        loop {
            tokio::select! {
                finished = &mut run => break finished,
                () = tokio::time::sleep(TICK) => tick(driver, &mut orders, &watcher, began).await,
            }
            let news: Vec<Failure> = lock(&watcher).failures().get(failed..).unwrap_or_default().to_vec();
            failed += news.len();
            answer_failed(driver, &mut orders, &news, time).await;
            if !orders.iter().any(Order::open) {
                cancel.cancel();
            }
        }
    };
    drop(counted);
    let watcher = watcher.into_inner().unwrap_or_else(PoisonError::into_inner);
    settle(driver, &mut orders, &watcher, finished, time).await;
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

/// Tells how far it is, answers those whose output has come, and those whose own time is up.
async fn tick(driver: &Driver, orders: &mut [Order], watcher: &Mutex<Watcher>, began: Instant) {
    let (progress, news, longest) = {
        let mut watcher = lock(watcher);
        (watcher.progress(), watcher.take_news(), watcher.longest())
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
    // A single order is answered by the end of its process.
    if news && orders.len() > 1 {
        answer_built(driver, orders, watcher).await;
    }
}

/// Answers those whose output the store has by now.
async fn answer_built(driver: &Driver, orders: &mut [Order], watcher: &Mutex<Watcher>) {
    let outs: Vec<StorePath> = orders.iter().filter(|order| order.open()).map(|order| order.out.clone()).collect();
    let Ok(valid) = driver.valid(&outs).await else { return };
    for order in orders.iter_mut().filter(|order| order.open() && valid.contains(&order.out)) {
        lock(watcher).built(order.drv.as_str());
        order.answer(Ok(order.out.clone()));
    }
}

/// Answers those that need what failed just now: the others go on, and the slowest of them is not to be waited for.
async fn answer_failed(driver: &Driver, orders: &mut [Order], failures: &[Failure], time: Duration) {
    // A single order is answered by the end of its process.
    if failures.is_empty() || orders.len() == 1 {
        return;
    }
    for order in orders.iter_mut().filter(|order| order.open()) {
        let needed = requisites(driver, &order.drv).await;
        let ours = |failure: &&Failure| failure.fault != Fault::Dependency && failure.drv.as_ref().is_some_and(|drv| needed.contains(drv));
        if let Some(cause) = failures.iter().find(ours) {
            order.answer(Err(told(cause, order, time)));
        }
    }
}

/// Answers all that are still open: by what the store has now, and what the log said.
async fn settle(driver: &Driver, orders: &mut [Order], watcher: &Watcher, finished: Result<Finished, ExecError>, time: Duration) {
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
    for order in orders.iter_mut().filter(|order| order.reply.is_some()) {
        let result = if valid.contains(&order.out) {
            Ok(order.out.clone())
        } else if !valid.contains(order.drv.as_store_path()) && !order.cancel.is_cancelled() {
            Err(BuildError::DerivationGone { drv: order.drv.to_string() })
        } else {
            Err(failure(driver, order, watcher, &finished, time).await)
        };
        order.answer(result);
    }
}

async fn failure(driver: &Driver, order: &Order, watcher: &Watcher, finished: &Finished, time: Duration) -> BuildError {
    match finished.ending {
        Ending::Cancelled => return BuildError::Cancelled,
        Ending::TimedOut => return timed_out(time, watcher.longest()),
        Ending::OutOfMemory => return BuildError::Other { message: "Nix ran out of memory".into() },
        Ending::Exited(_) | Ending::Killed(_) => (),
    }
    let causes: Vec<&Failure> = watcher.failures().iter().filter(|failure| failure.fault != Fault::Dependency).collect();
    let needed = if causes.len() > 1 { requisites(driver, &order.drv).await } else { HashSet::new() };
    // With several failures, ours is the one that this derivation needs.
    let ours = |failure: &&&Failure| failure.drv.as_ref().is_some_and(|drv| needed.contains(drv));
    match causes.iter().find(ours).or_else(|| causes.first()) {
        Some(cause) => told(cause, order, time),
        None => BuildError::Other { message: format!("nix-store --realise {}: {}", finished.ending, git_says(&finished.stderr)) },
    }
}

/// What a failure in the log means to this order.
fn told(cause: &Failure, order: &Order, time: Duration) -> BuildError {
    let Failure { drv, fault, message, log } = cause.clone();
    let full = |text: &String| text.contains("No space left on device");
    if full(&message) || log.iter().any(full) {
        return BuildError::OutOfDisk { message };
    }
    match fault {
        Fault::Builder => BuildError::BuilderFailed { drv: about(drv.as_deref(), &order.drv), message: essence(&message), log },
        Fault::TimedOut => timed_out(time, drv.map(|drv| (drv, log))),
        Fault::HashMismatch => BuildError::HashMismatch { drv: about(drv.as_deref(), &order.drv), message },
        Fault::Dependency | Fault::Other => BuildError::Other { message },
    }
}

/// `builder failed with exit code 7`, without the store paths that 2.34 and 2.26 put around it.
fn essence(message: &str) -> String {
    let reason =
        message.lines().find_map(|line| line.trim().strip_prefix("Reason: ")).map(|reason| reason.trim_end_matches('.').to_owned());
    let failed =
        || message.split_once("' failed with ").map(|(_, how)| format!("builder failed with {}", how.lines().next().unwrap_or(how)));
    reason.or_else(failed).unwrap_or_else(|| message.to_owned())
}

fn timed_out(time: Duration, running: Option<(String, Vec<String>)>) -> BuildError {
    let (drv, log) = running.map_or((None, Vec::new()), |(drv, log)| (Some(super::progress::name(&drv)), log));
    BuildError::TimedOut { seconds: time.as_secs(), drv, log }
}

/// All that a derivation needs, itself too; nothing if the store does not say.
async fn requisites(driver: &Driver, drv: &DrvPath) -> HashSet<String> {
    let Ok(place) = driver.place(None) else { return HashSet::new() };
    let command = driver.command(&driver.tools.nix_store, ["--query", "--requisites", drv.as_str()], &place, &Access::none());
    let command = Command { time: driver.config.resolve_timeout, stdout_limit: 64 << 20, ..command };
    match driver.processes.run(command, |_| (), &CancellationToken::new()).await {
        Ok(finished) if finished.success() => String::from_utf8_lossy(&finished.stdout).lines().map(str::to_owned).collect(),
        _ => HashSet::new(),
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
