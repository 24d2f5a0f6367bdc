//! Copy: the closure gets to the host.
//!
//! Input: the toplevel. Effect: the host is asked once which paths it lacks, and those are streamed to it; its GC root comes first.
//! Output: the toplevel, valid on the host.

use std::sync::Arc;
use std::time::Duration;

use nixos_host_api::Reason;
use serde::Serialize;

use super::build::Built;
use crate::nix::StorePath;
use crate::observe::Observed;
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage, chain};
use crate::world::copy::{Copied as Pushed, CopyError, Options, Progress};

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Copy {
    toplevel: String,
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

/// The host's root for what is being copied; landing.sh keeps its own beside it.
const GC_ROOT: &str = "/nix/var/nix/gcroots/nixos-host-controller/next";

/// What the host's own caches do not give within this, the controller sends.
const SUBSTITUTE_WITHIN: Duration = Duration::from_secs(300);

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Sends the closure to the host.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, observed: &Observed, built: Built) -> Result<Copied, Stop> {
    let Built { toplevel } = built;
    let stage = Copy { toplevel: toplevel.to_string() };
    pass.begin(&stage, format!("copying {}", toplevel.name()))?;
    let pushed = push(pass, observed, &toplevel).await;
    pass.ended(&stage, pushed, |pushed| format!("{} paths sent, {} bytes", pushed.paths, pushed.bytes))?;
    Ok(Copied { toplevel })
}

async fn push<R: Reporter>(pass: &Pass<'_, R>, observed: &Observed, toplevel: &StorePath) -> Result<Pushed, Stop> {
    let Some(permit) = pass.cancel.run_until_cancelled(pass.world.copies.acquire(&pass.wish.id.namespace)).await else {
        return Err(Stop::Cancelled);
    };
    let closure = pass.world.effects.closure(toplevel).await.map_err(|error| Failure::new(Reason::BuildError, chain(&error)))?;
    let closure = Arc::new(closure);
    let substitute_on_host = pass.wish.substitute_on_host.then_some(SUBSTITUTE_WITHIN);
    let options = Options { substitute_on_host, ..Options::new(GC_ROOT) };
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
