//! What Activate, Verify and Commit share: the inputs of a landing, following one to its end, and what became of an earlier one.
//!
//! The three have one key: what any of them rejects is held back before the first begins.

use std::time::Duration;

use nixos_host_api::{LandingRef, Reason};
use serde::Serialize;

use super::{activate::Activate, commit::Commit, reboot, verify::Verify};
use crate::landing::{Client, HostStatus, Landing, LandingError, LandingState, outcome};
use crate::nix::StorePath;
use crate::observe::{Observed, connect_within, landing_failure};
use crate::pipeline::{Ended, Pass, Reporter, Stop};
use crate::stage::{Failure, Stage, digest};
use crate::wish::{Activation, HealthCheck, Wish};
use crate::world::nix::Evaluated;
use crate::world::{Link, World};

/// The inputs of a landing.
#[derive(Debug, Clone, Serialize)]
pub struct Order {
    toplevel: StorePath,
    revision: String,
    activation: Activation,
    /// Without any the key is as if there were none to be had.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<HealthCheck>,
}

impl Order {
    /// To land `toplevel` as the wish says.
    pub fn of<R>(pass: &Pass<'_, R>, toplevel: &StorePath) -> Self {
        let revision = pass.findings.locked.as_ref().map(|locked| locked.rev.clone().unwrap_or_else(|| locked.nar_hash.clone()));
        Self {
            toplevel: toplevel.clone(),
            revision: revision.unwrap_or_default(),
            activation: pass.wish.activation,
            checks: pass.wish.checks.clone(),
        }
    }

    /// The key of all three stages.
    pub fn key(&self) -> String {
        digest(self)
    }
}

const NAMES: [&str; 3] = [Activate::NAME, Verify::NAME, Commit::NAME];

/// Refuses an order that was rejected at any of its stages, unless a person asked for it again.
pub fn held<R>(pass: &Pass<'_, R>, evaluated: &Evaluated) -> Result<(), Stop> {
    let key = Order::of(pass, &evaluated.out).key();
    let held = NAMES.iter().find_map(|name| pass.findings.records.held(name, &key)).filter(|_| !pass.retry);
    held.map_or(Ok(()), |failure| Err(Stop::Failed(failure)))
}

/// The landing that an earlier pass began and whose end is not known.
pub fn begun<R>(pass: &Pass<'_, R>) -> Option<LandingRef> {
    pass.findings.records.get(Activate::NAME)?.landing.clone()
}

/// Takes note of how a landing ended that an earlier pass began. Such a pass was cut off, or lost sight of the host.
pub fn unfinished<R>(pass: &mut Pass<'_, R>, observed: &Observed) {
    let Some(begun) = begun(pass) else { return };
    let host = &observed.host;
    let landing = host.landing.as_ref().filter(|landing| landing.id == begun.id);
    let goes_on = landing.is_some_and(|landing| landing.state == LandingState::Rebooting || landing.active && !landing.state.is_final());
    if goes_on || landing.is_none() && reboot::booted_once(host, &begun) {
        return;
    }
    let failure = match landing {
        Some(landing) => unattended(pass, landing).or_else(|| outcome::failure(landing, "")).or_else(|| died(landing)),
        None if host.boot_id.as_deref() == Some(&*begun.boot_id) => {
            // The host was never asked, or the order is still on its way there: under the same identity it is one order, however often it comes.
            return;
        }
        None if committed_by_boot(host, &begun) => None,
        None => Some(reboot::came_back(host, &begun).unwrap_or_else(|| interrupted(&begun))),
    };
    tracing::info!(landing = %begun.id, "an earlier landing has ended");
    let key = pass.findings.records.get(Activate::NAME).map(|record| record.key.clone()).unwrap_or_default();
    if let Some(failure) = &failure {
        pass.findings.records.failed(Activate::NAME, key, failure);
    } else {
        pass.findings.records.succeeded(Activate::NAME, key, begun.system.clone());
        pass.findings.landed = begun.system.parse().ok();
    }
    pass.findings.ended.extend(ended(pass.wish, &begun, failure));
}

/// Nobody committed because nobody looked: no pass lived to say that the system did not prove itself.
fn unattended<R>(pass: &Pass<'_, R>, landing: &Landing) -> Option<Failure> {
    let records = &pass.findings.records;
    let said = |name: &str| records.get(name).is_some_and(|record| record.reason.is_some());
    let nobody = landing.state == LandingState::Reverted && landing.code == "not-committed" && !NAMES.into_iter().any(said);
    nobody.then(|| {
        Failure::new(Reason::Unattended, "the controller was away when the machine waited for the commit; the old system runs again")
    })
}

/// The landing's service is gone and its state is none that it ends in.
fn died(landing: &Landing) -> Option<Failure> {
    let why = if landing.why.is_empty() { String::new() } else { format!(": {}", landing.why) };
    (!landing.state.is_final()).then(|| {
        Failure::new(Reason::Interrupted, format!("the landing's service is gone, and the last that it said is {}{why}", landing.state))
    })
}

/// The machine has not restarted, and knows nothing of the landing.
fn missing(host: &HostStatus) -> Failure {
    match host.landing.as_ref().filter(|landing| landing.active) {
        Some(other) => Failure::new(Reason::HostBusy, format!("another landing is running: {}", other.id)),
        None => Failure::new(Reason::HostError, "the order was lost on its way to the machine, and is given again"),
    }
}

/// Whether the landing may be on its way all the same: a later pass asks the host, or gives the order once more, which is the same one by its
/// identity. What keeps a host busy may be this very order.
pub fn is_unknown(failure: &Failure) -> bool {
    use Reason::{Fenced, HostBusy, HostError, RebootHostNotBack, Unreachable};
    matches!(failure.reason, Unreachable | RebootHostNotBack | HostBusy | HostError | Fenced)
}

/// Whether the machine restarted between a commit and its answer: the boot default had moved, and what it brought up answers.
pub fn committed_by_boot(host: &HostStatus, begun: &LandingRef) -> bool {
    let new = |path: &Option<StorePath>| path.as_ref().is_some_and(|path| path.to_string() == begun.system);
    host.landing.is_none() && host.boot_id.as_deref() != Some(&*begun.boot_id) && new(&host.current) && new(&host.boot_default)
}

fn interrupted(begun: &LandingRef) -> Failure {
    let message = format!("the machine restarted while {} was landing, and booted its boot default", begun.system);
    Failure::new(Reason::Interrupted, message)
}

/// What goes into the history.
pub fn ended(wish: &Wish, begun: &LandingRef, failure: Option<Failure>) -> Option<Ended> {
    let system = begun.system.parse().ok()?;
    Some(Ended { system, revision: begun.revision.clone(), rev: begun.rev.clone(), mode: wish.activation.mode, failure })
}

/// Brings back the old system if a landing is in flight there that is no longer wanted.
pub async fn earlier<R: Reporter>(pass: &mut Pass<'_, R>, observed: Option<&Observed>, evaluated: &Evaluated) -> Result<(), Stop> {
    let (Some(begun), Some(observed)) = (begun(pass), observed) else { return Ok(()) };
    let wanted = Order::of(pass, &evaluated.out).key();
    if pass.findings.records.get(Activate::NAME).is_some_and(|record| record.key == wanted) {
        return Ok(());
    }
    let there = observed.host.landing.as_ref().is_some_and(|landing| landing.id == begun.id);
    if !there && !reboot::booted_once(&observed.host, &begun) {
        pass.findings.records.forget(Activate::NAME);
        return Ok(());
    }
    tracing::info!(landing = %begun.id, "a landing that is no longer wanted is reverted");
    if observed.host.landing.is_none() && reboot::booted_once(&observed.host, &begun) {
        // The way back is armed first: it is another boot.
        reboot::adopt(pass, &observed.session, &begun).await?;
    }
    let host = settle(pass, &observed.session, &begun, End::Revert).await?;
    let failure = end(&host, &begun, "").err().map(|failure| match failure.reason {
        // That it was asked to.
        Reason::VerificationFailed => {
            Failure::new(Reason::Withdrawn, "the spec or the revision changed in its middle; the old system runs again")
        }
        _ => failure,
    });
    pass.saw(host);
    pass.findings.ended.extend(ended(pass.wish, &begun, failure));
    pass.findings.records.forget(Activate::NAME);
    Ok(())
}

/// How a landing that waits shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The new system stays.
    Commit,
    /// The old one comes back.
    Revert,
}

/// Asks the host to end a landing, and returns how it then is. If the answer is lost nobody knows whether the host was asked: it is, over
/// another connection, while the landing still waits.
pub async fn settle<R>(pass: &Pass<'_, R>, session: &Link, begun: &LandingRef, how: End) -> Result<HostStatus, Failure> {
    let (user, epoch) = (&pass.wish.target.user, pass.world.lead.epoch());
    let mut newer: Option<Link> = None;
    loop {
        let client = Client::new(newer.as_ref().unwrap_or(session), user);
        let settled = match how {
            End::Commit => client.commit(&begun.id, epoch).await,
            End::Revert => client.revert(&begun.id, epoch).await,
        };
        match settled {
            Ok(host) => return Ok(host),
            Err(error) if may_change(&error) => {}
            Err(error) => return Err(landing_failure(&error)),
        }
        let (host, connected) = follow(pass.world, pass.wish, None, &begun.id, pass.wish.activation.commit_within).await?;
        let waits = |landing: &Landing| landing.id == begun.id && landing.active && landing.state == LandingState::Activated;
        if !host.landing.as_ref().is_some_and(waits) {
            return Ok(host);
        }
        newer = Some(connected);
    }
}

/// Whether the host may answer another time. Without a right that the new system took away it goes back by itself, and has it again.
fn may_change(error: &LandingError) -> bool {
    error.is_passing() || matches!(error, LandingError::NotRoot { .. })
}

/// How long the host may take to go back, or to move the boot default, on top of its own limits.
const REVERT_WITHIN: Duration = Duration::from_secs(330);

/// Follows a landing until it is up to the controller again or has ended, over as many connections as that takes.
pub async fn follow(world: &World, wish: &Wish, session: Option<Link>, id: &str, within: Duration) -> Result<(HostStatus, Link), Failure> {
    let following = async {
        let mut session = session;
        let mut pause = Duration::from_millis(200);
        loop {
            let connected = match session.take() {
                Some(session) => session,
                None => connect_within(world, wish, within + REVERT_WITHIN).await.map_err(|failure| lost_sight(&failure.message))?,
            };
            match Client::new(&connected, &wish.target.user).wait(id).await {
                Ok(host) if needs_us(&host, id) => return Ok((host, connected)),
                Ok(_) => session = Some(connected),
                // The activation may restart the network, sshd, or the host.
                Err(error) if may_change(&error) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(landing_failure(&error)),
            }
        }
    };
    tokio::time::timeout(within + REVERT_WITHIN, following).await.unwrap_or_else(|_| Err(lost_sight("it does not answer")))
}

/// The end of a landing could not be seen, whatever kept us from it: a later pass asks the host.
fn lost_sight(why: &str) -> Failure {
    let message = format!("the machine cannot be looked at since the activation began, and goes back to the old system by itself: {why}");
    Failure::new(Reason::Unreachable, message)
}

/// Whether nothing more happens to a landing without the controller.
pub fn needs_us(host: &HostStatus, id: &str) -> bool {
    host.landing
        .as_ref()
        .is_none_or(|landing| landing.id != id || !landing.active || landing.state == LandingState::Activated || landing.state.is_final())
}

/// What the end of a landing means: nothing wrong, or why it did not stay.
pub fn end(host: &HostStatus, begun: &LandingRef, detail: &str) -> Result<(), Failure> {
    match host.landing.as_ref().filter(|landing| landing.id == begun.id) {
        Some(landing) => outcome::failure(landing, detail).or_else(|| died(landing)).map_or(Ok(()), Err),
        None if host.boot_id.as_deref() == Some(&*begun.boot_id) => Err(missing(host)),
        None => Err(reboot::came_back(host, begun).unwrap_or_else(|| interrupted(begun))),
    }
}
