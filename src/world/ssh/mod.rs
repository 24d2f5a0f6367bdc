//! SSH in process: connections to hosts, and commands on them.
//!
//! Every connection is new, every wait has a bound, host keys are checked before anything of ours is sent, and private
//! keys never leave the memory of this process. Nothing here knows Nix or Kubernetes.

mod channel;
mod command;
mod connect;
mod error;
mod exec;
mod handler;
mod host_key;
mod key;
mod port;
mod prompt;
mod quote;
mod resolve;
mod session;
mod sever;
mod tail;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use channel::{Channel, Ending, Reader, Writer};
pub use command::Command;
pub use connect::{ConnectOptions, Stream, Target};
pub use error::{ConnectError, ExecError, Failure, Phase, Unreached};
pub use exec::{Ended, Exit, Limits, Output};
pub use host_key::{HostKey, HostKeyError, HostKeyPolicy};
#[cfg(test)]
pub(crate) use key::some_private_key;
pub use key::{KeyError, PrivateKey};
pub use port::PortError;
pub use quote::QuoteError;
pub use session::Session;
pub(crate) use tail::Tail;

/// Whatever runs commands the way a host does: a [`Session`], or in tests a local shell or a simulated host.
pub trait Host: Send + Sync {
    /// Runs `command` with `stdin` as its whole input and gives its whole output, all within `limits`.
    fn exec(&self, command: &Command, stdin: Bytes, limits: Limits) -> impl Future<Output = Result<Output, ExecError>> + Send;
}
