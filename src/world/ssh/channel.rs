//! A command in progress, in three parts that are used side by side: what it reads, what it writes, how it ends.
//!
//! russh hands out what arrives on all channels of a connection in turn, and waits for whoever does not take it: one
//! unread channel would stall the connection, its window adjustments included. So a task of ours (the pump) always
//! takes it, into a buffer with a bound; who lets it run full loses the channel, not the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::ExecError;
use super::exec::{Ended, Exit};
use super::handler::Known;
use super::tail::Tail;

/// Bytes of standard output that may wait to be read.
const MOST_UNREAD: usize = 8 << 20;

/// Bytes of standard error that a command may write, of which the last few are kept: who writes more only wants to be read.
const MOST_ERRORS: usize = 64 << 20;

/// Bytes in each direction between a connection and the jump host's channel that carries it.
const TUNNEL_BUFFER: usize = 64 << 10;

/// Standard error may be anything else in SSH; this is its number.
const STANDARD_ERROR: u32 = 1;

/// A command in progress. Take it apart to use its parts at the same time.
#[derive(Debug)]
pub struct Channel {
    /// Its standard input.
    pub writer: Writer,
    /// Its standard output.
    pub reader: Reader,
    /// Its end. Dropped early, it lets go of the command: TERM, which OpenSSH does not pass on to a command of root, then
    /// end of file. What neither obeys runs on.
    pub ending: Ending,
}

/// Standard input of a command.
#[derive(Debug)]
pub struct Writer {
    half: Arc<ChannelWriteHalf<Msg>>,
    over: CancellationToken,
}

/// Standard output of a command. At end of file ask [`Ending::wait`] whether the command or the connection ended.
#[derive(Debug)]
pub struct Reader {
    pieces: mpsc::UnboundedReceiver<Bytes>,
    current: Bytes,
    unread: Arc<AtomicUsize>,
}

/// How a command ends.
#[derive(Debug)]
pub struct Ending {
    pump: JoinHandle<End>,
    known: Arc<Known>,
    _let_go: DropGuard,
}

/// What the pump saw of the end.
#[derive(Debug)]
struct End {
    exit: Option<Exit>,
    stderr: Tail,
    refused: bool,
    /// The limit that was passed.
    too_much: Option<usize>,
}

impl Channel {
    /// Takes over `channel`; the last `stderr` bytes of standard error are kept.
    pub(super) fn new(channel: russh::Channel<Msg>, known: Arc<Known>, stderr: usize) -> Self {
        let (inbox, half) = channel.split();
        let half = Arc::new(half);
        let (pieces, received) = mpsc::unbounded_channel();
        let unread = Arc::new(AtomicUsize::new(0));
        let over = CancellationToken::new();
        let let_go = CancellationToken::new();
        let pump = Pump {
            half: Arc::clone(&half),
            pieces: Some(pieces),
            unread: Arc::clone(&unread),
            errors: 0,
            end: End { exit: None, stderr: Tail::new(stderr), refused: false, too_much: None },
        };
        let pump = tokio::spawn(pump.run(inbox, over.clone(), let_go.clone()));
        Self {
            writer: Writer { half, over },
            reader: Reader { pieces: received, current: Bytes::new(), unread },
            ending: Ending { pump, known, _let_go: let_go.drop_guard() },
        }
    }

    /// Both directions as one stream, for a connection inside of this one.
    pub(super) fn into_stream(self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(TUNNEL_BUFFER);
        tokio::spawn(tunnel(self, theirs));
        ours
    }
}

impl Writer {
    /// Asks the host to run `line`.
    pub(super) async fn start(&self, line: String) -> Result<(), ExecError> {
        self.half.exec(true, line).await.map_err(ExecError::Open)
    }

    /// Hands over `bytes`, without copying them; waits while the host takes no more. Fails once the command or the
    /// connection ended: [`Ending::wait`] says which, and why. Dropped half way, some of it may have been sent.
    pub async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        tokio::select! {
            biased;
            () = self.over.cancelled() => Err(gone()),
            sent = self.half.data_bytes(bytes) => sent.map_err(|_| gone()),
        }
    }

    /// Ends the input: the command reads end of file.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.half.eof().await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Reader {
    /// The next piece of output, of any length; `None` at its end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if !self.current.is_empty() {
            return Some(std::mem::take(&mut self.current));
        }
        let piece = self.pieces.recv().await?;
        self.unread.fetch_sub(piece.len(), Ordering::Relaxed);
        Some(piece)
    }
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            let Some(piece) = ready!(self.pieces.poll_recv(context)) else { return Poll::Ready(Ok(())) };
            self.unread.fetch_sub(piece.len(), Ordering::Relaxed);
            self.current = piece;
        }
        let length = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..length]);
        self.current.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl Ending {
    /// Waits until the command has ended and all that it wrote has arrived.
    pub async fn wait(self) -> Result<Ended, ExecError> {
        let lost = |known: &Known| ExecError::Lost(known.ended.get().cloned());
        let Ok(end) = self.pump.await else { return Err(lost(&self.known)) };
        if end.refused {
            return Err(ExecError::Refused);
        }
        if let Some(limit) = end.too_much {
            return Err(ExecError::TooMuchOutput { limit });
        }
        let exit = end.exit.ok_or_else(|| lost(&self.known))?;
        Ok(Ended { exit, stderr_tail: end.stderr.into_text() })
    }
}

/// Takes what the host sends on one channel, always.
struct Pump {
    half: Arc<ChannelWriteHalf<Msg>>,
    pieces: Option<mpsc::UnboundedSender<Bytes>>,
    unread: Arc<AtomicUsize>,
    errors: usize,
    end: End,
}

/// What to do after a message.
enum Next {
    Go,
    /// The host closed the channel.
    Closed,
    /// We have to.
    Close,
}

impl Pump {
    async fn run(mut self, mut inbox: ChannelReadHalf, over: CancellationToken, let_go: CancellationToken) -> End {
        let next = loop {
            let message = tokio::select! {
                message = inbox.wait() => message,
                () = let_go.cancelled() => break Next::Close,
            };
            // `None`: the connection is gone, and nothing more can be said on it.
            match message.map_or(Next::Closed, |message| self.take(message)) {
                Next::Go => {}
                last => break last,
            }
        };
        over.cancel();
        // Before the waits below: what still arrives must find nobody rather than a full queue.
        drop(inbox);
        if matches!(next, Next::Close) {
            // Errors mean that the connection is gone, and the channel with it.
            if self.end.exit.is_none() {
                let _ = self.half.signal(Sig::TERM).await;
            }
            let _ = self.half.close().await;
        }
        self.end
    }

    fn take(&mut self, message: ChannelMsg) -> Next {
        match message {
            ChannelMsg::Data { data } => return self.keep(data),
            ChannelMsg::ExtendedData { data, ext: STANDARD_ERROR } => {
                self.end.stderr.push(&data);
                self.errors += data.len();
                if self.errors > MOST_ERRORS {
                    self.end.too_much = Some(MOST_ERRORS);
                    return Next::Close;
                }
            }
            ChannelMsg::Eof => self.pieces = None,
            ChannelMsg::ExitStatus { exit_status } => self.end.exit = Some(Exit::Status(exit_status)),
            ChannelMsg::ExitSignal { signal_name, .. } => self.end.exit = Some(Exit::Signal(name(&signal_name))),
            ChannelMsg::Failure => {
                self.end.refused = true;
                return Next::Close;
            }
            ChannelMsg::Close => return Next::Closed,
            _ => {}
        }
        Next::Go
    }

    fn keep(&mut self, data: Bytes) -> Next {
        let Some(pieces) = &self.pieces else { return Next::Go };
        if self.unread.fetch_add(data.len(), Ordering::Relaxed) + data.len() > MOST_UNREAD {
            self.end.too_much = Some(MOST_UNREAD);
            return Next::Close;
        }
        // Nobody listens any more: then nobody misses it, and it must not count as unread.
        if pieces.send(data).is_err() {
            self.pieces = None;
        }
        Next::Go
    }
}

/// The name of a signal; one that SSH does not know is the host's own text, such as `BUS@openssh.com`.
fn name(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.chars().filter(char::is_ascii_graphic).take(40).collect(),
        known => format!("{known:?}"),
    }
}

/// Carries both directions between a channel and the other end of `stream`, until one of them ends.
async fn tunnel(channel: Channel, stream: DuplexStream) {
    let Channel { mut writer, mut reader, ending: _ending } = channel;
    let (mut from, mut to) = tokio::io::split(stream);
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(TUNNEL_BUFFER);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            writer.send(buffer.split().freeze()).await?;
        }
    };
    let ended: io::Result<()> = tokio::select! {
        up = up => up,
        down = tokio::io::copy(&mut reader, &mut to) => down.map(|_| ()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection through a jump host ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_by_its_name_whether_ssh_knows_it_or_not() {
        assert_eq!(name(&Sig::SEGV), "SEGV");
        assert_eq!(name(&Sig::Custom("BUS@openssh.com\u{1b}[2J".into())), "BUS@openssh.com[2J");
    }
}
