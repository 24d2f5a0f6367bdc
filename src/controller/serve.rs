//! /livez, /readyz and /metrics.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// A status and a text.
pub type Answer = (StatusCode, String);

/// A peer that has not sent its request by then is dropped.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address} for {what}")]
pub struct ListenError {
    address: SocketAddr,
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Listens on `address` and answers each path by `answer`, in the background, for as long as the process lives.
pub async fn serve<F>(
    what: &'static str,
    address: SocketAddr,
    answer: impl Fn(String) -> F + Clone + Send + Sync + 'static,
) -> Result<(), ListenError>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.map_err(|source| ListenError { address, what, source })?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let answer = answer.clone();
            let service = service_fn(move |request: http::Request<Incoming>| {
                let answering = answer(request.uri().path().to_owned());
                async move {
                    let (status, text) = answering.await;
                    let mut response = Response::new(Full::new(Bytes::from(text)));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(async move {
                let mut server = hyper::server::conn::http1::Builder::new();
                let _ = server
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS_WITHIN)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(())
}
