//! The stages, one file each: its inputs, its effect, its output. A stage never calls a stage; their order is in `pipeline.rs`.

pub mod activate;
pub mod build;
pub mod build_on_host;
pub mod checks;
pub mod commit;
pub mod copy;
pub mod dry;
pub mod evaluate;
pub mod order;
pub mod reboot;
pub mod resolve;
pub mod verify;
