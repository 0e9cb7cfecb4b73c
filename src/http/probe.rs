//! Asks a running service whether it lives, as a container's health check does.
//!
//! The image holds nothing but pgsluice: no shell, no HTTP client. So the binary asks itself, with the
//! few bytes of HTTP that `/healthz` needs. It asks for life, not readiness: a subscription that is
//! paused waits for a person, and restarting the container would not help it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::error::{Diagnosis, Exit, Failure};

/// A service that takes longer is not well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// Of an answer, bytes read at most; its first line says all.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Asks `/healthz` of the service that listens on `listen`, on this machine.
///
/// # Errors
/// It does not answer in time, or not with 200 ([`Exit::No`]); the port is 0, so that nobody knows
/// where it listens ([`Exit::Usage`]).
pub async fn probe(listen: SocketAddr) -> Result<(), Failure> {
    if listen.port() == 0 {
        let diagnosis = Diagnosis::new("service.listen names port 0: any port may be the service's")
            .hint("set service.listen to a fixed port");
        return Err(Failure::new(Exit::Usage, diagnosis));
    }
    let address = on_this_machine(listen);
    let problem = match tokio::time::timeout(ANSWER_TIMEOUT, ask(address)).await {
        Ok(Ok(line)) if is_ok(&line) => return Ok(()),
        Ok(Ok(line)) => format!("it answered \"{}\"", line.escape_debug()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    };
    let diagnosis = Diagnosis::new(format!("no healthy pgsluice answers on {address}"))
        .detail(problem)
        .hint("its log says why; service.listen must be the same for both");
    Err(Failure::new(Exit::No, diagnosis))
}

/// Where to reach a service that listens there: "all interfaces" is no address to connect to.
fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

/// The answer's first line.
async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}

fn is_ok(status_line: &str) -> bool {
    let mut words = status_line.split(' ');
    words.next().is_some_and(|version| version.starts_with("HTTP/1.")) && words.next() == Some("200")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn all_interfaces_are_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9650", "127.0.0.1:9650"),
            ("[::]:9650", "[::1]:9650"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("192.0.2.7:9650", "192.0.2.7:9650"),
        ] {
            assert_eq!(on_this_machine(listen.parse().unwrap()).to_string(), asked);
        }
    }

    /// Answers one connection with `answer`.
    async fn asked(answer: &'static str) -> Result<(), Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // All of the request first: what is unread at the end resets the connection.
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(probe(address), served).0
    }

    #[tokio::test]
    async fn only_200_is_healthy() {
        assert_eq!(asked("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"ok\"}").await, Ok(()));
        for answer in ["HTTP/1.1 503 Service Unavailable\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "200 OK", ""] {
            let failure = asked(answer).await.unwrap_err();
            assert_eq!(failure.exit, Exit::No, "{answer}");
        }
    }

    #[tokio::test]
    async fn nobody_and_nowhere_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(probe(address).await.unwrap_err().exit, Exit::No);
        assert_eq!(probe("127.0.0.1:0".parse().unwrap()).await.unwrap_err().exit, Exit::Usage);
    }
}
