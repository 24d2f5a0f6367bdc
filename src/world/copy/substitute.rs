//! Letting the host fetch from its own caches.

use std::io;
use std::time::Duration;

use super::serve::Serve;
use crate::nix::StorePath;
use crate::world::ssh::{Channel, Command, Session};

/// For one cache that does not answer, not five minutes but a few seconds. Added to what the host has set.
const SCRIPT: &str = r#"PATH="${PATH:-/usr/bin:/bin}:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin"
NIX_CONFIG="${NIX_CONFIG-}
connect-timeout = 5
download-attempts = 2"
export PATH NIX_CONFIG
# OpenSSH ends no command of root when its channel is closed, and this one reads nothing while it fetches.
exec timeout "$1" nix-store --serve --write"#;

/// Asks the host to fetch `missing`, in a process of its own, for `deadline` at most. Whatever comes of it, the host is
/// asked again what it lacks: a failure here is only a slower copy.
pub(super) async fn substitute(host: &Session, missing: &[&StorePath], deadline: Duration) {
    let fetch = async {
        let channel =
            host.open(&Command::script(SCRIPT).arg(deadline.as_secs().max(1).to_string()).as_root()).await.map_err(io::Error::other)?;
        let Channel { writer, reader, ending: _ends_it_when_dropped } = channel;
        Serve::new(writer, reader).valid(missing, true, true).await
    };
    match tokio::time::timeout(deadline, fetch).await {
        Ok(Ok(fetched)) => tracing::debug!(fetched = fetched.len(), asked = missing.len(), "the host fetched from its own caches"),
        Ok(Err(error)) => tracing::debug!(%error, "the host fetched nothing"),
        Err(_) => tracing::debug!(?deadline, "the host did not finish fetching in time"),
    }
}
