//! The controller's binary: arguments, logs, and then the controller.

use std::process::ExitCode;

use clap::Parser;
use nixos_host_controller::controller::{self, args::Args, telemetry};
use nixos_host_controller::stage::chain;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = telemetry::start(&args.log) {
        clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("--log {:?}: {error}\n", args.log)).exit();
    }
    match controller::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
