//! The test world: a real control plane, real systemd hosts, real flake repositories, the controller as a process, and ways to break each of them.
//!
//! Everything here runs inside `e2e/world/enter`, which gives the process a network, a `/nix` and a process table of its own. A test takes a
//! [`Scenario`], tells it what should exist, and waits with [`wait::until`]; see `e2e/README.md` for one written out.
//!
//! This is test code: what cannot go on panics, with a message that says what was being done.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on says so and ends")]
#![allow(clippy::missing_panics_doc, reason = "every function here panics when the world does not do what it is told")]
#![allow(clippy::disallowed_methods, reason = "the controller's rules on processes and clocks are not those of what tests it")]
#![allow(clippy::print_stderr, reason = "a failing test tells on stderr, where the test harness captures it")]

pub mod argocd;
pub mod chart;
pub mod cluster;
pub mod control_plane;
pub mod controller;
pub mod flake;
pub mod host;
pub mod kubectl;
pub mod oracle;
pub mod process;
pub mod prometheus;
pub mod scenario;
pub mod wait;
pub mod world;

pub use cluster::Cluster;
pub use control_plane::ControlPlane;
pub use controller::Controller;
pub use flake::{Fleet, Knobs, Repository};
pub use host::Host;
pub use kubectl::Kubectl;
pub use scenario::Scenario;
pub use wait::until;
