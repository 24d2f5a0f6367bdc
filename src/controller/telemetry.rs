//! Logs: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::filter::{EnvFilter, ParseError};

/// Sets up logging to standard error; `filter` as in `info,nixos_host_controller=debug`.
pub fn start(filter: &str) -> Result<(), ParseError> {
    // kube logs each failed request as an error; what came of it is logged, counted and shown where it is handled.
    let filter = EnvFilter::builder().parse(format!("{filter},kube_client::client::builder=off,russh=error"))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        subscriber.with_target(false).init();
    } else {
        subscriber.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
    }
    Ok(())
}
