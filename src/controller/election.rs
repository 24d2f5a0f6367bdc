//! Leader election by a Lease, with an epoch that hosts can compare.
//!
//! - Every write is a replacement of what was read: of two only one comes through, and a leader that finds another one's stands down.
//! - Nobody's clock is compared with another's: a holder is taken for gone when its Lease was not seen to change for as long as it promised to renew it.
//! - One's own term counts from before the request that renewed it, ends at two thirds of the Lease, and ends by the clock ([`Lead`]).
//! - The epoch is in an annotation, written with the holder: `leaseTransitions` begins anew after a deletion, resource versions go back with a restore.
//! - An identity is of one process: one that starts again does not find itself in office.

mod lease;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::clients::said;
use super::complaint::Complaint;
use super::events::{Events, normal, warning};
use crate::clock::Clock;
use crate::world::Lead;
use lease::{EPOCH, Seen, bounded, epoch_of, is_lost, seen, vacant_in};

/// How often one that stands by looks, at the most: what it takes longer than the Lease to take over.
const LOOK: Duration = Duration::from_secs(1);

/// After a host was seen that knows a higher epoch, and before a try to get above it.
const OUTRANKED: Duration = Duration::from_millis(200);

/// Takes part in the election.
pub(super) struct Elector {
    api: Api<Lease>,
    name: String,
    namespace: String,
    identity: String,
    lease: Duration,
    lead: Lead,
    clock: Clock,
    events: Events,
    seen: Option<Seen>,
    /// Until when the term goes that we serve.
    until: Option<Instant>,
    /// The highest epoch that was ever read or written: a Lease that was deleted has forgotten it.
    known: u64,
    complaint: Complaint,
}

impl Elector {
    /// One that stands by.
    pub(super) fn new(client: Client, (namespace, name): (&str, &str), lease: Duration, lead: Lead, with: (Clock, Events)) -> Self {
        let host = ["POD_NAME", "HOSTNAME"].into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let (clock, events) = with;
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            identity: format!("{}_{:016x}", host.unwrap_or_else(|| "controller".into()), rand::random::<u64>()),
            lease,
            lead,
            complaint: Complaint::new(clock.clone()),
            clock,
            events,
            seen: None,
            until: None,
            known: 0,
        }
    }

    /// Stands by, leads, stands by again, until `stop`; then lets go, so that another one takes over at once.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = self.round().await;
            let outranked = async {
                self.lead.outranked().await;
                tokio::time::sleep(OUTRANKED).await;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = outranked, if self.until.is_some() => {}
            }
        }
        self.release().await;
    }

    /// One step, and how long there is nothing to do after it.
    async fn round(&mut self) -> Duration {
        if let Some(until) = self.until {
            let now = self.clock.now();
            if now < until {
                return self.renew(now, until).await;
            }
            self.stand_down("the Lease was not renewed in time");
        }
        self.stand_by().await
    }

    async fn renew(&mut self, sent: Instant, until: Instant) -> Duration {
        let Some(seen) = &self.seen else { return Duration::ZERO };
        let highest = self.lead.highest();
        let epoch = if highest > self.lead.epoch() { self.lead.next_epoch(highest.max(self.known)) } else { self.lead.epoch() };
        let renewed = self.held(&seen.lease, &self.identity, epoch);
        match bounded((self.lease / 4).min(until - sent), self.api.replace(&self.name, &PostParams::default(), &renewed)).await {
            Ok(lease) => {
                let until = sent + self.term();
                self.note(Some(lease));
                self.until = Some(until);
                self.lead.renew(epoch, until);
            }
            Err(error) if is_lost(&error) => match self.look_again(until).await {
                Ok(()) => return Duration::ZERO,
                Err(error) => self.complain("reading", &error),
            },
            Err(error) => self.complain("renewing", &error),
        }
        (self.lease / 6).min(self.until.unwrap_or(sent).saturating_duration_since(self.clock.now()))
    }

    /// The Lease is not as it was last seen: still ours, if a renewal came through whose answer was lost; otherwise the term is over.
    async fn look_again(&mut self, until: Instant) -> kube::Result<()> {
        let within = (self.lease / 4).min(until.saturating_duration_since(self.clock.now()));
        let found = bounded(within, self.api.get_opt(&self.name)).await?;
        match self.lost(found.as_ref()) {
            None => self.note(found),
            Some(why) => self.stand_down(&why),
        }
        Ok(())
    }

    /// PURE. Why this Lease is not the one of our term, if so. Only a write that was sent with what we have seen keeps uid and transitions.
    fn lost(&self, found: Option<&Lease>) -> Option<String> {
        let Some(found) = found else { return Some("the Lease was deleted".into()) };
        let known = |lease: &Lease| (lease.uid(), lease.spec.as_ref().and_then(|spec| spec.lease_transitions));
        match found.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default() {
            holder if holder == self.identity && self.seen.as_ref().is_some_and(|seen| known(&seen.lease) == known(found)) => None,
            "" => Some("somebody else released the Lease".into()),
            holder if holder == self.identity => Some("the Lease was replaced by another one of the same name".into()),
            holder => Some(format!("{holder} holds the Lease")),
        }
    }

    async fn stand_by(&mut self) -> Duration {
        let pause = LOOK.min(self.lease / 6);
        match bounded(self.lease / 4, self.api.get_opt(&self.name)).await {
            Ok(lease) => self.note(lease),
            Err(error) => {
                self.complain("reading", &error);
                return pause;
            }
        }
        match vacant_in(self.seen.as_ref(), &self.identity, self.lease, self.clock.now()) {
            Duration::ZERO => self.take(pause).await,
            left => left.min(pause),
        }
    }

    async fn take(&mut self, pause: Duration) -> Duration {
        let sent = self.clock.now();
        let epoch = self.lead.next_epoch(self.known.max(self.lead.highest()));
        let parameters = PostParams::default();
        let taken = if let Some(seen) = &self.seen {
            let lease = self.held(&seen.lease, &self.identity, epoch);
            bounded(self.lease / 4, self.api.replace(&self.name, &parameters, &lease)).await
        } else {
            let lease = self.held(&Lease::default(), &self.identity, epoch);
            bounded(self.lease / 4, self.api.create(&parameters, &lease)).await
        };
        match taken {
            Ok(lease) => {
                let until = sent + self.term();
                self.note(Some(lease));
                self.until = Some(until);
                self.lead.begin(epoch, Some(until));
                self.tell(false, format!("{} became leader, epoch {epoch}", self.identity));
                Duration::ZERO
            }
            Err(error) => {
                if !is_lost(&error) {
                    self.complain("taking", &error);
                }
                pause
            }
        }
    }

    fn stand_down(&mut self, why: &str) {
        self.lead.end();
        self.until = None;
        self.tell(true, format!("{} stopped leading: {why}", self.identity));
    }

    async fn release(mut self) {
        self.lead.end();
        let Some(until) = self.until else { return };
        let mut released = self.let_go().await;
        // The last renewal may have come through without its answer.
        if released.as_ref().is_err_and(is_lost) && self.look_again(until + self.lease).await.is_ok() && self.until.is_some() {
            released = self.let_go().await;
        }
        match released {
            Ok(_) => tracing::info!("released the Lease: another one takes over at once"),
            Err(error) => tracing::warn!("releasing the Lease, which others now wait for to run out: {}", said(&error)),
        }
    }

    async fn let_go(&self) -> kube::Result<Lease> {
        let old = self.seen.as_ref().map(|seen| seen.lease.clone()).unwrap_or_default();
        let released = self.held(&old, "", self.lead.epoch());
        bounded(self.lease / 4, self.api.replace(&self.name, &PostParams::default(), &released)).await
    }

    fn tell(&self, is_warning: bool, note: String) {
        let of = Lease::default().object_ref(&());
        let lease =
            k8s_openapi::api::core::v1::ObjectReference { name: Some(self.name.clone()), namespace: Some(self.namespace.clone()), ..of };
        self.events.about(lease, if is_warning { warning } else { normal }("LeaderElection", "Elect", note));
    }

    fn complain(&mut self, doing: &str, error: &kube::Error) {
        self.complaint.about(&format!("{doing} the Lease {}/{}: {}", self.namespace, self.name, said(error)));
    }

    fn note(&mut self, lease: Option<Lease>) {
        self.complaint.settle();
        self.known = self.known.max(lease.as_ref().map(epoch_of).unwrap_or_default());
        self.seen = seen(self.seen.take(), lease, self.clock.now());
    }

    /// How long a term is; the rest of the Lease is for clocks that run unevenly.
    fn term(&self) -> Duration {
        self.lease * 2 / 3
    }

    /// The Lease as `holder` has it, from `old`, of which all that we do not know is kept.
    fn held(&self, old: &Lease, holder: &str, epoch: u64) -> Lease {
        let (mut lease, now) = (old.clone(), MicroTime(self.clock.wall()));
        lease.metadata.name = Some(self.name.clone());
        lease.metadata.managed_fields = None;
        lease.metadata.annotations.get_or_insert_default().insert(EPOCH.into(), epoch.to_string());
        let before = old.spec.clone().unwrap_or_default();
        let changes = !holder.is_empty() && before.holder_identity.as_deref() != Some(holder);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(self.lease.as_secs()).ok(),
            acquire_time: if changes { Some(now.clone()) } else { before.acquire_time },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or_default().saturating_add(changes.into())),
            ..before
        });
        lease
    }
}
