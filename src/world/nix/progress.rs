//! What a realising process is doing, read from its log. PURE.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use serde_json::Value;

use super::log::{Event, activity, parse, result};
use super::message::{LINE_LIMIT, clean};

/// Lines of a builder's log that are kept.
const LOG_LINES: usize = 20;

/// Builds that have stopped whose logs are still kept: an error comes a few lines after its build stopped.
const RECENT: usize = 64;

/// Failures that are kept.
const FAILURES: usize = 100;

/// How far a build is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildProgress {
    /// Derivations that are built.
    pub done: u64,
    /// Derivations to build, those that are done among them.
    pub expected: u64,
    /// What is being built now, longest first.
    pub running: Vec<Running>,
    /// How many builds wait for another process that builds the same, or for a free builder.
    pub waiting: u64,
    /// Bytes downloaded.
    pub downloaded: u64,
    /// Bytes to download, those that are here among them; 0 if nothing is substituted.
    pub to_download: u64,
}

/// A derivation that is being built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name, without hash and `.drv`.
    pub name: String,
    /// Since when.
    pub since: Instant,
}

/// What kind of failure an error tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Builder,
    TimedOut,
    HashMismatch,
    /// Something that it needs failed: told of there.
    Dependency,
    Other,
}

/// A derivation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Its store path; `None` if Nix did not say.
    pub(super) drv: Option<String>,
    pub(super) fault: Fault,
    pub(super) message: String,
    /// The last lines of its builder.
    pub(super) log: Vec<String>,
}

/// Reads the log.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    builds: Option<u64>,
    done: u64,
    expected: u64,
    /// What 2.34 expects is one too many from the end of a build to the next start: only the first figure behind a
    /// start counts, and those before the first one.
    settled: bool,
    open: BTreeMap<u64, Job>,
    recent: VecDeque<Job>,
    waiting: BTreeSet<u64>,
    substituting: BTreeSet<u64>,
    realising: Option<u64>,
    transfers: BTreeMap<u64, u64>,
    downloaded: u64,
    to_download: u64,
    /// Something was finished since this was last asked.
    news: bool,
    failures: Vec<Failure>,
}

/// A build that runs or ran.
#[derive(Debug, Clone)]
struct Job {
    drv: String,
    since: Instant,
    log: VecDeque<String>,
}

impl Watcher {
    /// The next line of the process's standard error, heard at `now`.
    pub(super) fn line(&mut self, line: &str, now: Instant) {
        match parse(line) {
            Some(Event::Start { id, kind, fields }) => self.start(id, kind, &fields, now),
            Some(Event::Stop { id }) => self.stop(id),
            Some(Event::Result { id, kind, fields }) => self.result(id, kind, &fields),
            Some(Event::Error(error)) => self.failed(&error.text()),
            Some(Event::Message(_)) | None => (),
        }
    }

    pub(super) fn progress(&self) -> BuildProgress {
        let mut running: Vec<Running> = self.open.values().map(|job| Running { name: name(&job.drv), since: job.since }).collect();
        running.sort_by_key(|running| running.since);
        BuildProgress {
            done: self.done,
            expected: self.expected.max(self.done),
            running,
            waiting: self.waiting.len() as u64,
            downloaded: self.downloaded + self.transfers.values().sum::<u64>(),
            to_download: self.to_download,
        }
    }

    /// Whether anything was finished since this was last asked.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Takes note that a derivation is built: 2.26 says so of those that it was asked for only at its end.
    pub(super) fn built(&mut self, drv: &str) {
        self.open.retain(|_, job| job.drv != drv);
    }

    pub(super) fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// What runs longest, with its log: what a time-out interrupted.
    pub(super) fn longest(&self) -> Option<(String, Vec<String>)> {
        let job = self.open.values().min_by_key(|job| job.since)?;
        Some((job.drv.clone(), job.log.iter().cloned().collect()))
    }

    fn start(&mut self, id: u64, kind: u64, fields: &[Value], now: Instant) {
        let first = || fields.first().and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind {
            activity::BUILDS => self.builds = Some(id),
            activity::REALISE => self.realising = Some(id),
            activity::BUILD => {
                self.settled = false;
                self.open.insert(id, Job { drv: first(), since: now, log: VecDeque::new() });
            }
            activity::WAITING => drop(self.waiting.insert(id)),
            activity::SUBSTITUTE => drop(self.substituting.insert(id)),
            activity::FILE_TRANSFER => drop(self.transfers.insert(id, 0)),
            _ => (),
        }
    }

    fn stop(&mut self, id: u64) {
        self.waiting.remove(&id);
        self.downloaded += self.transfers.remove(&id).unwrap_or_default();
        self.news |= self.substituting.remove(&id);
        if let Some(job) = self.open.remove(&id) {
            self.news = true;
            self.recent.push_back(job);
            keep_last(&mut self.recent, RECENT);
        }
    }

    fn result(&mut self, id: u64, kind: u64, fields: &[Value]) {
        let number = |index: usize| fields.get(index).and_then(Value::as_u64).unwrap_or_default();
        match kind {
            result::BUILD_LOG_LINE => {
                if let (Some(job), Some(line)) = (self.open.get_mut(&id), fields.first().and_then(Value::as_str)) {
                    job.log.push_back(clean(line, LINE_LIMIT));
                    keep_last(&mut job.log, LOG_LINES);
                }
            }
            result::PROGRESS if self.builds == Some(id) => {
                self.news |= self.done != number(0);
                self.done = number(0);
                if !self.settled {
                    self.expected = number(1);
                }
                self.settled = !self.open.is_empty() || self.done > 0;
            }
            result::PROGRESS => {
                if let Some(bytes) = self.transfers.get_mut(&id) {
                    *bytes = number(0);
                }
            }
            // Bytes over the wire, compressed; told by the activity that realises all.
            result::SET_EXPECTED if self.realising == Some(id) && number(0) == activity::FILE_TRANSFER => self.to_download = number(1),
            _ => (),
        }
    }

    fn failed(&mut self, message: &str) {
        if self.failures.len() >= FAILURES {
            return;
        }
        let fault = fault(message);
        let named = drv_in(message).map(str::to_owned);
        // A time-out names nothing: it is what stopped last.
        let drv = named.or_else(|| (fault == Fault::TimedOut).then(|| self.recent.back().map(|job| job.drv.clone())).flatten());
        let mut jobs = self.open.values().chain(self.recent.iter().rev());
        let log = jobs.find(|job| Some(&job.drv) == drv.as_ref()).map(|job| job.log.iter().cloned().collect()).unwrap_or_default();
        self.failures.push(Failure { drv, fault, message: message.to_owned(), log });
    }
}

/// What an error's text tells of; 2.34 and 2.26 put it in different words.
fn fault(message: &str) -> Fault {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if says(&[
        "dependency failed",
        "dependencies failed",
        "dependencies of derivation",
        "dependencies couldn't be built",
        "dependency couldn't be built",
    ]) {
        Fault::Dependency
    } else if says(&["hash mismatch"]) {
        Fault::HashMismatch
    } else if says(&["timed out after"]) {
        Fault::TimedOut
    } else if says(&["builder failed", "builder for", "failed to produce output", "failed due to signal", "failed with exit code"]) {
        Fault::Builder
    } else {
        Fault::Other
    }
}

/// The first derivation that a text names.
fn drv_in(text: &str) -> Option<&str> {
    let start = text.find("/nix/store/")?;
    let rest = &text[start..];
    let end = rest.find(".drv")? + ".drv".len();
    rest.get(..end).filter(|path| path.parse::<crate::nix::DrvPath>().is_ok())
}

/// What a person calls a derivation.
pub(super) fn name(drv: &str) -> String {
    drv.parse::<crate::nix::DrvPath>().map_or_else(|_| drv.to_owned(), |drv| drv.name().to_owned())
}

/// Forgets the oldest when there are too many.
fn keep_last<T>(queue: &mut VecDeque<T>, length: usize) {
    while queue.len() > length {
        queue.pop_front();
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
