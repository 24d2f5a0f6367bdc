//! The one long-lived process: `nix-store --serve` on the controller's own store.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::serve::Serve;
use crate::world::ssh::Tail;

/// Bytes of standard error kept.
const STDERR_TAIL: usize = 4 << 10;

/// How to start `nix-store` here.
#[derive(Debug, Clone)]
pub struct NixStore {
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Arguments before `--serve`, such as `--store`.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running `nix-store --serve`. Dropped, it is killed.
pub(super) struct Process {
    pub(super) serve: Serve<ChildStdin, BufReader<ChildStdout>>,
    stderr: Arc<Mutex<Tail>>,
    _child: Child,
}

impl Process {
    pub(super) fn start(nix: &NixStore, more: &[&str]) -> io::Result<Self> {
        let mut child = command(nix, more).spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let tail = Arc::new(Mutex::new(Tail::new(STDERR_TAIL)));
        tokio::spawn(keep(stderr, Arc::clone(&tail)));
        Ok(Self { serve: Serve::new(stdin, BufReader::new(stdout)), stderr: tail, _child: child })
    }

    /// The last that it said on standard error so far.
    pub(super) fn stderr(&self) -> String {
        let mut tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *tail, Tail::new(STDERR_TAIL)).into_text()
    }
}

#[expect(clippy::disallowed_methods, reason = "world/ may; world/exec runs processes to their end, and this one stays")]
fn command(nix: &NixStore, more: &[&str]) -> Command {
    let mut command = Command::new(&nix.program);
    command.args(&nix.arguments).arg("--serve").args(more);
    command.env_clear().envs(nix.environment.iter().cloned());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Ends with the process: nobody else holds the other end.
async fn keep(mut stderr: ChildStderr, tail: Arc<Mutex<Tail>>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        tail.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..read]);
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Process")
    }
}
