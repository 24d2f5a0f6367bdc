//! Time, handed in as a value: only `controller/` reads a clock, so all else is tested without sleeping.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// A length of time as the spec writes it, without what nobody reads: `250ms`, `3.8s`, `2m`, `1h30m`.
pub fn human(time: Duration) -> String {
    // Each is rounded as it is shown: 59.97 s are 1m, never 60.0s.
    let tenths = (time.as_millis() + 50) / 100;
    match (time.as_millis(), tenths) {
        (0, _) => "0s".to_owned(),
        (millis, _) if millis < 1000 => format!("{millis}ms"),
        (_, tenths) if tenths < 600 && tenths % 10 != 0 => format!("{}.{}s", tenths / 10, tenths % 10),
        (millis, _) => {
            let seconds = (millis + 500) / 1000;
            let parts = [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
            let parts: Vec<String> =
                parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
            parts.concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_told_as_the_spec_writes_it() {
        for (millis, text) in [
            (0, "0s"),
            (250, "250ms"),
            (999, "999ms"),
            (1000, "1s"),
            (3749, "3.7s"),
            (3750, "3.8s"),
            (3960, "4s"),
            (59_940, "59.9s"),
            (59_950, "1m"),
            (90_400, "1m30s"),
            (120_000, "2m"),
            (3_599_600, "1h"),
            (5_400_000, "1h30m"),
            (86_400_000, "24h"),
        ] {
            assert_eq!(human(Duration::from_millis(millis)), text, "{millis} ms");
        }
    }

    #[test]
    fn what_is_told_is_what_the_spec_reads() {
        for millis in [250, 3800, 90_000, 5_400_000, 90_061_000] {
            let time = Duration::from_millis(millis);
            assert_eq!(nixos_host_api::Duration::from(&*human(time)).get(), Ok(time));
        }
    }
}
