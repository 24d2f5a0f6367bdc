//! The only clocks of the project.

#![expect(clippy::disallowed_methods, reason = "this is where they are read")]

use std::time::Instant;

use jiff::Timestamp;

use crate::clock::Clock;

/// The clock that never goes back.
pub(super) fn monotonic() -> Clock {
    Clock::new(Instant::now)
}

/// The clock that people read.
pub(super) fn wall() -> Timestamp {
    Timestamp::now()
}
