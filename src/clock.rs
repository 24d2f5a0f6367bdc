//! Time, handed in as a value: only `controller/` reads a clock, so all else is tested without sleeping.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

/// Answers what time it is. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    monotonic: Arc<dyn Fn() -> Instant + Send + Sync>,
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Clock {
    /// A clock that asks `monotonic`, and `wall` for what people read.
    pub fn new(monotonic: impl Fn() -> Instant + Send + Sync + 'static, wall: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { monotonic: Arc::new(monotonic), wall: Arc::new(wall) }
    }

    /// The present moment, by a clock that never goes back.
    pub fn now(&self) -> Instant {
        (self.monotonic)()
    }

    /// The present moment for people: it may jump, and nothing is measured by it.
    pub fn wall(&self) -> Timestamp {
        (self.wall)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
