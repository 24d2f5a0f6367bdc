//! The brake of all hosts: a ConfigMap that stops everything at once.
//!
//! It is read every [`LOOK`], which a connection that has gone silent cannot delay as it can a watch, and once more before each landing. While it was
//! never read, or may not be, nothing is done. Whatever its key says except "false", or nothing, sets it: who typed "yes" meant it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::{Api, Client, Resource};
use tokio::sync::watch;

use super::clients::said;
use super::complaint::Complaint;
use super::events::{Events, normal, warning};
use super::hosts::Hosts;
use crate::clock::{Clock, human};
use crate::stage::bounded;
use crate::world::Lead;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// No look takes longer.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// Longer texts are cut.
const MAX_REASON: usize = 1024;

/// What is known of the brake.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// It was not read yet, or may not be.
    Unknown(String),
    Released,
    /// With the reason that the ConfigMap gives.
    Set(String),
}

/// The brake. Cheap to clone.
#[derive(Clone)]
pub(super) struct Brake(Arc<Inner>);

struct Inner {
    api: Api<ConfigMap>,
    namespace: String,
    /// Empty: there is no brake.
    name: String,
    state: watch::Sender<State>,
    hosts: Arc<Hosts>,
    events: Events,
    lead: Lead,
}

impl Brake {
    /// A brake of which nothing is known yet; none if `name` is empty.
    pub(super) fn new(client: Client, (namespace, name): (&str, &str), hosts: Arc<Hosts>, events: Events, lead: Lead) -> Self {
        let state = if name.is_empty() { State::Released } else { State::Unknown("it was not read yet".into()) };
        Self(Arc::new(Inner {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            state: watch::channel(state).0,
            hosts,
            events,
            lead,
        }))
    }

    /// Looks for ever.
    pub(super) async fn run(self, clock: Clock) {
        let mut complaint = Complaint::new(clock);
        while !self.0.name.is_empty() {
            match self.look().await {
                Ok(()) => complaint.settle(),
                Err(error) => {
                    let Inner { namespace, name, .. } = &*self.0;
                    complaint.about(&format!("reading the brake, ConfigMap {namespace}/{name}: {}", said(&error)));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it was read.
    pub(super) async fn known(&self) {
        // The sender is `self`: this cannot fail.
        let _ = self.0.state.subscribe().wait_for(|state| !matches!(state, State::Unknown(_))).await;
    }

    /// Why nothing may be done for any host, if so.
    pub(super) fn stops(&self) -> Option<String> {
        let Inner { namespace, name, .. } = &*self.0;
        match &*self.0.state.borrow() {
            State::Released => None,
            State::Set(reason) if reason.is_empty() => Some(format!("the brake of all hosts is set (ConfigMap {namespace}/{name})")),
            State::Set(reason) => Some(format!("the brake of all hosts is set (ConfigMap {namespace}/{name}): {reason}")),
            State::Unknown(why) => {
                Some(format!("whether the brake of all hosts is set (ConfigMap {namespace}/{name}) is not known: {why}"))
            }
        }
    }

    /// Reads it now. If that shows something new all passes are cancelled and all hosts woken.
    pub(super) async fn look(&self) -> kube::Result<()> {
        if self.0.name.is_empty() {
            return Ok(());
        }
        let late = || Err(kube::Error::Service(format!("no answer within {}", human(LOOK_WITHIN)).into()));
        match tokio::time::timeout(LOOK_WITHIN, self.0.api.get_opt(&self.0.name)).await.unwrap_or_else(|_| late()) {
            Ok(found) => {
                self.put(found.map_or(State::Released, |found| read(&found.data.unwrap_or_default())));
                Ok(())
            }
            Err(error) => {
                // An API server that cannot be reached is asked again before anything lands; what was known holds for the rest.
                if self.stops().is_some() || matches!(&error, kube::Error::Api(status) if matches!(status.code, 401 | 403)) {
                    self.unknown(&said(&error));
                }
                Err(error)
            }
        }
    }

    fn unknown(&self, why: &str) {
        let set = matches!(*self.0.state.borrow(), State::Set(_));
        if !set {
            self.put(State::Unknown(bounded(why, MAX_REASON)));
        }
    }

    fn put(&self, state: State) {
        let before = self.0.state.send_replace(state.clone());
        if before == state {
            return;
        }
        // After the state: a pass that begins now sees it, one that began before is cancelled.
        self.0.hosts.rouse();
        let Inner { namespace, name, lead, events, .. } = &*self.0;
        let of = ConfigMap::default().object_ref(&());
        let regarding = ObjectReference { name: Some(name.clone()), namespace: Some(namespace.clone()), ..of };
        let happened = match (before, state) {
            (_, State::Set(reason)) => {
                let why = if reason.is_empty() { "its key reason does not say why".to_owned() } else { reason };
                warning("BrakeSet", "Brake", format!("nothing is done for any host while its key stopped is true: {why}"))
            }
            (State::Set(_), State::Released) => normal("BrakeReleased", "Brake", "all hosts go on".into()),
            _ => return,
        };
        if lead.holds() {
            events.about(regarding, happened);
        }
    }
}

/// PURE. What a ConfigMap says.
fn read(data: &BTreeMap<String, String>) -> State {
    let text = |key: &str| data.get(key).map(|value| value.trim()).unwrap_or_default();
    match text("stopped").to_ascii_lowercase().as_str() {
        "" | "false" => State::Released,
        _ => State::Set(bounded(text("reason"), MAX_REASON)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_false_stops() {
        let of = |pairs: &[(&str, &str)]| read(&pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect());
        assert_eq!(of(&[]), State::Released);
        assert_eq!(of(&[("reason", "x")]), State::Released);
        for released in ["false", " False\n", ""] {
            assert_eq!(of(&[("stopped", released)]), State::Released, "{released:?}");
        }
        for set in ["true", "True", "yes", "1", "flase"] {
            assert_eq!(of(&[("stopped", set), ("reason", " bad kernel\n")]), State::Set("bad kernel".into()), "{set:?}");
        }
    }
}
