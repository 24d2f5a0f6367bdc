//! What a revision has to prove before Nix reads any of it: that it does not go back, and who signed it.
//!
//! A commit is its content, so an answer holds for ever: each question is asked of git once, for all hosts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::Resolve;
use super::driver::{Driver, hex};
use super::error::ResolveError;
use super::flight::Flights;
use super::history;
use super::memo::Memo;
use super::signers::Signers;
use crate::nix::LockedFlake;
use crate::nix::flake_ref::{Follow, Source};

/// What is asked of a revision beyond being there.
#[derive(Debug, Clone, Default)]
pub struct Demands {
    /// What the reference led to when it was last landed: a name that is followed does not lead behind it.
    pub not_behind: Option<Landed>,
    /// Its commit is signed by one of these.
    pub signers: Option<Arc<Signers>>,
}

/// What a followed reference led to when it was last landed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// The revision; a tarball has none.
    pub rev: Option<String>,
    /// When it was last modified, in seconds since 1970.
    pub last_modified: i64,
}

/// An answer of git: `None`, or what is wrong with the revision.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answer(Option<String>);

/// Admits revisions.
pub(super) struct Admission {
    driver: Arc<Driver>,
    answers: Arc<Memo<Answer>>,
    asking: Flights<String, Result<Answer, ResolveError>>,
}

#[derive(Clone)]
enum Question {
    Descends(String),
    Signed(Arc<Signers>),
}

impl Admission {
    pub(super) fn new(driver: Arc<Driver>) -> Self {
        let answers = Arc::new(Memo::open(driver.config.data_dir.join("admitted.json")));
        Self { driver, answers, asking: Flights::default() }
    }

    /// Whether a commit that a reference leads to may be fetched and landed.
    pub(super) async fn commit(&self, request: &Resolve, rev: &str, cancel: &CancellationToken) -> Result<(), ResolveError> {
        let landed = request.demands.not_behind.as_ref().filter(|_| !matches!(request.flake.follow(), Follow::Rev(_)));
        if let Some(landed) = landed.and_then(|landed| landed.rev.as_deref()).filter(|landed| *landed != rev)
            && self.ask(request, rev, Question::Descends(landed.into()), cancel).await?.is_some()
        {
            return Err(ResolveError::Downgrade { landed: landed.to_owned(), found: rev.to_owned(), problem: "does not descend from it" });
        }
        if let Some(signers) = &request.demands.signers
            && let Some(problem) = self.ask(request, rev, Question::Signed(Arc::clone(signers)), cancel).await?
        {
            return Err(ResolveError::Signature { rev: rev.to_owned(), problem });
        }
        Ok(())
    }

    async fn ask(
        &self,
        request: &Resolve,
        rev: &str,
        question: Question,
        cancel: &CancellationToken,
    ) -> Result<Option<String>, ResolveError> {
        let about = match &question {
            Question::Descends(ancestor) => format!("descends from {ancestor}"),
            Question::Signed(signers) => format!("signed by {}", signers.digest()),
        };
        let scope = self.driver.scope(request.credentials.as_ref());
        let key = hex(&Sha256::digest(format!("{} {scope} {rev} {about}", request.flake.reference(None))));
        if let Some(Answer(answer)) = self.answers.get(&key) {
            return Ok(answer);
        }
        let (driver, answers, request, rev) = (Arc::clone(&self.driver), Arc::clone(&self.answers), request.clone(), rev.to_owned());
        let work = |token: CancellationToken| {
            let key = key.clone();
            async move {
                let answer = Answer(match question {
                    Question::Descends(ancestor) => {
                        let descends = history::descends(&driver, &request, &rev, &ancestor, &token).await?;
                        (!descends).then(String::new)
                    }
                    Question::Signed(signers) => history::unsigned(&driver, &request, &rev, &signers, &token).await?,
                });
                answers.put(key, answer.clone());
                drop(tokio::task::spawn_blocking(move || answers.save()).await);
                Ok(answer)
            }
        };
        Ok(self.asking.join(key.clone(), cancel, work).await.ok_or(ResolveError::Cancelled)??.0)
    }
}

/// The same for an archive, whose only history is its date: a server that means harm can write there what it likes. A directory on the
/// controller's own disk has not even that.
pub(super) fn archive(request: &Resolve, locked: &LockedFlake) -> Result<(), ResolveError> {
    let older = |landed: &&Landed| locked.last_modified < landed.last_modified;
    match request.demands.not_behind.as_ref().filter(older) {
        Some(landed) if matches!(request.flake.source(), Source::Tarball { .. }) => {
            Err(ResolveError::Downgrade { landed: date(landed.last_modified), found: date(locked.last_modified), problem: "is older" })
        }
        _ => Ok(()),
    }
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| format!("the archive of {time}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::FlakeRef;

    #[test]
    fn an_archive_does_not_become_older_and_a_directory_may() {
        let of = |url: &str, landed: i64, found: i64| {
            let demands = Demands { not_behind: Some(Landed { rev: None, last_modified: landed }), signers: None };
            let flake = FlakeRef::new(url, None, None, true).unwrap();
            let locked = LockedFlake {
                reference: url.into(),
                rev: None,
                followed: None,
                nar_hash: String::new(),
                fingerprint: String::new(),
                last_modified: found,
            };
            archive(&Resolve { flake, credentials: None, fresh_since: None, demands }, &locked)
        };
        let url = "https://example.org/infra.tar.gz";
        let error = of(url, 1_700_000_100, 1_700_000_000).unwrap_err().to_string();
        assert!(error.contains("2023-11-14T22:15:00Z") && error.contains("2023-11-14T22:13:20Z") && error.contains("older"), "{error}");
        of(url, 1_700_000_000, 1_700_000_000).unwrap();
        of(url, 1_700_000_000, 1_700_000_100).unwrap();
        of("path:/srv/infra", 1_700_000_100, 1_700_000_000).unwrap();
    }
}
