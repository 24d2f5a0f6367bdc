//! Leader election by a Lease, with an epoch that hosts can compare.
//!
//! - Every write is a replacement of what was read: of two only one comes through, and a leader whose write does not stands down.
//! - Nobody's clock is compared with another's: a holder is taken for gone when its Lease was not seen to change for as long as it promised to renew it.
//! - One's own term counts from before the request that renewed it, ends at two thirds of the Lease, and ends by the clock ([`Lead`]).
//! - The epoch is in an annotation, written with the holder: `leaseTransitions` begins anew after a deletion, resource versions go back with a restore.
//! - An identity is of one process: one that starts again does not find itself in office.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::clients::{Complaint, said};
use super::events::{Events, normal, warning};
use crate::clock::{Clock, human};
use crate::world::Lead;

/// The annotation with the epoch.
const EPOCH: &str = "nixoshost.dev/epoch";

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

/// The Lease as it was last read or written.
struct Seen {
    lease: Lease,
    /// When it was first seen like this, by our own clock.
    since: Instant,
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
            clock,
            events,
            seen: None,
            until: None,
            known: 0,
            complaint: Complaint::default(),
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
            Err(error) if is_lost(&error) => {
                self.stand_down(&format!("the Lease was changed by somebody else: {}", said(&error)));
                return Duration::ZERO;
            }
            Err(error) => self.complain("renewing", &error),
        }
        (self.lease / 6).min(self.until.unwrap_or(sent).saturating_duration_since(self.clock.now()))
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
        let (Some(_), Some(seen)) = (self.until.take(), &self.seen) else { return };
        let released = self.held(&seen.lease, "", self.lead.epoch());
        match bounded(self.lease / 4, self.api.replace(&self.name, &PostParams::default(), &released)).await {
            Ok(_) => tracing::info!("released the Lease: another one takes over at once"),
            Err(error) => tracing::warn!("releasing the Lease, which others now wait for to run out: {}", said(&error)),
        }
    }

    fn tell(&self, is_warning: bool, note: String) {
        let of = Lease::default().object_ref(&());
        let lease =
            k8s_openapi::api::core::v1::ObjectReference { name: Some(self.name.clone()), namespace: Some(self.namespace.clone()), ..of };
        self.events.about(lease, if is_warning { warning } else { normal }("LeaderElection", "Elect", note));
    }

    fn complain(&mut self, doing: &str, error: &kube::Error) {
        self.complaint.about(format!("{doing} the Lease {}/{}: {}", self.namespace, self.name, said(error)));
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

/// PURE. What is known of the Lease after it was seen like this.
fn seen(before: Option<Seen>, lease: Option<Lease>, now: Instant) -> Option<Seen> {
    let lease = lease?;
    let unchanged = before.filter(|seen| seen.lease.resource_version() == lease.resource_version() && seen.lease.uid() == lease.uid());
    Some(Seen { since: unchanged.map_or(now, |seen| seen.since), lease })
}

/// PURE. After how long somebody else's Lease is free to be taken; what was ours in a term that has ended is free, since no other can have it.
fn vacant_in(seen: Option<&Seen>, me: &str, ours: Duration, now: Instant) -> Duration {
    let Some(Seen { lease, since }) = seen else { return Duration::ZERO };
    let spec = lease.spec.clone().unwrap_or_default();
    let Some(_holder) = spec.holder_identity.filter(|holder| !holder.is_empty() && holder != me) else { return Duration::ZERO };
    let promised = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let lasts = promised.filter(|seconds| *seconds > 0).map_or(ours, Duration::from_secs);
    lasts.saturating_sub(now.saturating_duration_since(*since))
}

fn epoch_of(lease: &Lease) -> u64 {
    lease.annotations().get(EPOCH).and_then(|epoch| epoch.parse().ok()).unwrap_or_default()
}

/// Somebody else wrote the Lease, or deleted it.
fn is_lost(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

async fn bounded<T>(within: Duration, call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = || Err(kube::Error::Service(format!("no answer within {}", human(within)).into()));
    tokio::time::timeout(within, call).await.unwrap_or_else(|_| late())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    fn now() -> Instant {
        Instant::now()
    }

    fn lease(version: &str, holder: &str, seconds: Option<i32>) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "l", "uid": "u", "resourceVersion": version, "annotations": {EPOCH: "41"}},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds},
        }))
        .unwrap()
    }

    fn left(seen: Option<&Seen>, after: u64, start: Instant) -> u64 {
        vacant_in(seen, "me", LEASE, start + Duration::from_secs(after)).as_secs()
    }

    #[test]
    fn a_lease_is_free_when_nobody_has_it_or_it_was_ours_and_else_when_its_holder_was_silent_for_as_long_as_it_promised() {
        let start = now();
        let of = |holder, seconds| seen(None, Some(lease("1", holder, seconds)), start);
        assert_eq!(left(None, 0, start), 0);
        assert_eq!(left(of("", Some(15)).as_ref(), 0, start), 0);
        assert_eq!(left(of("me", Some(15)).as_ref(), 0, start), 0);
        assert_eq!(left(of("other", Some(15)).as_ref(), 14, start), 1);
        assert_eq!(left(of("other", Some(15)).as_ref(), 15, start), 0);
        assert_eq!(left(of("other", Some(60)).as_ref(), 15, start), 45, "the holder's promise counts, not ours");
        assert_eq!(left(of("other", Some(0)).as_ref(), 1, start), 14);
    }

    #[test]
    fn silence_is_timed_from_when_a_version_was_first_seen() {
        let start = now();
        let first = seen(None, Some(lease("1", "other", None)), start);
        let again = seen(first, Some(lease("1", "other", None)), start + Duration::from_secs(9));
        assert_eq!(left(again.as_ref(), 10, start), 5);
        let renewed = seen(again, Some(lease("2", "other", None)), start + Duration::from_secs(10));
        assert_eq!(left(renewed.as_ref(), 10, start), 15);
        assert!(seen(renewed, None, start).is_none());
    }

    #[test]
    fn the_epoch_is_read_from_its_annotation() {
        assert_eq!(epoch_of(&lease("1", "", None)), 41);
        assert_eq!(epoch_of(&Lease::default()), 0);
    }
}
