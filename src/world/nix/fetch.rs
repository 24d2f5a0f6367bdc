//! The processes behind resolving: `git ls-remote`, and Nix fetching and locking one source.
//!
//! Credentials go only to processes that fetch one named source and look at nothing in it. Reading a stranger's
//! `flake.nix` is another process, without any: Nix fetches inputs that are not locked before it refuses them, and an
//! input may be `file+file:///proc/self/…`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_util::sync::CancellationToken;

use super::Resolve;
use super::access::Access;
use super::driver::{CACHED, Driver, FRESH, NETWORK, OPTIONS, Place};
use super::error::ResolveError;
use super::fetched;
use super::look::{self, Seen};
use super::metadata::{self, Metadata};
use super::outcome::RESTRICT;
use crate::nix::flake_ref::Source;
use crate::nix::{FlakeRef, LockedFlake};
use crate::world::exec::{Command, Ending, Finished};

/// Asks the remote what the name leads to.
pub(super) async fn look(driver: &Driver, request: &Resolve, cancel: &CancellationToken) -> Result<Seen, ResolveError> {
    let (flake, follow) = (&request.flake, request.flake.follow());
    let url = flake.git_url().unwrap_or_default();
    driver.tally.looks.fetch_add(1, Ordering::Relaxed);
    let place = driver.place(request.credentials.as_ref()).map_err(no_place)?;
    let access = Access::grant(request.credentials.as_ref(), authority(flake).as_deref(), &place).await.map_err(no_place)?;
    let command = driver.command(&driver.tools.git, look::arguments(&url, follow), &place, &access);
    let finished = run(driver, command, "asking the remote for its branches and tags", cancel).await?;
    match finished.ending {
        Ending::Exited(0) => {
            let stdout = String::from_utf8_lossy(&finished.stdout);
            look::parse(&stdout, follow).ok_or_else(|| look::failure(2, &finished.stderr, follow))
        }
        Ending::Exited(code) => Err(look::failure(code, &finished.stderr, follow)),
        ending => Err(ResolveError::Other { message: format!("git {ending}") }),
    }
}

/// Has Nix fetch `reference`, lock it and say exactly what it got. `rev` is the revision that must come.
pub(super) async fn fetch(
    driver: &Driver,
    request: &Resolve,
    reference: &str,
    rev: Option<&str>,
    cancel: &CancellationToken,
) -> Result<LockedFlake, ResolveError> {
    driver.tally.locks.fetch_add(1, Ordering::Relaxed);
    let place = driver.place(request.credentials.as_ref()).map_err(no_place)?;
    let cache = place.cache();
    // Whatever becomes of it, the fetch is the same, but for its size.
    drop(tokio::task::spawn_blocking(move || fetched::refer(&cache)).await);
    let mut ttl = FRESH;
    if request.credentials.is_some() {
        let access = Access::grant(request.credentials.as_ref(), authority(&request.flake).as_deref(), &place).await.map_err(no_place)?;
        flake_command(driver, "prefetch", reference, ttl, &place, &access, rev, cancel).await?;
        ttl = CACHED;
    }
    let finished = flake_command(driver, "metadata", reference, ttl, &place, &Access::none(), rev, cancel).await?;
    let found = metadata::parse(&finished.stdout)?;
    found.locks.check(driver.config.allow_local_flakes)?;
    locked(request, reference, rev, found)
}

/// Runs `nix flake VERB REFERENCE`.
#[expect(clippy::too_many_arguments, reason = "all of them differ between the two calls, or between flakes")]
async fn flake_command(
    driver: &Driver,
    verb: &str,
    reference: &str,
    ttl: [&str; 3],
    place: &Place,
    access: &Access,
    rev: Option<&str>,
    cancel: &CancellationToken,
) -> Result<Finished, ResolveError> {
    let uris = driver.allowed_uris();
    let args = ["flake", verb, "--json", "--log-format", "internal-json"].into_iter().chain(OPTIONS).chain(ttl).chain(NETWORK);
    let args = args.chain(RESTRICT).chain(["--option", "allowed-uris", &uris, "--", reference]);
    let command = driver.command(&driver.tools.nix, args, place, access);
    let command = Command { confinement: driver.confinement(place), stdout_limit: 16 << 20, ..command };
    let finished = run(driver, command, "fetching the revision", cancel).await?;
    if finished.ending == Ending::Exited(0) { Ok(finished) } else { Err(metadata::failure(&finished.stderr, rev)) }
}

fn locked(request: &Resolve, reference: &str, rev: Option<&str>, found: Metadata) -> Result<LockedFlake, ResolveError> {
    if let (Some(wanted), Some(got)) = (rev, &found.locked.rev)
        && wanted != got
    {
        return Err(ResolveError::Other { message: format!("Nix fetched the revision {got} instead of {wanted}") });
    }
    Ok(LockedFlake {
        reference: exact(request.flake.source(), reference, &found.locked.nar_hash),
        rev: rev.map(str::to_owned),
        followed: None,
        nar_hash: found.locked.nar_hash,
        fingerprint: found.fingerprint,
        last_modified: found.last_modified,
    })
}

/// Runs a process that ends by itself, within the time that resolving may take; otherwise it is an error.
pub(super) async fn run(
    driver: &Driver,
    command: Command,
    deed: &'static str,
    cancel: &CancellationToken,
) -> Result<Finished, ResolveError> {
    let time = driver.config.resolve_timeout;
    let finished =
        driver.processes.run(Command { time, ..command }, |_| (), cancel).await.map_err(|e| ResolveError::Process(Arc::new(e)))?;
    match finished.ending {
        Ending::Exited(_) => Ok(finished),
        Ending::Cancelled => Err(ResolveError::Cancelled),
        Ending::TimedOut => Err(ResolveError::TimedOut { seconds: Duration::as_secs(&time), deed }),
        Ending::OutOfMemory => Err(ResolveError::Other { message: format!("out of memory while {deed}") }),
        Ending::Killed(signal) => Err(ResolveError::Other { message: format!("was killed by signal {signal} while {deed}") }),
    }
}

/// The reference that Nix evaluates without asking again. Git's has the revision; others get the hash, which the git
/// fetcher would take for a part of the URL.
fn exact(source: &Source, reference: &str, nar_hash: &str) -> String {
    match source {
        Source::Git { .. } | Source::Forge { .. } => reference.to_owned(),
        Source::Tarball { .. } | Source::Path { .. } if reference.contains("narHash=") => reference.to_owned(),
        Source::Tarball { .. } | Source::Path { .. } => {
            let joint = if reference.contains('?') { '&' } else { '?' };
            format!("{reference}{joint}narHash={}", utf8_percent_encode(nar_hash, NON_ALPHANUMERIC))
        }
    }
}

/// The host of a flake with its port, if it has one.
pub(super) fn authority(flake: &FlakeRef) -> Option<String> {
    let url = match flake.source() {
        Source::Git { url } | Source::Tarball { url } => url.clone(),
        Source::Forge { .. } => flake.git_url()?,
        Source::Path { .. } => return None,
    };
    let authority = url.split_once("://")?.1.split('/').next()?;
    Some(authority.rsplit('@').next()?.to_owned())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn no_place(error: io::Error) -> ResolveError {
    ResolveError::Other { message: format!("cannot prepare a place for the process: {error}") }
}

/// For evaluations: the host and port of a locked reference.
pub(super) fn authority_of(reference: &str) -> Option<String> {
    let authority = reference.split_once("://")?.1.split(['/', '?']).next()?;
    Some(authority.rsplit('@').next()?.to_owned())
}
