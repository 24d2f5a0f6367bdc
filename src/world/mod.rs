//! The only place that starts a process or opens a connection.
//!
//! What is here does one thing each, knows no Kubernetes and decides nothing.

pub mod copy;
pub mod exec;
pub mod nix;
pub mod ssh;
