//! From a host's name to a connected socket: look-up, TCP options, Unix sockets.
//!
//! Names are looked up at every call: behind a container's service name stands another address
//! after a fail-over. Nothing here waits without the caller's time limit, and nothing retries.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::error::ConnectErrorKind;
use crate::pg::conninfo::ConnInfo;

/// Addresses of one name that are tried, in the resolver's order.
const ADDRESSES_MAX: usize = 16;

/// The addresses behind a name: never empty.
pub(super) async fn resolve(
    name: &str,
    hostaddr: Option<IpAddr>,
    port: u16,
) -> Result<Vec<SocketAddr>, ConnectErrorKind> {
    if let Some(address) = hostaddr.or_else(|| name.parse().ok()) {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in lookup_host((name, port)).await.map_err(ConnectErrorKind::Resolve)? {
        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(ConnectErrorKind::NoAddress) } else { Ok(addresses) }
}

/// Connects and sets what notices a silently dead peer: keepalives for an idle connection,
/// `TCP_USER_TIMEOUT` for one with unacknowledged data (`useKeepalives` in `fe-connect.c`).
pub(super) async fn connect_tcp(address: SocketAddr, info: &ConnInfo) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(&tcp);
    if let Some(wanted) = info.keepalives {
        let mut keepalive = TcpKeepalive::new();
        if let Some(idle) = wanted.idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = wanted.interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(count) = wanted.count {
            keepalive = keepalive.with_retries(count);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = info.tcp_user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(tcp)
}

pub(super) async fn connect_unix(directory: &Path, port: u16) -> io::Result<UnixStream> {
    UnixStream::connect(unix_path(directory, port)).await
}

fn unix_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}
