//! A TCP socket that polls at intervals while much data arrives, instead of waiting for readiness.
//!
//! A publisher sends every row in a segment of its own. A reader that waits for readiness is woken for
//! each of them, and a wake-up costs more than the row on both sides. So once much arrives within a
//! short time, the socket leaves the runtime's poller and is read every few milliseconds, until little
//! arrives again. On a quiet connection, data is still reported at once.
//!
//! # Invariants
//! - Nothing is buffered here: a byte is in the kernel or has been handed over.
//! - A socket for which [`PacedTcp::pace`] was not called is an ordinary socket.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Number of bytes within [`WINDOW`] from which on the socket is read at intervals.
const MUCH_BYTES: usize = 8 << 10;
const WINDOW: Duration = Duration::from_millis(1);
/// Wait between two reads, in windows. A longer wait means fewer switches between the publisher's
/// process and this one; the kernel's buffers hold what arrives meanwhile.
/// and ours take turns; the kernel's buffers hold what comes meanwhile.
const NAP_WINDOWS: u32 = 5;

#[derive(Debug)]
pub struct PacedTcp {
    socket: Socket,
    pacing: Option<Rate>,
}

#[derive(Debug)]
enum Socket {
    /// The runtime reports when there is something to read.
    Polled(TcpStream),
    /// The socket is read at intervals.
    Unpolled { tcp: std::net::TcpStream, nap: Nap, bytes_since_nap: usize },
    /// The change from one mode to the other failed.
    Lost,
}

#[derive(Debug)]
enum Nap {
    Awake,
    Until(Pin<Box<Sleep>>),
}

/// Amount of data that arrived recently.
#[derive(Debug, Clone, Copy)]
struct Rate {
    since: Instant,
    bytes: usize,
}

impl Rate {
    fn note(&mut self, bytes: usize, now: Instant) {
        if now.saturating_duration_since(self.since) > WINDOW {
            *self = Self { since: now, bytes: 0 };
        }
        self.bytes += bytes;
    }

    fn is_much(&self, now: Instant) -> bool {
        self.bytes >= MUCH_BYTES && now.saturating_duration_since(self.since) <= WINDOW
    }
}

impl PacedTcp {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { socket: Socket::Polled(tcp), pacing: None }
    }

    /// From now on, reads at intervals while much data arrives.
    pub(super) fn pace(&mut self) {
        self.pacing = Some(Rate { since: Instant::now(), bytes: 0 });
    }

    pub(super) fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Polled(tcp) => tcp.peer_addr(),
            Socket::Unpolled { tcp, .. } => tcp.peer_addr(),
            Socket::Lost => Err(lost()),
        }
    }

    fn leave_poller(&mut self) -> io::Result<()> {
        self.socket = match std::mem::replace(&mut self.socket, Socket::Lost) {
            Socket::Polled(tcp) => Socket::Unpolled { tcp: tcp.into_std()?, nap: nap(), bytes_since_nap: 0 },
            other => other,
        };
        Ok(())
    }

    fn join_poller(&mut self) -> io::Result<&mut TcpStream> {
        if let Socket::Unpolled { .. } = self.socket
            && let Socket::Unpolled { tcp, .. } = std::mem::replace(&mut self.socket, Socket::Lost)
        {
            self.socket = Socket::Polled(TcpStream::from_std(tcp)?);
        }
        match &mut self.socket {
            Socket::Polled(tcp) => Ok(tcp),
            Socket::Unpolled { .. } | Socket::Lost => Err(lost()),
        }
    }

    fn is_much_coming(&self) -> bool {
        self.pacing.is_some_and(|rate| rate.is_much(Instant::now()))
    }
}

fn nap() -> Nap {
    Nap::Until(Box::pin(sleep(WINDOW * NAP_WINDOWS)))
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the socket was lost on its way into the poller")
}

impl AsyncRead for PacedTcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.socket {
                Socket::Polled(tcp) => {
                    let before = buf.filled().len();
                    let read = Pin::new(tcp).poll_read(cx, buf);
                    if read.is_ready() {
                        if let Some(rate) = &mut this.pacing {
                            rate.note(buf.filled().len() - before, Instant::now());
                        }
                        return read;
                    }
                    if !this.is_much_coming() {
                        return Poll::Pending;
                    }
                    this.leave_poller()?;
                }
                Socket::Unpolled { tcp, nap: resting, bytes_since_nap } => {
                    if let Nap::Until(until) = resting {
                        ready!(until.as_mut().poll(cx));
                        *resting = Nap::Awake;
                        *bytes_since_nap = 0;
                    }
                    match tcp.read(buf.initialize_unfilled()) {
                        Ok(bytes) => {
                            buf.advance(bytes);
                            *bytes_since_nap += bytes;
                            return Poll::Ready(Ok(()));
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            if *bytes_since_nap < MUCH_BYTES * NAP_WINDOWS as usize {
                                this.join_poller()?;
                            } else {
                                *resting = nap();
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                Socket::Lost => return Poll::Ready(Err(lost())),
            }
        }
    }
}

impl AsyncWrite for PacedTcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Socket::Unpolled { tcp, .. } = &mut this.socket {
            match tcp.write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
        Pin::new(this.join_poller()?).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket needs no flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Polled(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Unpolled { tcp, .. } => Poll::Ready(tcp.shutdown(Shutdown::Write)),
            Socket::Lost => Poll::Ready(Err(lost())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (PacedTcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(ours, listener.accept());
        let mut ours = PacedTcp::new(ours.unwrap());
        ours.pace();
        (ours, theirs.unwrap().0)
    }

    #[tokio::test]
    async fn a_flood_is_read_whole_and_then_waited_for_again() {
        let (mut ours, mut theirs) = pair().await;
        let expected: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
        let sent = expected.clone();
        let sender = tokio::spawn(async move {
            for piece in sent.chunks(977) {
                theirs.write_all(piece).await.unwrap();
            }
            theirs
        });
        let mut received = vec![0; expected.len()];
        let mut at = 0;
        let mut left_the_poller = false;
        while at < received.len() {
            at += ours.read(&mut received[at..]).await.unwrap();
            left_the_poller |= matches!(ours.socket, Socket::Unpolled { .. });
        }
        assert!(received == expected, "what was received is not what was sent");
        assert!(left_the_poller, "a flood was waited for");

        let mut theirs = sender.await.unwrap();
        let mut one = [0];
        for n in 0..3 {
            sleep(WINDOW * 3).await;
            theirs.write_all(&[n]).await.unwrap();
            ours.read_exact(&mut one).await.unwrap();
            assert_eq!(one, [n]);
        }
        let more = tokio::time::timeout(WINDOW * 10, ours.read(&mut one)).await;
        assert!(more.is_err(), "nothing more was sent");
        assert!(matches!(ours.socket, Socket::Polled(_)), "what trickles is not waited for");
        drop(theirs);
        assert_eq!(ours.read(&mut one).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_written_meanwhile_arrives() {
        let (mut ours, mut theirs) = pair().await;
        ours.leave_poller().unwrap();
        let reader = tokio::spawn(async move {
            sleep(WINDOW * 20).await;
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).await.unwrap();
            received.len()
        });
        // More than the buffers of both ends hold.
        let large = vec![1; 16 << 20];
        ours.write_all(&large).await.unwrap();
        assert!(matches!(ours.socket, Socket::Polled(_)), "a full socket is not waited for");
        ours.shutdown().await.unwrap();
        assert_eq!(reader.await.unwrap(), large.len());
    }
}
