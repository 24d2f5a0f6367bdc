//! Machines that mean harm: they answer like an sshd, and then do not behave like one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelWriteHalf};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What is wrong with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Accepts connections, and says nothing.
    Silence,
    /// Says one byte a second.
    Drip,
    /// Says lines without end before it says that it is an sshd.
    Banner,
    /// Begins the key exchange, and never comes to its end.
    KeyExchange,
    /// Lets everybody in, and opens no channel.
    NoChannels,
    /// Runs every command without ever saying anything.
    NoAnswer,
    /// Runs every command with standard output without end.
    Output,
    /// Runs every command with standard error without end.
    Errors,
    /// Runs every command with a status that has a valid current system and nothing else that could be true.
    Nonsense,
}

impl Harm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Silence,
        Self::Drip,
        Self::Banner,
        Self::KeyExchange,
        Self::NoChannels,
        Self::NoAnswer,
        Self::Output,
        Self::Errors,
        Self::Nonsense,
    ];
}

/// One such machine, on a port of the bridge. It ends when dropped.
pub struct Hostile {
    address: SocketAddr,
    host_key: String,
    calls: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Hostile {
    /// Lets it listen.
    pub async fn start(harm: Harm) -> Self {
        let listener = TcpListener::bind((crate::world::BRIDGE_ADDRESS, 0)).await.expect("cannot listen on the bridge");
        let address = listener.local_addr().expect("a listener has an address");
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).expect("the generator of random numbers works");
        let host_key = key.public_key().to_openssh().expect("a public key can be written");
        let config = Arc::new(Config { keys: vec![key], ..Config::default() });
        let calls = Arc::new(AtomicUsize::new(0));
        let called = Arc::clone(&calls);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                called.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer(stream, harm, Arc::clone(&config)));
            }
        });
        Self { address, host_key, calls, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its SSH host key, as it goes into `spec.connection.hostKeys`.
    pub fn host_key(&self) -> &str {
        &self.host_key
    }

    /// How often it was called.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, harm: Harm, config: Arc<Config>) {
    match harm {
        Harm::Silence => std::future::pending().await,
        Harm::Drip => repeat(&mut stream, b"S", Duration::from_secs(1)).await,
        Harm::Banner => repeat(&mut stream, "welcome\r\n".repeat(1 << 16).as_bytes(), Duration::ZERO).await,
        Harm::KeyExchange => {
            let _ = stream.write_all(b"SSH-2.0-endless\r\n").await;
            // SSH_MSG_IGNORE of an empty string: packet length 12, padding length 6, type 2, string length 0, padding
            let ignore = [0, 0, 0, 12, 6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            repeat(&mut stream, &ignore, Duration::from_millis(100)).await;
        }
        _ => {
            let server = Server { harm, channel: None };
            if let Ok(session) = russh::server::run_stream(config, stream, server).await {
                let _ = session.await;
            }
        }
    }
}

/// Until the other side has had enough.
async fn repeat(stream: &mut TcpStream, text: &[u8], pause: Duration) {
    while stream.write_all(text).await.is_ok() {
        tokio::time::sleep(pause).await;
    }
}

/// One connection, logged in.
struct Server {
    harm: Harm,
    channel: Option<ChannelWriteHalf<Msg>>,
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(&mut self, channel: Channel<Msg>, reply: ChannelOpenHandle, _: &mut Session) -> Result<(), russh::Error> {
        // A reply that is dropped refuses
        if self.harm != Harm::NoChannels {
            reply.accept().await;
            self.channel = Some(channel.split().1);
        }
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, _: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(id)?;
        let Some(channel) = self.channel.take() else { return Ok(()) };
        tokio::spawn(run(self.harm, channel));
        Ok(())
    }
}

async fn run(harm: Harm, channel: ChannelWriteHalf<Msg>) {
    let much = vec![b'x'; 32 << 10];
    match harm {
        Harm::Output => while channel.data(much.as_slice()).await.is_ok() {},
        Harm::Errors => while channel.extended_data(1, much.as_slice()).await.is_ok() {},
        Harm::Nonsense => {
            let _ = channel.data(nonsense().as_bytes()).await;
            let _ = (channel.exit_status(0).await, channel.eof().await, channel.close().await);
        }
        _ => std::future::pending().await,
    }
}

/// A status in which each word is longer than any that could be true.
fn nonsense() -> String {
    let system = format!("/nix/store/{}-x", "0".repeat(32));
    let keys = "nixos_version kernel boot_id running landing_id landing_why landing_code boot_default profile";
    let long = "\u{1b}[31mü".repeat(10_000);
    let words: Vec<String> = keys.split(' ').map(|key| format!("{key}={long}")).collect();
    format!(
        "protocol=1\ncurrent={system}\nbooted={system}\nnix=/x\ngeneration=-1\nlanding_state=activated\nlanding=active\n{}\n",
        words.join("\n")
    )
}
