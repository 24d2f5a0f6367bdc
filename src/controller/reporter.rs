//! How a pass reports: what it does goes to the status now and then, what it is about to begin goes there first.

use std::sync::Arc;

use nixos_host_api::{Mode, NixOSHostStatus, Reason};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::brake::Brake;
use super::clients::said;
use super::status::{Make, WriteError, Writer, write_progress};
use crate::clock::Clock;
use crate::pipeline::{Findings, Reporter};
use crate::report::{Report, State};
use crate::stage::{Failure, chain};

/// What of a pass every one of its reports says.
#[derive(Debug, Clone)]
pub(super) struct Context {
    /// The status at the beginning of the pass.
    pub(super) previous: NixOSHostStatus,
    /// `metadata.generation`.
    pub(super) generation: i64,
    /// The `requestedAt` that the pass handles.
    pub(super) requested_at: Option<String>,
    /// Whether the host key is recorded.
    pub(super) trusts_first_use: bool,
    /// The same for the jump host's.
    pub(super) trusts_jump: bool,
    /// `spec.activation.mode`.
    pub(super) mode: Mode,
    /// For transition times.
    pub(super) clock: Clock,
}

impl Context {
    /// The status that says this, on top of what is stored.
    pub(super) fn status(&self, stored: &NixOSHostStatus, findings: &Findings, state: State) -> NixOSHostStatus {
        let report = Report {
            previous: &self.previous,
            written: &stored.conditions,
            generation: self.generation,
            requested_at: self.requested_at.as_deref(),
            trusts_first_use: self.trusts_first_use,
            trusts_jump: self.trusts_jump,
            mode: self.mode,
            findings,
            state,
            now: self.clock.wall(),
        };
        report.status()
    }
}

/// Reports one pass.
pub(super) struct StatusReporter {
    context: Context,
    writer: Writer,
    brake: Brake,
    newest: watch::Sender<Option<Arc<Make>>>,
    progress: JoinHandle<()>,
    stop: CancellationToken,
}

impl StatusReporter {
    /// A reporter that has said nothing yet.
    pub(super) fn new(context: Context, writer: Writer, brake: Brake) -> Self {
        let (newest, receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        let progress = tokio::spawn(write_progress(writer.clone(), receiver, stop.clone()));
        Self { context, writer, brake, newest, progress, stop }
    }

    /// Says how the pass ended, whatever progress was not shown yet.
    pub(super) async fn end(self, findings: &Findings, state: State) -> Result<bool, WriteError> {
        let (context, writer) = (self.context.clone(), self.writer.clone());
        self.quit().await;
        writer.write(|stored| context.status(stored, findings, state.clone())).await
    }

    /// Says no more. Progress that was not written yet never is.
    pub(super) async fn quit(self) {
        self.stop.cancel();
        let _ = self.progress.await;
    }
}

impl Reporter for StatusReporter {
    fn doing(&self, findings: &Findings, stage: Reason, message: String) {
        let (context, findings) = (self.context.clone(), findings.clone());
        let make: Make = Box::new(move |stored| context.status(stored, &findings, State::Doing(stage, message.clone())));
        self.newest.send_replace(Some(Arc::new(make)));
    }

    async fn ask(&self) -> Result<(), Failure> {
        let unknown = |error| {
            let message = format!("nothing was begun on the machine, because whether the brake is set could not be read: {}", said(&error));
            Failure::new(Reason::InternalError, message)
        };
        self.brake.look().await.map_err(unknown)
    }

    async fn intend(&self, findings: &Findings) -> Result<(), Failure> {
        let (stage, message) = (Reason::Activating, "about to activate".to_owned());
        // Progress that waits to be written would take back what is stored now.
        self.doing(findings, stage, message.clone());
        let written = self.writer.write(|stored| self.context.status(stored, findings, State::Doing(stage, message.clone()))).await;
        let unwritten = |error: WriteError| {
            let message = format!("the next step on the machine waits, because it could not be written down first: {}", chain(&error));
            Failure::new(Reason::InternalError, message)
        };
        written.map(|_| ()).map_err(unwritten)
    }
}
