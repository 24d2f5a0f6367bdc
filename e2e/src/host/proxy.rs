//! A TCP proxy that makes a link long: this kernel has no netem.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::Instant,
};

/// Chunks in flight per direction: enough for a fast link of 200 ms, and a bound on memory.
const IN_FLIGHT: usize = 1024;
const CHUNK: usize = 64 * 1024;

/// Listens on the bridge and hands everything to a target, half the round trip later in each direction. Ends when dropped.
pub struct DelayingProxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl DelayingProxy {
    /// A proxy to `target` (`10.77.0.11:22`).
    pub async fn start(target: &str, round_trip: Duration) -> Self {
        let listener = TcpListener::bind((crate::world::BRIDGE_ADDRESS, 0)).await.expect("cannot listen on the bridge");
        let address = listener.local_addr().expect("a listener has an address");
        let target = target.to_owned();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(connect(near, target.clone(), round_trip / 2));
            }
        });
        Self { address, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DelayingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(near: TcpStream, target: String, delay: Duration) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::join!(carry(near_read, far_write, delay), carry(far_read, near_write, delay));
}

async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
