//! From a flake reference to one exact revision: one look at the remote for all who ask, one fetch per new revision.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::driver::{Driver, NETWORK, OPTIONS, hex};
use super::error::ResolveError;
use super::flight::Flights;
use super::look::{self, Seen};
use super::memo::Memo;
use super::outcome::RESTRICT;
use super::{Resolve, metadata};
use crate::nix::flake_ref::{Follow, Source};
use crate::nix::{FlakeRef, LockedFlake};
use crate::world::exec::{Command, Ending};

/// Looks that are remembered; the older half is forgotten when there are more.
const LOOKS: usize = 4000;

/// What is looked at: the reference, the name that is followed, and whose credentials are used.
type Place = (String, Follow, String);

/// When it was looked, and what was there.
type Answer<T> = (Instant, Result<T, ResolveError>);

/// The last answer of each place.
type Answers<T> = Mutex<HashMap<Place, Answer<T>>>;

type Locked = Result<LockedFlake, ResolveError>;

/// Resolves flake references.
pub(super) struct Resolver {
    driver: Arc<Driver>,
    looks: Answers<Seen>,
    looking: Flights<Place, Answer<Seen>>,
    /// Flakes without revisions: a look at one is fetching it.
    fetched: Answers<LockedFlake>,
    fetching: Flights<Place, Answer<LockedFlake>>,
    locked: Arc<Memo<LockedFlake>>,
    locking: Flights<String, Locked>,
}

impl Resolver {
    pub(super) fn new(driver: Arc<Driver>) -> Self {
        let locked = Arc::new(Memo::open(driver.config.data_dir.join("locked.json")));
        Self {
            driver,
            looks: Mutex::default(),
            looking: Flights::default(),
            fetched: Mutex::default(),
            fetching: Flights::default(),
            locked,
            locking: Flights::default(),
        }
    }

    pub(super) async fn resolve(&self, request: &Resolve, cancel: &CancellationToken) -> Locked {
        let scope = self.driver.scope(request.credentials.as_ref());
        let place = (request.flake.reference(None), request.flake.follow().clone(), scope);
        // A moment that has not come yet would never be reached by any look.
        let now = self.driver.config.clock.now();
        let since = request.fresh_since.map_or(now, |since| since.min(now));
        if request.flake.git_url().is_none() {
            let fetch = |token| fetch(Arc::clone(&self.driver), request.clone(), token);
            return fresh(&self.fetched, &self.fetching, place, since, cancel, fetch).await.ok_or(ResolveError::Cancelled)?;
        }
        if let Follow::Rev(rev) = request.flake.follow() {
            return self.lock(request, Seen { name: None, rev: rev.clone() }, cancel).await;
        }
        let look = |token| look(Arc::clone(&self.driver), request.clone(), token);
        let seen = fresh(&self.looks, &self.looking, place, since, cancel, look).await.ok_or(ResolveError::Cancelled)??;
        self.lock(request, seen, cancel).await
    }

    /// Fetches and locks a revision, or remembers what that gave.
    async fn lock(&self, request: &Resolve, seen: Seen, cancel: &CancellationToken) -> Locked {
        let reference = request.flake.reference(Some(("HEAD", &seen.rev)));
        let scope = self.driver.scope(request.credentials.as_ref());
        // Whether local inputs are allowed was decided when it was locked.
        let text = format!("{reference} {scope} {}", self.driver.config.allow_local_flakes);
        let key = hex(&Sha256::digest(text));
        let named = |locked: LockedFlake| LockedFlake { followed: seen.name.clone(), ..locked };
        if let Some(locked) = self.locked.get(&key) {
            if locked.reference == reference && locked.rev.as_deref() == Some(&seen.rev) {
                return Ok(named(locked));
            }
            self.locked.forget(&key);
        }
        let (driver, memo, request) = (Arc::clone(&self.driver), Arc::clone(&self.locked), request.clone());
        let rev = seen.rev.clone();
        let work = |token: CancellationToken| {
            let key = key.clone();
            async move {
                let locked = lock_revision(&driver, &request, &reference, Some(&rev), &token).await?;
                memo.put(key, locked.clone());
                drop(tokio::task::spawn_blocking(move || memo.save()).await);
                Ok(locked)
            }
        };
        self.locking.join(key.clone(), cancel, work).await.ok_or(ResolveError::Cancelled)?.map(named)
    }
}

/// An answer that is no older than `since`: the remembered one, the one in flight, or a new one.
async fn fresh<T, F>(
    remembered: &Answers<T>,
    flights: &Flights<Place, Answer<T>>,
    place: Place,
    since: Instant,
    cancel: &CancellationToken,
    start: impl Fn(CancellationToken) -> F,
) -> Option<Result<T, ResolveError>>
where
    T: Clone + Send + Sync + 'static,
    F: Future<Output = Answer<T>> + Send + 'static,
{
    loop {
        if let Some((at, answer)) = guard(remembered).get(&place)
            && *at >= since
        {
            return Some(answer.clone());
        }
        // One that is in flight may have begun too early; the next one has not.
        let (at, answer) = flights.join(place.clone(), cancel, &start).await?;
        if !matches!(answer, Err(ResolveError::Cancelled)) {
            remember(&mut guard(remembered), place.clone(), (at, answer.clone()));
        }
        if at >= since {
            return Some(answer);
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the newest answer, and forgets the older half when there are too many.
fn remember<T>(answers: &mut HashMap<Place, Answer<T>>, place: Place, answer: Answer<T>) {
    if answers.get(&place).is_some_and(|(at, _)| *at > answer.0) {
        return;
    }
    answers.insert(place, answer);
    if answers.len() > LOOKS {
        let mut times: Vec<Instant> = answers.values().map(|(at, _)| *at).collect();
        times.sort_unstable();
        let middle = times[times.len() / 2];
        answers.retain(|_, (at, _)| *at >= middle);
    }
}

/// Asks the remote what the name leads to.
async fn look(driver: Arc<Driver>, request: Resolve, cancel: CancellationToken) -> Answer<Seen> {
    let at = driver.config.clock.now();
    (at, look_now(&driver, &request, &cancel).await)
}

async fn look_now(driver: &Driver, request: &Resolve, cancel: &CancellationToken) -> Result<Seen, ResolveError> {
    let (flake, follow) = (&request.flake, request.flake.follow());
    let url = flake.git_url().unwrap_or_default();
    driver.tally.looks.fetch_add(1, Ordering::Relaxed);
    let place = driver.place(request.credentials.as_ref()).map_err(no_place)?;
    let access = Access::grant(request.credentials.as_ref(), authority(flake).as_deref(), &place).await.map_err(no_place)?;
    let time = driver.config.resolve_timeout;
    let command = driver.command(&driver.tools.git, look::arguments(&url, follow), &place, &access);
    let finished =
        driver.processes.run(Command { time, ..command }, |_| (), cancel).await.map_err(|e| ResolveError::Process(Arc::new(e)))?;
    let stdout = String::from_utf8_lossy(&finished.stdout);
    match finished.ending {
        Ending::Exited(0) => look::parse(&stdout, follow).ok_or_else(|| look::failure(2, &finished.stderr, follow)),
        ending => Err(ended(ending, time, "asking the remote for its branches and tags")
            .unwrap_or_else(|code| look::failure(code, &finished.stderr, follow))),
    }
}

/// Fetches a flake that has no revisions.
async fn fetch(driver: Arc<Driver>, request: Resolve, cancel: CancellationToken) -> Answer<LockedFlake> {
    let at = driver.config.clock.now();
    let reference = request.flake.reference(None);
    (at, lock_revision(&driver, &request, &reference, None, &cancel).await)
}

/// Has Nix fetch `reference` and say exactly what it got.
async fn lock_revision(driver: &Driver, request: &Resolve, reference: &str, rev: Option<&str>, cancel: &CancellationToken) -> Locked {
    driver.tally.locks.fetch_add(1, Ordering::Relaxed);
    let credentials = request.credentials.as_ref();
    let place = driver.place(credentials).map_err(no_place)?;
    let access = Access::grant(credentials, authority(&request.flake).as_deref(), &place).await.map_err(no_place)?;
    let uris = driver.allowed_uris();
    let args = ["flake", "metadata", "--json", "--log-format", "internal-json"].into_iter();
    let args = args.chain(OPTIONS).chain(NETWORK).chain(RESTRICT).chain(["--option", "allowed-uris", &uris, "--", reference]);
    let time = driver.config.resolve_timeout;
    let command = Command {
        time,
        confinement: driver.confinement(&place),
        stdout_limit: 16 << 20,
        ..driver.command(&driver.tools.nix, args, &place, &access)
    };
    let finished = driver.processes.run(command, |_| (), cancel).await.map_err(|e| ResolveError::Process(Arc::new(e)))?;
    if finished.ending != Ending::Exited(0) {
        let failed = ended(finished.ending, time, "fetching the revision");
        return Err(failed.unwrap_or_else(|_| metadata::failure(&finished.stderr, rev)));
    }
    let found = metadata::parse(&finished.stdout)?;
    found.locks.check(driver.config.allow_local_flakes)?;
    if let (Some(wanted), Some(got)) = (rev, &found.locked.rev)
        && wanted != got
    {
        return Err(ResolveError::Other { message: format!("Nix fetched the revision {got} instead of {wanted}") });
    }
    Ok(LockedFlake {
        reference: exact(request.flake.source(), reference, &found.locked.nar_hash),
        rev: rev.map(str::to_owned),
        followed: None,
        nar_hash: found.locked.nar_hash,
        fingerprint: found.fingerprint,
        last_modified: found.last_modified,
    })
}

/// The reference that Nix evaluates without asking again. Git's has the revision; others get the hash, which the git
/// fetcher would take for a part of the URL.
fn exact(source: &Source, reference: &str, nar_hash: &str) -> String {
    match source {
        Source::Git { .. } | Source::Forge { .. } => reference.to_owned(),
        Source::Tarball { .. } | Source::Path { .. } if reference.contains("narHash=") => reference.to_owned(),
        Source::Tarball { .. } | Source::Path { .. } => {
            let joint = if reference.contains('?') { '&' } else { '?' };
            format!("{reference}{joint}narHash={}", utf8_percent_encode(nar_hash, NON_ALPHANUMERIC))
        }
    }
}

/// The host of a flake with its port, if it has one.
pub(super) fn authority(flake: &FlakeRef) -> Option<String> {
    let url = match flake.source() {
        Source::Git { url } | Source::Tarball { url } => url.clone(),
        Source::Forge { .. } => flake.git_url()?,
        Source::Path { .. } => return None,
    };
    let authority = url.split_once("://")?.1.split('/').next()?;
    Some(authority.rsplit('@').next()?.to_owned())
}

/// What a process that was ended means; `Err` with the exit code of one that ended by itself.
fn ended(ending: Ending, time: Duration, deed: &'static str) -> Result<ResolveError, i32> {
    match ending {
        Ending::Exited(code) => Err(code),
        Ending::Cancelled => Ok(ResolveError::Cancelled),
        Ending::TimedOut => Ok(ResolveError::TimedOut { seconds: time.as_secs(), deed }),
        Ending::OutOfMemory => Ok(ResolveError::Other { message: format!("out of memory while {deed}") }),
        Ending::Killed(signal) => Ok(ResolveError::Other { message: format!("ended by signal {signal} while {deed}") }),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn no_place(error: io::Error) -> ResolveError {
    ResolveError::Other { message: format!("cannot prepare a place for the process: {error}") }
}

/// For evaluations: the host and port of a locked reference.
pub(super) fn authority_of(reference: &str) -> Option<String> {
    let authority = reference.split_once("://")?.1.split(['/', '?']).next()?;
    Some(authority.rsplit('@').next()?.to_owned())
}
