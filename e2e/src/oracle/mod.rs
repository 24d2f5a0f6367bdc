//! Watches every NixOSHost of a namespace for its whole life, and holds every status that is written against the rules of [`rules`], and at the end
//! against those of [`flux`].

pub mod flux;
pub mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, WatchEvent, WatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::wait::until;

/// NixOSHosts as plain JSON: the tests see what a user sees.
pub fn nixos_hosts(client: Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("nixoshost.dev", "v1alpha1", "NixOSHost");
    Api::namespaced_with(client, namespace, &ApiResource::from_gvk(&kind))
}

#[derive(Default)]
struct Seen {
    /// The last that was seen of each object, by uid.
    objects: BTreeMap<String, Value>,
    /// Every status that was written, in order, with the object's name.
    writes: Vec<(String, Value)>,
    violations: Vec<String>,
    /// What Flux's linter is to read: each once.
    lines: BTreeSet<String>,
}

/// The watcher. [`Oracle::finish`] at the end of a test; what it found is also checked when it is dropped.
pub struct Oracle {
    api: Api<DynamicObject>,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Oracle {
    /// Watches a namespace from now on.
    pub async fn start(client: Client, namespace: &str) -> Self {
        let api = nixos_hosts(client, namespace);
        let seen = Arc::<Mutex<Seen>>::default();
        let version = list(&api, &seen).await.expect("cannot list NixOSHosts: is the CRD installed?");
        let task = tokio::spawn(watch(api.clone(), Arc::clone(&seen), version));
        Self { api, seen, task }
    }

    /// Begins anew, with what was wrong so far: after a restore from a backup versions and statuses are older than those that were seen.
    pub async fn look_anew(&mut self) {
        self.task.abort();
        let version = list(&self.api, &self.seen).await.expect("cannot list NixOSHosts");
        self.task = tokio::spawn(watch(self.api.clone(), Arc::clone(&self.seen), version));
    }

    /// What has been wrong so far.
    pub fn violations(&self) -> Vec<String> {
        locked(&self.seen).violations.clone()
    }

    /// Every status that was written to an object so far, oldest first.
    pub fn statuses(&self, name: &str) -> Vec<Value> {
        locked(&self.seen).writes.iter().filter(|(of, _)| of == name).map(|(_, status)| status.clone()).collect()
    }

    /// The last that was seen of an object, if it is there.
    pub fn latest(&self, name: &str) -> Option<Value> {
        let seen = locked(&self.seen);
        seen.objects.values().find(|object| object["metadata"]["name"] == name).cloned()
    }

    /// Waits until everything written so far has been seen, then panics if any of it broke a rule.
    pub async fn finish(self) {
        until("the oracle to have seen every write", Duration::from_secs(20), || async {
            let list = self.api.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let seen = locked(&self.seen);
            for object in list {
                let known = seen.objects.get(object.uid().unwrap_or_default().as_str());
                let version = known.and_then(|known| known.pointer("/metadata/resourceVersion")?.as_str().map(str::to_owned));
                if version != object.resource_version() {
                    return Err(format!("{} at {version:?}, now at {:?}", object.name_any(), object.resource_version()));
                }
            }
            Ok(())
        })
        .await;
        // Dropping it does the rest
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.task.abort();
        let mut violations = self.violations();
        violations.extend(flux::violations(&locked(&self.seen).lines));
        if violations.is_empty() {
            return;
        }
        let report = format!("status writes that break the rules:\n{}", violations.join("\n"));
        if std::thread::panicking() {
            eprintln!("{report}");
        } else {
            panic!("{report}");
        }
    }
}

/// A lock that also a panic leaves usable: the report comes after it.
fn locked(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sees every object as if for the first time: what was written since the last look may never be seen, and two statuses with others between them
/// say nothing about each other.
async fn list(api: &Api<DynamicObject>, seen: &Mutex<Seen>) -> kube::Result<String> {
    let list = api.list(&ListParams::default()).await?;
    let version = list.metadata.resource_version.clone().unwrap_or_default();
    locked(seen).objects.clear();
    for object in list {
        look(seen, &object);
    }
    Ok(version)
}

/// Watches for ever: an outage of the API server is waited out, a version that is gone (a restarted API server has none from before) is listed anew.
async fn watch(api: Api<DynamicObject>, seen: Arc<Mutex<Seen>>, mut version: String) {
    loop {
        match api.watch(&WatchParams::default().timeout(240), &version).await {
            Err(kube::Error::Api(status)) if status.code == 410 => version = list(&api, &seen).await.unwrap_or(version),
            Err(_) => {}
            Ok(stream) => {
                let mut stream = std::pin::pin!(stream);
                while let Some(event) = stream.next().await {
                    match event {
                        Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                            version = object.resource_version().unwrap_or_default();
                            look(&seen, &object);
                        }
                        Ok(WatchEvent::Deleted(object)) => {
                            version = object.resource_version().unwrap_or_default();
                            locked(&seen).objects.remove(object.uid().unwrap_or_default().as_str());
                        }
                        Ok(WatchEvent::Bookmark(bookmark)) => version = bookmark.metadata.resource_version,
                        Ok(WatchEvent::Error(_)) => {
                            version = list(&api, &seen).await.unwrap_or(version);
                            break;
                        }
                        Err(_) => break,
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn look(seen: &Mutex<Seen>, object: &DynamicObject) {
    let name = object.name_any();
    let value = serde_json::to_value(object).expect("an object that came as JSON is JSON");
    let mut seen = locked(seen);
    let before = seen.objects.insert(object.uid().unwrap_or_default(), value.clone());
    let written = before.as_ref().is_none_or(|before| before.get("status") != value.get("status"));
    if written && let Some(status) = value.get("status") {
        seen.writes.push((name.clone(), status.clone()));
        seen.lines.insert(flux::line(&value));
    }
    for violation in rules::violations(before.as_ref(), &value) {
        let status = value.get("status").map(ToString::to_string).unwrap_or_default();
        seen.violations.push(format!("- {name}: {violation}\n    in {status}"));
    }
}
