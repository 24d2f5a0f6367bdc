//! The elector against an API server that keeps one Lease, with answers that get lost; and what is read of a Lease.

use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

const LEASE: Duration = Duration::from_secs(15);

#[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
fn now() -> Instant {
    Instant::now()
}

/// One Lease, behind resource versions; and the notes of the events that were written.
#[derive(Default)]
struct Server {
    lease: Value,
    version: u64,
    /// The next write is stored, and nobody hears of it.
    deaf: bool,
    notes: Vec<String>,
}

impl Server {
    /// `None`: no answer.
    fn answer(&mut self, method: &Method, mut body: Value) -> Option<(u16, Value)> {
        if let Some(note) = body["note"].as_str() {
            self.notes.push(note.to_owned());
            return Some((201, body));
        }
        if *method == Method::GET && self.lease.is_null() {
            return Some((404, json!({"status": "Failure", "code": 404, "message": "none", "reason": "NotFound"})));
        }
        if *method == Method::GET {
            return Some((200, self.lease.clone()));
        }
        if *method == Method::PUT && body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"] {
            return Some((409, json!({"status": "Failure", "code": 409, "message": "the object has been modified", "reason": "Conflict"})));
        }
        self.version += 1;
        body["metadata"]["resourceVersion"] = json!(self.version.to_string());
        body["metadata"]["uid"] = json!("u");
        self.lease = body.clone();
        (!std::mem::take(&mut self.deaf)).then_some((200, body))
    }
}

/// An elector of that server, by tokio's clock.
#[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
fn elector(server: &Arc<Mutex<Server>>) -> Elector {
    let (theirs, begun) = (Arc::clone(server), tokio::time::Instant::now());
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&theirs);
        async move {
            let (head, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
            let answer = server.lock().unwrap().answer(&head.method, body);
            let Some((code, body)) = answer else { return std::future::pending().await };
            let response = Response::builder().status(StatusCode::from_u16(code)?).body(Body::from(body.to_string().into_bytes()))?;
            Ok::<_, tower::BoxError>(response)
        }
    });
    let client = Client::new(service, "infra");
    let clock = Clock::new(move || begun.into_std() + begun.elapsed(), || jiff::Timestamp::UNIX_EPOCH);
    let with = (clock.clone(), Events::start(client.clone(), clock.clone()));
    Elector::new(client, ("infra", "l"), LEASE, Lead::standby(clock), with)
}

/// Lets the elector do what it does until then.
async fn rounds(elector: &mut Elector, seconds: u64) {
    let until = elector.clock.now() + Duration::from_secs(seconds);
    while elector.clock.now() < until {
        let pause = elector.round().await;
        tokio::time::sleep(pause).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_came_through_without_its_answer_is_known_for_ones_own() {
    let server = Arc::<Mutex<Server>>::default();
    let mut elector = elector(&server);
    rounds(&mut elector, 3).await;
    let (term, epoch) = (elector.lead.term().await, elector.lead.epoch());
    for _ in 0..3 {
        server.lock().unwrap().deaf = true;
        rounds(&mut elector, 20).await;
        assert!(elector.lead.holds() && !term.is_cancelled(), "{:?}", server.lock().unwrap().notes);
    }
    assert_eq!(elector.lead.epoch(), epoch);
    // Also at the end
    server.lock().unwrap().deaf = true;
    elector.round().await;
    elector.release().await;
    let server = server.lock().unwrap();
    assert_eq!(server.lease["spec"]["holderIdentity"], "");
    assert_eq!(server.notes.len(), 1, "it became leader, and nothing else: {:?}", server.notes);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_another_ones_or_is_gone_ends_the_term_and_says_whose_it_is() {
    type Change = fn(&mut Server);
    let cases: [(Change, &str); 3] = [
        (|server| server.lease["spec"]["holderIdentity"] = json!("other"), "other holds the Lease"),
        (|server| server.lease = Value::Null, "the Lease was deleted"),
        (|server| server.lease["spec"]["leaseTransitions"] = json!(9), "the Lease was replaced by another one of the same name"),
    ];
    for (change, why) in cases {
        let server = Arc::<Mutex<Server>>::default();
        let mut elector = elector(&server);
        rounds(&mut elector, 3).await;
        let term = elector.lead.term().await;
        {
            let mut server = server.lock().unwrap();
            server.version += 1;
            server.lease["metadata"]["resourceVersion"] = json!(server.version.to_string());
            change(&mut server);
        }
        elector.round().await;
        assert!(term.is_cancelled() && !elector.lead.holds(), "{why}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let notes = server.lock().unwrap().notes.clone();
        assert!(notes.last().is_some_and(|note| note.ends_with(&format!("stopped leading: {why}"))), "{notes:?}");
    }
}

fn lease(version: &str, holder: &str, seconds: Option<i32>) -> Lease {
    serde_json::from_value(json!({
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
