//! What a stage is, and whether it is run: a struct whose fields are its inputs, named by their digest.

use nixos_host_api::{Class, LandingRef, Outcome, Reason, StageRecord};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The longest message that a status takes.
pub const MAX_MESSAGE: usize = 8192;

/// Why something was not done, for a person: a reason of the closed list and a message that names what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// The condition reason.
    pub reason: Reason,
    /// What happened, with names, values and last lines; at most [`MAX_MESSAGE`] bytes.
    pub message: String,
}

impl Failure {
    /// A failure with a message cut to what a status takes, without control characters except line ends.
    pub fn new(reason: Reason, message: impl AsRef<str>) -> Self {
        Self { reason, message: bounded(message.as_ref(), MAX_MESSAGE) }
    }

    /// Whether the input is at fault and is not tried again by itself.
    pub fn is_rejection(&self) -> bool {
        self.reason.class() == Class::Rejected
    }
}

/// An error with all its causes in one line, as it is shown to a person: each `Display` says its own part only. Other people's errors that
/// repeat their cause are heard once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// `text` without control characters except line ends, without those that turn the direction of writing round, and cut in its middle if it is longer than `limit` bytes: the end of a log matters most.
pub fn bounded(text: &str, limit: usize) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let clean: String = text.chars().filter(|c| (!c.is_control() || *c == '\n') && !turns(*c)).collect();
    let clean = clean.trim();
    if clean.len() <= limit {
        return clean.to_owned();
    }
    let (mut head, mut tail) = (limit / 4, clean.len() - (limit * 3 / 4 - "\n…\n".len()));
    while !clean.is_char_boundary(head) {
        head -= 1;
    }
    while !clean.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}\n…\n{}", &clean[..head], &clean[tail..])
}

/// A step of a pass. Its fields are its inputs; nothing secret may be one, since they are hashed and their digest is shown.
pub trait Stage: Serialize {
    /// What it is called in status, metrics and logs.
    const NAME: &'static str;

    /// The reason of Reconciling while it runs.
    const DOING: Reason;

    /// The digest of the inputs, by which a record is known to be of these.
    fn key(&self) -> String {
        digest(&(Self::NAME, self))
    }
}

/// The first 16 hexadecimal digits of SHA-256 over the value as JSON.
pub fn digest(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).unwrap_or_default();
    let hash = Sha256::digest(json);
    let first: [u8; 8] = std::array::from_fn(|index| hash[index]);
    format!("{:016x}", u64::from_be_bytes(first))
}

/// The records of a host's stages: what was done with which inputs, and how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records(Vec<StageRecord>);

/// The name under which it is written down that the host could not be looked at.
pub const OBSERVE: &str = "Observe";

/// The name under which a failure is counted that belongs to no stage.
const BETWEEN: &str = "Between";

/// Failures in a row are counted up to here: the back-off has reached its end long before, and status shall not churn.
const MAX_FAILURES: i32 = 10;

impl Records {
    /// The records of a status.
    pub fn new(records: Vec<StageRecord>) -> Self {
        Self(records)
    }

    /// The record of the stage with this name.
    pub fn get(&self, name: &str) -> Option<&StageRecord> {
        self.0.iter().find(|record| record.name == name)
    }

    /// PURE. The failure that holds this input back: it was rejected, and nobody asked for it again.
    pub fn held(&self, name: &str, key: &str) -> Option<Failure> {
        let record = self.get(name).filter(|record| record.key == key && record.outcome == Outcome::Rejected)?;
        let reason = record.reason.as_deref().and_then(|reason| reason.parse().ok()).unwrap_or(Reason::InternalError);
        Some(Failure::new(reason, record.message.as_deref().unwrap_or_default()))
    }

    /// Writes down that a stage succeeded.
    pub fn succeeded(&mut self, name: &str, key: String, output: impl Into<String>) {
        let message = Some(bounded(&output.into(), MAX_MESSAGE)).filter(|output| !output.is_empty());
        self.put(StageRecord { name: name.into(), key, outcome: Outcome::Succeeded, reason: None, message, landing: None, failures: None });
    }

    /// Writes down that a stage failed.
    pub fn failed(&mut self, name: &str, key: String, failure: &Failure) {
        let before = self.get(name).filter(|record| record.key == key).and_then(|record| record.failures).unwrap_or_default();
        let outcome = if failure.is_rejection() { Outcome::Rejected } else { Outcome::Failed };
        self.put(StageRecord {
            name: name.into(),
            key,
            outcome,
            reason: Some(failure.reason.as_str().into()),
            message: Some(failure.message.clone()),
            landing: None,
            failures: Some((before + 1).min(MAX_FAILURES)),
        });
    }

    /// Writes down that a stage has begun a landing, whose end is not known yet.
    pub fn began(&mut self, name: &str, key: String, landing: LandingRef) {
        let failures = self.get(name).filter(|record| record.key == key).and_then(|record| record.failures);
        let message = Some("begun; its end is not known yet".to_owned());
        self.put(StageRecord { name: name.into(), key, outcome: Outcome::Failed, reason: None, message, landing: Some(landing), failures });
    }

    /// Takes note that the landing which a stage began has ended, or that its end is still unknown.
    pub fn landing(&mut self, name: &str, landing: Option<LandingRef>) {
        if let Some(record) = self.0.iter_mut().find(|record| record.name == name) {
            record.landing = landing;
        }
    }

    /// Forgets the stage with this name.
    pub fn forget(&mut self, name: &str) {
        self.0.retain(|record| record.name != name);
    }

    /// Takes note of what ended a pass, also if it belongs to no stage. That is counted; the rows of other failures end with it, but for that
    /// of looking at the host, which each pass tries.
    pub fn stopped(&mut self, failure: &Failure) {
        let is = |record: &StageRecord| {
            record.outcome != Outcome::Succeeded
                && record.reason.as_deref() == Some(failure.reason.as_str())
                && record.message.as_deref() == Some(&failure.message)
        };
        if self.0.iter().any(|record| record.name != BETWEEN && is(record)) {
            self.forget(BETWEEN);
        } else {
            self.failed(BETWEEN, String::new(), failure);
        }
        self.0.iter_mut().filter(|record| record.name != OBSERVE && !is(record)).for_each(|record| record.failures = None);
    }

    /// Takes note that a pass ended well: what failed once is not counted on.
    pub fn settled(&mut self) {
        self.forget(BETWEEN);
        self.0.iter_mut().for_each(|record| record.failures = None);
    }

    /// The longest row of failures of any stage.
    pub fn failures(&self) -> i32 {
        self.0.iter().filter_map(|record| record.failures).max().unwrap_or_default()
    }

    /// The records, in the order in which the stages first ran.
    pub fn as_slice(&self) -> &[StageRecord] {
        &self.0
    }

    fn put(&mut self, record: StageRecord) {
        match self.0.iter_mut().find(|old| old.name == record.name) {
            Some(old) => *old = record,
            None => self.0.push(record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Example {
        input: &'static str,
    }

    impl Stage for Example {
        const NAME: &'static str = "Example";
        const DOING: Reason = Reason::Building;
    }

    #[test]
    fn the_key_is_of_the_inputs() {
        assert_eq!(Example { input: "a" }.key(), Example { input: "a" }.key());
        assert_ne!(Example { input: "a" }.key(), Example { input: "b" }.key());
        assert_eq!(Example { input: "a" }.key().len(), 16);
    }

    #[test]
    fn a_rejected_input_is_held_and_another_one_is_not() {
        let mut records = Records::default();
        let failure = Failure::new(Reason::BuildFailed, "broken");
        records.failed("Build", "k1".into(), &failure);
        assert_eq!(records.held("Build", "k1"), Some(failure));
        assert_eq!(records.held("Build", "k2"), None);
        records.failed("Build", "k1".into(), &Failure::new(Reason::BuildTimedOut, "slow"));
        assert_eq!(records.held("Build", "k1"), None, "what is transient is tried again");
    }

    #[test]
    fn failures_in_a_row_are_counted_for_the_same_input_only() {
        let mut records = Records::default();
        let failure = Failure::new(Reason::Unreachable, "gone");
        for expected in [1, 2, 3] {
            records.failed("Observe", "k".into(), &failure);
            assert_eq!(records.failures(), expected);
        }
        records.failed("Observe", "other".into(), &failure);
        assert_eq!(records.failures(), 1);
        records.succeeded("Observe", "other".into(), "");
        assert_eq!(records.failures(), 0);
    }

    #[test]
    fn what_ends_a_pass_is_counted_alone() {
        let mut records = Records::default();
        let (build, conflict) = (Failure::new(Reason::BuildError, "no disk"), Failure::new(Reason::MachineConflict, "two of them"));
        for expected in [1, 2] {
            records.failed("Build", "k".into(), &build);
            records.stopped(&build);
            assert_eq!((records.failures(), records.get(BETWEEN)), (expected, None));
        }
        for expected in [1, 2, 3] {
            records.stopped(&conflict);
            assert_eq!(records.failures(), expected, "of no stage, and counted all the same");
        }
        assert_eq!(records.get("Build").and_then(|record| record.failures), None);
        records.settled();
        assert_eq!((records.failures(), records.get(BETWEEN)), (0, None));
    }

    #[test]
    fn a_long_message_keeps_its_beginning_and_most_of_its_end() {
        let text = format!("first {} last", "ä".repeat(10_000));
        let cut = bounded(&text, 1000);
        assert!(cut.len() <= 1000 && cut.starts_with("first") && cut.ends_with("last"), "{}", cut.len());
        assert_eq!(bounded("a\u{1b}[31mb\u{202e}c\n", 100), "a[31mbc");
    }
}
