//! A question to one port: does it accept connections, and what does it answer to a GET request.
//!
//! What answers is a stranger: everything is bounded in time and in bytes, no redirect is followed, and nothing is sent but the request.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;

use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::time::Sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tokio_util::task::AbortOnDropHandle;

use super::ssh::{PortError, Session, Stream};
use crate::clock::human;

/// Bytes of an answer's body that are looked at.
pub const MOST_BODY: usize = 64 << 10;

/// Bytes of an answer's head that are taken.
const MOST_HEAD: usize = 64 << 10;

/// Which port to ask, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Endpoint {
    /// What the host connects to.
    Host {
        /// A name or an address, as the host sees it.
        address: String,
        /// The port.
        port: u16,
    },
    /// What the controller connects to: another port of the address that SSH reached.
    Controller {
        /// The port.
        port: u16,
    },
}

impl Endpoint {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Host { port, .. } | Self::Controller { port } => *port,
        }
    }

    /// The name or address that is connected to.
    pub fn address<'e>(&'e self, session: &'e Session) -> &'e str {
        match self {
            Self::Host { address, .. } => address,
            Self::Controller { .. } => session.address(),
        }
    }

    async fn connect(&self, session: &Session) -> Result<Box<dyn Stream>, ProbeError> {
        let stream = match self {
            Self::Host { address, port } => session.tunnel(address, *port).await,
            Self::Controller { port } => session.neighbour(*port).await,
        };
        Ok(stream?)
    }
}

/// A GET request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Get {
    /// Encrypted, and the certificate verified.
    pub tls: bool,
    /// The name that is asked for, if it is not the address that is connected to.
    pub host: Option<String>,
    /// The path, with the query if there is one.
    pub path: String,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The beginning of the body, as far as it was asked for and came in time.
    pub body: Vec<u8>,
}

/// How many bytes of the body are wanted, by the status code.
pub type Wanted<'w> = &'w (dyn Fn(u16) -> usize + Send + Sync);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No connection.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The certificate is not good, or there is none.
    #[error("agreeing on TLS for the name {name:?}")]
    Tls {
        /// The name that is asked for.
        name: String,
        /// What is wrong.
        #[source]
        source: std::io::Error,
    },
    /// A name that no certificate can have.
    #[error("{0:?} is no name that a certificate can be for")]
    Name(String),
    /// TLS cannot be set up here.
    #[error("setting up TLS")]
    Authorities(#[source] rustls::Error),
    /// The request cannot be written.
    #[error("writing the request")]
    Request(#[source] http::Error),
    /// What was answered is no HTTP, or breaks off.
    #[error("asking over HTTP")]
    Http(#[source] hyper::Error),
    /// The deadline passed.
    #[error("no answer within {}", human(*.0))]
    TimedOut(Duration),
}

/// Whether the port accepts connections.
pub async fn tcp(session: &Session, endpoint: &Endpoint, within: Duration) -> Result<(), ProbeError> {
    let connected = tokio::time::timeout(within, endpoint.connect(session)).await;
    connected.unwrap_or(Err(ProbeError::TimedOut(within))).map(|_| ())
}

/// Asks, and reads as much of the body as is wanted, or as there is, or as comes before the deadline.
pub async fn get(
    session: &Session,
    endpoint: &Endpoint,
    request: &Get,
    within: Duration,
    wanted: Wanted<'_>,
) -> Result<Answer, ProbeError> {
    let mut deadline = pin!(tokio::time::sleep(within));
    let address = endpoint.address(session);
    let asking = async {
        let stream = endpoint.connect(session).await?;
        ask(stream, address, endpoint.port(), request).await
    };
    let (response, _connection) = before(deadline.as_mut(), asking).await.unwrap_or(Err(ProbeError::TimedOut(within)))?;
    let status = response.status().as_u16();
    let body = read(response.into_body(), wanted(status).min(MOST_BODY), deadline).await;
    Ok(Answer { status, body })
}

/// At most so many bytes of a body, or what came before the deadline. What breaks off has said all that it says.
async fn read(mut body: Incoming, most: usize, mut deadline: Pin<&mut Sleep>) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < most {
        let Some(Some(Ok(frame))) = before(deadline.as_mut(), body.frame()).await else { break };
        let data = frame.into_data().unwrap_or_default();
        read.extend_from_slice(&data[..data.len().min(most - read.len())]);
    }
    read
}

/// What `work` comes to, if that is before the deadline.
async fn before<T>(deadline: Pin<&mut Sleep>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        result = work => Some(result),
        () = deadline => None,
    }
}

type Asked = (Response<Incoming>, AbortOnDropHandle<()>);

async fn ask(stream: Box<dyn Stream>, address: &str, port: u16, request: &Get) -> Result<Asked, ProbeError> {
    let name = request.host.as_deref().unwrap_or(address);
    if !request.tls {
        return send(stream, authority(name, port, 80), &request.path).await;
    }
    let server = ServerName::try_from(name.to_owned()).map_err(|_| ProbeError::Name(name.to_owned()))?;
    let connecting = TlsConnector::from(tls().map_err(ProbeError::Authorities)?).connect(server, stream);
    let stream = connecting.await.map_err(|source| ProbeError::Tls { name: name.to_owned(), source })?;
    send(stream, authority(name, port, 443), &request.path).await
}

async fn send<S: Stream + 'static>(stream: S, host: String, path: &str) -> Result<Asked, ProbeError> {
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(ProbeError::Request)?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MOST_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(ProbeError::Http)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection for a health check ended");
        }
    }));
    let response = sender.send_request(request).await.map_err(ProbeError::Http)?;
    Ok((response, connection))
}

/// PURE. The header Host: IPv6 addresses in brackets, the scheme's own port left out.
fn authority(name: &str, port: u16, usual: u16) -> String {
    let name = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
    if port == usual { name } else { format!("{name}:{port}") }
}

/// The certificate authorities of the system, or of `SSL_CERT_FILE`, read once.
fn tls() -> Result<Arc<ClientConfig>, rustls::Error> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, rustls::Error>> = OnceLock::new();
    let make = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (good, _) = roots.add_parsable_certificates(found.certs);
        if good == 0 {
            tracing::warn!(errors = ?found.errors, "no certificate authority is known, so health checks over HTTPS fail: set SSL_CERT_FILE");
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    };
    CONFIG.get_or_init(make).clone()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// What a server sees that answers with `answer` and closes, and what is read of it.
    async fn exchange(answer: &str) -> (String, Result<Asked, ProbeError>) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let answer = answer.to_owned();
        let server = tokio::spawn(async move {
            let mut seen = vec![0; 4096];
            let length = theirs.read(&mut seen).await.unwrap();
            theirs.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&seen[..length]).into_owned()
        });
        let asked = send::<DuplexStream>(ours, authority("::1", 8080, 80), "/healthz?full=1").await;
        (server.await.unwrap(), asked)
    }

    #[tokio::test]
    async fn one_request_is_sent_and_its_answer_read() {
        let (seen, asked) = exchange("HTTP/1.1 503 Sorry\r\ncontent-length: 5\r\n\r\nlater").await;
        assert!(seen.starts_with("GET /healthz?full=1 HTTP/1.1\r\nhost: [::1]:8080\r\n"), "{seen}");
        let (response, _connection) = asked.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "later");
    }

    #[tokio::test]
    async fn what_is_no_http_and_a_head_without_end_are_errors() {
        assert!(matches!(exchange("SSH-2.0-OpenSSH\r\n").await.1, Err(ProbeError::Http(_))));
        let head = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(2 * MOST_HEAD));
        assert!(matches!(exchange(&head).await.1, Err(ProbeError::Http(_))));
    }

    #[tokio::test]
    async fn of_a_body_without_end_only_so_much_is_read_and_only_for_so_long() {
        let long = Duration::from_secs(60);
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "z".repeat(MOST_BODY));
        let (response, _connection) = exchange(&endless).await.1.unwrap();
        assert_eq!(read(response.into_body(), 5000, pin!(tokio::time::sleep(long))).await.len(), 5000);
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let stalling = async {
            theirs.read_exact(&mut [0; 5]).await.unwrap();
            theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbegun").await.unwrap();
        };
        let (asked, ()) = tokio::join!(send::<DuplexStream>(ours, "localhost".into(), "/"), stalling);
        let (response, _connection) = asked.unwrap();
        assert_eq!(read(response.into_body(), 5000, pin!(tokio::time::sleep(Duration::from_millis(50)))).await, b"begun");
    }

    #[test]
    fn the_usual_port_is_left_out() {
        assert_eq!(authority("web.example.org", 443, 443), "web.example.org");
        assert_eq!(authority("10.0.0.1", 8443, 443), "10.0.0.1:8443");
    }
}
