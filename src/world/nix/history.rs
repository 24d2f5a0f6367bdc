//! What a git commit says of itself: what it descends from, and who signed it.
//!
//! Asked of git before Nix reads anything of a revision, in a repository that is gone afterwards and holds commits only, no files. A commit is
//! named by the hash of its content, its parents included: a server can withhold history, and cannot make any up.

use std::ffi::OsString;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::Resolve;
use super::access::Access;
use super::driver::{Driver, Place};
use super::error::ResolveError;
use super::fetch::{authority, no_place, run};
use super::look::remote_failure;
use super::message::git_says;
use super::signers::{self, Signers};
use crate::world::exec::{Command, Ending, Finished};

/// Generations that are fetched first: the commit that runs is nearly always among them.
const NEAR: &str = "--depth=100";

/// Whether `rev` is `ancestor`, or descends from it.
pub(super) async fn descends(
    driver: &Driver,
    request: &Resolve,
    rev: &str,
    ancestor: &str,
    cancel: &CancellationToken,
) -> Result<bool, ResolveError> {
    let commits = Commits::new(driver, request, rev, cancel).await?;
    commits.fetch(NEAR, rev).await?;
    if commits.has_ancestor(rev, ancestor).await? {
        return Ok(true);
    }
    if !commits.repository.join("shallow").exists() {
        return Ok(false); // that was all
    }
    commits.fetch("--unshallow", rev).await?;
    commits.has_ancestor(rev, ancestor).await
}

/// Whether `rev` carries a good signature by one of `signers`: `None`, or what is wrong.
pub(super) async fn unsigned(
    driver: &Driver,
    request: &Resolve,
    rev: &str,
    signers: &Signers,
    cancel: &CancellationToken,
) -> Result<Option<String>, ResolveError> {
    let commits = Commits::new(driver, request, rev, cancel).await?;
    commits.fetch("--depth=1", rev).await?;
    commits.signature(rev, signers).await
}

/// A repository for the commits of one question.
struct Commits<'d> {
    driver: &'d Driver,
    cancel: &'d CancellationToken,
    place: Place,
    access: Access,
    url: String,
    repository: PathBuf,
    /// Its settings when it was new.
    settings: Vec<u8>,
}

impl<'d> Commits<'d> {
    async fn new(driver: &'d Driver, request: &Resolve, rev: &str, cancel: &'d CancellationToken) -> Result<Self, ResolveError> {
        let place = driver.place(request.credentials.as_ref()).map_err(no_place)?;
        let access = Access::grant(request.credentials.as_ref(), authority(&request.flake).as_deref(), &place).await.map_err(no_place)?;
        let url = request.flake.git_url().unwrap_or_default();
        let repository = place.path().join("commits");
        let format = if rev.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        let args = ["init", "--quiet", "--bare", "--template=", format, "--"].map(OsString::from).into_iter();
        let command = driver.command(&driver.tools.git, args.chain([repository.clone().into()]), &place, &Access::none());
        succeeded(&run(driver, command, "preparing a repository", cancel).await?)?;
        let settings = std::fs::read(repository.join("config")).map_err(no_place)?;
        Ok(Self { driver, cancel, place, access, url, repository, settings })
    }

    /// Fetches a commit with as much of its history as `depth` says, and where the server can do that nothing else.
    async fn fetch(&self, depth: &str, rev: &str) -> Result<(), ResolveError> {
        let args = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--filter=tree:0", depth, "--", &self.url, rev];
        let finished = self.run(self.git(args, &self.access), "fetching the history of the revision").await?;
        if finished.ending != Ending::Exited(0) {
            return Err(failure(rev, &finished.stderr));
        }
        // It has noted down where it left files out: it would go and ask there for whatever it does not have.
        std::fs::write(self.repository.join("config"), &self.settings).map_err(no_place)
    }

    /// Whether what was fetched shows that `rev` descends from `ancestor`.
    async fn has_ancestor(&self, rev: &str, ancestor: &str) -> Result<bool, ResolveError> {
        let finished = self.alone(["merge-base", "--is-ancestor", ancestor, rev], "comparing two revisions").await?;
        match finished.ending {
            Ending::Exited(0) => Ok(true),
            Ending::Exited(1) => Ok(false),
            // The ancestor was not fetched, so it is none.
            Ending::Exited(_) if finished.stderr.iter().any(|line| line.contains(&format!("Not a valid commit name {ancestor}"))) => {
                Ok(false)
            }
            _ => Err(ResolveError::Other { message: format!("git cannot compare {rev} with {ancestor}: {}", git_says(&finished.stderr)) }),
        }
    }

    async fn signature(&self, rev: &str, signers: &Signers) -> Result<Option<String>, ResolveError> {
        let allowed = self.place.path().join("allowed-signers");
        std::fs::write(&allowed, signers.allowed_signers()).map_err(no_place)?;
        self.import(signers).await?;
        let mut setting = OsString::from("gpg.ssh.allowedSignersFile=");
        setting.push(&allowed);
        let args =
            ["-c".into(), setting, "-c".into(), "gpg.x509.program=/dev/null".into(), "verify-commit".into(), "--raw".into(), rev.into()];
        let finished = self.alone(args, "verifying the signature of the revision").await?;
        match finished.ending {
            Ending::Exited(0) => Ok(None),
            Ending::Exited(_) => Ok(Some(signers::problem(&finished.stderr))),
            ending => Err(ResolveError::Other { message: format!("git {ending}") }),
        }
    }

    /// Gives gpg the OpenPGP keys, and no others.
    async fn import(&self, signers: &Signers) -> Result<(), ResolveError> {
        if signers.gpg_keys().is_empty() {
            return Ok(());
        }
        let Some(gpg) = self.driver.tools.find("gpg") else {
            let message = "spec.flake.verify.gpgKeysRef needs gpg, which is not on the controller's PATH".to_owned();
            return Err(ResolveError::Other { message });
        };
        // No daemon, no network, and no opinion of its own whom to trust.
        std::fs::write(self.place.home().join("gpg.conf"), "no-autostart\ntrust-model always\n").map_err(no_place)?;
        let args = ["--batch", "--quiet", "--import"];
        let command = self.confined(self.driver.command(&gpg, args, &self.place, &Access::none()));
        let finished = self.run(Command { stdin: signers.gpg_keys().into(), ..command }, "reading the OpenPGP keys").await?;
        succeeded(&finished)
    }

    fn git<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>, access: &Access) -> Command {
        let place = [OsString::from("-C"), self.repository.clone().into()];
        let args = place.into_iter().chain(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self.confined(self.driver.command(&self.driver.tools.git, args, &self.place, access))
    }

    /// Runs git on what is there, without a credential.
    async fn alone<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        deed: &'static str,
    ) -> Result<Finished, ResolveError> {
        self.run(self.git(args, &Access::none()), deed).await
    }

    fn confined(&self, mut command: Command) -> Command {
        command.env.push(("GNUPGHOME".into(), self.place.home().into()));
        command.confinement = self.driver.confinement(&self.place);
        command
    }

    async fn run(&self, command: Command, deed: &'static str) -> Result<Finished, ResolveError> {
        run(self.driver, command, deed, self.cancel).await
    }
}

fn succeeded(finished: &Finished) -> Result<(), ResolveError> {
    if finished.ending == Ending::Exited(0) { Ok(()) } else { Err(ResolveError::Other { message: git_says(&finished.stderr) }) }
}

/// Why a commit could not be fetched.
fn failure(rev: &str, stderr: &[String]) -> ResolveError {
    let missing = ["not our ref", "couldn't find remote ref", "no such remote ref"];
    if stderr.iter().any(|line| missing.iter().any(|text| line.contains(text))) {
        return ResolveError::RevNotFound { rev: rev.to_owned(), message: git_says(stderr) };
    }
    remote_failure(stderr)
}
