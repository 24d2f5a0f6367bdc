//! Lands NixOS systems on machines, driven by Kubernetes resources; a machine is never stranded.
//!
//! ARCHITECTURE.md has the picture, the code map and the invariants.

pub mod clock;
pub mod nix;
pub mod world;
