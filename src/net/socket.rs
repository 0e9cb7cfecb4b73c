//! From a host's name to a connected socket: look-up, TCP options, Unix sockets.
//!
//! Names are resolved at every call, because a service name may point to another address after a
//! fail-over. The caller's time limit bounds every wait, and nothing retries.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::error::ConnectErrorKind;
use crate::pg::conninfo::ConnInfo;

/// Largest number of addresses of one name that are tried, in the resolver's order.
const ADDRESSES_MAX: usize = 16;

/// Resolves a name to at least one address.
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

/// Connects and sets the options that detect a silently dead peer: keepalives for an idle connection,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pg::conninfo::{
        ChannelBinding, Keepalives, RootCert, SslMode, SslNegotiation, TargetSessionAttrs, TlsSettings,
    };

    fn info() -> ConnInfo {
        ConnInfo {
            hosts: Vec::new(),
            user: "sammy".to_owned(),
            password: None,
            dbname: "example".to_owned(),
            tls: TlsSettings {
                mode: SslMode::Disable,
                negotiation: SslNegotiation::Postgres,
                root_cert: RootCert::None,
                client_cert: None,
                channel_binding: ChannelBinding::Prefer,
                passwords: crate::pg::conninfo::Passwords::OverAnyConnection,
            },
            connect_timeout: Duration::from_secs(5),
            application_name: None,
            options: None,
            keepalives: Some(Keepalives {
                idle: Some(Duration::from_secs(31)),
                interval: Some(Duration::from_secs(7)),
                count: Some(4),
            }),
            tcp_user_timeout: Some(Duration::from_millis(12_345)),
            target_session_attrs: TargetSessionAttrs::Any,
        }
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_socket_is_set_to_notice_a_dead_peer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = connect_tcp(listener.local_addr().unwrap(), &info()).await.unwrap();
        assert!(tcp.nodelay().unwrap());
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(31));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(12_345)));
    }

    #[tokio::test]
    async fn an_address_needs_no_look_up() {
        let check = async |name: &str, hostaddr: Option<&str>, expected: &str| {
            let hostaddr = hostaddr.map(|address| address.parse().unwrap());
            assert_eq!(resolve(name, hostaddr, 5432).await.unwrap(), [expected.parse().unwrap()]);
        };
        check("10.0.0.2", None, "10.0.0.2:5432").await;
        check("::1", None, "[::1]:5432").await;
        check("no.such.host.invalid", Some("10.0.0.3"), "10.0.0.3:5432").await;
    }
}
