//! The only clocks of the project.

#![expect(clippy::disallowed_methods, reason = "this is where they are read")]

use std::time::Instant;

use jiff::Timestamp;

use crate::clock::Clock;

/// The clocks of this machine.
pub(super) fn system() -> Clock {
    Clock::new(Instant::now, Timestamp::now)
}
