//! One byte stream for every kind of connection: TCP, Unix socket, TLS.
//!
//! The layers above read and write bytes without knowing the kind. Only authentication needs more: the
//! server's certificate, which channel binding hashes.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;

use super::binding;
use super::paced::PacedTcp;

/// A connected stream. It has no buffer except for TLS records.
#[derive(Debug)]
pub enum NetStream {
    Tcp(PacedTcp),
    Unix(UnixStream),
    Tls(Box<TlsStream<PacedTcp>>),
}

/// Whether the bytes on the wire are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    None,
    Tls,
}

impl NetStream {
    #[must_use]
    pub fn encryption(&self) -> Encryption {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Encryption::None,
            Self::Tls(_) => Encryption::Tls,
        }
    }

    /// Returns the server's IP address, if it has one.
    #[must_use]
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.tcp().and_then(|tcp| tcp.peer_addr().ok()).map(|addr| addr.ip())
    }

    /// Returns the channel binding data of type `tls-server-end-point` (RFC 5929); `None` without TLS,
    /// or when the certificate's signature algorithm defines no hash.
    #[must_use]
    pub fn tls_server_end_point(&self) -> Option<Vec<u8>> {
        let Self::Tls(tls) = self else { return None };
        let (_, session) = tls.get_ref();
        session.peer_certificates()?.first().and_then(|cert| binding::tls_server_end_point(cert))
    }

    /// Prepares a stream for large amounts of data: see `paced`.
    pub fn pace(&mut self) {
        match self {
            Self::Tcp(tcp) => tcp.pace(),
            Self::Tls(tls) => tls.get_mut().0.pace(),
            // On a Unix socket wake-ups are cheap.
            Self::Unix(_) => {}
        }
    }

    fn tcp(&self) -> Option<&PacedTcp> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref().0),
            Self::Unix(_) => None,
        }
    }
}

/// Forwards a poll method to the stream inside.
macro_rules! forward {
    ($self:ident, $method:ident($($arg:expr),*)) => {
        match $self.get_mut() {
            NetStream::Tcp(stream) => Pin::new(stream).$method($($arg),*),
            NetStream::Unix(stream) => Pin::new(stream).$method($($arg),*),
            NetStream::Tls(stream) => Pin::new(&mut **stream).$method($($arg),*),
        }
    };
}

impl AsyncRead for NetStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for NetStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(cx))
    }
}
