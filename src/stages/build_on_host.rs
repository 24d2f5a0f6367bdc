//! Build, on the host: the derivation becomes a toplevel in the host's store, and nothing of it goes over the link.
//!
//! Input: the derivation. Effect: the host builds it, at low priority and with its own binary caches. Output: the toplevel, valid on the host.
//! A connection that is lost does not end the build: the next pass attaches to it. A cancelled pass does.

use std::time::Duration;

use nixos_host_api::{BuildLocation, Reason};
use serde::Serialize;

use super::build::wrong_architecture;
use super::copy::{Copied, Sent};
use crate::clock::human;
use crate::host_build::{self, BuildState, Ended, HostBuildError, Order};
use crate::observe::Observed;
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage, chain};
use crate::world::nix::Evaluated;
use crate::world::ssh::ExecError;

/// The inputs.
#[derive(Debug, Serialize)]
pub struct BuildOnHost {
    drv: String,
    architecture: Option<String>,
    on: BuildLocation,
}

impl Stage for BuildOnHost {
    const NAME: &'static str = super::build::Build::NAME;
    const DOING: Reason = Reason::Building;
}

impl BuildOnHost {
    fn of<R: Reporter>(pass: &Pass<'_, R>, evaluated: &Evaluated) -> Self {
        Self {
            drv: evaluated.drv.to_string(),
            architecture: pass.host().and_then(|host| host.architecture.clone()),
            on: BuildLocation::Host,
        }
    }
}

/// A host that does not end a build in time by itself is given up on after this.
const SLACK: Duration = Duration::from_secs(60);

/// Refuses what was rejected, and what the machine cannot build, before anything is sent.
pub fn refused<R: Reporter>(pass: &mut Pass<'_, R>, evaluated: &Evaluated) -> Result<(), Stop> {
    let stage = BuildOnHost::of(pass, evaluated);
    pass.allowed(&stage)?;
    match wrong_architecture(stage.architecture.as_deref(), evaluated) {
        Some(failure) => pass.ended(&stage, Err(failure.into()), |()| String::new()),
        None => Ok(()),
    }
}

/// Builds the host's system there.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, observed: &Observed, evaluated: &Evaluated, sent: Sent) -> Result<Copied, Stop> {
    let Sent { drv } = sent;
    let stage = BuildOnHost::of(pass, evaluated);
    pass.begin(&stage, format!("building {} on the machine", evaluated.out.name()))?;
    let order = Order { drv, out: evaluated.out.clone(), timeout: pass.wish.build_timeout };
    let built = pass.world.timed(BuildOnHost::NAME, build(pass, observed, &order)).await;
    pass.ended(&stage, built, |()| format!("{}, on the machine", order.out))?;
    Ok(Copied { toplevel: order.out })
}

async fn build<R: Reporter>(pass: &Pass<'_, R>, observed: &Observed, order: &Order) -> Result<(), Stop> {
    tokio::select! {
        biased;
        () = pass.cancel.cancelled() => {
            if let Err(error) = host_build::stop(&observed.session, order).await {
                tracing::warn!("a build on the machine could not be ended, and goes on for {} at most: {}", human(order.timeout), chain(&error));
            }
            Err(Stop::Cancelled)
        }
        followed = tokio::time::timeout(order.timeout + SLACK, follow(pass, observed, order)) => {
            followed.unwrap_or_else(|_| Err(failure(Ended::TimedOut, order, &[]))).map_err(Stop::Failed)
        }
    }
}

async fn follow<R: Reporter>(pass: &Pass<'_, R>, observed: &Observed, order: &Order) -> Result<(), Failure> {
    let mut state = host_build::begin(&observed.session, order).await.map_err(|error| unknown(&error))?;
    loop {
        match state {
            BuildState::Succeeded => return Ok(()),
            BuildState::Failed(ended, log) => return Err(failure(ended, order, &log)),
            BuildState::Lost => {
                return Err(Failure::new(Reason::BuildError, "the build on the machine is gone: it restarted, or somebody ended it"));
            }
            BuildState::Running(line) => {
                let message =
                    format!("building {} on the machine: {}", order.out.name(), if line.is_empty() { "it has begun" } else { &line });
                pass.reporter.doing(&pass.findings, BuildOnHost::DOING, message);
            }
        }
        state = host_build::wait(&observed.session, order).await.map_err(|error| unknown(&error))?;
    }
}

/// The host cannot be asked: the build may go on there.
fn unknown(error: &HostBuildError) -> Failure {
    let (reason, then) = match error {
        HostBuildError::Exec(error) if error.is_lost() || matches!(error, ExecError::TimedOut { .. }) => {
            (Reason::Unreachable, "; a build that has begun goes on there, and the next pass attaches to it")
        }
        HostBuildError::Exec(_) | HostBuildError::Refused(_) => (Reason::HostError, ""),
    };
    Failure::new(reason, format!("building on the machine: {}{then}", chain(error)))
}

fn failure(ended: Ended, order: &Order, log: &[String]) -> Failure {
    let name = order.out.name();
    let (reason, what) = match ended {
        Ended::Builder => (Reason::BuildFailed, format!("building {name} on the machine failed")),
        Ended::DiskFull => {
            let cure = "collect garbage on the machine (nix-collect-garbage -d) or enlarge its disk";
            (Reason::StoreFull, format!("the machine has no space left to build {name}; {cure}"))
        }
        Ended::TimedOut => {
            let seconds = order.timeout.as_secs();
            (
                Reason::BuildTimedOut,
                format!("{name} was not built on the machine within {seconds} s; raise spec.build.timeout, or use a binary cache"),
            )
        }
        Ended::Killed => (Reason::BuildError, format!("the build of {name} on the machine was killed: by a person, or for want of memory")),
        Ended::Other => (Reason::BuildError, format!("{name} could not be built on the machine")),
    };
    let log = if log.is_empty() { String::new() } else { format!("\nlast lines of its log:\n{}", log.join("\n")) };
    Failure::new(reason, format!("{what}{log}"))
}
