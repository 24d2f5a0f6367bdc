//! What we answer when the host speaks first.

use std::io;
use std::sync::{Arc, OnceLock};

use russh::Channel;
use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::{PublicKey, PublicKeyOrCertificate};

use super::host_key::{HostKey, HostKeyPolicy};

/// What is known of a connection, to its task and to its owner.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The key that the host proved to hold.
    pub(super) host_key: OnceLock<HostKey>,
    /// Why the connection ended.
    pub(super) ended: OnceLock<Arc<russh::Error>>,
}

/// Checks the host's key, and refuses all else that a host may ask of a client.
pub(super) struct Client {
    pub(super) policy: HostKeyPolicy,
    pub(super) known: Arc<Known>,
}

/// Why the task of a connection ended.
#[derive(Debug)]
pub(super) enum ClientError {
    /// The host showed a key that is not good.
    HostKey { expected: String, seen: String },
    /// All else.
    Ssh(russh::Error),
}

impl From<russh::Error> for ClientError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl Client {
    /// In the first key exchange by the policy; in every later one only the same key again.
    fn check(&self, seen: HostKey) -> Result<bool, ClientError> {
        let good = self.policy.expected().is_none_or(|keys| keys.contains(&seen));
        let first = self.known.host_key.get().is_none_or(|key| *key == seen);
        if good && first {
            self.known.host_key.get_or_init(|| seen);
            return Ok(true);
        }
        Err(ClientError::HostKey { expected: self.policy.fingerprints(), seen: seen.fingerprint() })
    }
}

/// What the host said when it hung up: a stranger's text, so little of it, and no control characters.
fn hung_up(message: &str) -> russh::Error {
    let said: String = message.chars().filter(|character| !character.is_control()).take(200).collect();
    russh::Error::IO(io::Error::other(format!("the host hung up: {said}")))
}

/// Handlers of channels that a host opens. We never asked for any, and russh would accept them: dropping the handle refuses.
macro_rules! refuse {
    ($($name:ident($($argument:ty),*);)*) => {$(
        async fn $name(&mut self, _: Channel<Msg>, $(_: $argument,)* _: ChannelOpenHandle, _: &mut Session) -> Result<(), ClientError> {
            Ok(())
        }
    )*};
}

impl Handler for Client {
    type Error = ClientError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, ClientError> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.check(HostKey::new(key)),
            // Never asked for.
            PublicKeyOrCertificate::Certificate(_) => Ok(false),
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<ClientError>) -> Result<(), ClientError> {
        let why = match reason {
            DisconnectReason::ReceivedDisconnect(farewell) => hung_up(&farewell.message),
            DisconnectReason::Error(ClientError::Ssh(error)) => error,
            DisconnectReason::Error(ClientError::HostKey { .. }) => russh::Error::UnknownKey,
        };
        // Only the first reason counts.
        let _ = self.known.ended.set(Arc::new(why));
        Ok(())
    }

    async fn openssh_ext_host_keys_announced(&mut self, _: Vec<PublicKey>, _: &mut Session) -> Result<(), ClientError> {
        Ok(())
    }

    refuse! {
        server_channel_open_forwarded_tcpip(&str, u32, &str, u32);
        server_channel_open_forwarded_streamlocal(&str);
        server_channel_open_agent_forward();
        server_channel_open_session();
        server_channel_open_direct_tcpip(&str, u32, &str, u32);
        server_channel_open_direct_streamlocal(&str);
        server_channel_open_x11(&str, u32);
    }
}
