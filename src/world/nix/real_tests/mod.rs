//! Against the real nix, git and ssh. Run them where there is a store to write: inside the test world.

mod admit;
mod attacks;
mod build;
mod evaluate;
mod resolve;
mod ssh;
mod world;

use super::*;
use world::World;
