//! The stream of paths: read by a thread, sent as it comes, its answers read beside.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::nar::{self, NarError, Pieces};
use super::serve::{self, Serve, Sink};
use super::{Progress, wire};
use crate::nix::Closure;

/// Pieces that wait to be sent: the reader is ahead by this much and no more.
const AHEAD: usize = 4;

/// Bytes per step of progress: what one SSH packet carries.
const STEP: usize = 32 << 10;

/// What ends a stream early.
#[derive(Debug)]
pub(super) enum Broken {
    /// The other side is gone, or answers nonsense.
    Peer(io::Error),
    /// The store here cannot be read.
    Nar(NarError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Peer(error)
    }
}

/// Sends the paths of `closure` at the places `missing` (ascending), and takes as many answers.
pub(super) async fn stream<S: Sink, R: AsyncRead + Unpin>(
    serve: &mut Serve<S, R>,
    closure: &Arc<Closure>,
    missing: Vec<usize>,
    root: &Path,
    progress: &Progress,
) -> Result<(), Broken> {
    let answers = missing.len();
    let (give, take) = mpsc::channel(AHEAD);
    let (closure, root) = (Arc::clone(closure), root.to_owned());
    // Ends by itself when `take` is dropped.
    let reader = tokio::task::spawn_blocking(move || read(&closure, &missing, &root, &give));
    let Serve { sink, source, .. } = serve;
    let send = async {
        send(sink, take, progress).await?;
        // Checked before the answers are waited for: they would never come.
        reader.await.map_err(io::Error::other)?.map_err(Broken::Nar)
    };
    tokio::try_join!(send, confirm(source, answers, progress)).map(|_| ())
}

/// BLOCKING: writes requests and NARs.
fn read(closure: &Closure, missing: &[usize], root: &Path, give: &mpsc::Sender<Bytes>) -> Result<(), NarError> {
    let mut pieces = Pieces::new(|piece| give.blocking_send(piece).is_ok());
    for info in missing.iter().filter_map(|place| closure.paths.get(*place)) {
        pieces.put(|buffer| serve::put_add(buffer, info))?;
        let here = root.join(info.path.as_str().trim_start_matches('/'));
        nar::dump(&here, info.nar_size, &mut pieces)?;
    }
    pieces.give()
}

async fn send(sink: &mut impl Sink, mut take: mpsc::Receiver<Bytes>, progress: &Progress) -> Result<(), Broken> {
    while let Some(mut piece) = take.recv().await {
        while !piece.is_empty() {
            let step = piece.split_to(piece.len().min(STEP));
            let length = step.len();
            sink.send(step).await?;
            progress.sent(length);
        }
    }
    Ok(())
}

async fn confirm(source: &mut (impl AsyncRead + Unpin), answers: usize, progress: &Progress) -> Result<(), Broken> {
    for _ in 0..answers {
        match wire::number(source).await? {
            1 => progress.confirmed(),
            other => return Err(Broken::Peer(io::Error::new(io::ErrorKind::InvalidData, format!("{other} for an added path")))),
        }
    }
    Ok(())
}
