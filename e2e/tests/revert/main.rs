//! The landing script on a real systemd, without a controller: its verbs are called by hand, and something is broken at each of its states.
//! Whatever that is, the machine comes back by itself, on the old system or on the new one, and says which.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod asked;
mod ends;
mod machine;
mod moments;
mod others;
mod shortage;
