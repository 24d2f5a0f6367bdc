//! A closure to a host.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use super::serve::{Serve, Sink};
use super::stream::{Broken, stream};
use super::substitute::substitute;
use super::{Copied, CopyError, Options, Progress};
use crate::nix::{Closure, PathInfo, StorePath};
use crate::world::ssh::{Channel, Command, Ending, Session};

/// What the host runs to receive.
const RECEIVE: &str = include_str!("receive.sh");

/// Brings `closure` to `host`: whole, rooted, and only what is missing there. `progress` is this copy's own.
///
/// The closure must be rooted in the local store meanwhile. What the host confirmed before an error stays there, unless
/// its garbage is collected. Dropped or cancelled, the copy ends on both sides.
pub async fn push(
    host: &Session,
    closure: &Arc<Closure>,
    options: &Options,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Copied, CopyError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(CopyError::Cancelled { progress: progress.snapshot() }),
        result = copy(host, closure, options, progress) => result,
        () = progress.stalled(options.stall) => Err(CopyError::Stalled { after: options.stall, progress: progress.snapshot() }),
        after = progress.too_slow() => Err(CopyError::TooSlow { after, progress: progress.snapshot() }),
    }
}

async fn copy(host: &Session, closure: &Arc<Closure>, options: &Options, progress: &Progress) -> Result<Copied, CopyError> {
    let receive = Command::script(RECEIVE).args([&options.gc_root, closure.root.as_str(), &options.state_directory]).as_root();
    let connection = |source| CopyError::Connection { progress: progress.snapshot(), source };
    let Channel { writer, reader, ending } = host.open(&receive).await.map_err(connection)?;
    let mut serve = Serve::new(writer, reader);
    let missing = match bring(host, &mut serve, closure, options, progress).await {
        Ok(missing) => missing,
        Err(Broken::Nar(error)) => return Err(error.into()),
        Err(Broken::Peer(saw)) if saw.kind() == io::ErrorKind::InvalidData => return Err(CopyError::Protocol(saw)),
        Err(Broken::Peer(saw)) => return Err(CopyError::explain(ending.wait().await, saw, progress)),
    };
    finish(serve, ending, progress).await?;
    let copied = missing.iter().filter_map(|place| closure.paths.get(*place));
    Ok(Copied {
        paths: missing.len() as u64,
        bytes: copied.map(|info| info.nar_size).sum(),
        skipped: (closure.paths.len() - missing.len()) as u64,
    })
}

/// Finds out what is missing, and sends it. Gives the places of what was sent.
async fn bring<S: Sink, R: AsyncRead + Unpin>(
    host: &Session,
    serve: &mut Serve<S, R>,
    closure: &Arc<Closure>,
    options: &Options,
    progress: &Progress,
) -> Result<Vec<usize>, Broken> {
    let mut missing = missing(serve, closure, progress).await?;
    if let Some(deadline) = options.substitute_on_host
        && !missing.is_empty()
    {
        let wanted: Vec<&StorePath> = missing.iter().filter_map(|place| closure.paths.get(*place)).map(|info| &info.path).collect();
        progress.waive(true);
        substitute(host, &wanted, deadline).await;
        progress.waive(false);
        missing = self::missing(serve, closure, progress).await?;
    }
    stream(serve, closure, missing.clone(), &options.root, progress).await?;
    Ok(missing)
}

/// The places in `closure` of what the host lacks; the host keeps all else from its garbage collector from here on.
async fn missing<S: Sink, R: AsyncRead + Unpin>(serve: &mut Serve<S, R>, closure: &Closure, progress: &Progress) -> io::Result<Vec<usize>> {
    let all: Vec<&StorePath> = closure.paths.iter().map(|info| &info.path).collect();
    let valid: HashSet<StorePath> = serve.valid(&all, true, false).await?.into_iter().collect();
    let lacks = |(place, info): (usize, &PathInfo)| (!valid.contains(&info.path)).then_some((place, info.nar_size));
    let (missing, sizes): (Vec<usize>, Vec<u64>) = closure.paths.iter().enumerate().filter_map(lacks).unzip();
    progress.expect(missing.len() as u64, sizes.iter().sum());
    Ok(missing)
}

/// Every path is confirmed; all the same the process must end well.
async fn finish<S: Sink, R>(mut serve: Serve<S, R>, ending: Ending, progress: &Progress) -> Result<(), CopyError> {
    // If that fails, the end of the process tells more.
    let _ = serve.sink.finish().await;
    match ending.wait().await {
        Ok(ended) if ended.exit.success() => Ok(()),
        ended => Err(CopyError::explain(ended, io::ErrorKind::UnexpectedEof.into(), progress)),
    }
}
