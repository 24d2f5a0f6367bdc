//! Whose fault it is that a build failed: which orders need what failed, and what that means to them.

use std::collections::HashSet;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::build::about;
use super::driver::Driver;
use super::error::BuildError;
use super::progress::{Failure, Fault};
use super::realise::Order;
use crate::world::exec::Command;

/// Questions to the store at a time.
const QUESTIONS: usize = 4;

/// A derivation that failed by itself, and all that need it, itself too.
pub(super) struct Cause {
    pub(super) failure: Failure,
    needed_by: HashSet<String>,
}

impl Cause {
    /// Whether this order cannot be had because of it.
    pub(super) fn concerns(&self, order: &Order) -> bool {
        self.needed_by.contains(order.drv.as_str())
    }
}

/// Who needs what failed: one question for each failure, however many orders there are. Dropped, it ends its processes.
pub(super) async fn causes(driver: &Driver, failures: Vec<Failure>) -> Vec<Cause> {
    let own = failures.into_iter().filter(|failure| failure.fault != Fault::Dependency);
    let asking = stream::iter(own).map(|failure| async move {
        let needed_by = match &failure.drv {
            Some(drv) => dependents(driver, drv).await,
            None => HashSet::new(),
        };
        Cause { failure, needed_by }
    });
    asking.buffered(QUESTIONS).collect().await
}

/// All that need a derivation, itself too; nothing if the store does not say.
async fn dependents(driver: &Driver, drv: &str) -> HashSet<String> {
    let Ok(place) = driver.place(None) else { return HashSet::new() };
    let command = driver.command(&driver.tools.nix_store, ["--query", "--referrers-closure", drv], &place, &Access::none());
    let command = Command { time: driver.config.resolve_timeout, stdout_limit: 64 << 20, ..command };
    match driver.processes.run(command, |_| (), &CancellationToken::new()).await {
        Ok(finished) if finished.success() => String::from_utf8_lossy(&finished.stdout).lines().map(str::to_owned).collect(),
        _ => HashSet::new(),
    }
}

/// What a failure in the log means to this order.
pub(super) fn told(cause: &Failure, order: &Order, time: Duration) -> BuildError {
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

pub(super) fn timed_out(time: Duration, running: Option<(String, Vec<String>)>) -> BuildError {
    let (drv, log) = running.map_or((None, Vec::new()), |(drv, log)| (Some(super::progress::name(&drv)), log));
    BuildError::TimedOut { seconds: time.as_secs(), drv, log }
}
