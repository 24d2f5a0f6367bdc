//! One pass over one host: the order of the stages, on one screen. It does not know Kubernetes.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::future::maybe_done;
use nixos_host_api::{BuildLocation, DriftPolicy, FollowedFlake, Mode, Outcome, Reason};
use tokio_util::sync::CancellationToken;

use crate::landing::HostStatus;
use crate::nix::{LockedFlake, StorePath};
use crate::observe::{Observed, claimed, observe};
use crate::stage::{Failure, OBSERVE, Records, Stage};
use crate::stages::{activate, build, build_on_host, commit, copy, dry, evaluate, order, reboot, resolve, verify};
use crate::wish::Wish;
use crate::world::World;
use crate::world::nix::Evaluated;

/// What a pass knows and has done so far; all that a status is made of.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// What the host said, or why it could not be looked at; `None` before it was tried.
    pub host: Option<Result<HostStatus, Failure>>,
    /// The revision that is wanted.
    pub locked: Option<LockedFlake>,
    /// What it evaluates to.
    pub evaluated: Option<Evaluated>,
    /// How each stage ended, this time or earlier.
    pub records: Records,
    /// The system that was last landed, or found landed.
    pub landed: Option<StorePath>,
    /// Where the reference that is followed led when it was last landed.
    pub followed: Option<FollowedFlake>,
    /// Landings that ended in this pass.
    pub ended: Vec<Ended>,
    /// The host key that was taken on trust.
    pub host_key: Option<String>,
    /// The same of the jump host.
    pub jump_host_key: Option<String>,
}

/// A landing that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The system that was to land.
    pub system: StorePath,
    /// Its revision, short.
    pub revision: String,
    /// Its revision, whole.
    pub rev: Option<String>,
    /// The activation goal.
    pub mode: Mode,
    /// `None` if it was committed.
    pub failure: Option<Failure>,
}

/// How a pass left a host with which nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The desired system runs, and boots as far as the mode goes; with what is to be said about it.
    UpToDate(String),
    /// It boots next, and something else runs.
    RebootPending,
    /// What an activation would do.
    DryRun(String),
    /// Something else runs, and it shall only be said.
    Drift,
}

/// Why a pass did not come to a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Something is wrong.
    Failed(Failure),
    /// A newer wish, a suspend, a deletion or a shutdown: nothing was left half done.
    Cancelled,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Where a pass says what it does.
pub trait Reporter: Send + Sync {
    /// Says what is being done. It may be shown later, or not at all.
    fn doing(&self, findings: &Findings, stage: Reason, message: String);

    /// Asks once more whether anything may begin to land. Whoever forbids it cancels the pass.
    fn ask(&self) -> impl Future<Output = Result<(), Failure>> + Send {
        std::future::ready(Ok(()))
    }

    /// Stores the findings before an act whose end may not be seen; the act must not begin without it.
    fn intend(&self, findings: &Findings) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// One pass.
#[derive(Debug)]
pub struct Pass<'p, R> {
    /// What is wanted.
    pub wish: &'p Wish,
    /// What it is done with.
    pub world: &'p World,
    /// Where it is reported.
    pub reporter: &'p R,
    /// Ends the pass before its next act; between Activate and Commit it has no effect.
    pub cancel: &'p CancellationToken,
    /// A person asked for a new try of what was rejected.
    pub retry: bool,
    /// No status speaks of this wish yet.
    pub new: bool,
    /// What is known and done so far.
    pub findings: Findings,
}

/// Brings the host to what is wanted, as far as it can be brought now.
pub async fn converge<R: Reporter>(pass: &mut Pass<'_, R>) -> Result<Verdict, Stop> {
    // Looking changes nothing, and a host that says nothing would hold up a suspend.
    let Some(found) = pass.cancel.run_until_cancelled(Box::pin(look(pass))).await else { return Err(Stop::Cancelled) };
    let (observed, locked) = found?;
    let observed = pass.looked(observed)?;
    let locked = pass.resolved(locked)?;
    let evaluated = evaluate::run(pass, &locked).await?;
    if let Some(verdict) = pass.settled(&evaluated) {
        return Ok(verdict);
    }
    order::held(pass, &evaluated)?;
    order::earlier(pass, observed.as_ref().ok(), &evaluated).await?;
    let (observed, copied) = match pass.wish.build_on {
        BuildLocation::Controller => {
            // A host that cannot be reached keeps nothing else from being ready for when it is back.
            let toplevel = build::run(pass, &evaluated).await?;
            let observed = observed?;
            let copied = copy::run(pass, &observed, toplevel).await?;
            (observed, copied)
        }
        BuildLocation::Host => {
            let observed = observed?;
            build_on_host::refused(pass, &evaluated)?;
            let sent = copy::derivation(pass, &observed, &evaluated).await?;
            let copied = build_on_host::run(pass, &observed, &evaluated, sent).await?;
            (observed, copied)
        }
    };
    if pass.wish.activation.mode == Mode::DryActivate {
        return dry::run(pass, &observed, &copied).await;
    }
    let activation = match reboot::needed(pass, &observed, &copied).await? {
        Some(failed) => Box::pin(reboot::run(pass, observed, copied, failed)).await?,
        None => activate::run(pass, observed, copied).await?,
    };
    let verified = verify::run(pass, activation).await?;
    Box::pin(commit::run(pass, verified)).await
}

/// A wish of which nothing was said yet is not left without a word for longer.
const SILENT: Duration = Duration::from_secs(2);

/// Looks at the host and at the flake, at the same time.
async fn look<R: Reporter>(pass: &Pass<'_, R>) -> Result<(Result<Observed, Failure>, Result<LockedFlake, Stop>), Stop> {
    let mut host = pin!(maybe_done(observe(pass.world, pass.wish)));
    let mut flake = pin!(maybe_done(resolve::locked(pass)));
    if tokio::time::timeout(SILENT, async { futures::join!(host.as_mut(), flake.as_mut()) }).await.is_err() && pass.new {
        let (stage, message) = match flake.as_mut().output_mut() {
            None => (resolve::Resolve::DOING, format!("asking for the revision of {}", pass.wish.flake)),
            Some(_) => (Reason::Observing, format!("connecting to {}", pass.wish.target.addresses.join(", "))),
        };
        pass.reporter.doing(&pass.findings, stage, message);
    }
    futures::join!(host.as_mut(), flake.as_mut());
    match (host.take_output(), flake.take_output()) {
        (Some(observed), Some(locked)) => Ok((observed, locked)),
        _ => Err(Stop::Cancelled),
    }
}

impl<R: Reporter> Pass<'_, R> {
    /// Takes note of a look at the host, and of how an earlier landing ended meanwhile. Stops at a machine that another resource manages.
    fn looked(&mut self, observed: Result<Observed, Failure>) -> Result<Result<Observed, Failure>, Failure> {
        match &observed {
            Ok(observed) => {
                self.findings.records.forget(OBSERVE);
                self.findings.host_key = Some(observed.session.host_key().to_string());
                self.findings.jump_host_key = observed.session.jump_host_key().map(ToString::to_string);
                self.saw(observed.host.clone());
                claimed(self.world, self.wish, &observed.host)?;
                order::unfinished(self, observed);
            }
            Err(failure) => {
                let failure = reboot::last_seen(self, failure);
                self.findings.records.failed(OBSERVE, String::new(), &failure);
                self.findings.host = Some(Err(failure.clone()));
                return Ok(Err(failure));
            }
        }
        Ok(observed)
    }

    /// Takes note of what the host says now.
    pub fn saw(&mut self, host: HostStatus) {
        self.findings.host = Some(Ok(host.after(self.host())));
    }

    /// What the host said at the last look that succeeded.
    pub fn host(&self) -> Option<&HostStatus> {
        self.findings.host.as_ref()?.as_ref().ok()
    }

    fn resolved(&mut self, locked: Result<LockedFlake, Stop>) -> Result<LockedFlake, Stop> {
        let stage = resolve::Resolve::of(self.wish);
        let locked = self.ended(&stage, locked, LockedFlake::short)?;
        self.findings.locked = Some(locked.clone());
        Ok(locked)
    }

    /// Refuses to run a stage whose input was rejected, or after the pass was cancelled.
    pub fn allowed<S: Stage>(&self, stage: &S) -> Result<(), Stop> {
        if let Some(failure) = self.findings.records.held(S::NAME, &stage.key()).filter(|_| !self.retry) {
            return Err(Stop::Failed(failure));
        }
        if self.cancel.is_cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    /// The same, and says what is being done.
    pub fn begin<S: Stage>(&self, stage: &S, message: impl Into<String>) -> Result<(), Stop> {
        self.allowed(stage)?;
        tracing::Span::current().record("stage", S::NAME);
        tracing::info!("begins: {}", S::NAME);
        self.reporter.doing(&self.findings, S::DOING, message.into());
        Ok(())
    }

    /// Writes down how a stage ended.
    pub fn ended<S: Stage, T>(&mut self, stage: &S, result: Result<T, Stop>, output: impl FnOnce(&T) -> String) -> Result<T, Stop> {
        match &result {
            Ok(value) => self.findings.records.succeeded(S::NAME, stage.key(), output(value)),
            Err(Stop::Failed(failure)) => {
                tracing::warn!(reason = %failure.reason, "failed: {}: {}", S::NAME, failure.message);
                self.findings.records.failed(S::NAME, stage.key(), failure);
            }
            Err(Stop::Cancelled) => tracing::info!("cancelled: {}", S::NAME),
        }
        result
    }

    /// Takes note that the wanted system is landed.
    pub fn landed(&mut self, toplevel: StorePath) {
        self.findings.landed = Some(toplevel);
        self.findings.followed = self.wish.follows().zip(self.findings.locked.as_ref()).map(|(reference, locked)| FollowedFlake {
            reference,
            rev: locked.rev.clone(),
            last_modified: locked.last_modified,
        });
    }

    /// The verdict, if the host needs nothing.
    fn settled(&mut self, evaluated: &Evaluated) -> Option<Verdict> {
        let host = self.host()?.clone();
        let unfinished = host.landing.as_ref().is_some_and(|landing| landing.active);
        if unfinished {
            return None;
        }
        if self.wish.activation.mode == Mode::DryActivate {
            return dry::known(self, &evaluated.out);
        }
        let verdict = verdict(&host, &evaluated.out, self.wish, self.findings.landed.as_ref())?;
        if order::begun(self).is_some() {
            // It was written down, and never begun; now there is no need.
            self.findings.records.forget(activate::Activate::NAME);
        }
        if verdict != Verdict::Drift {
            self.landed(evaluated.out.clone());
        }
        let record = self.findings.records.get(commit::Commit::NAME);
        let note = record.filter(|record| record.outcome == Outcome::Succeeded).and_then(|record| record.message.clone());
        Some(match verdict {
            Verdict::UpToDate(_) => Verdict::UpToDate(note.unwrap_or_default()),
            other => other,
        })
    }
}

/// PURE. Whether what runs, and what boots next, is what is wanted; `None` if something has to be done.
fn verdict(host: &HostStatus, desired: &StorePath, wish: &Wish, landed: Option<&StorePath>) -> Option<Verdict> {
    let runs = host.current.as_ref() == Some(desired);
    let boots = host.boot_default.as_ref().or(host.profile.as_ref()) == Some(desired);
    match wish.activation.mode {
        Mode::Switch | Mode::Boot if runs && boots => return Some(Verdict::UpToDate(String::new())),
        Mode::Test if runs => return Some(Verdict::UpToDate(String::new())),
        Mode::Boot if boots => return Some(Verdict::RebootPending),
        _ => {}
    }
    let drifted = landed == Some(desired) && wish.on_drift == DriftPolicy::Report;
    (drifted && wish.activation.mode != Mode::DryActivate).then_some(Verdict::Drift)
}
