//! Events: one for each transition that a person cares about, none on a pass that changes nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use nixos_host_api::{NixOSHost, NixOSHostStatus, Outcome, Reason, condition};
use tokio::sync::mpsc;

use super::clients::{REQUEST_WITHIN, said};
use super::complaint::Complaint;
use super::guarded::Undecodable;
use super::status::MANAGER;
use crate::clock::{Clock, human};

/// The API server takes no longer note.
const MAX_NOTE: usize = 1024;

/// What waited for longer is dropped: while the API server does not answer each event takes [`REQUEST_WITHIN`], and those of now are to come through
/// soon after.
const OLDEST: Duration = Duration::from_secs(60);

/// Events that wait to be sent; more are dropped, since an event must never hold up a pass.
const QUEUE: usize = 1000;

/// Something that happened to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Happened {
    /// Whether it is a warning.
    pub(super) warning: bool,
    /// Why, CamelCase.
    pub(super) reason: String,
    /// What the controller did.
    pub(super) action: &'static str,
    /// The same for people.
    pub(super) note: String,
}

/// PURE. What happened between two statuses of a host.
pub(super) fn happened(before: &NixOSHostStatus, now: &NixOSHostStatus) -> Vec<Happened> {
    let mut happened = Vec::new();
    let attempted = |status: &NixOSHostStatus| status.flake.as_ref().and_then(|flake| flake.attempted.clone());
    if let Some(flake) = attempted(now).filter(|flake| attempted(before).as_ref() != Some(flake)) {
        happened.push(normal("NewRevision", "Resolve", format!("landing {}", flake.url)));
    }
    let landings = now.history.iter().take_while(|entry| before.history.first() != Some(entry));
    for entry in landings {
        let message = entry.message.as_deref().unwrap_or_default();
        happened.push(match entry.outcome {
            Outcome::Succeeded => normal("Landed", "Commit", format!("{} landed: {}", entry.revision, entry.system)),
            _ => warning(&entry.reason, "Revert", format!("{} did not land: {message}", entry.revision)),
        });
    }
    for (kind, bad, action) in
        [(condition::REACHABLE, "False", "Observe"), (condition::DRIFTED, "True", "Observe"), (condition::STALLED, "True", "Reconcile")]
    {
        // Stalled has the cure; what is wrong stands in Ready.
        let note = find(now, if kind == condition::STALLED { condition::READY } else { kind }).map(|condition| condition.message.as_str());
        happened.extend(transition(kind, bad, action, find(before, kind), find(now, kind), note.unwrap_or_default()));
    }
    // A rejected landing is told as the landing that it was.
    let told: Vec<String> = happened.iter().filter(|event| event.action == "Revert").map(|event| event.reason.clone()).collect();
    happened.retain(|event| event.action != "Reconcile" || !told.contains(&event.reason));
    happened
}

fn find<'s>(status: &'s NixOSHostStatus, kind: &str) -> Option<&'s Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

fn transition(
    kind: &str,
    bad: &str,
    action: &'static str,
    before: Option<&Condition>,
    now: Option<&Condition>,
    note: &str,
) -> Option<Happened> {
    let was_bad = before.filter(|condition| condition.status == bad);
    let is_bad = now.filter(|condition| condition.status == bad);
    match (was_bad, is_bad) {
        (None, Some(now)) => Some(warning(&now.reason, action, note.into())),
        (Some(before), Some(now)) if before.reason != now.reason => Some(warning(&now.reason, action, note.into())),
        (Some(_), None) if kind == condition::REACHABLE && now.is_some_and(|now| now.status == "True") => {
            Some(normal(Reason::Answered.as_str(), action, "the machine answers again".into()))
        }
        (Some(_), None) if kind == condition::DRIFTED && now.is_some_and(|now| now.status == "False") => {
            Some(normal(Reason::NoDrift.as_str(), action, "the machine runs what was last landed again".into()))
        }
        _ => None,
    }
}

/// Something good, or neither good nor bad.
pub(super) fn normal(reason: &str, action: &'static str, note: String) -> Happened {
    Happened { warning: false, reason: reason.into(), action, note }
}

/// Something that a person should look at.
pub(super) fn warning(reason: &str, action: &'static str, note: String) -> Happened {
    Happened { warning: true, reason: reason.into(), action, note }
}

/// Where events are handed over. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Events {
    queue: mpsc::Sender<Waiting>,
    clock: Clock,
    complaint: Arc<Mutex<Complaint>>,
}

/// An event that waits to be sent.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    event: Event,
}

impl Events {
    /// Sends events in the background for as long as the process lives.
    pub(super) fn start(client: Client, clock: Clock) -> Self {
        let (queue, mut receiver) = mpsc::channel::<Waiting>(QUEUE);
        let events = Self { queue, complaint: Arc::new(Mutex::new(Complaint::new(clock.clone()))), clock };
        let (clock, complaint) = (events.clock.clone(), Arc::clone(&events.complaint));
        tokio::spawn(async move {
            while let Some(Waiting { since, event }) = receiver.recv().await {
                let sent = if clock.now().saturating_duration_since(since) > OLDEST {
                    Err(format!("it had waited for more than {}", human(OLDEST)))
                } else {
                    send(&client, &event).await
                };
                let mut complaint = complaint.lock().unwrap_or_else(PoisonError::into_inner);
                match sent {
                    Ok(()) => complaint.settle(),
                    Err(why) => complaint.of("not written", &format!("an event was not written: {why}")),
                }
            }
        });
        events
    }

    /// Hands over what happened to a host.
    pub(super) fn tell(&self, object: &NixOSHost, happened: Vec<Happened>) {
        for one in happened {
            self.about(object.object_ref(&()), one);
        }
    }

    /// Tells that a NixOSHost is left alone, because this controller cannot read it.
    pub(super) fn undecodable(&self, Undecodable { metadata, why }: &Undecodable) {
        let regarding = ObjectReference {
            api_version: Some(NixOSHost::api_version(&()).into()),
            kind: Some(NixOSHost::kind(&()).into()),
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            field_path: None,
        };
        let note = format!(
            "left alone, since this controller cannot read {why}; change that field, or install the controller that belongs to the CRD"
        );
        self.about(regarding, warning(Reason::InvalidSpec.as_str(), "Decode", note));
    }

    /// Hands over what happened to anything.
    pub(super) fn about(&self, regarding: ObjectReference, happened: Happened) {
        tracing::info!(reason = happened.reason, "event: {}", happened.note);
        let waiting = Waiting { since: self.clock.now(), event: event(regarding, happened, self.clock.wall()) };
        if self.queue.try_send(waiting).is_err() {
            let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
            complaint.of("not written", "an event was not written: too many wait");
        }
    }
}

async fn send(client: &Client, event: &Event) -> Result<(), String> {
    let api: Api<Event> = Api::namespaced(client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
    match tokio::time::timeout(REQUEST_WITHIN, api.create(&PostParams::default(), event)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(said(&error)),
        Err(_) => Err(format!("no answer within {}", human(REQUEST_WITHIN))),
    }
}

fn event(regarding: ObjectReference, happened: Happened, now: Timestamp) -> Event {
    let mut note = happened.note;
    let mut end = note.len().min(MAX_NOTE);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note.truncate(end);
    Event {
        metadata: ObjectMeta {
            // Not with a dot, as events were named before there was generateName: the API server checks what stands before the random part.
            generate_name: Some(format!("{}-", regarding.name.as_deref().unwrap_or("unnamed"))),
            namespace: regarding.namespace.clone(),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: Some(happened.action.into()),
        reason: Some(happened.reason),
        note: Some(note),
        regarding: Some(regarding),
        reporting_controller: Some(format!("nixoshost.dev/{MANAGER}")),
        reporting_instance: Some(std::env::var("HOSTNAME").unwrap_or_else(|_| MANAGER.into()).chars().take(128).collect()),
        type_: Some(if happened.warning { "Warning" } else { "Normal" }.into()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use nixos_host_api::{AppliedFlake, FlakeStatus, HistoryEntry, Mode};

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: format!("because of {reason}"),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }
    }

    fn status(rev: &str, conditions: &[(&str, &str, &str)], landings: &[(&str, Outcome, &str)]) -> NixOSHostStatus {
        let flake = AppliedFlake { url: format!("git+https://h/x?rev={rev}"), rev: Some(rev.into()), nar_hash: String::new() };
        let entry = |(revision, outcome, reason): &(&str, Outcome, &str)| HistoryEntry {
            system: "/nix/store/x".into(),
            revision: (*revision).into(),
            rev: None,
            mode: Mode::Switch,
            outcome: *outcome,
            reason: (*reason).into(),
            message: Some("what happened".into()),
            time: Time(jiff::Timestamp::UNIX_EPOCH),
        };
        NixOSHostStatus {
            flake: Some(FlakeStatus { attempted: Some(flake), ..FlakeStatus::default() }),
            conditions: conditions.iter().map(|(kind, status, reason)| condition(kind, status, reason)).collect(),
            history: landings.iter().map(entry).collect(),
            ..NixOSHostStatus::default()
        }
    }

    fn reasons(before: &NixOSHostStatus, now: &NixOSHostStatus) -> Vec<String> {
        happened(before, now).into_iter().map(|event| format!("{}{}", if event.warning { "!" } else { "" }, event.reason)).collect()
    }

    #[test]
    fn a_pass_that_changes_nothing_tells_nothing() {
        let same = status(
            "a",
            &[("Stalled", "True", "BuildFailed"), ("Reachable", "False", "Unreachable")],
            &[("a", Outcome::Succeeded, "Succeeded")],
        );
        assert_eq!(reasons(&same, &same.clone()), Vec::<String>::new());
    }

    #[test]
    fn each_transition_is_told_once() {
        let landed = [("a", Outcome::Succeeded, "Succeeded")];
        let good = status("a", &[("Reachable", "True", "Answered"), ("Drifted", "False", "NoDrift")], &landed);
        assert_eq!(reasons(&NixOSHostStatus::default(), &good), ["NewRevision", "Landed"]);
        let gone = status("a", &[("Reachable", "False", "Unreachable")], &landed);
        assert_eq!(reasons(&good, &gone), ["!Unreachable"]);
        assert_eq!(reasons(&gone, &good), ["Answered"]);
        let drifted = status("a", &[("Reachable", "True", "Answered"), ("Drifted", "True", "Drift")], &landed);
        assert_eq!(reasons(&good, &drifted), ["!Drift"]);
        assert_eq!(reasons(&drifted, &good), ["NoDrift"]);
        let rejected = status("b", &[("Stalled", "True", "UnitsFailed")], &[("b", Outcome::Rejected, "UnitsFailed"), landed[0]]);
        assert_eq!(reasons(&good, &rejected), ["NewRevision", "!UnitsFailed"], "a rejected landing is not told twice");
        let stalled = status("b", &[("Stalled", "True", "BuildFailed"), ("Ready", "False", "BuildFailed")], &landed);
        assert_eq!(reasons(&good, &stalled), ["NewRevision", "!BuildFailed"]);
    }

    #[tokio::test(start_paused = true)]
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    async fn after_an_outage_the_events_of_now_do_not_wait_behind_all_that_could_not_be_sent() {
        let begun = tokio::time::Instant::now();
        let clock = Clock::new(move || begun.into_std() + begun.elapsed(), || Timestamp::UNIX_EPOCH);
        let back = begun + Duration::from_secs(600);
        let (written, mut notes) = mpsc::unbounded_channel();
        let client = Client::new(
            tower::service_fn(move |request: http::Request<kube::client::Body>| {
                let written = written.clone();
                async move {
                    if tokio::time::Instant::now() < back {
                        std::future::pending::<()>().await;
                    }
                    let body = request.into_body().collect_bytes().await?;
                    written.send(serde_json::from_slice::<Event>(&body)?.note)?;
                    Ok::<_, tower::BoxError>(http::Response::new(kube::client::Body::from(body.to_vec())))
                }
            }),
            "infra",
        );
        let events = Events::start(client, clock);
        let tell = |note: String| events.about(ObjectReference::default(), normal("Landed", "Commit", note));
        (0..QUEUE).for_each(|number| tell(number.to_string()));
        tokio::time::sleep_until(back).await;
        tell("now".into());
        assert_eq!(notes.recv().await, Some(Some("now".into())));
        assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
    }
}
