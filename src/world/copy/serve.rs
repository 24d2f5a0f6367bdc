//! The serve protocol (Nix's `serve-protocol.hh`), version 2.7, from the asking side.
//!
//! Every Nix from 2.18 on speaks it. Any error ends the process on the other side: it says so on its standard error,
//! and all that is seen here is end of file.

use std::io;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::process::ChildStdin;

use super::wire;
use crate::nix::{PathInfo, StorePath};
use crate::world::ssh;

const HELLO: u64 = 0x390c_9deb;
const HELLO_BACK: u64 = 0x5452_eecb;
/// Ours: 2.7.
const VERSION: u64 = 0x207;
/// The first that can take NARs one after the other.
const OLDEST: u64 = 0x205;

const QUERY_VALID_PATHS: u64 = 1;
const QUERY_PATH_INFOS: u64 = 2;
const QUERY_CLOSURE: u64 = 7;
const ADD_TO_STORE_NAR: u64 = 9;

/// More paths than any system has, and fewer than would fill the memory.
const MOST_PATHS: usize = 1 << 20;
/// Bytes of the longest store path, and of any other text.
const LONGEST: usize = 4096;

/// Where requests go.
pub(super) trait Sink: Send {
    /// Sends all of `bytes`.
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    /// Says that nothing more will come.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

impl Sink for ssh::Writer {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        Self::send(self, bytes).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        Self::finish(self).await
    }
}

impl Sink for ChildStdin {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        tokio::io::AsyncWriteExt::write_all(self, &bytes).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        tokio::io::AsyncWriteExt::shutdown(self).await
    }
}

/// A conversation with `nix-store --serve`.
pub(super) struct Serve<S, R> {
    pub(super) sink: S,
    pub(super) source: R,
    /// Goes out with the first request, to save a round trip.
    hello: Option<Vec<u8>>,
}

impl<S: Sink, R: AsyncRead + Unpin> Serve<S, R> {
    /// Nothing is sent yet.
    pub(super) fn new(sink: S, source: R) -> Self {
        let mut hello = Vec::new();
        wire::put_number(&mut hello, HELLO);
        wire::put_number(&mut hello, VERSION);
        Self { sink, source, hello: Some(hello) }
    }

    /// Those of `paths` that the store has. `lock` keeps all of them from its garbage collector until the process ends;
    /// `substitute` makes the store fetch the others first, which may take any time.
    pub(super) async fn valid(&mut self, paths: &[&StorePath], lock: bool, substitute: bool) -> io::Result<Vec<StorePath>> {
        let mut request = Vec::new();
        wire::put_number(&mut request, QUERY_VALID_PATHS);
        wire::put_number(&mut request, lock.into());
        wire::put_number(&mut request, substitute.into());
        wire::put_list(&mut request, paths.iter().map(|path| path.as_str()));
        self.ask(request).await?;
        store_paths(&mut self.source, paths.len()).await
    }

    /// The closure of `path`, in no order.
    pub(super) async fn closure(&mut self, path: &StorePath) -> io::Result<Vec<StorePath>> {
        let mut request = Vec::new();
        wire::put_number(&mut request, QUERY_CLOSURE);
        // Without the outputs of derivations in it.
        wire::put_number(&mut request, 0);
        wire::put_list(&mut request, std::iter::once(path.as_str()));
        self.ask(request).await?;
        store_paths(&mut self.source, MOST_PATHS).await
    }

    /// What the store knows of those of `paths` that it has.
    pub(super) async fn infos(&mut self, paths: &[StorePath]) -> io::Result<Vec<PathInfo>> {
        let mut request = Vec::new();
        wire::put_number(&mut request, QUERY_PATH_INFOS);
        wire::put_list(&mut request, paths.iter().map(StorePath::as_str));
        self.ask(request).await?;
        let mut infos = Vec::with_capacity(paths.len());
        loop {
            let path = wire::text(&mut self.source, LONGEST).await?;
            if path.is_empty() {
                return Ok(infos);
            }
            if infos.len() == paths.len() {
                return Err(nonsense("more answers than questions"));
            }
            infos.push(info(&mut self.source, store_path(path)?).await?);
        }
    }

    async fn ask(&mut self, request: Vec<u8>) -> io::Result<()> {
        let Some(mut hello) = self.hello.take() else { return self.sink.send(request.into()).await };
        hello.extend_from_slice(&request);
        self.sink.send(hello.into()).await?;
        if wire::number(&mut self.source).await? != HELLO_BACK {
            return Err(nonsense("not the serve protocol; does the login shell print something?"));
        }
        let theirs = wire::number(&mut self.source).await?;
        if theirs >> 8 != VERSION >> 8 || theirs < OLDEST {
            return Err(nonsense(format!("serve protocol {}.{}, where 2.5 or later is needed", theirs >> 8, theirs & 0xff)));
        }
        Ok(())
    }
}

/// The request that adds a path; its NAR follows, of exactly `nar_size` bytes, and is answered by a 1.
pub(super) fn put_add(out: &mut Vec<u8>, info: &PathInfo) {
    wire::put_number(out, ADD_TO_STORE_NAR);
    wire::put_bytes(out, info.path.as_str());
    wire::put_bytes(out, info.deriver.as_ref().map_or("", StorePath::as_str));
    wire::put_bytes(out, &info.nar_hash);
    wire::put_list(out, info.references.iter().map(StorePath::as_str));
    // Registered now, and not built there.
    wire::put_number(out, 0);
    wire::put_number(out, info.nar_size);
    wire::put_number(out, 0);
    wire::put_list(out, info.signatures.iter());
    wire::put_bytes(out, info.content_address.as_deref().unwrap_or(""));
}

async fn info(source: &mut (impl AsyncRead + Unpin), path: StorePath) -> io::Result<PathInfo> {
    let deriver = wire::text(source, LONGEST).await?;
    let references = store_paths(source, MOST_PATHS).await?;
    let _download_size = wire::number(source).await?;
    let nar_size = wire::number(source).await?;
    let nar_hash = wire::text(source, LONGEST).await?;
    let content_address = wire::text(source, LONGEST).await?;
    let signatures = wire::list(source, LONGEST, LONGEST).await?;
    Ok(PathInfo {
        path,
        deriver: if deriver.is_empty() { None } else { Some(store_path(deriver)?) },
        references,
        nar_hash,
        nar_size,
        signatures,
        content_address: Some(content_address).filter(|text| !text.is_empty()),
    })
}

async fn store_paths(source: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Vec<StorePath>> {
    wire::list(source, most, LONGEST).await?.into_iter().map(store_path).collect()
}

fn store_path(text: String) -> io::Result<StorePath> {
    StorePath::try_from(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn nonsense(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
