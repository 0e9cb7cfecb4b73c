//! Bounds the number of connections and ends silent ones.
//!
//! A client that sends its request byte by byte, or does not read its answer, could hold a connection
//! for ever. So the first request's head must have come within [`HEAD_TIMEOUT`], and later a connection ends when
//! nothing has been written to it for [`SILENCE_MAX`]; what the client sends does not extend the time. A client
//! that asks less often connects again. `places` decides who is closed if there are too many.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

use super::BODY_BYTES_MAX;
use super::places::{Place, Places};

/// Maximum time from the beginning of a connection to the end of its first request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection ends if nothing is written to it for this time.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Largest request head together with the body of the request before it, bytes.
const HEAD_BYTES_MAX: usize = BODY_BYTES_MAX + (16 << 10);
/// Wait after a failed accept, for instance if no file descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(500);

/// A listener with a bounded number of connections. None waits to be accepted.
#[derive(Debug)]
pub(super) struct Bounded {
    listener: TcpListener,
    places: Places,
}

impl Bounded {
    pub(super) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, places: Places::new() })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // First, the connection that was accepted before this one reads its request: a flood of connections must not
        // take its place before that.
        tokio::task::yield_now().await;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Connection::new(stream, self.places.take(peer.ip())), peer),
                Err(error) => {
                    tracing::debug!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address()
    }
}

/// Finds the end of a request's head: an empty line after a line that is not empty.
#[derive(Debug, Default)]
struct Head {
    has_begun: bool,
    has_characters: bool,
    bytes: usize,
}

impl Head {
    /// Returns whether a head ends in `bytes`; an error if it is too large. A body counts as the beginning of the
    /// next head.
    fn pass(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let mut ends = false;
        for byte in bytes {
            self.bytes += 1;
            match byte {
                b'\n' if self.has_characters => self.has_characters = false,
                b'\n' if self.has_begun => {
                    ends = true;
                    *self = Self::default();
                }
                b'\n' | b'\r' => {}
                _ => (self.has_begun, self.has_characters) = (true, true),
            }
        }
        if self.bytes > HEAD_BYTES_MAX {
            return Err(io::Error::other("the head of a request is too large"));
        }
        Ok(ends)
    }
}

/// A connection with its place and its timer.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    head: Head,
    place: Arc<Place>,
}

impl Connection {
    fn new(stream: TcpStream, place: Arc<Place>) -> Self {
        Self { stream, silence: Box::pin(tokio::time::sleep(HEAD_TIMEOUT)), head: Head::default(), place }
    }

    /// Returns an error once the connection has been silent for too long, or has lost its place; registers a
    /// wake-up for that moment.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.place.check(cx.waker())?;
        match self.silence.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn written(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.place.answered();
            self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
        }
        result
    }

    /// Looks at what was read.
    fn came(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.head.pass(bytes)? {
            self.place.asked();
            self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.came(&buf.filled()[before..])?;
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, served) = tokio::join!(TcpStream::connect(address), listener.accept());
        let place = Places::new().take(address.ip());
        (Connection::new(served.unwrap().0, place), client.unwrap())
    }

    #[tokio::test]
    async fn reading_alone_does_not_keep_a_connection() {
        let (mut served, mut client) = pair().await;
        client.write_all(b"GET").await.unwrap();
        let mut buf = [0; 3];
        served.read_exact(&mut buf).await.unwrap();
        // The timer expires although the client goes on sending.
        served.silence.as_mut().reset(Instant::now());
        served.silence.as_mut().await;
        client.write_all(b" / ").await.unwrap();
        let error = served.read(&mut buf).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn an_answer_sets_the_clock_back() {
        let (mut served, _client) = pair().await;
        let short = Instant::now() + Duration::from_secs(1);
        served.silence.as_mut().reset(short);
        served.write_all(b"HTTP/1.1 200 OK").await.unwrap();
        assert!(served.silence.deadline() > short);
    }

    #[test]
    fn a_head_ends_at_an_empty_line() {
        let check = |parts: &[&str], expected: &[bool]| {
            let mut head = Head::default();
            let found: Vec<_> = parts.iter().map(|part| head.pass(part.as_bytes()).unwrap()).collect();
            assert_eq!(found, expected, "{parts:?}");
        };
        check(&["GET / HTTP/1.1\r\n\r\n"], &[true]);
        check(&["GET / HTTP/1.1\r", "\n\r", "\n", "GET"], &[false, false, true, false]);
        check(&["\r\n\r\nGET / HTTP/1.1\n", "a: b\n", "\n"], &[false, false, true]);
        check(&["GET / HTTP/1.1\r\nX-Slow: "], &[false]);
        let mut head = Head::default();
        assert!(!head.pass(&vec![b'x'; HEAD_BYTES_MAX]).unwrap());
        assert!(head.pass(b"x").is_err());
    }

    #[tokio::test]
    async fn whole_requests_have_more_time() {
        let (mut served, mut client) = pair().await;
        let first = served.silence.deadline();
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut buf = [0; 64];
        let bytes = served.read(&mut buf).await.unwrap();
        assert_eq!((bytes, served.silence.deadline()), (16, first), "a part of a head changes nothing");
        client.write_all(b"\r\n").await.unwrap();
        assert_eq!(served.read(&mut buf).await.unwrap(), 2);
        assert!(served.silence.deadline() > first + HEAD_TIMEOUT);
    }

    #[tokio::test]
    async fn a_connection_that_loses_its_place_ends() {
        let (mut served, _client) = pair().await;
        let place = Arc::clone(&served.place);
        let mut buf = [0; 8];
        let (read, ()) = tokio::join!(served.read(&mut buf), async { place.lose() });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
