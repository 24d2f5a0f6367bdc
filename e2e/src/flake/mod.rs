//! Flake repositories: the fixture of `e2e/world/flake` with a salt and knobs, in real git, served over real HTTPS and SSH.

pub mod fleet;
pub mod forge;
pub mod repository;
pub mod server;

pub use fleet::{Fleet, Knobs};
pub use forge::Forge;
pub use repository::Repository;
pub use server::Server;
