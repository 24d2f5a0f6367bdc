//! The watch of NixOSHosts: alive from start to end, back within seconds after an outage.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use nixos_host_api::NixOSHost;
use tokio::sync::mpsc;

use super::clients::WATCH_SECONDS;
use super::hosts::{Hosts, Key, Task, key};
use crate::metrics::Metrics;
use crate::stage::chain;

type Guarded = DeserializeGuard<NixOSHost>;

/// Feeds `hosts` from the API for ever, and sends a task for each new one. `ready` is set after the first whole list.
pub(super) async fn run(
    api: Api<Guarded>,
    hosts: Arc<Hosts>,
    tasks: mpsc::UnboundedSender<Task>,
    metrics: Metrics,
    ready: tokio::sync::watch::Sender<bool>,
    jitter: impl Fn(Duration) -> Duration + Send + Sync + Unpin,
) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let stream = watch(api, config).backoff(Pause { tries: 0, jitter });
    futures::pin_mut!(stream);
    let mut pump = Pump { hosts, tasks, metrics, listed: HashSet::new() };
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if pump.on(event) {
                    let _ = ready.send(true);
                }
            }
            Err(error) => tracing::warn!("watching NixOSHosts: {}", chain(&error)),
        }
    }
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
                let key = guarded_key(&object);
                self.hosts.remove(&key);
            }
            Event::InitDone => {
                self.hosts.keep(&self.listed);
                return true;
            }
        }
        false
    }

    fn put(&self, object: Guarded) -> Key {
        let guarded = guarded_key(&object);
        match object.0 {
            Ok(mut object) => {
                // Most of an object's bytes, and never needed.
                object.metadata.managed_fields = None;
                if let Some(annotations) = &mut object.metadata.annotations {
                    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                }
                let key = key(&object);
                if let Some(task) = self.hosts.put(object) {
                    let _ = self.tasks.send(task);
                }
                key
            }
            Err(invalid) => {
                self.metrics.undecodable();
                tracing::error!(namespace = %guarded.0, name = %guarded.1, "this NixOSHost cannot be decoded and is left alone: {}", invalid.error);
                guarded
            }
        }
    }
}

fn guarded_key(object: &Guarded) -> Key {
    match &object.0 {
        Ok(object) => key(object),
        Err(invalid) => (invalid.metadata.namespace.clone().unwrap_or_default(), invalid.metadata.name.clone().unwrap_or_default()),
    }
}

/// From 0.2 s, doubled up to 2 s, with jitter: after an outage there may be two of them before the first list. kube's own goes up to 30 s and forgives only after 2 minutes.
struct Pause<J> {
    tries: u32,
    jitter: J,
}

impl<J: Fn(Duration) -> Duration> Iterator for Pause<J> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = Duration::from_millis(200).saturating_mul(1 << self.tries.min(5)).min(Duration::from_secs(2));
        self.tries += 1;
        Some((self.jitter)(pause))
    }
}

impl<J: Fn(Duration) -> Duration + Send + Sync + Unpin> Backoff for Pause<J> {
    fn reset(&mut self) {
        self.tries = 0;
    }
}
