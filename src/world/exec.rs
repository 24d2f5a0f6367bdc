//! Processes: started with a cleared environment, bounded, and ended whole.
//!
//! Every process of the controller starts here. Never a shell: a program and its arguments. What is not given is not
//! there: no environment, no standard input, no inherited file. A process ends by itself, by its deadline or by its
//! [`CancellationToken`], and takes with it whatever it started.

mod confine;
mod lines;
mod tree;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Resource, Rlimit, Signal, prlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

pub use confine::Confinement;
use lines::Lines;
pub use lines::{DROPPED, LINE_LIMIT};
use tree::Tree;

/// How long a process may take to obey a SIGTERM, and its pipes to close after its end.
pub const GRACE: Duration = Duration::from_millis(1500);

/// A process to be.
#[derive(Clone)]
pub struct Command {
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Its arguments, without the name of the program. Seen by everybody on the machine: never a secret.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where it starts; `/` if not said.
    pub directory: Option<PathBuf>,
    /// What it reads; nothing if empty.
    pub stdin: Vec<u8>,
    /// What of the file system it, and all that it starts, may use; `None` for all.
    pub confinement: Option<Arc<Confinement>>,
    /// Bytes of address space that it may take.
    pub address_space: Option<u64>,
    /// Open files that it inherits, each with the number that it gets there (3 and up).
    pub files: Vec<(Arc<OwnedFd>, i32)>,
    /// How long it may run.
    pub time: Duration,
    /// Bytes of its standard output that are kept; more is read and dropped.
    pub stdout_limit: usize,
}

impl Command {
    /// `program` with `args`: no environment, no input, ten minutes, a mebibyte of output.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            directory: None,
            stdin: Vec::new(),
            confinement: None,
            address_space: None,
            files: Vec::new(),
            time: Duration::from_secs(600),
            stdout_limit: 1 << 20,
        }
    }

    /// What it is counted as: the program's file name.
    fn name(&self) -> String {
        self.program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The environment may hold secrets: only the program and its arguments are shown.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("program", &self.program).field("args", &self.args).finish_non_exhaustive()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, which we did not send.
    Killed(i32),
    /// For want of memory: ended by the kernel, or aborted at its address space limit.
    OutOfMemory,
    /// Ended by us: it ran longer than [`Command::time`].
    TimedOut,
    /// Ended by us: somebody cancelled it.
    Cancelled,
}

/// To be read after the name of the program.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::OutOfMemory => f.write_str("ran out of memory"),
            Self::TimedOut => f.write_str("did not end in time"),
            Self::Cancelled => f.write_str("was cancelled"),
        }
    }
}

/// A process that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How.
    pub ending: Ending,
    /// Its standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// Whether there was more of it.
    pub truncated: bool,
    /// The last lines of its standard error, 64 KiB at most.
    pub stderr: Vec<String>,
}

impl Finished {
    /// Whether it ended by itself with exit code 0, and all of its output was kept.
    pub fn success(&self) -> bool {
        self.ending == Ending::Exited(0) && !self.truncated
    }
}

/// A process could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It did not start.
    #[error("cannot start {}", program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its confinement could not be set up; it was not started.
    #[error("cannot confine {} to its part of the file system", program.display())]
    Confine {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: confine::ConfineError,
    },
    /// It started, and then could not be limited or waited for; it was ended.
    #[error("cannot control {}", program.display())]
    Control {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How many processes of one program there were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The program's file name.
    pub program: String,
    /// Started since the controller started.
    pub started: u64,
    /// Running now.
    pub running: u64,
}

#[derive(Default)]
struct Counter {
    started: AtomicU64,
    running: AtomicU64,
}

/// Starts processes and counts them. Cheap to clone.
#[derive(Clone)]
pub struct Processes {
    landlock: bool,
    counters: Arc<Mutex<BTreeMap<String, Arc<Counter>>>>,
}

impl Processes {
    /// Asks the kernel for Landlock; without it, says so once in the log.
    pub fn new() -> Self {
        let landlock = confine::supported();
        if !landlock {
            tracing::warn!("this kernel has no Landlock: evaluations are kept from the controller's files by Nix's restricted mode alone");
        }
        Self { landlock, counters: Arc::default() }
    }

    /// Whether confinements are enforced.
    pub fn landlock(&self) -> bool {
        self.landlock
    }

    /// How many processes there were, by program.
    pub fn counts(&self) -> Vec<Count> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |(program, counter): (&String, &Arc<Counter>)| Count {
            program: program.clone(),
            started: counter.started.load(Ordering::Relaxed),
            running: counter.running.load(Ordering::Relaxed),
        };
        counters.iter().map(count).collect()
    }

    /// Runs `command` to its end. Each line of its standard error goes to `on_line` at once; a carriage return ends a
    /// line too, and [`DROPPED`] stands for one longer than [`LINE_LIMIT`]. Dropping the future ends the process as well.
    pub async fn run(&self, command: Command, mut on_line: impl FnMut(&str), cancel: &CancellationToken) -> Result<Finished, ExecError> {
        let program = command.program.clone();
        if cancel.is_cancelled() {
            return Ok(Finished { ending: Ending::Cancelled, stdout: Vec::new(), truncated: false, stderr: Vec::new() });
        }
        let (time, limited) = (command.time, command.address_space.is_some());
        let (input, stdout_limit) = (command.stdin.clone(), command.stdout_limit);
        let _counted = self.count(&command.name());
        let mut tree = self.start(command).await?;
        let control = |source| ExecError::Control { program: program.clone(), source };

        let pipes = tree.take_pipes();
        let (mut stdout, mut truncated, mut lines) = (Vec::new(), false, Lines::default());
        let ending = {
            let mut talk = pin!(async {
                tokio::join!(
                    feed(pipes.stdin, &input),
                    collect(pipes.stdout, stdout_limit, &mut stdout, &mut truncated),
                    listen(pipes.stderr, &mut lines, &mut on_line),
                )
            });
            let mut talking = true;
            let mut deadline = pin!(tokio::time::sleep(time));
            let ending = loop {
                tokio::select! {
                    status = tree.wait() => break judge(status.map_err(control)?, limited),
                    _ = &mut talk, if talking => talking = false,
                    () = cancel.cancelled() => break Ending::Cancelled,
                    () = &mut deadline => break Ending::TimedOut,
                }
            };
            if matches!(ending, Ending::Cancelled | Ending::TimedOut) {
                tree.end().await;
            }
            // Whoever holds a pipe open now outlived the process: nothing it says is waited for.
            if talking && tokio::time::timeout(GRACE, talk).await.is_err() {
                tree.kill_leftovers();
            }
            ending
        };
        Ok(Finished { ending, stdout, truncated, stderr: lines.into_tail() })
    }

    /// Starts the process; dropping what is returned ends it.
    async fn start(&self, command: Command) -> Result<Tree, ExecError> {
        let program = command.program.clone();
        let address_space = command.address_space;
        let spawned = match command.confinement.clone().filter(|_| self.landlock) {
            None => spawn(command),
            Some(confinement) => {
                // Landlock binds the thread that asks for it and the children of that thread: one thread, one child.
                let (send, receive) = tokio::sync::oneshot::channel();
                let runtime = tokio::runtime::Handle::current();
                let thread = program.clone();
                std::thread::spawn(move || {
                    let _runtime = runtime.enter();
                    let confined = confinement.apply().map_err(|source| ExecError::Confine { program: thread, source });
                    // If nobody waits any more, the tree comes back in the error and is ended by its drop.
                    drop(send.send(confined.and_then(|()| spawn(command))));
                });
                let lost = |_| ExecError::Start { program: program.clone(), source: io::Error::other("its thread ended") };
                receive.await.map_err(lost)?
            }
        };
        let tree = spawned?;
        if let Some(bytes) = address_space {
            let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            prlimit(Some(tree.pid()), Resource::As, limit).map_err(|e| ExecError::Control { program, source: e.into() })?;
        }
        Ok(tree)
    }

    /// Counts a process of this name, until what is returned is dropped.
    fn count(&self, name: &str) -> Counted {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = Arc::clone(counters.entry(name.to_owned()).or_default());
        counter.started.fetch_add(1, Ordering::Relaxed);
        counter.running.fetch_add(1, Ordering::Relaxed);
        Counted(counter)
    }
}

impl Default for Processes {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes").field("landlock", &self.landlock).field("counts", &self.counts()).finish_non_exhaustive()
    }
}

struct Counted(Arc<Counter>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Forks and executes; called on the thread whose restrictions the process is to inherit.
#[expect(clippy::disallowed_methods, reason = "this is the one place where processes start")]
fn spawn(command: Command) -> Result<Tree, ExecError> {
    let program = command.program;
    let start = |source| ExecError::Start { program: program.clone(), source };
    let mut process = std::process::Command::new(&program);
    process.args(command.args).env_clear().envs(command.env).current_dir(command.directory.unwrap_or_else(|| "/".into()));
    process.stdin(if command.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    process.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mapping = |(file, child_fd): (Arc<OwnedFd>, i32)| file.try_clone().map(|parent_fd| FdMapping { parent_fd, child_fd });
    let files = command.files.into_iter().map(mapping).collect::<io::Result<Vec<_>>>().map_err(start)?;
    process.fd_mappings(files).map_err(|e| start(io::Error::other(e)))?;
    Tree::new(tokio::process::Command::from(process).spawn().map_err(start)?).map_err(start)
}

/// What an end that we did not bring about means.
fn judge(status: ExitStatus, limited: bool) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        // Nobody but the kernel, out of memory, sends a SIGKILL that we did not send.
        (None, Some(signal)) if signal == Signal::KILL.as_raw() || (limited && signal == Signal::ABORT.as_raw()) => Ending::OutOfMemory,
        (None, signal) => Ending::Killed(signal.unwrap_or_default()),
    }
}

/// Writes all of the input and closes it. A process that does not want it is not at fault.
async fn feed(stdin: Option<impl AsyncWrite + Unpin>, input: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(input).await
    {
        tracing::debug!(%error, "a process closed its standard input early");
    }
}

/// Reads all of the output and keeps the first `limit` bytes of it.
async fn collect(stdout: Option<impl AsyncRead + Unpin>, limit: usize, kept: &mut Vec<u8>, truncated: &mut bool) {
    let Some(mut stdout) = stdout else { return };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        let fits = count.min(limit - kept.len());
        kept.extend_from_slice(&buffer[..fits]);
        *truncated |= fits < count;
    }
}

/// Reads all of the standard error, line by line.
async fn listen(stderr: Option<impl AsyncRead + Unpin>, lines: &mut Lines, on_line: &mut impl FnMut(&str)) {
    let Some(mut stderr) = stderr else { return };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        lines.push(&buffer[..count], on_line);
    }
    lines.finish(on_line);
}

#[cfg(test)]
mod tests;
