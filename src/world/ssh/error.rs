//! What can go wrong between the controller and a host.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use russh::ChannelOpenFailure;

use super::quote::QuoteError;
use crate::clock::human;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing says which host key is good. Nothing was sent.
    #[error("no host key is pinned, and trusting the first one was not asked for: nothing was sent")]
    HostKeyMissing,
    /// None of the names leads to an address.
    #[error("resolving {name}")]
    Resolve {
        /// The first of the names.
        name: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// No address answered.
    #[error("no address answers: {}", list(.failures))]
    Unreachable {
        /// One for each address, in the order tried.
        failures: Vec<Failure>,
    },
    /// Who answers is not the host, or has a new key.
    #[error("{address} showed another host key: {expected} was expected, {seen} was seen")]
    HostKeyMismatch {
        /// Where.
        address: String,
        /// The fingerprints that are good.
        expected: String,
        /// The fingerprint shown, or the types of keys offered if none of them was asked for.
        seen: String,
    },
    /// The host does not take the key.
    #[error("the host does not let {user} in with this key{}", instead(.methods))]
    Authentication {
        /// The user.
        user: String,
        /// What the host would take instead.
        methods: Vec<String>,
    },
    /// Who answers does not speak SSH as we do, or hung up.
    #[error("speaking SSH with {address}")]
    Protocol {
        /// Where.
        address: String,
        /// What happened.
        #[source]
        source: russh::Error,
    },
    /// The deadline of the whole attempt passed.
    #[error("no session within the deadline: it passed while {during} with {address}")]
    TimedOut {
        /// What was being done.
        during: Phase,
        /// Where.
        address: String,
    },
    /// The jump host could not be used.
    #[error("connecting to the jump host")]
    Jump(#[source] Box<ConnectError>),
}

/// The steps towards a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Finding and calling an address.
    Connecting,
    /// Agreeing on keys, checking the host's.
    Handshake,
    /// Proving who we are.
    Authenticating,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Handshake => "exchanging keys",
            Self::Authenticating => "authenticating",
        })
    }
}

/// One address that did not answer.
#[derive(Debug)]
pub struct Failure {
    /// As given, with its port.
    pub address: String,
    /// Why.
    pub reason: Unreached,
}

/// Why an address did not answer.
#[derive(Debug)]
pub enum Unreached {
    /// The name does not lead to an address.
    Resolve(io::Error),
    /// Nobody listens there.
    Refused,
    /// No way there.
    NoRoute,
    /// No answer in time, neither yes nor no.
    TimedOut(Phase),
    /// Another error of the network.
    Io(io::Error),
    /// The jump host could not get there.
    ByJump(russh::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.address)?;
        match &self.reason {
            Unreached::Resolve(error) => write!(f, "cannot be resolved ({error})"),
            Unreached::Refused => f.write_str("refuses connections"),
            Unreached::NoRoute => f.write_str("has no route to it"),
            Unreached::TimedOut(Phase::Connecting) => f.write_str("does not answer"),
            Unreached::TimedOut(phase) => write!(f, "fell silent while {phase}"),
            Unreached::Io(error) => write!(f, "failed ({error})"),
            Unreached::ByJump(russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited)) => {
                f.write_str("may not be reached through the jump host, whose sshd refuses it (AllowTcpForwarding, PermitOpen)")
            }
            Unreached::ByJump(error) => write!(f, "cannot be reached from the jump host ({error})"),
        }
    }
}

fn list(failures: &[Failure]) -> String {
    if failures.is_empty() {
        return "none is given".to_owned();
    }
    failures.iter().map(Failure::to_string).collect::<Vec<_>>().join("; ")
}

fn instead(methods: &[String]) -> String {
    if methods.is_empty() { String::new() } else { format!("; it takes {}", methods.join(", ")) }
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The command cannot be written for a shell. Nothing was sent.
    #[error("writing the command line")]
    Command(#[from] QuoteError),
    /// The host opened no channel. Nothing ran.
    #[error("opening a channel for the command")]
    Open(#[source] russh::Error),
    /// The host refused to run any command.
    #[error("the host refused to run the command")]
    Refused,
    /// More came than was allowed for. The command was ended.
    #[error("the command wrote more than {limit} bytes")]
    TooMuchOutput {
        /// Bytes that are allowed for.
        limit: usize,
    },
    /// The deadline passed. The command was told to end, and may run on.
    #[error("the command did not end within {}", human(*.after))]
    TimedOut {
        /// The deadline.
        after: Duration,
    },
    /// The connection ended before the command: whether it did its work is unknown.
    #[error("the connection was lost before the command ended; what it did is unknown")]
    Lost(#[source] Option<Arc<russh::Error>>),
}

impl ExecError {
    /// Whether the connection is gone, and not only this command.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Open(error) => !matches!(error, russh::Error::ChannelOpenFailure(_)),
            _ => false,
        }
    }
}
