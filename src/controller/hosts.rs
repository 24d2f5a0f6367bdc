//! The hosts that are known: the newest object of each, and the pass that runs for it.
//!
//! One task a host runs its passes, one after the other. A change that matters cancels the pass in flight and wakes the task; both happen under
//! the lock under which a pass begins, so that a pass can neither miss a change nor begin with an object older than the one that woke it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nixos_host_api::{NixOSHost, REQUESTED_AT};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::guarded::Undecodable;

/// Namespace and name.
pub(super) type Key = (String, String);

/// A host's resource as it is now.
#[derive(Debug, Clone)]
pub(super) enum Newest {
    /// It says this.
    Decoded(Arc<NixOSHost>),
    /// It cannot be read, since a newer CRD allowed what this controller does not know. An older version of it says nothing of what is wanted now
    /// (it may be suspended): nothing is done but to see to its deletion.
    Undecodable {
        /// What can be said of it.
        undecodable: Arc<Undecodable>,
        /// Whether a person was told of this generation of it.
        told: Arc<AtomicBool>,
        /// How it was when it could be read last: its status is still so.
        before: Option<Arc<NixOSHost>>,
    },
}

impl Newest {
    /// What can be read of any object.
    pub(super) fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Decoded(object) => &object.metadata,
            Self::Undecodable { undecodable, .. } => &undecodable.metadata,
        }
    }

    /// The newest that could be read.
    fn readable(&self) -> Option<&Arc<NixOSHost>> {
        match self {
            Self::Decoded(object) => Some(object),
            Self::Undecodable { before, .. } => before.as_ref(),
        }
    }
}

/// What is known of one host.
#[derive(Debug)]
struct Entry {
    newest: Newest,
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
        self.note(Newest::Decoded(Arc::new(object)))
    }

    /// The same of one that cannot be decoded.
    pub(super) fn put_undecodable(&self, undecodable: Undecodable) -> Option<Task> {
        self.note(Newest::Undecodable { undecodable: Arc::new(undecodable), told: Arc::default(), before: None })
    }

    fn note(&self, mut newest: Newest) -> Option<Task> {
        let (key, inputs) = (key(newest.metadata()), inputs(&newest));
        let mut hosts = self.lock();
        if let Some(entry) = hosts.get_mut(&key) {
            let mut distrusted = false;
            match (entry.newest.readable(), &mut newest) {
                // A person removes the recorded host key to have the next one trusted; a pass in flight would write it back.
                (Some(before), Newest::Decoded(now)) => {
                    distrusted = host_keys(before).zip(host_keys(now)).any(|(before, now)| before.is_some() && now.is_none());
                }
                (known, Newest::Undecodable { before, told, .. }) => {
                    *before = known.cloned();
                    if let Newest::Undecodable { told: already, .. } = &entry.newest
                        && entry.inputs == inputs
                    {
                        *told = Arc::clone(already);
                    }
                }
                (None, Newest::Decoded(_)) => {}
            }
            entry.newest = newest;
            if entry.inputs != inputs || distrusted {
                entry.inputs = inputs;
                entry.pass.cancel();
                entry.wake.notify_one();
            }
            return None;
        }
        let (wake, gone) = (Arc::new(Notify::new()), CancellationToken::new());
        let task = Task { key: key.clone(), wake: Arc::clone(&wake), gone: gone.clone() };
        hosts.insert(key, Entry { newest, inputs, pass: CancellationToken::new(), wake, gone });
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

    /// The newest object of each that could ever be read.
    pub(super) fn all(&self) -> Vec<Arc<NixOSHost>> {
        self.lock().values().filter_map(|entry| entry.newest.readable().cloned()).collect()
    }

    /// Cancels all passes and wakes all tasks: something changed that matters to every host.
    pub(super) fn rouse(&self) {
        for entry in self.lock().values() {
            entry.pass.cancel();
            entry.wake.notify_one();
        }
    }

    /// Begins a pass: the newest object, and a child of `parent` that a change will cancel. What rang for anything older has been heard: it would
    /// begin another pass after this one.
    pub(super) fn begin(&self, key: &Key, parent: &CancellationToken) -> Option<(Newest, CancellationToken)> {
        let mut hosts = self.lock();
        let entry = hosts.get_mut(key)?;
        entry.pass = parent.child_token();
        let _ = entry.wake.notified().now_or_never();
        Some((entry.newest.clone(), entry.pass.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Namespace and name of an object.
pub(super) fn key(metadata: &ObjectMeta) -> Key {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// The recorded host keys, of the machine and of its jump host.
fn host_keys(object: &NixOSHost) -> impl Iterator<Item = Option<&str>> {
    let status = object.status.as_ref();
    [status.and_then(|status| status.host_key.as_deref()), status.and_then(|status| status.jump_host_key.as_deref())].into_iter()
}

/// What of an object makes a new pass necessary. Status, labels and other people's annotations do not.
fn inputs(newest: &Newest) -> u64 {
    let (mut hasher, metadata) = (DefaultHasher::new(), newest.metadata());
    matches!(newest, Newest::Decoded(_)).hash(&mut hasher);
    metadata.uid.hash(&mut hasher);
    metadata.generation.hash(&mut hasher);
    metadata.deletion_timestamp.is_some().hash(&mut hasher);
    metadata.annotations.as_ref().and_then(|annotations| annotations.get(REQUESTED_AT)).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

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

    fn undecodable(generation: i64) -> Undecodable {
        Undecodable { metadata: host(generation, None).metadata, why: String::new() }
    }

    #[test]
    fn a_change_in_the_middle_of_a_pass_is_one_more_pass_and_not_two() {
        let (hosts, stop) = (Hosts::default(), CancellationToken::new());
        let task = hosts.put(host(1, None)).unwrap();
        hosts.begin(&task.key, &stop).unwrap();
        hosts.put(host(2, None));
        let (newest, _) = hosts.begin(&task.key, &stop).unwrap();
        assert_eq!(newest.metadata().generation, Some(2));
        assert!(task.wake.notified().now_or_never().is_none(), "it was heard when the pass began");
        hosts.put(host(3, None));
        assert!(task.wake.notified().now_or_never().is_some());
    }

    #[test]
    fn what_cannot_be_decoded_cancels_the_pass_in_flight_and_lets_none_begin_until_it_can_be() {
        let (hosts, parent) = (Hosts::default(), CancellationToken::new());
        let task = hosts.put(host(1, None)).unwrap();
        let pass = hosts.begin(&task.key, &parent).unwrap().1;
        assert!(hosts.put_undecodable(undecodable(2)).is_none(), "it has its task");
        assert!(pass.is_cancelled());
        let (newest, pass) = hosts.begin(&task.key, &parent).unwrap();
        assert!(matches!(&newest, Newest::Undecodable { undecodable, .. } if undecodable.metadata.generation == Some(2)));
        assert_eq!(hosts.all().len(), 1, "metrics go on telling its status");
        let told = |newest: &Newest| matches!(newest, Newest::Undecodable { told, .. } if told.swap(true, Ordering::Relaxed));
        assert!(!told(&newest));
        assert!(hosts.put_undecodable(undecodable(2)).is_none());
        assert!(!pass.is_cancelled(), "nothing is new");
        assert!(told(&hosts.begin(&task.key, &parent).unwrap().0), "nor is it told again");
        assert!(hosts.put_undecodable(undecodable(3)).is_none());
        let (newest, pass) = hosts.begin(&task.key, &parent).unwrap();
        assert!(!told(&newest));
        // A controller that is newer, or an object as it was.
        assert!(hosts.put(host(2, None)).is_none());
        assert!(pass.is_cancelled());
        assert!(matches!(hosts.begin(&task.key, &parent).unwrap().0, Newest::Decoded(_)));
    }

    #[test]
    fn what_could_never_be_decoded_has_a_task_for_its_deletion() {
        let hosts = Hosts::default();
        let task = hosts.put_undecodable(undecodable(1)).unwrap();
        assert!(hosts.all().is_empty());
        hosts.remove(&task.key);
        assert!(task.gone.is_cancelled());
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
