//! The Kubernetes clients: one for watches, which may be silent for long, one for requests, which may not.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
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
    /// For everything else.
    pub requests: Client,
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

impl Clients {
    /// Clients for the cluster that kubectl would speak to.
    pub async fn new(metrics: &Metrics, clock: &Clock) -> Result<Self, ClientsError> {
        let mut config = Config::infer().await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        // The default sleeps for minutes inside a call while the server says 503.
        config.default_retry = false;
        let (metrics, clock) = (metrics.clone(), clock.clone());
        let alive = Arc::new(move || metrics.watch_alive(clock.now()));
        // A new watch request is the only sign of life of a quiet watch: kube swallows bookmarks.
        let stamp = MapRequestLayer::new(move |request: Request<Body>| {
            if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                alive();
            }
            request
        });
        let watches = ClientBuilder::try_from(config.clone())?.with_layer(&stamp).build();
        config.read_timeout = Some(REQUEST_WITHIN);
        config.reset_reader_on_write = true;
        Ok(Self { watches, requests: Client::try_from(config)? })
    }
}
