//! Copy: the closure gets to the host: of the toplevel, or of its derivation if it is to be built there.
//!
//! Input: the path. Effect: the host is asked once which paths it lacks, and those are streamed to it; its GC root comes first.
//! Output: the path, valid on the host.

use std::sync::Arc;
use std::time::Duration;

use nixos_host_api::Reason;
use serde::Serialize;

use super::build::Built;
use crate::nix::{DrvPath, StorePath};
use crate::observe::Observed;
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage, chain};
use crate::world::copy::{Copied as Pushed, CopyError, Options, Progress};
use crate::world::nix::{Evaluated, RootName, RootsError};

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Copy {
    path: String,
}

impl Stage for Copy {
    const NAME: &'static str = "Copy";
    const DOING: Reason = Reason::Copying;
}

/// A toplevel that is valid on the host.
#[derive(Debug)]
pub struct Copied {
    /// The toplevel.
    pub toplevel: StorePath,
}

/// A derivation that is valid on the host, with all that building it takes.
#[derive(Debug)]
pub struct Sent {
    /// The derivation.
    pub drv: DrvPath,
}

/// The host's root for what is being copied, or built there; landing.sh keeps its own beside it.
const GC_ROOT: &str = "/nix/var/nix/gcroots/nixos-host-controller/next";

/// The host's root for a derivation that it is to build.
const GC_ROOT_OF_DERIVATION: &str = "/nix/var/nix/gcroots/nixos-host-controller/derivation";

/// What the host's own caches do not give within this, the controller sends.
const SUBSTITUTE_WITHIN: Duration = Duration::from_secs(300);

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Sends the closure to the host.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, observed: &Observed, built: Built) -> Result<Copied, Stop> {
    let Built { toplevel } = built;
    let substitute_on_host = pass.wish.substitute_on_host.then_some(SUBSTITUTE_WITHIN);
    send(pass, observed, &toplevel, Options { substitute_on_host, ..Options::new(GC_ROOT) }).await?;
    Ok(Copied { toplevel })
}

/// Sends the derivation to the host, with all derivations and sources that it needs, and nothing that is built.
pub async fn derivation<R: Reporter>(pass: &mut Pass<'_, R>, observed: &Observed, evaluated: &Evaluated) -> Result<Sent, Stop> {
    let drv = evaluated.drv.clone();
    let kept = |error: RootsError| Failure::new(Reason::BuildError, chain(&error));
    let root = RootName::new(&pass.wish.id.namespace, &pass.wish.id.name).map_err(kept)?;
    pass.world.effects.keep_derivation(&root, &drv).map_err(kept)?;
    send(pass, observed, drv.as_store_path(), Options::new(GC_ROOT_OF_DERIVATION)).await?;
    Ok(Sent { drv })
}

async fn send<R: Reporter>(pass: &mut Pass<'_, R>, observed: &Observed, path: &StorePath, options: Options) -> Result<(), Stop> {
    let stage = Copy { path: path.to_string() };
    pass.begin(&stage, format!("copying {}", path.name()))?;
    let pushed = push(pass, observed, path, options).await;
    pass.ended(&stage, pushed, |pushed| format!("{} paths sent, {} bytes", pushed.paths, pushed.bytes))?;
    Ok(())
}

async fn push<R: Reporter>(pass: &Pass<'_, R>, observed: &Observed, path: &StorePath, options: Options) -> Result<Pushed, Stop> {
    let Some(permit) = pass.cancel.run_until_cancelled(pass.world.copies.acquire(&pass.wish.id.namespace)).await else {
        return Err(Stop::Cancelled);
    };
    let closure = pass.world.effects.closure(path).await.map_err(|error| Failure::new(Reason::BuildError, chain(&error)))?;
    let closure = Arc::new(closure);
    let progress = Progress::default();
    let pushing = pass.world.timed(Copy::NAME, observed.session.push(&closure, &options, &progress, pass.cancel));
    tokio::pin!(pushing);
    let result = loop {
        tokio::select! {
            biased;
            pushed = &mut pushing => break pushed.map_err(|error| failure(&error)),
            () = tokio::time::sleep(LOOK) => pass.reporter.doing(&pass.findings, Copy::DOING, describe(&progress)),
        }
    };
    pass.world.metrics.copied(progress.snapshot().bytes);
    drop(permit);
    result
}

/// `120 of 210 paths, 300 of 515 MB`.
fn describe(progress: &Progress) -> String {
    let now = progress.snapshot();
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    format!("copied {} of {} paths, {} of {} MB", now.paths, now.paths_total, megabytes(now.bytes), megabytes(now.bytes_total))
}

fn failure(error: &CopyError) -> Stop {
    let reason = match error {
        CopyError::Cancelled { .. } => return Stop::Cancelled,
        CopyError::StoreFull { .. } => Reason::StoreFull,
        CopyError::Untrusted { .. } => Reason::CopyRefused,
        CopyError::NoNix { .. } => Reason::NixMissing,
        _ => Reason::CopyFailed,
    };
    let cure = match reason {
        Reason::StoreFull => "; collect garbage on the machine (nix-collect-garbage -d) or enlarge its disk",
        Reason::CopyRefused => "; connect as root, or add the user to nix.settings.trusted-users",
        _ => "",
    };
    Failure::new(reason, format!("{}{cure}", chain(error))).into()
}
