//! The way to a session: find an address that answers, check who answers, log in.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, AuthResult, Config, Handle};
use russh::keys::HashAlg;
use russh::{AlgorithmKind, Preferred, cipher, compression};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::channel::Channel;
use super::error::{ConnectError, Failure, Phase, Unreached};
use super::handler::{Client, ClientError, Known};
use super::host_key::HostKeyPolicy;
use super::key::PrivateKey;
use super::prompt::Prompt;
use super::resolve::{bare, resolve};
use super::session::Session;
use super::sever::Severable;

/// A host, and how to get in.
#[derive(Debug, Clone)]
pub struct Target {
    /// Names or addresses, tried in order.
    pub addresses: Vec<String>,
    /// The same for all of them.
    pub port: u16,
    /// Who to log in as.
    pub user: String,
    /// The key to log in with.
    pub key: PrivateKey,
    /// Which host keys are good.
    pub host_keys: HostKeyPolicy,
    /// The host to go through.
    pub jump: Option<Box<Target>>,
}

impl Target {
    /// Whether any host key is good, its own or the jump host's.
    pub fn trusts_anybody(&self) -> bool {
        self.host_keys.expected().is_none() || self.jump.as_ref().is_some_and(|jump| jump.trusts_anybody())
    }
}

/// How long to try.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// For finding and calling one address.
    pub per_address: Duration,
    /// For the key exchange with one address: who accepts connections and says nothing must not use up the deadline.
    pub handshake: Duration,
    /// For everything, the jump host included.
    pub deadline: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { per_address: Duration::from_secs(5), handshake: Duration::from_secs(10), deadline: Duration::from_secs(30) }
    }
}

/// A stream to a host.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What is wrong with one address; the next one may be better.
enum Unusable {
    Unreached(Unreached),
    HostKey { expected: String, seen: String },
    Protocol(russh::Error),
}

/// An address that proved to be the host.
struct Connection {
    handle: Handle<Client>,
    known: Arc<Known>,
    cut: DropGuard,
    peer: Option<SocketAddr>,
}

/// The deadline of the whole attempt.
struct Deadline(Pin<Box<Sleep>>);

impl Deadline {
    async fn bound<T>(&mut self, during: Phase, address: &str, work: impl Future<Output = T>) -> Result<T, ConnectError> {
        tokio::select! {
            biased;
            result = work => Ok(result),
            () = &mut self.0 => Err(ConnectError::TimedOut { during, address: address.to_owned() }),
        }
    }
}

impl Session {
    /// A new connection to `target`, by the first of its addresses that proves to be it.
    pub async fn connect(target: &Target, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let mut deadline = Deadline(Box::pin(tokio::time::sleep(options.deadline)));
        dial(target, options, &mut deadline).await
    }
}

async fn dial(target: &Target, options: &ConnectOptions, deadline: &mut Deadline) -> Result<Session, ConnectError> {
    if target.host_keys.expected().is_some_and(<[_]>::is_empty) {
        return Err(ConnectError::HostKeyMissing);
    }
    let jump = match &target.jump {
        Some(jump) => Some(Box::pin(dial(jump, options, deadline)).await.map_err(|error| ConnectError::Jump(Box::new(error)))?),
        None => None,
    };
    let mut unusable = Vec::new();
    for address in target.addresses.iter().map(String::as_str) {
        match reach(address, target, jump.as_ref(), options, deadline).await? {
            Ok(connection) => return log_in(connection, target, address, jump, deadline).await,
            Err(why) => {
                tracing::debug!(address, "not usable");
                unusable.push((address, why));
            }
        }
    }
    Err(verdict(target.port, unusable))
}

/// Calls one address and exchanges keys. The outer error is the deadline's.
async fn reach(
    address: &str,
    target: &Target,
    jump: Option<&Session>,
    options: &ConnectOptions,
    deadline: &mut Deadline,
) -> Result<Result<Connection, Unusable>, ConnectError> {
    let call = call(address, target.port, jump, options.per_address);
    let (stream, peer) = match deadline.bound(Phase::Connecting, address, call).await? {
        Ok(called) => called,
        Err(why) => return Ok(Err(Unusable::Unreached(why))),
    };
    let handshake = timeout(options.handshake, shake_hands(stream, peer, &target.host_keys));
    let silent = || Err(Unusable::Unreached(Unreached::TimedOut(Phase::Handshake)));
    Ok(deadline.bound(Phase::Handshake, address, handshake).await?.unwrap_or_else(|_| silent()))
}

/// A stream to an address, and the socket that answered if it was called from here.
async fn call(
    address: &str,
    port: u16,
    jump: Option<&Session>,
    bound: Duration,
) -> Result<(Box<dyn Stream>, Option<SocketAddr>), Unreached> {
    let silent = || Unreached::TimedOut(Phase::Connecting);
    if let Some(jump) = jump {
        let open = jump.handle.channel_open_direct_tcpip(bare(address), port.into(), "127.0.0.1", 0);
        let channel = timeout(bound, open).await.map_err(|_| silent())?.map_err(Unreached::ByJump)?;
        return Ok((Box::new(Channel::new(channel, Arc::clone(&jump.known), 0).into_stream()), None));
    }
    let resolved = timeout(bound, resolve(address, port)).await.map_err(|_| silent())?.map_err(Unreached::Resolve)?;
    let mut last = silent();
    for socket in resolved {
        match timeout(bound, Prompt::connect(socket)).await {
            Ok(Ok(stream)) => return Ok((Box::new(stream), Some(socket))),
            Ok(Err(error)) => last = unreached(error),
            Err(_) => last = silent(),
        }
    }
    Err(last)
}

fn unreached(error: io::Error) -> Unreached {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Unreached::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Unreached::NoRoute,
        io::ErrorKind::TimedOut => Unreached::TimedOut(Phase::Connecting),
        _ => Unreached::Io(error),
    }
}

async fn shake_hands(stream: Box<dyn Stream>, peer: Option<SocketAddr>, policy: &HostKeyPolicy) -> Result<Connection, Unusable> {
    let token = CancellationToken::new();
    let cut = token.clone().drop_guard();
    let known = Arc::new(Known::default());
    let client = Client { policy: policy.clone(), known: Arc::clone(&known) };
    match client::connect_stream(Arc::new(config(policy)), Severable::new(stream, token), client).await {
        Ok(handle) => Ok(Connection { handle, known, cut, peer }),
        Err(ClientError::HostKey { expected, seen }) => Err(Unusable::HostKey { expected, seen }),
        Err(ClientError::Ssh(russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, theirs, .. })) => {
            Err(Unusable::HostKey { expected: policy.fingerprints(), seen: format!("only keys of the types {}", theirs.join(", ")) })
        }
        Err(ClientError::Ssh(error)) => Err(Unusable::Protocol(error)),
    }
}

fn config(policy: &HostKeyPolicy) -> Config {
    // The order of copy.md's measurements; russh itself leaves aes128-gcm out.
    const CIPHERS: &[cipher::Name] = &[
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_128_CTR,
        cipher::AES_192_CTR,
        cipher::AES_256_CTR,
    ];
    Config {
        preferred: Preferred {
            key: Cow::Owned(policy.algorithms()),
            cipher: Cow::Borrowed(CIPHERS),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 3,
        nodelay: true,
        ..Config::default()
    }
}

async fn log_in(
    connection: Connection,
    target: &Target,
    address: &str,
    jump: Option<Session>,
    deadline: &mut Deadline,
) -> Result<Session, ConnectError> {
    let Connection { mut handle, known, cut, peer } = connection;
    let protocol = |source| ConnectError::Protocol { address: address.to_owned(), source };
    let outcome = deadline.bound(Phase::Authenticating, address, authenticate(&mut handle, target)).await?.map_err(protocol)?;
    if let AuthResult::Failure { remaining_methods, .. } = outcome {
        // russh reports a connection that ended as a failure without methods.
        if handle.is_closed() && remaining_methods.is_empty() {
            let why = known.ended.get().map_or(russh::Error::Disconnect, |why| russh::Error::IO(io::Error::other(Arc::clone(why))));
            return Err(protocol(why));
        }
        let methods = remaining_methods.iter().map(String::from).collect();
        return Err(ConnectError::Authentication { user: target.user.clone(), methods });
    }
    let host_key = known.host_key.get().cloned().ok_or_else(|| protocol(russh::Error::UnknownKey))?;
    let (address, user) = (address.to_owned(), target.user.clone());
    Ok(Session { handle, known, address, peer, user, host_key, _cut: cut, jump: jump.map(Box::new) })
}

async fn authenticate(handle: &mut Handle<Client>, target: &Target) -> Result<AuthResult, russh::Error> {
    let hash = if target.key.is_rsa() {
        // Hosts that name none, or SHA-1 only, get SHA-2 all the same: they take it, or refuse the key.
        handle.best_supported_rsa_hash().await?.flatten().or(Some(HashAlg::Sha512))
    } else {
        None
    };
    handle.authenticate_publickey(&target.user, target.key.signing(hash)).await
}

/// The most telling of the failures: another host key before bad manners before silence.
fn verdict(port: u16, unusable: Vec<(&str, Unusable)>) -> ConnectError {
    let mut protocol = None;
    let mut failures = Vec::new();
    for (address, why) in unusable {
        let address = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        match why {
            Unusable::HostKey { expected, seen } => return ConnectError::HostKeyMismatch { address, expected, seen },
            Unusable::Protocol(source) => protocol = protocol.or(Some(ConnectError::Protocol { address, source })),
            Unusable::Unreached(reason) => failures.push(Failure { address, reason }),
        }
    }
    protocol.unwrap_or_else(|| unreachable(failures))
}

fn unreachable(mut failures: Vec<Failure>) -> ConnectError {
    let unresolved = failures.iter().all(|failure| matches!(failure.reason, Unreached::Resolve(_)));
    match failures.pop() {
        Some(Failure { address: name, reason: Unreached::Resolve(source) }) if unresolved => ConnectError::Resolve { name, source },
        Some(last) => {
            failures.push(last);
            ConnectError::Unreachable { failures }
        }
        None => ConnectError::Unreachable { failures },
    }
}
