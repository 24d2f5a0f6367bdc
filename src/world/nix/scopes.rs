//! Where fetchers keep what they fetched: a directory for each credential, so that what came by one is not found by another.
//!
//! A credential that rotates leaves one behind each time: those that nobody used for [`UNUSED`] are removed. All of it can be fetched again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;

use super::driver::private_dir;
use crate::clock::{Clock, human};
use crate::stage::chain;

/// After so long without use a directory is removed. A flake that is followed is looked at every few minutes.
const UNUSED: Duration = Duration::from_secs(3 * 24 * 3600);

/// How often it is looked for them.
const SWEEP: Duration = Duration::from_secs(24 * 3600);

/// The directories of all credentials.
pub(super) struct Scopes {
    dir: PathBuf,
    /// On the same file system; emptied at each start.
    trash: PathBuf,
    clock: Clock,
    used: Mutex<HashMap<OsString, Weak<PathBuf>>>,
}

impl Scopes {
    /// Those in `dir`, which are removed by way of `trash`.
    pub(super) fn new(dir: PathBuf, trash: PathBuf, clock: Clock) -> Self {
        Self { dir, trash, clock, used: Mutex::default() }
    }

    /// Removes what is not used: now, and once a day for as long as anybody has `self`.
    pub(super) fn keep_swept(self: &Arc<Self>) {
        let scopes = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(scopes) = scopes.upgrade() {
                match spawn_blocking(move || scopes.sweep()).await {
                    Ok(Ok(0)) | Err(_) => {}
                    Ok(Ok(removed)) => {
                        tracing::info!(removed, "removed the caches of credentials that were not used for {}", human(UNUSED));
                    }
                    Ok(Err(error)) => tracing::warn!("removing the caches of credentials that are not used any more: {}", chain(&error)),
                }
                tokio::time::sleep(SWEEP).await;
            }
        });
    }

    /// The directory with this name; it stays while the answer lives.
    pub(super) fn open(&self, name: &str) -> io::Result<Arc<PathBuf>> {
        let mut used = self.used();
        let path = self.dir.join(name);
        private_dir(&path)?;
        File::open(&path)?.set_modified(SystemTime::from(self.clock.wall()))?;
        if let Some(open) = used.get(&OsString::from(name)).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let open = Arc::new(path);
        used.insert(name.into(), Arc::downgrade(&open));
        Ok(open)
    }

    /// Removes those that nobody used for [`UNUSED`], and says how many that were.
    fn sweep(&self) -> io::Result<usize> {
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let (name, trash) = (entry?.file_name(), tempfile::tempdir_in(&self.trash)?);
            let path = self.dir.join(&name);
            {
                let mut used = self.used();
                used.retain(|_, open| open.strong_count() > 0);
                let modified = path.metadata()?.modified()?;
                let idle = SystemTime::from(self.clock.wall()).duration_since(modified).unwrap_or_default();
                if used.contains_key(&name) || idle < UNUSED {
                    continue;
                }
                // Whoever opens it from here on begins an empty one; removing may take long.
                std::fs::rename(&path, trash.path().join("cache"))?;
            }
            trash.close()?;
            removed += 1;
        }
        Ok(removed)
    }

    fn used(&self) -> MutexGuard<'_, HashMap<OsString, Weak<PathBuf>>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Scopes in real directories, by a clock that stands so many hours from now, as the file system has it.
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    fn scopes(dir: &Path) -> (Scopes, Arc<Mutex<u64>>) {
        let (now, wall, hours) = (std::time::Instant::now(), jiff::Timestamp::now(), Arc::<Mutex<u64>>::default());
        let read = Arc::clone(&hours);
        let clock = Clock::new(move || now, move || wall + Duration::from_secs(*read.lock().unwrap() * 3600));
        let (cache, run) = (dir.join("cache"), dir.join("run"));
        private_dir(&cache).unwrap();
        private_dir(&run).unwrap();
        (Scopes::new(cache, run, clock), hours)
    }

    #[test]
    fn what_nobody_used_for_days_is_removed_and_what_is_in_use_or_was_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (scopes, hours) = scopes(dir.path());
        let open = |name| {
            let scope = scopes.open(name).unwrap();
            std::fs::create_dir_all(scope.join("gitv3/objects")).unwrap();
            std::fs::write(scope.join("gitv3/objects/pack"), name).unwrap();
            scope
        };
        let there = || {
            let entries = std::fs::read_dir(dir.path().join("cache")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let busy = open("busy");
        let shared = open("busy");
        drop((open("rotated"), open("followed")));
        *hours.lock().unwrap() += 47;
        drop(open("followed"));
        assert_eq!(scopes.sweep().unwrap(), 0);
        *hours.lock().unwrap() += 26;
        assert_eq!(scopes.sweep().unwrap(), 1);
        assert_eq!(there(), ["busy", "followed"]);
        drop(busy);
        *hours.lock().unwrap() += 999;
        assert_eq!(scopes.sweep().unwrap(), 1, "one of its two users is still there");
        assert_eq!(std::fs::read_to_string(shared.join("gitv3/objects/pack")).unwrap(), "busy");
        drop(shared);
        assert_eq!(scopes.sweep().unwrap(), 1);
        assert!(there().is_empty() && std::fs::read_dir(dir.path().join("run")).unwrap().next().is_none());
        assert!(!scopes.open("rotated").unwrap().join("gitv3").exists(), "one that comes back begins anew");
    }
}
