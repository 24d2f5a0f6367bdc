//! The Lease as it is read: who has it, since when by our own clock, under which epoch.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;

use crate::clock::human;

/// The annotation with the epoch.
pub(super) const EPOCH: &str = "nixoshost.dev/epoch";

/// The Lease as it was last read or written.
pub(super) struct Seen {
    pub(super) lease: Lease,
    /// When it was first seen like this, by our own clock.
    pub(super) since: Instant,
}

/// PURE. What is known of the Lease after it was seen like this.
pub(super) fn seen(before: Option<Seen>, lease: Option<Lease>, now: Instant) -> Option<Seen> {
    let lease = lease?;
    let unchanged = before.filter(|seen| seen.lease.resource_version() == lease.resource_version() && seen.lease.uid() == lease.uid());
    Some(Seen { since: unchanged.map_or(now, |seen| seen.since), lease })
}

/// PURE. After how long somebody else's Lease is free to be taken; what was ours in a term that has ended is free, since no other can have it.
pub(super) fn vacant_in(seen: Option<&Seen>, me: &str, ours: Duration, now: Instant) -> Duration {
    let Some(Seen { lease, since }) = seen else { return Duration::ZERO };
    let spec = lease.spec.clone().unwrap_or_default();
    let Some(_holder) = spec.holder_identity.filter(|holder| !holder.is_empty() && holder != me) else { return Duration::ZERO };
    let promised = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let lasts = promised.filter(|seconds| *seconds > 0).map_or(ours, Duration::from_secs);
    lasts.saturating_sub(now.saturating_duration_since(*since))
}

pub(super) fn epoch_of(lease: &Lease) -> u64 {
    lease.annotations().get(EPOCH).and_then(|epoch| epoch.parse().ok()).unwrap_or_default()
}

/// The Lease is not what it was when it was last seen: written since, or deleted.
pub(super) fn is_lost(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

pub(super) async fn bounded<T>(within: Duration, call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = || Err(kube::Error::Service(format!("no answer within {}", human(within)).into()));
    tokio::time::timeout(within, call).await.unwrap_or_else(|_| late())
}
