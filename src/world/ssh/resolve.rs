//! From names to addresses.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use tokio::sync::Semaphore;

/// More addresses behind one name are not tried.
const MOST_ADDRESSES: usize = 8;

/// The system's resolver cannot be interrupted: a dead one holds a thread of the shared pool for many seconds.
static LOOKUPS: Semaphore = Semaphore::const_new(32);

/// The addresses of `host`, a name or an address (IPv6 with or without brackets), in the resolver's order.
pub(super) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = bare(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let permit = LOOKUPS.acquire().await.map_err(io::Error::other)?;
    let name = bare.to_owned();
    let lookup = move || {
        let _until_the_thread_is_free = permit;
        (name.as_str(), port).to_socket_addrs().map(|all| all.take(MOST_ADDRESSES).collect::<Vec<_>>())
    };
    let addresses = tokio::task::spawn_blocking(lookup).await.map_err(io::Error::other)??;
    if addresses.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")) } else { Ok(addresses) }
}

/// An IPv6 address without its brackets; all else as it is.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_taken_as_they_are() {
        assert_eq!(resolve("10.0.0.1", 22).await.unwrap(), ["10.0.0.1:22".parse().unwrap()]);
        assert_eq!(resolve("::1", 22).await.unwrap(), ["[::1]:22".parse().unwrap()]);
        assert_eq!(resolve("[::1]", 22).await.unwrap(), ["[::1]:22".parse().unwrap()]);
    }
}
