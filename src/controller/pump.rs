//! The watch of NixOSHosts: alive from start to end, back within seconds after an outage.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use tokio::sync::mpsc;

use super::clients::{WATCH_SECONDS, said};
use super::complaint::Complaint;
use super::guarded::Guarded;
use super::hosts::{Hosts, Key, Task, key};
use crate::clock::Clock;
use crate::metrics::Metrics;

/// Feeds `hosts` from the API for ever, and sends a task for each new one. `ready` is set after the first whole list.
pub(super) async fn run(
    api: Api<Guarded>,
    hosts: Arc<Hosts>,
    tasks: mpsc::UnboundedSender<Task>,
    metrics: Metrics,
    ready: tokio::sync::watch::Sender<bool>,
    clock: Clock,
    jitter: impl Fn(Duration) -> Duration,
) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let turned = metrics.clone();
    let mut pump = Pump { hosts, tasks, metrics, listed: HashSet::new() };
    let (mut tries, mut complaint) = (0, Complaint::new(clock.clone()));
    loop {
        let mut stream = std::pin::pin!(watcher::watcher(api.clone(), config.clone()));
        // After a failure everything is listed anew: an API server that was restored from a backup would let the old watch wait in silence for a
        // version that it has not come to yet.
        while let Some(event) = stream.next().await {
            turned.watch_turned(clock.now());
            match event {
                Ok(event) => {
                    // A list says nothing of whether it can be watched.
                    if matches!(event, Event::Apply(_) | Event::Delete(_)) {
                        tries = 0;
                        complaint.settle();
                    }
                    if pump.on(event) {
                        let _ = ready.send(true);
                    }
                }
                Err(error) => {
                    complaint.about(&format!("watching NixOSHosts: {}", text(&error)));
                    break;
                }
            }
        }
        tokio::time::sleep(jitter(pause(tries))).await;
        tries += 1;
    }
}

/// An error in one line: kube's own text repeats the whole status object.
fn text(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error) => format!("listing them: {}", said(error)),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => said(error),
        watcher::Error::WatchError(status) => said(&kube::Error::Api(status.clone())),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Whether what watches does nothing any more. An API server that is away is no reason to restart the controller in the middle of a build: that it
/// is away is for alerts. Each list and watch ends after [`WATCH_SECONDS`] and a little, answered or not.
pub(super) fn hangs(metrics: &Metrics, now: Instant) -> bool {
    metrics.watch_idle(now).is_some_and(|idle| idle > Duration::from_secs(2 * u64::from(WATCH_SECONDS)))
}

/// From 0.2 s, doubled up to 2 s: after an outage there may be two of them before the first list. kube's own goes up to 30 s and forgives only after 2 minutes.
fn pause(tries: u32) -> Duration {
    Duration::from_millis(200).saturating_mul(1 << tries.min(5)).min(Duration::from_secs(2))
}

struct Pump {
    hosts: Arc<Hosts>,
    tasks: mpsc::UnboundedSender<Task>,
    metrics: Metrics,
    listed: HashSet<Key>,
}

impl Pump {
    /// Takes an event; true at the end of a list.
    fn on(&mut self, event: Event<Guarded>) -> bool {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                let key = self.put(object);
                self.listed.insert(key);
            }
            Event::Apply(object) => {
                self.put(object);
            }
            Event::Delete(object) => {
                self.hosts.remove(&key(object.meta()));
            }
            Event::InitDone => {
                self.hosts.keep(&self.listed);
                return true;
            }
        }
        false
    }

    fn put(&self, object: Guarded) -> Key {
        let key = key(object.meta());
        let new = match object.0 {
            Ok(mut object) => {
                // Most of an object's bytes, and never needed.
                object.metadata.managed_fields = None;
                if let Some(annotations) = &mut object.metadata.annotations {
                    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                }
                self.hosts.put(*object)
            }
            Err(undecodable) => {
                self.metrics.undecodable();
                tracing::error!(namespace = %key.0, name = %key.1, "this NixOSHost cannot be decoded and is left alone: {}", undecodable.why);
                self.hosts.put_undecodable(undecodable)
            }
        };
        if let Some(task) = new {
            let _ = self.tasks.send(task);
        }
        key
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;

    use super::*;

    #[test]
    fn a_right_that_is_missing_is_told_in_one_line() {
        let status = kube::core::Status { code: 403, message: "nixoshosts is forbidden".into(), ..Default::default() };
        let error = watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)));
        assert_eq!(text(&error), "listing them: the API server says 403: nixoshosts is forbidden");
    }

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    async fn an_api_server_that_is_away_for_long_does_not_make_the_controller_look_dead() {
        let away = tower::service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>("connection refused") });
        let (metrics, begun) = (Metrics::new().unwrap(), tokio::time::Instant::now());
        let clock = Clock::new(move || begun.into_std() + begun.elapsed(), || jiff::Timestamp::UNIX_EPOCH);
        let api = Api::all(Client::new(away, "infra"));
        let (tasks, ready) = (mpsc::unbounded_channel().0, tokio::sync::watch::channel(false).0);
        metrics.watch_alive(clock.now());
        let pump = tokio::spawn(run(api, Arc::default(), tasks, metrics.clone(), ready, clock.clone(), |pause| pause));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!hangs(&metrics, clock.now()));
        assert!(metrics.watch_age(clock.now()).is_some_and(|age| age.as_secs() == 3600), "alerts know that it was not heard of");
        pump.abort();
        tokio::time::sleep(Duration::from_secs(401)).await;
        assert!(hangs(&metrics, clock.now()));
    }
}
