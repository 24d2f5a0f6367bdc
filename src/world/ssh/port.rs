//! Connections to other ports of a host, from here and from the host itself.

use std::io;
use std::sync::Arc;

use russh::ChannelOpenFailure;

use super::channel::Channel;
use super::connect::Stream;
use super::prompt::Prompt;
use super::session::Session;

/// Why there is no connection to a port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Nobody listens, or nobody answers.
    #[error("connecting")]
    Io(#[from] io::Error),
    /// The host could not connect: nobody listens there, no way, or no such name.
    #[error("the machine cannot connect to it: nobody listens, or there is no such address")]
    Failed,
    /// The host's sshd does not connect for others.
    #[error("the machine's sshd does not forward connections: set services.openssh.settings.AllowTcpForwarding, or ask another way")]
    Prohibited,
    /// The SSH connection is of no use.
    #[error("asking the machine's sshd to connect")]
    Ssh(#[source] russh::Error),
}

impl Session {
    /// A connection that the host makes to `address`, as it sees it: what `ssh -L` does. Not bounded here: put a deadline around it.
    pub async fn tunnel(&self, address: &str, port: u16) -> Result<Box<dyn Stream>, PortError> {
        let channel = self.handle.channel_open_direct_tcpip(address, port.into(), "127.0.0.1", 0).await.map_err(|error| match error {
            russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited) => PortError::Prohibited,
            russh::Error::ChannelOpenFailure(_) => PortError::Failed,
            other => PortError::Ssh(other),
        })?;
        Ok(Box::new(Channel::new(channel, Arc::clone(&self.known), 0).into_stream()))
    }

    /// A connection to another port of the host, at the very address that this session reached and the way it went: nothing that a name
    /// leads to meanwhile, and nothing that has not proved to be the host. Not bounded here.
    pub async fn neighbour(&self, port: u16) -> Result<Box<dyn Stream>, PortError> {
        match (&self.jump, self.peer) {
            (Some(jump), _) => jump.tunnel(&self.address, port).await,
            (None, Some(mut peer)) => {
                peer.set_port(port);
                Ok(Box::new(Prompt::connect(peer).await?))
            }
            (None, None) => Err(PortError::Failed),
        }
    }
}
