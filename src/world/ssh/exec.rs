//! A command from beginning to end, with everything about it bounded.

use std::time::Duration;

use bytes::Bytes;

use super::channel::{Channel, Reader};
use super::command::Command;
use super::error::ExecError;
use super::session::Session;
use super::{Host, Writer};

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this exit status.
    Status(u32),
    /// By this signal, without `SIG`.
    Signal(String),
}

impl Exit {
    /// Whether the exit status is 0.
    pub fn success(&self) -> bool {
        *self == Self::Status(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A command that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub exit: Exit,
    /// The last of its standard error.
    pub stderr_tail: String,
}

/// A command that has ended, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended; any exit status is a result, not an error.
    pub status: Exit,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The last of its standard error, made UTF-8, without white space at its end.
    pub stderr_tail: String,
}

/// What a command may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From opening the channel to the end of the command.
    pub deadline: Duration,
    /// Bytes of standard output; more is an error.
    pub stdout: usize,
    /// Bytes of standard error that are kept, from its end.
    pub stderr: usize,
}

impl Limits {
    /// `deadline`, 1 MiB of output, 16 KiB of standard error.
    pub const fn within(deadline: Duration) -> Self {
        Self { deadline, stdout: 1 << 20, stderr: 16 << 10 }
    }
}

impl Host for Session {
    async fn exec(&self, command: &Command, stdin: Bytes, limits: Limits) -> Result<Output, ExecError> {
        match tokio::time::timeout(limits.deadline, run(self, command, stdin, limits)).await {
            Ok(result) => result,
            Err(_) => Err(ExecError::TimedOut { after: limits.deadline }),
        }
    }
}

async fn run(session: &Session, command: &Command, stdin: Bytes, limits: Limits) -> Result<Output, ExecError> {
    let Channel { mut writer, mut reader, ending } = session.open_keeping(command, limits.stderr).await?;
    let ((), stdout) = tokio::try_join!(feed(&mut writer, stdin), collect(&mut reader, limits.stdout))?;
    let ended = ending.wait().await?;
    Ok(Output { status: ended.exit, stdout, stderr_tail: ended.stderr_tail })
}

/// A command need not read its input: its exit status tells whether it should have.
async fn feed(writer: &mut Writer, stdin: Bytes) -> Result<(), ExecError> {
    if writer.send(stdin).await.is_ok() {
        let _ = writer.finish().await;
    }
    Ok(())
}

async fn collect(reader: &mut Reader, limit: usize) -> Result<Vec<u8>, ExecError> {
    let mut stdout = Vec::new();
    while let Some(piece) = reader.next().await {
        if stdout.len() + piece.len() > limit {
            return Err(ExecError::TooMuchOutput { limit });
        }
        stdout.extend_from_slice(&piece);
    }
    Ok(stdout)
}
