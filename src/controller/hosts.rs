//! The hosts that are known: the newest object of each, and the pass that runs for it.
//!
//! One task a host runs its passes, one after the other. A change that matters cancels the pass in flight and wakes the task; both happen under
//! the lock under which a pass begins, so that a pass can neither miss a change nor begin with an object older than the one that woke it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use nixos_host_api::{NixOSHost, REQUESTED_AT};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Namespace and name.
pub(super) type Key = (String, String);

/// What is known of one host.
#[derive(Debug)]
struct Entry {
    object: Arc<NixOSHost>,
    inputs: u64,
    pass: CancellationToken,
    wake: Arc<Notify>,
    gone: CancellationToken,
}

/// All hosts that are known.
#[derive(Debug, Default)]
pub(super) struct Hosts(Mutex<HashMap<Key, Entry>>);

/// What the task of a new host needs.
#[derive(Debug)]
pub(super) struct Task {
    /// Whose.
    pub(super) key: Key,
    /// Rings when there is something new.
    pub(super) wake: Arc<Notify>,
    /// The host is no longer there.
    pub(super) gone: CancellationToken,
}

impl Hosts {
    /// Takes note of an object as it is now. `Some` if it is new and wants a task.
    pub(super) fn put(&self, object: NixOSHost) -> Option<Task> {
        let (key, inputs, object) = (key(&object), inputs(&object), Arc::new(object));
        let mut hosts = self.lock();
        if let Some(entry) = hosts.get_mut(&key) {
            // A person removes the recorded host key to have the next one trusted; a pass in flight would write it back.
            let distrusted = host_keys(&entry.object).zip(host_keys(&object)).any(|(before, now)| before.is_some() && now.is_none());
            entry.object = object;
            if entry.inputs != inputs || distrusted {
                entry.inputs = inputs;
                entry.pass.cancel();
                entry.wake.notify_one();
            }
            return None;
        }
        let (wake, gone) = (Arc::new(Notify::new()), CancellationToken::new());
        let task = Task { key: key.clone(), wake: Arc::clone(&wake), gone: gone.clone() };
        hosts.insert(key, Entry { object, inputs, pass: CancellationToken::new(), wake, gone });
        Some(task)
    }

    /// Takes note that an object is no longer there.
    pub(super) fn remove(&self, key: &Key) {
        if let Some(entry) = self.lock().remove(key) {
            entry.pass.cancel();
            entry.gone.cancel();
        }
    }

    /// Removes all but these: a list after an outage says nothing of what went away meanwhile.
    pub(super) fn keep(&self, keys: &std::collections::HashSet<Key>) {
        let lost: Vec<Key> = self.lock().keys().filter(|key| !keys.contains(*key)).cloned().collect();
        for key in &lost {
            self.remove(key);
        }
    }

    /// The newest object of each.
    pub(super) fn all(&self) -> Vec<Arc<NixOSHost>> {
        self.lock().values().map(|entry| Arc::clone(&entry.object)).collect()
    }

    /// Cancels all passes and wakes all tasks: something changed that matters to every host.
    pub(super) fn rouse(&self) {
        for entry in self.lock().values() {
            entry.pass.cancel();
            entry.wake.notify_one();
        }
    }

    /// Begins a pass: the newest object, and a child of `parent` that a change will cancel.
    pub(super) fn begin(&self, key: &Key, parent: &CancellationToken) -> Option<(Arc<NixOSHost>, CancellationToken)> {
        let mut hosts = self.lock();
        let entry = hosts.get_mut(key)?;
        entry.pass = parent.child_token();
        Some((Arc::clone(&entry.object), entry.pass.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Namespace and name of an object.
pub(super) fn key(object: &NixOSHost) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// The recorded host keys, of the machine and of its jump host.
fn host_keys(object: &NixOSHost) -> impl Iterator<Item = Option<&str>> {
    let status = object.status.as_ref();
    [status.and_then(|status| status.host_key.as_deref()), status.and_then(|status| status.jump_host_key.as_deref())].into_iter()
}

/// What of an object makes a new pass necessary. Status, labels and other people's annotations do not.
fn inputs(object: &NixOSHost) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.metadata.uid.hash(&mut hasher);
    object.metadata.generation.hash(&mut hasher);
    object.metadata.deletion_timestamp.is_some().hash(&mut hasher);
    object.annotations().get(REQUESTED_AT).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use nixos_host_api::NixOSHostStatus;

    use super::*;

    fn host(generation: i64, requested_at: Option<&str>) -> NixOSHost {
        let annotations = requested_at.map(|value| (REQUESTED_AT, value)).into_iter().collect::<HashMap<_, _>>();
        serde_json::from_value(serde_json::json!({
            "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost",
            "metadata": {"name": "web", "namespace": "infra", "uid": "u", "generation": generation, "annotations": annotations},
            "spec": {"flake": {"url": "github:a/b"}, "connection": {"addresses": ["h"], "sshKeyRef": {"name": "k"}}},
        }))
        .unwrap()
    }

    #[test]
    fn what_matters_cancels_the_pass_in_flight_and_nothing_else_does() {
        let (hosts, parent) = (Hosts::default(), CancellationToken::new());
        let task = hosts.put(host(1, None)).unwrap();
        let begin = || hosts.begin(&task.key, &parent).unwrap().1;
        for (object, cancels) in
            [(host(1, None), false), (host(2, None), true), (host(2, Some("now")), true), (host(2, Some("now")), false)]
        {
            let pass = begin();
            assert!(hosts.put(object).is_none(), "it has its task");
            assert_eq!(pass.is_cancelled(), cancels);
        }
    }

    #[test]
    fn a_recorded_host_key_that_is_removed_cancels_the_pass_in_flight_and_one_that_is_recorded_does_not() {
        let set: [fn(&mut NixOSHostStatus, Option<String>); 2] =
            [|status, key| status.host_key = key, |status, key| status.jump_host_key = key];
        for set in set {
            let (hosts, parent) = (Hosts::default(), CancellationToken::new());
            let task = hosts.put(host(1, None)).unwrap();
            for (key, cancels) in [(Some("a"), false), (Some("a"), false), (None, true), (None, false)] {
                let pass = hosts.begin(&task.key, &parent).unwrap().1;
                let mut status = NixOSHostStatus::default();
                set(&mut status, key.map(str::to_owned));
                hosts.put(NixOSHost { status: Some(status), ..host(1, None) });
                assert_eq!(pass.is_cancelled(), cancels, "{key:?}");
            }
        }
    }

    #[test]
    fn what_a_relist_no_longer_has_is_gone() {
        let hosts = Hosts::default();
        let task = hosts.put(host(1, None)).unwrap();
        hosts.keep(&std::collections::HashSet::from([task.key.clone()]));
        assert!(!task.gone.is_cancelled());
        hosts.keep(&std::collections::HashSet::new());
        assert!(task.gone.is_cancelled() && hosts.lock().is_empty());
    }
}
