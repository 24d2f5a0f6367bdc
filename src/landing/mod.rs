//! Landing: activating a system on a host so that the host can never be stranded.
//!
//! `landing.sh` is what runs there: one transient systemd service that goes back to the old system by itself unless it is told to commit.
//! This module sends it requests and reads its answers. It must not know stages, nor Kubernetes.

pub mod outcome;
pub mod status;

use std::time::Duration;

use bytes::Bytes;
use nixos_host_api::Mode;

use crate::nix::StorePath;
use crate::world::ssh::{Command, ExecError, Exit, Host, Limits};

pub use status::{HostStatus, Landing, LandingState, Needs, NotTheProtocol, Verification};

/// What is sent to the host with each request: nothing of it stays there but during a landing.
const SCRIPT: &str = concat!(include_str!("boot.sh"), include_str!("landing.sh"));

/// Reads the script from stdin, and runs it with the arguments. The login shell's PATH is the user's affair.
const LOADER: &str = r#"PATH=/run/current-system/sw/bin:/usr/bin:/bin; script=$(cat); eval "$script""#;

/// Enough for a question that only reads.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A commit may take a boot loader's five minutes, a revert as long again.
const SETTLE_WITHIN: Duration = Duration::from_secs(400);

/// What is to land, and by when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The landing's identity. The same one again attaches to it.
    pub id: String,
    /// The term of the controller that orders it: the host refuses an older one than it knows.
    pub epoch: u64,
    /// The system.
    pub new: StorePath,
    /// How.
    pub goal: Goal,
    /// Past this the activation is ended and the host goes back.
    pub activate_within: Duration,
    /// Past this, counted from the end of the activation, the host goes back.
    pub commit_within: Duration,
}

/// How a system lands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// It is activated, and with a commit the boot default.
    Switch,
    /// It becomes the boot default at once.
    Boot,
    /// It is activated; a commit lets it stay until the next boot.
    Test,
    /// It is booted once.
    Reboot,
    /// It was booted once, and with a commit is the boot default; units that had failed before do not count against it.
    Booted(Vec<String>),
}

impl From<Mode> for Goal {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Boot => Self::Boot,
            Mode::Test => Self::Test,
            Mode::Switch | Mode::DryActivate => Self::Switch,
        }
    }
}

/// Why the host did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LandingError {
    /// The connection or the command failed; what the host did is unknown.
    #[error("asking the host")]
    Exec(#[from] ExecError),
    /// The user may not become root.
    #[error("{user} may not become root without a password, by sudo or doas: {stderr}")]
    NotRoot {
        /// Who logged in.
        user: String,
        /// What sudo or doas said.
        stderr: String,
    },
    /// The script ran and refused; nothing was touched.
    #[error("the host refused: {why}")]
    Refused {
        /// Why, as a word.
        code: String,
        /// The same for people.
        why: String,
    },
    /// Something answered that is not the script.
    #[error(transparent)]
    Protocol(#[from] NotTheProtocol),
}

impl LandingError {
    /// Whether the host did not answer, for whatever reason: another connection tells what it did.
    pub fn is_no_answer(&self) -> bool {
        matches!(self, Self::Exec(error) if error.is_lost() || matches!(error, ExecError::TimedOut { .. }))
    }

    /// Whether it may answer another connection: that, or it ran nothing this time.
    pub fn is_passing(&self) -> bool {
        self.is_no_answer() || matches!(self, Self::Exec(ExecError::Open(_) | ExecError::Refused))
    }
}

/// A host as the landing protocol sees it.
#[derive(Debug)]
pub struct Client<'h, H> {
    host: &'h H,
    user: &'h str,
}

impl<'h, H: Host> Client<'h, H> {
    /// Speaks to `host`, where `user` is logged in.
    pub fn new(host: &'h H, user: &'h str) -> Self {
        Self { host, user }
    }

    /// Looks at the host. Changes nothing.
    pub async fn status(&self) -> Result<HostStatus, LandingError> {
        Ok(HostStatus::parse(&self.ask(&["status"], ANSWER_WITHIN).await?)?)
    }

    /// Begins a landing, or attaches to it if it has begun. Returns once it needs the controller or has ended; as it is after 20 s otherwise.
    pub async fn land(&self, order: &Order) -> Result<HostStatus, LandingError> {
        let (goal, units): (_, &[String]) = match &order.goal {
            Goal::Switch => ("switch", &[]),
            Goal::Boot => ("boot", &[]),
            Goal::Test => ("test", &[]),
            Goal::Reboot => ("reboot", &[]),
            Goal::Booted(units) => ("booted", units),
        };
        let seconds = |time: Duration| time.as_secs().max(1).to_string();
        let (epoch, activate, commit) = (order.epoch.to_string(), seconds(order.activate_within), seconds(order.commit_within));
        let mut words = vec!["land", &order.id, &epoch, order.new.as_str(), goal, &activate, &commit];
        words.extend(units.iter().map(String::as_str));
        Ok(HostStatus::parse(&self.ask(&words, ANSWER_WITHIN).await?)?)
    }

    /// Whether `system` needs a reboot. Changes nothing.
    pub async fn needs(&self, system: &StorePath) -> Result<Needs, LandingError> {
        Ok(Needs::parse(&self.ask(&["needs", system.as_str()], ANSWER_WITHIN).await?)?)
    }

    /// Looks at what a person would look at after a switch: what runs, and which units failed since. How often units were restarted is asked
    /// only for comparing two looks: it means a question about every unit.
    pub async fn verify(&self, restarts: bool) -> Result<Verification, LandingError> {
        let words: &[&str] = if restarts { &["verify", "restarts"] } else { &["verify"] };
        Ok(Verification::parse(&self.ask(words, ANSWER_WITHIN).await?)?)
    }

    /// Makes the new system stay. Returns when the landing has ended, one way or the other.
    pub async fn commit(&self, id: &str, epoch: u64) -> Result<HostStatus, LandingError> {
        self.settle("commit", id, epoch).await
    }

    /// Brings the old system back. Returns when the landing has ended, one way or the other.
    pub async fn revert(&self, id: &str, epoch: u64) -> Result<HostStatus, LandingError> {
        self.settle("revert", id, epoch).await
    }

    /// The status once the landing needs the controller or has ended; as it is after 20 s otherwise.
    pub async fn wait(&self, id: &str) -> Result<HostStatus, LandingError> {
        Ok(HostStatus::parse(&self.ask(&["wait", id], ANSWER_WITHIN).await?)?)
    }

    /// The last lines that the activation wrote.
    pub async fn log(&self) -> Result<String, LandingError> {
        self.ask(&["log"], ANSWER_WITHIN).await
    }

    /// What a switch to `system` would do, in its own words.
    pub async fn dry_activate(&self, system: &StorePath) -> Result<String, LandingError> {
        self.ask(&["dry", system.as_str()], Duration::from_secs(150)).await
    }

    async fn settle(&self, verb: &str, id: &str, epoch: u64) -> Result<HostStatus, LandingError> {
        Ok(HostStatus::parse(&self.ask(&[verb, id, &epoch.to_string()], SETTLE_WITHIN).await?)?)
    }

    async fn ask(&self, words: &[&str], deadline: Duration) -> Result<String, LandingError> {
        let command = Command::script(LOADER).args(words.iter().copied()).as_root();
        let script = Bytes::from_static(SCRIPT.as_bytes());
        let output = self.host.exec(&command, script, Limits::within(deadline)).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(self.refusal(&text, &output.stderr_tail, &output.status))
    }

    fn refusal(&self, stdout: &str, stderr: &str, exit: &Exit) -> LandingError {
        let refused = stdout.lines().find_map(|line| line.strip_prefix("landing: refused: "));
        match refused.and_then(|line| line.split_once(": ")) {
            Some((code, why)) => LandingError::Refused { code: code.to_owned(), why: why.to_owned() },
            None if self.user != "root" && stdout.is_empty() => {
                LandingError::NotRoot { user: self.user.to_owned(), stderr: stderr.trim().to_owned() }
            }
            None => LandingError::Refused { code: "failed".into(), why: format!("{exit}: {}", stderr.trim()) },
        }
    }
}
