//! Activate: the host begins to land the system.
//!
//! Input: the order. Effect: the host arms its way back, and activates. Output: an activation with an identity, which waits for a commit.
//! From here to the end of Commit a pass is not cancelled: it lands, or the host goes back.

use nixos_host_api::{LandingRef, Mode, Reason};
use serde::Serialize;

use super::copy::Copied;
use super::order::{self, Order};
use super::reboot;
use crate::landing::{self, Client, HostStatus, LandingState};
use crate::nix::StorePath;
use crate::observe::{Observed, landing_failure};
use crate::pipeline::{Pass, Reporter, Stop};
use crate::stage::{Failure, Stage};
use crate::world::Link;

/// The inputs.
#[derive(Debug, Serialize)]
pub struct Activate(pub Order);

impl Stage for Activate {
    const NAME: &'static str = "Activate";
    const DOING: Reason = Reason::Activating;

    fn key(&self) -> String {
        self.0.key()
    }
}

/// A system that is active and not committed; with mode Boot one that is committed and not active.
#[derive(Debug)]
pub struct Activation {
    /// What is landing, and its identity.
    pub order: Order,
    /// The same for status.
    pub landing: LandingRef,
    /// The system.
    pub toplevel: StorePath,
    /// What the host said last.
    pub host: HostStatus,
    /// The connection from before the activation: good for asking, no proof of anything.
    pub session: Link,
}

/// Begins the landing, or attaches to it if an earlier pass began it, and waits until the activation has ended.
pub async fn run<R: Reporter>(pass: &mut Pass<'_, R>, observed: Observed, copied: Copied) -> Result<Activation, Stop> {
    let Copied { toplevel } = copied;
    let stage = Activate(Order::of(pass, &toplevel));
    let Some(_permit) = pass.cancel.run_until_cancelled(pass.world.landings.acquire(&pass.wish.id.namespace)).await else {
        return Err(Stop::Cancelled);
    };
    pass.begin(&stage, format!("activating {}", toplevel.name()))?;
    let mut landing = match order::begun(pass) {
        Some(landing) => again(pass, &observed.host, landing).await?,
        None => begin(pass, &stage, &observed, &toplevel, None).await?,
    };
    let world = pass.world;
    let mut followed = world.timed(Activate::NAME, activated(pass, observed.session, &landing, &toplevel)).await;
    if let Ok((host, _)) = &followed
        && let Some(other) = predecessor(host, &landing, &toplevel)
    {
        tracing::info!(landing = other, "this landing was begun by another controller, and is taken over");
        landing.id = other;
        pass.findings.records.began(Activate::NAME, stage.key(), landing.clone());
        pass.reporter.intend(&pass.findings).await?;
        if let Ok((_, session)) = followed {
            followed = world.timed(Activate::NAME, activated(pass, session, &landing, &toplevel)).await;
        }
    }
    finish(pass, &stage, landing, toplevel, followed).await
}

/// Takes note of how far a landing came: what it was ordered for, or its end before that.
pub(super) async fn finish<R: Reporter>(
    pass: &mut Pass<'_, R>,
    stage: &Activate,
    landing: LandingRef,
    toplevel: StorePath,
    followed: Result<(HostStatus, Link), Failure>,
) -> Result<Activation, Stop> {
    let outcome = match followed {
        Ok((host, session)) => {
            pass.saw(host.clone());
            let detail = if is_activated(&host, &landing) { String::new() } else { log(pass, &session).await };
            let ended = if is_activated(&host, &landing) { Ok(()) } else { order::end(&host, &landing, &detail) };
            ended.map(|()| Activation { order: stage.0.clone(), landing: landing.clone(), toplevel, host, session })
        }
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &outcome {
        conclude(pass, &landing, failure);
    }
    let goes_on = pass.host().and_then(|host| host.landing.as_ref()).is_some_and(|on_host| {
        // The host refused to speak of it to us, and it is on its way all the same.
        on_host.id == landing.id && on_host.active && !on_host.state.is_final()
    });
    // It has booted, and could not be told yet that it is to wait.
    let waits =
        |failure: &Failure| failure.reason == Reason::InternalError && pass.host().is_some_and(|host| reboot::booted_once(host, &landing));
    let known = outcome.as_ref().err().is_none_or(|failure| !goes_on && !waits(failure) && !order::is_unknown(failure));
    let outcome = pass.ended(stage, outcome.map_err(Stop::Failed), |activation| activation.toplevel.to_string());
    pass.findings.records.landing(Activate::NAME, (outcome.is_ok() || !known).then_some(landing));
    outcome
}

/// Takes note of a landing that ended before Verify; of one whose end is unknown a later pass does.
fn conclude<R>(pass: &mut Pass<'_, R>, landing: &LandingRef, failure: &Failure) {
    if failure.is_rejection() {
        pass.findings.ended.extend(order::ended(pass.wish, landing, Some(failure.clone())));
    }
}

/// What an earlier pass wrote down is ordered again, for the first time perhaps: then as if it began now.
pub(super) async fn again<R: Reporter>(pass: &Pass<'_, R>, host: &HostStatus, landing: LandingRef) -> Result<LandingRef, Stop> {
    if host.landing.as_ref().is_some_and(|on_host| on_host.id == landing.id) {
        return Ok(landing);
    }
    if host.boot_id.as_deref() == Some(&*landing.boot_id) {
        pass.reporter.ask().await?;
    }
    if pass.cancel.is_cancelled() {
        return Err(Stop::Cancelled);
    }
    // It is stored already, unless the answer to a later write was not heard.
    pass.reporter.intend(&pass.findings).await?;
    Ok(landing)
}

/// Writes down what is about to begin: should this process end now, the next one knows that it has to ask the host.
pub(super) async fn begin<R: Reporter>(
    pass: &mut Pass<'_, R>,
    stage: &Activate,
    observed: &Observed,
    toplevel: &StorePath,
    reboot: Option<Vec<String>>,
) -> Result<LandingRef, Stop> {
    pass.reporter.ask().await?;
    if pass.cancel.is_cancelled() {
        return Err(Stop::Cancelled);
    }
    let landing = LandingRef {
        id: pass.world.landing_id(&pass.wish.id.uid),
        boot_id: observed.host.boot_id.clone().unwrap_or_default(),
        system: toplevel.to_string(),
        revision: pass.findings.locked.as_ref().map(crate::nix::LockedFlake::short).unwrap_or_default(),
        rev: pass.findings.locked.as_ref().and_then(|locked| locked.rev.clone()),
        reboot: reboot.is_some().then_some(true),
        failed_units: reboot.unwrap_or_default(),
    };
    for name in ["Verify", "Commit"] {
        pass.findings.records.forget(name);
    }
    pass.findings.records.began(Activate::NAME, stage.key(), landing.clone());
    pass.reporter.intend(&pass.findings).await?;
    // Writing may have taken a while. The host was asked nothing yet: the next pass finds that out, and forgets the landing.
    if pass.cancel.is_cancelled() { Err(Stop::Cancelled) } else { Ok(landing) }
}

/// Orders the landing and follows it until it waits for a commit or has ended.
async fn activated<R: Reporter>(
    pass: &mut Pass<'_, R>,
    session: Link,
    landing: &LandingRef,
    toplevel: &StorePath,
) -> Result<(HostStatus, Link), Failure> {
    let activation = pass.wish.activation;
    let order = landing::Order {
        id: landing.id.clone(),
        epoch: pass.world.lead.epoch(),
        new: toplevel.clone(),
        goal: activation.mode.into(),
        activate_within: activation.activate_within,
        commit_within: activation.commit_within,
    };
    let ordered = Client::new(&session, &pass.wish.target.user).land(&order).await;
    let session = match ordered {
        Ok(host) if order::needs_us(&host, &landing.id) => return Ok((host, session)),
        Ok(_) => Some(session),
        // Whether the host has taken it over is unknown: following it tells.
        Err(error) if error.is_no_answer() => None,
        Err(error) => {
            // Perhaps by what a controller before this one ordered at the last moment.
            return match Client::new(&session, &pass.wish.target.user).status().await {
                Ok(host) => {
                    pass.saw(host.clone());
                    // How it ended tells more than that we may not ask for it.
                    let ended = host.landing.as_ref().is_some_and(|there| there.id == landing.id && !there.active);
                    let taken = ended || predecessor(&host, landing, toplevel).is_some();
                    if taken { Ok((host, session)) } else { Err(landing_failure(&error)) }
                }
                Err(_) => Err(landing_failure(&error)),
            };
        }
    };
    let within =
        activation.activate_within + if activation.mode == Mode::Boot { activation.commit_within } else { std::time::Duration::ZERO };
    order::follow(pass.world, pass.wish, session, &landing.id, within).await
}

/// PURE. The landing of the same system for the same resource that runs there in place of the one that was ordered.
fn predecessor(host: &HostStatus, ordered: &LandingRef, toplevel: &StorePath) -> Option<String> {
    let of = |id: &str| id.split_once('-').map(|(resource, _)| resource.to_owned());
    let landing = host.landing.as_ref().filter(|landing| landing.active && !landing.state.is_final())?;
    let same = landing.new.as_ref() == Some(toplevel) && landing.id != ordered.id && of(&landing.id) == of(&ordered.id);
    same.then(|| landing.id.clone())
}

fn is_activated(host: &HostStatus, begun: &LandingRef) -> bool {
    let landing = host.landing.as_ref().filter(|landing| landing.id == begun.id);
    landing.is_some_and(|landing| matches!(landing.state, LandingState::Activated | LandingState::Committed))
}

/// The activation's own last lines, for a person; none if the host does not give them.
async fn log<R>(pass: &Pass<'_, R>, session: &Link) -> String {
    Client::new(session, &pass.wish.target.user).log().await.unwrap_or_default()
}
