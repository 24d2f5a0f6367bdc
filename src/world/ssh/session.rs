//! One connection to one host, logged in.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::Disconnect;
use russh::client::Handle;
use tokio_util::sync::DropGuard;

use super::channel::Channel;
use super::command::Command;
use super::error::ExecError;
use super::handler::{Client, Known};
use super::host_key::HostKey;

/// A connection to a host, logged in. Dropped, it is gone at once, with all that runs on it.
pub struct Session {
    pub(super) handle: Handle<Client>,
    pub(super) known: Arc<Known>,
    pub(super) address: String,
    /// What answered; `None` if the jump host called it.
    pub(super) peer: Option<SocketAddr>,
    pub(super) user: String,
    pub(super) host_key: HostKey,
    /// Cuts the stream, and so ends russh's task.
    pub(super) _cut: DropGuard,
    /// The connection that this one runs through: let go after it.
    pub(super) jump: Option<Box<Session>>,
}

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bytes of standard error kept of a command that streams.
const STDERR_TAIL: usize = 16 << 10;

impl Session {
    /// The key that the host proved to hold: what to record when trusting on first use.
    pub fn host_key(&self) -> &HostKey {
        &self.host_key
    }

    /// Which of the addresses answered, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The user who is logged in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The connection to the jump host that this one runs through.
    pub fn jump(&self) -> Option<&Self> {
        self.jump.as_deref()
    }

    /// Whether the connection is known to be gone. `false` proves nothing.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Says good-bye, so that the host's log shows no error, and lets go.
    pub async fn close(self) {
        let farewell = async {
            self.handle.disconnect(Disconnect::ByApplication, "done", "").await?;
            self.handle.await.map_err(|_| russh::Error::Disconnect)
        };
        // Good manners only: dropping `self` closes the connection in any case.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        if let Some(jump) = self.jump {
            Box::pin(jump.close()).await;
        }
    }

    /// Starts `command`, to be written to and read from while it runs. Opening is not bounded here: put a deadline
    /// around it.
    pub async fn open(&self, command: &Command) -> Result<Channel, ExecError> {
        self.open_keeping(command, STDERR_TAIL).await
    }

    /// The same, with the number of bytes of standard error to keep.
    pub(super) async fn open_keeping(&self, command: &Command, stderr: usize) -> Result<Channel, ExecError> {
        let line = command.line(&self.user)?;
        let channel = self.handle.channel_open_session().await.map_err(ExecError::Open)?;
        let channel = Channel::new(channel, Arc::clone(&self.known), stderr);
        // The answer is not waited for: whatever is sent next travels along, and the pump hears a refusal.
        channel.writer.start(line).await?;
        Ok(channel)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}@{})", self.user, self.address)
    }
}
