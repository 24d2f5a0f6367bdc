//! An ssh-agent with one key, in process: ssh signs with a key that it never sees, and no file ever holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::{self, StreamExt as _};
use russh::keys::PrivateKey;
use russh::keys::agent::client::AgentClient;
use russh::keys::agent::server::{self, MessageType};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

/// Serves one key on a socket until it is dropped.
pub(super) struct Agent {
    socket: PathBuf,
    serving: AbortHandle,
}

/// Lists and signs; takes keys only until it is sealed.
#[derive(Clone)]
struct Sealed(Arc<AtomicBool>);

impl server::Agent for Sealed {
    async fn confirm_request(&self, message: MessageType) -> bool {
        match message {
            MessageType::RequestKeys | MessageType::Sign => true,
            MessageType::AddKeys => !self.0.load(Ordering::Acquire),
            MessageType::RemoveKeys | MessageType::RemoveAllKeys | MessageType::Lock | MessageType::Unlock => false,
        }
    }
}

impl Agent {
    /// Serves `key` on a new socket in `dir`, which must be open to our own user alone.
    pub(super) async fn serve(key: &PrivateKey, dir: &Path) -> io::Result<Self> {
        let socket = dir.join("agent");
        let listener = UnixListener::bind(&socket)?;
        let (ours, theirs) = UnixStream::pair()?;
        let accepted = stream::unfold(listener, |listener| async {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            Some((stream, listener))
        });
        let connections = Box::pin(stream::once(async { Ok(theirs) }).chain(accepted));
        let sealed = Sealed(Arc::default());
        let task = tokio::spawn(server::serve(connections, sealed.clone()));
        let agent = Self { socket, serving: task.abort_handle() };
        AgentClient::connect(ours).add_identity(key, &[]).await.map_err(io::Error::other)?;
        sealed.0.store(true, Ordering::Release);
        Ok(agent)
    }

    /// The value of SSH_AUTH_SOCK.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::Algorithm;

    #[tokio::test]
    async fn it_lists_and_signs_with_its_key_and_does_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let agent = Agent::serve(&key, dir.path()).await.unwrap();
        let mut client = AgentClient::connect_uds(agent.socket()).await.unwrap();
        let keys = client.request_identities().await.unwrap();
        assert_eq!(keys.len(), 1);
        let signed = client.sign_request(&keys[0], None, b"data".to_vec()).await.unwrap();
        assert!(!signed.is_empty());
        let other = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        assert!(client.add_identity(&other, &[]).await.is_err());
        assert!(client.remove_all_identities().await.is_err());
        let mut client = AgentClient::connect_uds(agent.socket()).await.unwrap();
        assert_eq!(client.request_identities().await.unwrap().len(), 1);
        drop(agent);
        tokio::task::yield_now().await;
        let gone = async { while UnixStream::connect(dir.path().join("agent")).await.is_ok() {} };
        tokio::time::timeout(std::time::Duration::from_secs(5), gone).await.unwrap();
    }
}
