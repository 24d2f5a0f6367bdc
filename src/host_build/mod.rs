//! Building on the host: for links over which derivations get, and what they make does not.
//!
//! `build.sh` is what runs there: one transient systemd service that is bounded in time, gives way to all else on the host, and goes on while
//! the connection is down. This module sends it requests and reads its answers. It must not know stages, nor Kubernetes.

mod state;

use std::time::Duration;

use bytes::Bytes;

use crate::nix::{DrvPath, StorePath};
use crate::world::ssh::{Command, ExecError, Host, Limits};

pub use state::{BuildState, Ended};

/// What is sent to the host with each request.
const SCRIPT: &str = include_str!("build.sh");

/// Reads the script from stdin, and runs it with the arguments.
const LOADER: &str = r#"PATH=/run/current-system/sw/bin:/usr/bin:/bin; script=$(cat); eval "$script""#;

/// Each answer comes after 20 s at most, and a slow host takes its time to start a process.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// For ending a build: past this the build's own time limit has to do.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What is to be built, and by when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The derivation, valid on the host with all that it refers to.
    pub drv: DrvPath,
    /// Its output.
    pub out: StorePath,
    /// Past this the host ends the build.
    pub timeout: Duration,
}

/// Why the host says nothing of a build.
#[derive(Debug, thiserror::Error)]
pub enum HostBuildError {
    /// The connection or the command failed; the build may go on.
    #[error("asking the host")]
    Exec(#[from] ExecError),
    /// The script ran, and did not begin.
    #[error("the host refused: {0}")]
    Refused(String),
}

/// Asks for a build, or for the one of the same derivation that runs. Returns when it has ended; as it is after 20 s otherwise.
pub async fn begin(host: &impl Host, order: &Order) -> Result<BuildState, HostBuildError> {
    let seconds = order.timeout.as_secs().max(1).to_string();
    ask(host, &["begin", order.drv.as_str(), order.out.as_str(), &seconds], ANSWER_WITHIN).await
}

/// The build once it has ended; as it is after 20 s otherwise.
pub async fn wait(host: &impl Host, order: &Order) -> Result<BuildState, HostBuildError> {
    ask(host, &["wait", order.drv.as_str(), order.out.as_str()], ANSWER_WITHIN).await
}

/// Ends the build, and all its processes.
pub async fn stop(host: &impl Host, order: &Order) -> Result<(), HostBuildError> {
    run(host, &["stop", order.drv.as_str()], STOP_WITHIN).await.map(|_| ())
}

async fn ask(host: &impl Host, words: &[&str], deadline: Duration) -> Result<BuildState, HostBuildError> {
    let answer = run(host, words, deadline).await?;
    BuildState::parse(&answer).ok_or_else(|| HostBuildError::Refused(format!("its answer is not that of the script: {answer:.200}")))
}

async fn run(host: &impl Host, words: &[&str], deadline: Duration) -> Result<String, HostBuildError> {
    let command = Command::script(LOADER).args(words.iter().copied()).as_root();
    let output = host.exec(&command, Bytes::from_static(SCRIPT.as_bytes()), Limits::within(deadline)).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let refused = text.lines().find_map(|line| line.strip_prefix("build: refused: "));
    Err(HostBuildError::Refused(refused.map_or_else(|| format!("{}: {}", output.status, output.stderr_tail), str::to_owned)))
}
