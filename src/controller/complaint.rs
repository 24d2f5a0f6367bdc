//! Warnings of what goes on being wrong: at once, and then now and then, not at each try.

use std::time::{Duration, Instant};

use crate::clock::Clock;

/// How often it is said again.
const AGAIN: Duration = Duration::from_secs(300);

/// Warns of one thing.
#[derive(Debug)]
pub(super) struct Complaint {
    clock: Clock,
    /// What was said, and when.
    last: Option<(String, Instant)>,
}

impl Complaint {
    /// Nothing is wrong yet.
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, last: None }
    }

    /// It is wrong, in these words.
    pub(super) fn about(&mut self, text: &str) {
        self.of(text, text);
    }

    /// `kind` is wrong, of which this is one case of perhaps many.
    pub(super) fn of(&mut self, kind: &str, text: &str) {
        if self.is_due(kind) {
            tracing::warn!("{text}");
        } else {
            tracing::debug!("{text}");
        }
    }

    /// The same where many may meet the same, as [`common`] says: what is about one of them alone is always said.
    pub(super) fn of_many(&mut self, kind: Option<&str>, text: &str) {
        if let Some(kind) = kind {
            self.of(kind, &format!("{text}; the same of other hosts is logged at the level debug"));
        } else {
            tracing::warn!("{text}");
        }
    }

    /// It is well again.
    pub(super) fn settle(&mut self) {
        self.last = None;
    }

    fn is_due(&mut self, kind: &str) -> bool {
        let now = self.clock.now();
        let due = self.last.as_ref().is_none_or(|(last, at)| last != kind || now.saturating_duration_since(*at) >= AGAIN);
        if due {
            self.last = Some((kind.to_owned(), now));
        }
        due
    }
}

/// There was no answer: what everybody meets.
pub(super) const NO_ANSWER: &str = "no answer";

/// What an error is that everybody meets: the API server is away, overloaded, or refuses this controller.
pub(super) fn common(error: &kube::Error) -> Option<&'static str> {
    match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => Some("refused"),
        kube::Error::Api(status) if status.code >= 500 || status.code == 429 => Some("overloaded"),
        kube::Error::Api(_) | kube::Error::SerdeError(_) => None,
        _ => Some(NO_ANSWER),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    fn the_same_is_said_once_in_a_while_and_something_else_at_once() {
        let now = Arc::new(Mutex::new(Instant::now()));
        let read = Arc::clone(&now);
        let mut complaint = Complaint::new(Clock::new(move || *read.lock().unwrap(), || jiff::Timestamp::UNIX_EPOCH));
        let pass = |seconds| *now.lock().unwrap() += Duration::from_secs(seconds);
        assert!(complaint.is_due("refused") && !complaint.is_due("refused"));
        assert!(complaint.is_due("forbidden"));
        pass(299);
        assert!(!complaint.is_due("forbidden"));
        pass(1);
        assert!(complaint.is_due("forbidden") && !complaint.is_due("forbidden"));
        complaint.settle();
        assert!(complaint.is_due("forbidden"));
    }

    #[test]
    fn what_everybody_meets_is_told_from_what_is_about_one_object() {
        let of = |code: u16| common(&kube::Error::Api(Box::new(kube::core::Status { code, ..Default::default() })));
        assert_eq!([401, 403, 409, 422, 500, 503].map(|code| of(code).is_some()), [true, true, false, false, true, true]);
        assert_eq!(common(&kube::Error::Service("connection refused".into())), Some(NO_ANSWER));
    }
}
