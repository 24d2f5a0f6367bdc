//! The hosting services that Nix has fetchers for, by their own names, on loopback: one in each world.

use std::{path::PathBuf, time::Duration};

use super::server::certificate;
use crate::{
    process::{Daemon, mortal},
    wait::until_true,
    world::{script, write},
};

/// The names under which it answers; they are loopback in every world, and in the servers' certificates.
pub const NAMES: [&str; 4] = ["github.com", "api.github.com", "gitlab.com", "git.sr.ht"];

/// Serves one repository, under any owner and name, to whoever has the token.
pub struct Forge {
    log: PathBuf,
    _daemon: Daemon,
}

impl Forge {
    /// Serves `DIRECTORY/fleet.git`.
    pub async fn start(directory: &std::path::Path, token: &str) -> Self {
        let (pem, log) = (directory.join("forge.pem"), directory.join("forge-requests"));
        write(&pem, certificate());
        let mut command = mortal(script("forge"));
        command.arg(directory).arg(&pem).arg(token).arg(&log);
        let daemon = Daemon::start("forge", command, &directory.join("forge.log"));
        until_true("the forge to listen", Duration::from_secs(20), || {
            assert!(daemon.ended().is_none(), "{}", std::fs::read_to_string(directory.join("forge.log")).unwrap_or_default());
            std::net::TcpStream::connect(("127.0.0.1", 443)).is_ok()
        })
        .await;
        Self { log, _daemon: daemon }
    }

    /// What it was asked so far: status, host and path of each request.
    pub fn requests(&self) -> Vec<String> {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}
