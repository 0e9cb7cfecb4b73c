//! Bounds the number of connections and ends silent ones.
//!
//! A client that sends its request byte by byte, or does not read its answer, could hold a connection
//! for ever. So a connection ends when nothing has been written to it for [`SILENCE_MAX`]; what the
//! client sends does not extend the time. A client that asks less often connects again.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Largest number of connections; further ones wait in the system's backlog.
const CONNECTIONS_MAX: usize = 64;
/// A connection ends if nothing is written to it for this time.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Wait after a failed accept, for instance if no file descriptors are left.
const ACCEPT_RETRY: Duration = Duration::from_millis(500);

/// A listener with a bounded number of connections.
#[derive(Debug)]
pub(super) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Bounded {
    pub(super) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Connection::new(stream, place), peer),
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

/// A connection with its permit and its timer.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    /// Held for as long as the connection lives. It is never `None`, since the semaphore is not closed.
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn new(stream: TcpStream, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { stream, silence: Box::pin(tokio::time::sleep(SILENCE_MAX)), _place: place }
    }

    /// Returns an error once the connection has been silent for too long; registers a wake-up for that
    /// moment.
    fn check_silence(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.silence.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn written(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
        }
        result
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_silence(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check_silence(cx)?;
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
        self.check_silence(cx)?;
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
        (Connection::new(served.unwrap().0, None), client.unwrap())
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
}
