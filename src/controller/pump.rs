//! The watch of NixOSHosts: alive from start to end, back within seconds after an outage.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
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
    jitter: impl Fn(Duration) -> Duration,
) {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let mut pump = Pump { hosts, tasks, metrics, listed: HashSet::new() };
    let mut tries = 0;
    loop {
        let mut stream = std::pin::pin!(watcher::watcher(api.clone(), config.clone()));
        // After a failure everything is listed anew: an API server that was restored from a backup would let the old watch wait in silence for a
        // version that it has not come to yet.
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    tries = if matches!(event, Event::Apply(_) | Event::Delete(_)) { 0 } else { tries };
                    if pump.on(event) {
                        let _ = ready.send(true);
                    }
                }
                Err(error) => {
                    tracing::warn!("watching NixOSHosts: {}", chain(&error));
                    break;
                }
            }
        }
        tokio::time::sleep(jitter(pause(tries))).await;
        tries += 1;
    }
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
                self.hosts.put(object)
            }
            Err(invalid) => {
                self.metrics.undecodable();
                tracing::error!(namespace = %key.0, name = %key.1, "this NixOSHost cannot be decoded and is left alone: {}", invalid.error);
                self.hosts.put_undecodable(invalid.metadata)
            }
        };
        if let Some(task) = new {
            let _ = self.tasks.send(task);
        }
        key
    }
}
