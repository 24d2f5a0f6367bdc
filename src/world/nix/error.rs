//! What can go wrong, each kind of it with what Nix or git said last.
//!
//! Clones, because one failure is told to all who wait for the same work. Messages are cleaned of colours and bounded.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::human;
use crate::world::exec::ExecError;

use super::Credentials;
use super::roots::RootsError;

/// Why a flake reference did not lead to a revision.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The remote has no such branch or tag.
    #[error("the repository has no branch or tag {name:?}")]
    RefNotFound {
        /// What was looked for.
        name: String,
    },
    /// The remote has no such revision, or does not give it away.
    #[error("the repository has no revision {rev}: {message}")]
    RevNotFound {
        /// What was looked for.
        rev: String,
        /// What git or Nix said.
        message: String,
    },
    /// Nothing answers there.
    #[error("the remote cannot be reached: {message}")]
    Unreachable {
        /// What git or Nix said.
        message: String,
    },
    /// The remote answers, and knows no such repository. Hosting services say the same when access is missing.
    #[error("there is no such repository, or these credentials (or none) give no access to it: {message}")]
    RepositoryNotFound {
        /// What git or Nix said.
        message: String,
    },
    /// The remote wants credentials, or other ones.
    #[error("{}: {message}", refused(*given))]
    CredentialsRefused {
        /// Whether there were credentials for this host.
        given: bool,
        /// What git or Nix said.
        message: String,
    },
    /// The remote's SSH host key is not the one in `known_hosts`, or none is known.
    #[error("the remote's SSH host key is not in known_hosts: {message}")]
    HostKey {
        /// What ssh said.
        message: String,
    },
    /// What is followed leads behind what was landed.
    #[error(
        "it led to {landed} and now leads to {found}, which {problem}: the branch was moved back or rewritten; set spec.flake.allowDowngrade to follow it there, or pin it with spec.flake.rev"
    )]
    Downgrade {
        /// What was landed.
        landed: String,
        /// What is there now.
        found: String,
        /// How it is known to go back.
        problem: &'static str,
    },
    /// The revision is not signed by anybody who may.
    #[error("the commit {rev} {problem}; spec.flake.verify wants the signature of one of its keys")]
    Signature {
        /// The commit.
        rev: String,
        /// What is wrong with its signature.
        problem: String,
    },
    /// The source has no `flake.nix` where one was expected.
    #[error("the source has no flake.nix there: {message}")]
    NotAFlake {
        /// What Nix said.
        message: String,
    },
    /// `flake.lock` is missing or does not match `flake.nix`; the controller never writes it.
    #[error("flake.lock is missing or does not match flake.nix (run `nix flake lock` and commit): {message}")]
    LockFileOutOfDate {
        /// What Nix said.
        message: String,
    },
    /// An input of the flake is not locked to one exact tree.
    #[error("an input is not locked: {message}")]
    UnlockedInput {
        /// What Nix said.
        message: String,
    },
    /// An input of the flake would be read from the controller's own files, or by a program that is not allowed.
    #[error("the input {input:?} is not allowed: {problem}")]
    ForbiddenInput {
        /// The node of `flake.lock`.
        input: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It took too long.
    #[error("no answer within {} while {deed}", human(Duration::from_secs(*.seconds)))]
    TimedOut {
        /// How long was waited.
        seconds: u64,
        /// What was being done.
        deed: &'static str,
    },
    /// Nobody wants the answer any more.
    #[error("cancelled")]
    Cancelled,
    /// The process could not be run.
    #[error("cannot ask for the revision")]
    Process(#[source] Arc<ExecError>),
    /// Something else.
    #[error("{message}")]
    Other {
        /// What git or Nix said.
        message: String,
    },
}

fn refused(given: bool) -> &'static str {
    if given { "the remote refuses these credentials" } else { "the remote wants credentials, and none were given for it" }
}

impl ResolveError {
    /// Says of a refusal whether it was of these credentials, or for want of any. Git's own words are about a terminal that nobody has.
    pub(super) fn about(self, credentials: Option<&Credentials>, host: Option<&str>) -> Self {
        let Self::CredentialsRefused { message, .. } = self else { return self };
        let asked = message.split_once("could not read ").and_then(|(_, rest)| rest.split('\'').nth(1)).map(str::to_owned);
        let asking = asked.as_deref().and_then(|url| url.split_once("://")?.1.split(['/', ':']).next()).or(host);
        let given = match credentials {
            None => false,
            Some(credentials) if message.contains("Permission denied (") => credentials.ssh.is_some(),
            Some(credentials) => asking.is_some_and(|host| credentials.are_for(host)),
        };
        let message = asked.map_or(message, |url| format!("{url} asks for a user name and a password"));
        Self::CredentialsRefused { given, message }
    }
}

/// Why a host's configuration did not evaluate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EvaluateError {
    /// The flake has no such configuration.
    #[error("the flake has no nixosConfigurations.{attribute}; it has: {}", list(available))]
    AttributeMissing {
        /// What was looked for.
        attribute: String,
        /// What there is: a hundred names at most.
        available: Vec<String>,
    },
    /// There is such an attribute, and it is not a NixOS system.
    #[error("nixosConfigurations.{attribute} is not a NixOS system: it has no derivation config.system.build.toplevel")]
    NotASystem {
        /// What was looked at.
        attribute: String,
    },
    /// The configuration is wrong: an evaluation error of its own.
    #[error("{message}{}", at(position.as_deref()))]
    Failed {
        /// What Nix said.
        message: String,
        /// Where in the flake: `file:line:column`.
        position: Option<String>,
    },
    /// The flake itself does not evaluate, whichever host is asked for.
    #[error("the flake does not evaluate: {message}{}", at(position.as_deref()))]
    FlakeBroken {
        /// What Nix said.
        message: String,
        /// Where in the flake: `file:line:column`.
        position: Option<String>,
    },
    /// It needs more memory than a process may have.
    #[error("the evaluation needs more than its {mebibytes} MiB of memory")]
    OutOfMemory {
        /// What it could have.
        mebibytes: u64,
    },
    /// It took too long.
    #[error("the evaluation was not done within {}", human(Duration::from_secs(*.seconds)))]
    TimedOut {
        /// How long was waited.
        seconds: u64,
    },
    /// It wants to build during evaluation.
    #[error("the evaluation wants to build something (import from derivation), which is not allowed here: {message}")]
    ImportFromDerivation {
        /// What Nix said.
        message: String,
    },
    /// It wants to read what it may not.
    #[error("the evaluation wants what it may not have: {message}")]
    Forbidden {
        /// What Nix said.
        message: String,
    },
    /// An input could not be fetched.
    #[error("an input could not be fetched: {message}")]
    FetchFailed {
        /// What Nix said.
        message: String,
    },
    /// Nobody wants the result any more.
    #[error("cancelled")]
    Cancelled,
    /// The process could not be run.
    #[error("cannot evaluate")]
    Process(#[source] Arc<ExecError>),
    /// Something else; another try may help.
    #[error("{message}")]
    Other {
        /// What Nix said.
        message: String,
    },
}

impl EvaluateError {
    /// Whether the same flake gives the same error for ever.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::AttributeMissing { .. } | Self::NotASystem { .. } | Self::Failed { .. } | Self::FlakeBroken { .. })
    }
}

/// Why a toplevel was not built.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BuildError {
    /// A builder failed.
    #[error("building {drv}: {message}")]
    BuilderFailed {
        /// The derivation that failed: the toplevel, or something it needs.
        drv: String,
        /// What Nix said, with the exit code.
        message: String,
        /// The last lines that the builder wrote, twenty at most.
        log: Vec<String>,
    },
    /// It took too long.
    #[error("the build was not done within {}{}", human(Duration::from_secs(*.seconds)), while_building(drv.as_deref()))]
    TimedOut {
        /// How long was waited.
        seconds: u64,
        /// What was being built then.
        drv: Option<String>,
        /// The last lines that the builder wrote.
        log: Vec<String>,
    },
    /// Something that was fetched is not what the flake says it is.
    #[error("{drv} fetched something else than expected: {message}")]
    HashMismatch {
        /// The derivation that fetches.
        drv: String,
        /// What Nix said, with both hashes.
        message: String,
    },
    /// Nothing here can build for this system.
    #[error("nothing here builds for {system}; there are: {}", list(available))]
    WrongSystem {
        /// What is asked for.
        system: String,
        /// What there is.
        available: Vec<String>,
    },
    /// The disk is full.
    #[error("the controller's disk is full: {message}")]
    OutOfDisk {
        /// What Nix said.
        message: String,
    },
    /// The derivation is not in the store: evaluate again.
    #[error("the derivation {drv} is no longer in the store")]
    DerivationGone {
        /// The derivation.
        drv: String,
    },
    /// Nobody wants the result any more.
    #[error("cancelled")]
    Cancelled,
    /// The process could not be run.
    #[error("cannot build")]
    Process(#[source] Arc<ExecError>),
    /// The result cannot be kept from the garbage collector.
    #[error("cannot keep the result from the garbage collector")]
    Root(#[source] Arc<RootsError>),
    /// Something else.
    #[error("{message}")]
    Other {
        /// What Nix said.
        message: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

fn at(position: Option<&str>) -> String {
    position.map(|position| format!(" (at {position})")).unwrap_or_default()
}

fn while_building(drv: Option<&str>) -> String {
    drv.map(|drv| format!(", while building {drv}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_refusal_says_whether_there_were_credentials_for_that_host() {
        let netrc = Credentials::parse(&BTreeMap::from([("netrc".into(), b"machine h login a password b".to_vec())])).unwrap();
        let of = |text: &str, credentials: Option<&Credentials>| {
            ResolveError::CredentialsRefused { given: false, message: text.into() }.about(credentials, Some("h")).to_string()
        };
        let asks = |host: &str| format!("fatal: could not read Username for 'https://{host}:8443': terminal prompts disabled");
        let (refuses, wants) = ("the remote refuses these credentials", "the remote wants credentials, and none were given");
        assert_eq!(of(&asks("h"), Some(&netrc)), format!("{refuses}: https://h:8443 asks for a user name and a password"));
        for (text, credentials) in
            [(asks("h"), None), (asks("other"), Some(&netrc)), ("git@h: Permission denied (publickey).".into(), Some(&netrc))]
        {
            assert!(of(&text, credentials).starts_with(wants), "{text}");
        }
        assert!(of("unable to download 'https://h/x': HTTP error 401", Some(&netrc)).starts_with(refuses));
    }
}
