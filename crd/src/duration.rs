//! Durations as people write them: `90s`, `1h30m`.

use std::time;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time as Go and Flux write it: numbers with `ms`, `s`, `m` or `h`, such as `90s` or `1h30m`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(String);

/// A text is no duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurationError(String);

impl std::fmt::Display for DurationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} is not a duration such as 90s, 10m or 1h30m", self.0)
    }
}

impl std::error::Error for DurationError {}

/// What the API server checks; [`Duration::get`] reads exactly this.
const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$";

impl Duration {
    /// A duration of so many seconds.
    pub fn seconds(seconds: u64) -> Self {
        Self(format!("{seconds}s"))
    }

    /// The time that it means.
    pub fn get(&self) -> Result<time::Duration, DurationError> {
        let error = || DurationError(self.0.chars().take(40).collect());
        let (mut rest, mut seconds) = (self.0.as_str(), 0.0);
        while !rest.is_empty() {
            let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
            let number: f64 = rest[..unit].parse().map_err(|_| error())?;
            rest = &rest[unit..];
            let (length, scale) = match rest.as_bytes() {
                [b'm', b's', ..] => (2, 0.001),
                [b's', ..] => (1, 1.0),
                [b'm', ..] => (1, 60.0),
                [b'h', ..] => (1, 3600.0),
                _ => return Err(error()),
            };
            rest = &rest[length..];
            seconds += number * scale;
        }
        if self.0.is_empty() {
            return Err(error());
        }
        time::Duration::try_from_secs_f64(seconds).map_err(|_| error())
    }
}

impl From<&str> for Duration {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 32, "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in [("90s", 90_000), ("1h30m", 5_400_000), ("250ms", 250), ("1.5m", 90_000), ("0s", 0)] {
            assert_eq!(Duration::from(text).get(), Ok(time::Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_named() {
        for text in ["", "10", "s", "1d", "-1s", "1s ", "1.2.3s", "99999999999999999999999h"] {
            assert!(Duration::from(text).get().is_err(), "{text}");
        }
    }
}
