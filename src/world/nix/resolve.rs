//! From a flake reference to one exact revision: one look at the remote for all who ask, one fetch per new revision.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::Resolve;
use super::admit::{self, Admission};
use super::driver::{Driver, hex};
use super::error::ResolveError;
use super::fetch::{fetch, look};
use super::flight::Flights;
use super::look::Seen;
use super::memo::Memo;
use crate::nix::LockedFlake;
use crate::nix::flake_ref::Follow;

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
    admission: Admission,
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
            admission: Admission::new(Arc::clone(&driver)),
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
        let locked = self.resolved(request, cancel).await;
        locked.map_err(|error| error.about(request.credentials.as_deref(), request.flake.host()))
    }

    async fn resolved(&self, request: &Resolve, cancel: &CancellationToken) -> Locked {
        let scope = self.driver.scope(request.credentials.as_ref());
        let place = (request.flake.reference(None), request.flake.follow().clone(), scope);
        // A moment that has not come yet would never be reached by any look.
        let now = self.driver.config.clock.now();
        let since = request.fresh_since.map_or(now, |since| since.min(now));
        if request.flake.git_url().is_none() {
            let fetch = |token| fetch_now(Arc::clone(&self.driver), request.clone(), token);
            let locked = fresh(&self.fetched, &self.fetching, place, since, cancel, fetch).await.ok_or(ResolveError::Cancelled)??;
            admit::archive(request, &locked)?;
            return Ok(locked);
        }
        if let Follow::Rev(rev) = request.flake.follow() {
            self.admission.commit(request, rev, cancel).await?;
            return self.lock(request, Seen { name: None, rev: rev.clone() }, cancel).await;
        }
        let look = |token| look_now(Arc::clone(&self.driver), request.clone(), token);
        let seen = fresh(&self.looks, &self.looking, place, since, cancel, look).await.ok_or(ResolveError::Cancelled)??;
        self.admission.commit(request, &seen.rev, cancel).await?;
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
                let locked = fetch(&driver, &request, &reference, Some(&rev), &token).await?;
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

/// A look, and when it began.
async fn look_now(driver: Arc<Driver>, request: Resolve, cancel: CancellationToken) -> Answer<Seen> {
    (driver.config.clock.now(), look(&driver, &request, &cancel).await)
}

/// The same for a flake that has no revisions.
async fn fetch_now(driver: Arc<Driver>, request: Resolve, cancel: CancellationToken) -> Answer<LockedFlake> {
    (driver.config.clock.now(), fetch(&driver, &request, &request.flake.reference(None), None, &cancel).await)
}
