//! Asks a running service whether it answers, for a container's health check.
//!
//! The image holds only pgsluice, without a shell or an HTTP client. So this binary asks, with the few
//! bytes of HTTP that `/healthz` needs. It does not ask for readiness: a paused subscription waits for
//! a person, and restarting the container would not help.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::error::{Diagnosis, Exit, Failure};

/// Longest wait for the answer; a slower service counts as unhealthy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// Largest number of bytes read of an answer; only its first line matters.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Asks `/healthz` of the service that listens on `listen` on this machine.
///
/// # Errors
///
/// The service does not answer 200 in time ([`Exit::No`]), or the configured port is 0, so that the
/// actual port is unknown ([`Exit::Usage`]).
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

/// Returns the address to connect to: loopback if the service listens on all interfaces.
fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

/// Sends the request and returns the first line of the answer.
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

    /// Probes a server that answers one connection with `answer`.
    async fn asked(answer: &'static str) -> Result<(), Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The whole request is read, because closing a socket with unread data resets the
            // connection.
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
