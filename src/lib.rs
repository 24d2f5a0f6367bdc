//! Lands NixOS systems on machines, driven by Kubernetes resources; a machine is never stranded.
//!
//! ARCHITECTURE.md has the picture, the code map and the invariants.

pub mod clock;
pub mod controller;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzz;
pub mod host_build;
pub mod landing;
pub mod metrics;
pub mod nix;
pub mod observe;
pub mod pipeline;
pub mod report;
#[cfg(test)]
mod sim;
pub mod stage;
pub mod stages;
pub mod wish;
pub mod world;
