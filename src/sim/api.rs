//! The simulated API server: one NixOSHost, its Secret, its Events; watches, server-side apply, finalizers, versions.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use russh::keys::{Algorithm, PrivateKey};
use serde_json::{Value, json};
use tower::{BoxError, Service};

use super::fault::Place;
use super::link::HOST_KEY;
use super::process::{Fate, Process};
use super::{Sim, Variant, lock, when};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

static SSH_KEY: LazyLock<String> = LazyLock::new(|| {
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).ok();
    let text = key.and_then(|key| key.to_openssh(russh::keys::ssh_key::LineEnding::LF).ok());
    base64::engine::general_purpose::STANDARD.encode(text.map(|text| text.to_string()).unwrap_or_default())
});

/// What the API server has stored.
pub(super) struct Store {
    /// The resource, until it is deleted.
    pub(super) object: Option<Value>,
    version: u64,
    /// What watches were told, and are told when they begin later.
    log: Vec<(u64, Bytes)>,
    watches: u64,
}

impl Store {
    /// With a resource that nobody has seen yet.
    pub(super) fn new() -> Self {
        let object = json!({
            "apiVersion": "nixoshost.dev/v1alpha1",
            "kind": "NixOSHost",
            "metadata": {
                "name": "web", "namespace": "infra", "uid": "0a1b2c3d", "generation": 1, "resourceVersion": "1",
                "creationTimestamp": "2027-01-15T08:00:00Z",
            },
            "spec": {
                "flake": {"url": "git+https://git.example.org/infra", "ref": "main"},
                "connection": {"addresses": ["host"], "sshKeyRef": {"name": "key"}, "hostKeys": [HOST_KEY]},
                "activation": {"activateWithin": "30s", "commitWithin": "40s", "settle": "2s"},
                "interval": "60s",
            },
        });
        Self { object: Some(object), version: 1, log: Vec::new(), watches: 0 }
    }

    fn changed(&mut self, kind: &str) {
        self.version += 1;
        if let Some(object) = &mut self.object {
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            let mut line = serde_json::to_vec(&json!({"type": kind, "object": object})).unwrap_or_default();
            line.push(b'\n');
            self.log.push((self.version, line.into()));
        }
    }

    fn after(&self, version: u64) -> Option<(u64, Bytes)> {
        self.log.iter().find(|(at, _)| *at > version).cloned()
    }

    /// An object that is being deleted, and that nobody holds any more, is gone.
    fn collect(&mut self) {
        let ours = |object: &Value| object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
        if self.object.as_ref().is_some_and(|object| object["metadata"]["deletionTimestamp"].is_string() && !ours(object)) {
            self.changed("DELETED");
            self.object = None;
        }
    }
}

fn answer(code: StatusCode, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(serde_json::to_vec(body).unwrap_or_default())).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer
}

fn refused(code: StatusCode, reason: &str) -> Answer {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason, "message": reason}),
    )
}

impl Sim {
    /// Somebody edits the resource.
    pub(super) fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut store = lock(&self.store);
        let Some(object) = &mut store.object else { return };
        let before = object.clone();
        edit(object);
        if *object == before {
            return;
        }
        let generation = |object: &Value| object["metadata"]["generation"].as_i64().unwrap_or_default();
        if object["spec"] != before["spec"] || object["metadata"]["deletionTimestamp"] != before["metadata"]["deletionTimestamp"] {
            object["metadata"]["generation"] = json!(generation(&before) + 1);
        }
        self.say(|| format!("somebody edits the resource: {}", store_text(&store)));
        store.changed("MODIFIED");
        store.collect();
        drop(store);
        let now = self.now();
        self.monitor(|monitor| monitor.anew(now));
        self.stored.notify_waiters();
    }

    /// All watches end.
    pub(super) fn end_watches(&self) {
        lock(&self.store).watches += 1;
        self.stored.notify_waiters();
    }

    fn get(&self, path: &str) -> Answer {
        if path.contains("/secrets/") {
            let data = json!({"ssh-privatekey": *SSH_KEY});
            return answer(StatusCode::OK, &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "data": data}));
        }
        let store = lock(&self.store);
        if !path.ends_with("/nixoshosts") {
            return store
                .object
                .as_ref()
                .map_or_else(|| refused(StatusCode::NOT_FOUND, "NotFound"), |object| answer(StatusCode::OK, object));
        }
        let items: Vec<&Value> = store.object.iter().collect();
        let metadata = json!({"resourceVersion": store.version.to_string()});
        answer(
            StatusCode::OK,
            &json!({"apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHostList", "metadata": metadata, "items": items}),
        )
    }

    fn watch(self: &Arc<Self>, process: &Arc<Process>, version: u64) -> Answer {
        let began = lock(&self.store).watches;
        let state = (Arc::clone(self), Arc::clone(process), version);
        let lines = futures::stream::unfold(state, move |(sim, process, version)| async move {
            let next = when(&sim.stored, || {
                let store = lock(&sim.store);
                if store.watches != began || !process.alive() {
                    return Some(None);
                }
                store.after(version).filter(|_| sim.variant != Some(Variant::DeafWatch)).map(Some)
            });
            let (at, line) = tokio::time::timeout(Duration::from_secs(200), next).await.ok().flatten()?;
            let lag = sim.chance(|chance| chance.millis(1, 60));
            tokio::time::sleep(lag).await;
            process.gate(&sim).await;
            Some((Ok(Frame::data(line)), (sim, process, at)))
        });
        Response::new(StreamBody::new(lines.boxed()).boxed_unsync())
    }

    fn patch(&self, process: &Process, path: &str, kind: &str, body: &Value) -> Answer {
        let mut store = lock(&self.store);
        let Some(before) = store.object.clone() else { return refused(StatusCode::NOT_FOUND, "NotFound") };
        let asked = body.pointer("/metadata/resourceVersion");
        if asked.is_some() && asked != before.pointer("/metadata/resourceVersion") {
            return refused(StatusCode::CONFLICT, "Conflict");
        }
        let Some(object) = &mut store.object else { return refused(StatusCode::NOT_FOUND, "NotFound") };
        if path.ends_with("/status") {
            object["status"] = self.broken(&before, body["status"].clone());
        } else if kind.contains("json-patch") {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("finalizers");
            }
        } else {
            object["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone();
        }
        let after = object.clone();
        if after != before {
            store.changed("MODIFIED");
        }
        let stored = store.object.clone().unwrap_or_default();
        store.collect();
        drop(store);
        self.stored.notify_waiters();
        if after != before && path.ends_with("/status") {
            self.wrote(process, &before, &stored);
        }
        answer(StatusCode::OK, &stored)
    }

    /// Does what the request says.
    fn serve(self: &Arc<Self>, process: &Arc<Process>, request: &Request<()>, body: &Value) -> Answer {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let version = query.split('&').find_map(|word| word.strip_prefix("resourceVersion=")?.parse().ok());
        match *request.method() {
            Method::GET if query.contains("watch=true") => self.watch(process, version.unwrap_or_default()),
            Method::GET => self.get(path),
            Method::POST => answer(StatusCode::CREATED, body),
            Method::PATCH => {
                let kind = request.headers().get(http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                self.patch(process, path, kind, body)
            }
            _ => refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }
}

fn store_text(store: &Store) -> String {
    let text = |pointer| store.object.as_ref().and_then(|object| object.pointer(pointer)).map(Value::to_string).unwrap_or_default();
    format!("activation {} suspend {} annotations {}", text("/spec/activation"), text("/spec/suspend"), text("/metadata/annotations"))
}

/// The API server as one controller sees it.
#[derive(Clone)]
pub(super) struct Server {
    sim: Arc<Sim>,
    process: Arc<Process>,
}

impl Server {
    /// For this controller.
    pub(super) fn new(sim: &Arc<Sim>, process: &Arc<Process>) -> Self {
        Self { sim: Arc::clone(sim), process: Arc::clone(process) }
    }

    async fn handle(self, request: Request<Body>) -> Result<Answer, BoxError> {
        let (parts, body) = request.into_parts();
        let body: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
        let request = Request::from_parts(parts, ());
        let (sim, process) = (&self.sim, &self.process);
        let fate = sim.begin(process, Place::Api, || told(&request, &body)).await;
        let lost = || BoxError::from("connection reset by peer");
        if sim.now() < lock(&sim.network).api_down_until || fate == Fate::LostBefore {
            return Err(lost());
        }
        if fate == Fate::Silence {
            tokio::time::sleep(Duration::from_secs(30)).await;
            process.gate(sim).await;
        }
        let answer = sim.serve(process, &request, &body);
        if fate == Fate::Twice && request.method() != Method::GET {
            drop(sim.serve(process, &request, &body));
        }
        sim.end(process, fate).await;
        if fate == Fate::LostAfter { Err(lost()) } else { Ok(answer) }
    }
}

impl Service<Request<Body>> for Server {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.clone().handle(request).boxed()
    }
}

/// A request in a transcript.
fn told(request: &Request<()>, body: &Value) -> String {
    let path = request.uri().path();
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    match *request.method() {
        Method::PATCH if path.ends_with("/status") => {
            let condition = |kind: &str| {
                let all = body.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
                let found = all.into_iter().find(|condition| condition["type"] == kind);
                found.map(|found| {
                    format!("{kind}={} {}", found["status"].as_str().unwrap_or_default(), found["reason"].as_str().unwrap_or_default())
                })
            };
            let conditions: Vec<String> = ["Ready", "Reconciling", "Stalled"].iter().filter_map(|kind| condition(kind)).collect();
            format!(
                "writes status: {}, applied {}",
                conditions.join(", "),
                text("/status/flake/applied/rev").chars().take(2).collect::<String>()
            )
        }
        Method::PATCH => "patches the finalizers".into(),
        Method::POST => format!("tells the event {}", text("/reason")),
        _ if request.uri().query().is_some_and(|query| query.contains("watch=true")) => "watches".into(),
        _ if path.contains("/secrets/") => "gets the Secret".into(),
        _ if path.ends_with("/nixoshosts") => "lists".into(),
        _ => "gets the NixOSHost".into(),
    }
}
