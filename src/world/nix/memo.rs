//! Results that are remembered across restarts: a bounded JSON file, written atomically, never trusted blindly.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Raised when the meaning of what is remembered changes; older files are then forgotten.
const SCHEMA: u32 = 1;

/// How many results are remembered; a tenth of them, those not used for longest, is forgotten when there are more.
const CAPACITY: usize = 5000;

/// Results by key, in memory and in a file.
pub(super) struct Memo<V> {
    file: PathBuf,
    inner: Mutex<Inner<V>>,
    /// Held while the file is written, so that an older state never replaces a newer one.
    writing: Mutex<()>,
}

struct Inner<V> {
    entries: HashMap<String, Entry<V>>,
    /// Counts uses: says which of two was used later, without a clock.
    uses: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry<V> {
    value: V,
    used: u64,
}

#[derive(Serialize, Deserialize)]
struct File<V> {
    schema: u32,
    entries: HashMap<String, Entry<V>>,
}

impl<V: Clone + Serialize + DeserializeOwned> Memo<V> {
    /// What the file remembers. A file that is missing, broken or of another schema is an empty one.
    pub(super) fn open(file: PathBuf) -> Self {
        let entries = match read(&file) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "remembered results cannot be read; starting without them");
                HashMap::new()
            }
        };
        let uses = entries.values().map(|entry: &Entry<V>| entry.used).max().unwrap_or_default();
        Self { file, inner: Mutex::new(Inner { entries, uses }), writing: Mutex::new(()) }
    }

    pub(super) fn get(&self, key: &str) -> Option<V> {
        let mut inner = self.lock();
        inner.uses += 1;
        let used = inner.uses;
        let entry = inner.entries.get_mut(key)?;
        entry.used = used;
        Some(entry.value.clone())
    }

    /// Remembers a result until the controller ends; [`Memo::save`] makes it last.
    pub(super) fn put(&self, key: String, value: V) {
        let mut inner = self.lock();
        inner.uses += 1;
        let used = inner.uses;
        inner.entries.insert(key, Entry { value, used });
        inner.prune();
    }

    pub(super) fn forget(&self, key: &str) {
        self.lock().entries.remove(key);
    }

    /// Writes the file; blocks. If that fails, the results are remembered until the controller ends.
    pub(super) fn save(&self) {
        if let Err(error) = self.write() {
            tracing::warn!(file = %self.file.display(), %error, "results cannot be remembered across a restart");
        }
    }

    fn write(&self) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let text = serde_json::to_vec(&File { schema: SCHEMA, entries: self.lock().entries.clone() })?;
        let mut file = tempfile::NamedTempFile::new_in(self.file.parent().unwrap_or(Path::new("/")))?;
        file.write_all(&text)?;
        file.as_file().sync_data()?;
        file.persist(&self.file)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner<V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> Inner<V> {
    fn prune(&mut self) {
        if self.entries.len() <= CAPACITY {
            return;
        }
        let mut uses: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        uses.sort_unstable();
        let oldest_kept = uses[self.entries.len() - CAPACITY * 9 / 10];
        self.entries.retain(|_, entry| entry.used >= oldest_kept);
    }
}

fn read<V: DeserializeOwned>(file: &Path) -> io::Result<HashMap<String, Entry<V>>> {
    let found: File<V> = serde_json::from_slice(&std::fs::read(file)?)?;
    if found.schema == SCHEMA { Ok(found.entries) } else { Err(io::Error::other(format!("its schema is {}", found.schema))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Memo<String> {
        Memo::open(dir.join("memo.json"))
    }

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let memo = open(dir.path());
        memo.put("a".into(), "1".into());
        memo.save();
        assert_eq!(open(dir.path()).get("a"), Some("1".into()));
        assert_eq!(open(dir.path()).get("b"), None);
    }

    #[test]
    fn a_broken_file_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", "[]", r#"{"schema":99,"entries":{}}"#, r#"{"schema":1,"entries":{"a":{"value":7,"used":1}}}"#] {
            std::fs::write(dir.path().join("memo.json"), text).unwrap();
            let memo = open(dir.path());
            assert_eq!(memo.get("a"), None, "{text}");
            memo.put("a".into(), "1".into());
            memo.save();
            assert_eq!(open(dir.path()).get("a"), Some("1".into()));
        }
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten_first() {
        let dir = tempfile::tempdir().unwrap();
        let memo = open(dir.path());
        (0..CAPACITY).for_each(|i| memo.put(i.to_string(), String::new()));
        assert!(memo.get("0").is_some());
        memo.put("new".into(), String::new());
        assert!(memo.get("0").is_some() && memo.get("new").is_some() && memo.get("1").is_none());
        assert_eq!(memo.lock().entries.len(), CAPACITY * 9 / 10);
    }
}
