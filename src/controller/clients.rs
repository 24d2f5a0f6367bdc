//! The Kubernetes clients: one for watches, which may be silent for long, one for requests, which may not, and one for the Lease, which hurries.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::Service;
use tower::layer::layer_fn;
use tower::util::MapRequestLayer;

use crate::clock::Clock;
use crate::metrics::Metrics;

/// A watch ends by itself after this; the next one begins at once. What bounds how stale a silent watch can be.
pub const WATCH_SECONDS: u32 = 200;

/// No request takes longer.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(15);

/// The clients.
#[derive(Clone)]
pub struct Clients {
    /// For watches.
    pub watches: Client,
    /// For the Lease.
    pub leases: Client,
    /// For everything else.
    pub requests: Client,
    /// Where this controller itself is.
    pub namespace: String,
}

/// Why there are no clients.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// Neither a kubeconfig nor a service account was found, or it cannot be used.
    #[error("finding the Kubernetes API (KUBECONFIG, ~/.kube/config or in-cluster)")]
    Config(#[from] kube::config::InferConfigError),
    /// The TLS or authentication set-up failed.
    #[error("setting up a client of the Kubernetes API")]
    Client(#[from] kube::Error),
}

/// An error of the API in one line: kube's own text repeats the whole status object.
pub fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server says {}: {}", status.code, status.message),
        other => crate::stage::chain(other),
    }
}

/// Counts requests and how long their answers take to begin.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    metrics: Metrics,
    clock: Clock,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (metrics, clock, method) = (self.metrics.clone(), self.clock.clone(), request.method().clone());
        let (begun, answer) = (clock.now(), self.inner.call(request));
        async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            metrics.request(method.as_str(), code, clock.now().saturating_duration_since(begun));
            answer
        }
        .boxed()
    }
}

impl Clients {
    /// Clients for the cluster that kubectl would speak to; `hurry` bounds what the one for the Lease waits for.
    pub async fn new(metrics: &Metrics, clock: &Clock, hurry: Duration) -> Result<Self, ClientsError> {
        let mut config = Config::infer().await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        // The default sleeps for minutes inside a call while the server says 503.
        config.default_retry = false;
        let counted = layer_fn({
            let (metrics, clock) = (metrics.clone(), clock.clone());
            move |inner| Counted { inner, metrics: metrics.clone(), clock: clock.clone() }
        });
        let (metrics, clock) = (metrics.clone(), clock.clone());
        let alive = Arc::new(move || metrics.watch_alive(clock.now()));
        // A new watch request is the only sign of life of a quiet watch: kube swallows bookmarks.
        let stamp = MapRequestLayer::new(move |request: Request<Body>| {
            if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                alive();
            }
            request
        });
        // kube ends a watch that is silent for longer than it may be, but waits for ever for a list, or for the beginning of a watch.
        (config.read_timeout, config.reset_reader_on_write) = (Some(Duration::from_secs(u64::from(WATCH_SECONDS) + 10)), true);
        let watches = ClientBuilder::try_from(config.clone())?.with_layer(&counted).with_layer(&stamp).build();
        let namespace = std::env::var("POD_NAMESPACE").ok().filter(|namespace| !namespace.is_empty());
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        config.read_timeout = Some(REQUEST_WITHIN);
        let requests = ClientBuilder::try_from(config.clone())?.with_layer(&counted).build();
        (config.read_timeout, config.connect_timeout) = (Some(hurry), Some(hurry));
        let leases = ClientBuilder::try_from(config)?.with_layer(&counted).build();
        Ok(Self { watches, leases, requests, namespace })
    }
}
