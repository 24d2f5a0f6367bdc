//! Build: the derivation becomes a toplevel in the controller's store.
//!
//! Input: the derivation and the machine's architecture. Effect: one build for all who need the derivation; none for what is valid
//! already. Output: the toplevel, kept from the garbage collector.

use nixos_host_api::{Outcome, Reason};
use serde::Serialize;
use tokio::sync::watch;

use crate::nix::StorePath;
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage, chain};
use crate::world::nix::{self, BuildError, BuildProgress, Evaluated, RootName};

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Build {
    drv: String,
    architecture: Option<String>,
}

impl Stage for Build {
    const NAME: &'static str = "Build";
    const DOING: Reason = Reason::Building;
}

/// A toplevel that is valid in the controller's store.
#[derive(Debug, Clone)]
pub struct Built {
    /// The toplevel.
    pub toplevel: StorePath,
}

/// Builds the host's system.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, evaluated: &Evaluated) -> Result<Built, Stop> {
    let stage = Build { drv: evaluated.drv.to_string(), architecture: pass.host().and_then(|host| host.architecture.clone()) };
    let record = pass.findings.records.get(Build::NAME);
    if record.is_some_and(|record| record.key == stage.key() && record.outcome == Outcome::Succeeded) {
        // It is there already, most likely: each try of a host that cannot be reached would say otherwise, and take it back.
        pass.allowed(&stage)?;
    } else {
        pass.begin(&stage, format!("building {}", evaluated.out.name()))?;
    }
    let built = match wrong_architecture(stage.architecture.as_deref(), evaluated) {
        Some(failure) => Err(failure.into()),
        None => build(pass, evaluated).await,
    };
    let toplevel = pass.ended(&stage, built, StorePath::to_string)?;
    Ok(Built { toplevel })
}

/// A system for another architecture would copy, and then break every program of the machine.
pub(super) fn wrong_architecture(architecture: Option<&str>, evaluated: &Evaluated) -> Option<Failure> {
    let system = evaluated.system.as_deref()?;
    let host = architecture.filter(|host| *host != system)?;
    let message = format!("the system is for {system}, and the machine is {host}: correct nixpkgs.hostPlatform or spec.flake.attribute");
    Some(Failure::new(Reason::WrongArchitecture, message))
}

async fn build<R: Reporter>(pass: &Pass<'_, R>, evaluated: &Evaluated) -> Result<StorePath, Stop> {
    let root =
        RootName::new(&pass.wish.id.namespace, &pass.wish.id.name).map_err(|error| Failure::new(Reason::InternalError, chain(&error)))?;
    let request = nix::Build {
        drv: evaluated.drv.clone(),
        out: evaluated.out.clone(),
        system: evaluated.system.clone(),
        timeout: pass.wish.build_timeout,
        root,
    };
    let (sender, mut receiver) = watch::channel(BuildProgress::default());
    let building = pass.world.timed(Build::NAME, pass.world.effects.build(request, &sender, pass.cancel));
    tokio::pin!(building);
    loop {
        tokio::select! {
            biased;
            built = &mut building => return built.map_err(|error| failure(&error)),
            Ok(()) = receiver.changed() => {
                let message = describe(&receiver.borrow_and_update(), pass);
                pass.reporter.doing(&pass.findings, Build::DOING, message);
            }
        }
    }
}

/// `12 of 40 derivations built; linux-6.12 for 3 min, openssl for 10 s`.
fn describe<R>(progress: &BuildProgress, pass: &Pass<'_, R>) -> String {
    let now = pass.world.clock.now();
    let running = progress.running.iter().take(3).map(|running| {
        let seconds = now.saturating_duration_since(running.since).as_secs();
        let time = if seconds >= 120 { format!("{} min", seconds / 60) } else { format!("{seconds} s") };
        format!("{} for {time}", running.name)
    });
    let running = running.collect::<Vec<_>>().join(", ");
    let separator = if running.is_empty() { "" } else { "; " };
    format!("{} of {} derivations built{separator}{running}", progress.done, progress.expected)
}

fn failure(error: &BuildError) -> Stop {
    let (reason, log) = match error {
        BuildError::Cancelled => return Stop::Cancelled,
        BuildError::BuilderFailed { log, .. } => (Reason::BuildFailed, log.as_slice()),
        BuildError::TimedOut { log, .. } => (Reason::BuildTimedOut, log.as_slice()),
        BuildError::HashMismatch { .. } => (Reason::BuildFailed, [].as_slice()),
        BuildError::WrongSystem { .. } => (Reason::WrongArchitecture, [].as_slice()),
        BuildError::OutOfDisk { .. }
        | BuildError::DerivationGone { .. }
        | BuildError::Process(_)
        | BuildError::Root(_)
        | BuildError::Other { .. } => (Reason::BuildError, [].as_slice()),
    };
    let log = if log.is_empty() { String::new() } else { format!("\nlast lines of its log:\n{}", log.join("\n")) };
    let cure = if reason == Reason::BuildTimedOut { "; raise spec.build.timeout, or use a binary cache" } else { "" };
    Failure::new(reason, format!("{}{cure}{log}", chain(error))).into()
}
