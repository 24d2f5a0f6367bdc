//! The chart's alerts and dashboards on a real Prometheus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod alerts;
mod dashboards;
mod rules;
