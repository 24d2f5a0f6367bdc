//! The scenarios, on a real API server and real hosts. Each is told in its test's name; `e2e/README.md` says how to run one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod landing;

use std::time::Duration;

/// Long enough for a loaded machine; nothing waits this long when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(60);
