//! A stream that knows where the server's messages begin: it refuses rows that are too large by their length, and
//! stops reading while rows that it has read are not used.
//!
//! tokio-postgres reads ahead by a number of messages, whatever their size. That is bounded for ordinary rows, but
//! several rows of hundreds of megabytes would be in memory at a time.
//!
//! # Invariants
//! - Nothing is buffered or changed here; only lengths are looked at.
//! - Reading stops only between two messages, because a message can only be used as a whole. While too much is
//!   unused, nothing is read beyond the end of the message that has begun.
//! - Without a [`Meter`] it is the stream itself. While nobody uses rows ([`Meter::rows`]), nothing stops.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{self, TlsStream};

use super::activity::Activity;
use super::stream::NetStream;

/// Bytes of rows that are read before those before them are used. A larger row is read alone.
const UNUSED_BYTES_MAX: usize = 1 << 20;
/// Maximum bytes of a read that must not go beyond a message's end.
const BOUNDED_READ_BYTES: usize = 256 << 10;
/// Size of a message's type and length.
const HEADER_BYTES: usize = 5;
/// The type of messages with rows: CopyData.
const COPY_DATA: u8 = b'd';

/// What the reader and the user of a session's rows share.
#[derive(Debug)]
pub struct Meter {
    row_bytes_max: usize,
    /// Size of the row that was refused; 0 if none was.
    refused: AtomicUsize,
    is_used: AtomicBool,
    unused_bytes: AtomicUsize,
    reader: AtomicWaker,
}

/// The use of a COPY's rows. Until it is dropped, reading waits for it.
#[derive(Debug)]
pub struct Rows<'a>(&'a Meter);

impl Meter {
    pub(super) fn new(row_bytes_max: usize) -> Self {
        Self {
            row_bytes_max,
            refused: AtomicUsize::new(0),
            is_used: AtomicBool::new(false),
            unused_bytes: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
        }
    }

    /// The size of the row that was refused, and the largest that is taken, both in bytes. The connection has
    /// ended with it.
    #[must_use]
    pub fn refused(&self) -> Option<(usize, usize)> {
        let bytes = self.refused.load(Ordering::Acquire);
        (bytes > 0).then_some((bytes, self.row_bytes_max))
    }

    /// Begins to use rows; to be called before the COPY is.
    pub fn rows(&self) -> Rows<'_> {
        self.unused_bytes.store(0, Ordering::Release);
        self.is_used.store(true, Ordering::Release);
        Rows(self)
    }

    fn has_room(&self) -> bool {
        !self.is_used.load(Ordering::Acquire) || self.unused_bytes.load(Ordering::Acquire) <= UNUSED_BYTES_MAX
    }
}

impl Rows<'_> {
    /// Notes that a row of this size has been used.
    pub fn used(&self, row_bytes: usize) {
        let bytes = row_bytes + HEADER_BYTES;
        let _ = self
            .0
            .unused_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |unused| Some(unused.saturating_sub(bytes)));
        if self.0.has_room() {
            self.0.reader.wake();
        }
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        self.0.is_used.store(false, Ordering::Release);
        self.0.reader.wake();
    }
}

/// Where a stream is within the server's messages.
#[derive(Debug, Default)]
struct Place {
    /// What has come of a header.
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// Bytes of the body that are still to come.
    body_left: usize,
}

impl Place {
    fn is_between_messages(&self) -> bool {
        self.header_len == 0 && self.body_left == 0
    }

    /// Number of bytes to the end of the message or header that has begun.
    fn left(&self) -> usize {
        if self.body_left > 0 { self.body_left } else { HEADER_BYTES - self.header_len }
    }

    /// Passes over `bytes`, and calls `found` with the type and size of each message that begins.
    fn pass(
        &mut self,
        mut bytes: &[u8],
        mut found: impl FnMut(u8, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some(&first) = bytes.first() {
            if self.body_left > 0 {
                let passed = self.body_left.min(bytes.len());
                self.body_left -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            self.header[self.header_len] = first;
            self.header_len += 1;
            bytes = &bytes[1..];
            if self.header_len == HEADER_BYTES {
                let [kind, a, b, c, d] = self.header;
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                found(kind, length + 1)?;
                self.header_len = 0;
                // The length counts itself. The driver refuses a smaller one.
                self.body_left = length.saturating_sub(4);
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Metered {
    stream: NetStream,
    meter: Option<(Arc<Meter>, Place)>,
    activity: Arc<Activity>,
}

impl Metered {
    pub(super) fn new(stream: NetStream, meter: Option<Arc<Meter>>, activity: Arc<Activity>) -> Self {
        Self { stream, meter: meter.map(|meter| (meter, Place::default())), activity }
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, meter, activity } = self.get_mut();
        let before = buf.filled().len();
        let read = match meter {
            Some((meter, place)) => poll_metered(stream, meter, place, cx, buf),
            None => Pin::new(stream).poll_read(cx, buf),
        };
        activity.note(buf.filled().len() - before);
        read
    }
}

/// Reads no further than the meter has room for.
fn poll_metered(
    stream: &mut NetStream,
    meter: &Meter,
    place: &mut Place,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    if place.is_between_messages() && !meter.has_room() {
        meter.reader.register(cx.waker());
        // Rows may have been used in between.
        if !meter.has_room() {
            return Poll::Pending;
        }
    }
    let before = buf.filled().len();
    let read = if meter.has_room() {
        Pin::new(stream).poll_read(cx, buf)
    } else {
        let bytes_max = place.left().min(BOUNDED_READ_BYTES).min(buf.remaining());
        let mut bounded = ReadBuf::new(buf.initialize_unfilled_to(bytes_max));
        let read = Pin::new(stream).poll_read(cx, &mut bounded);
        let bytes = bounded.filled().len();
        buf.advance(bytes);
        read
    };
    let passed = place.pass(&buf.filled()[before..], |kind, bytes| {
        if kind == COPY_DATA && bytes > meter.row_bytes_max {
            meter.refused.store(bytes, Ordering::Release);
            return Err(io::Error::other("a row is larger than the limit"));
        }
        if kind == COPY_DATA {
            meter.unused_bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        Ok(())
    });
    match passed {
        Ok(()) => read,
        Err(refused) => Poll::Ready(Err(refused)),
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, activity, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = &written {
            activity.note(*bytes);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl TlsStream for Metered {
    fn channel_binding(&self) -> tls::ChannelBinding {
        match self.stream.tls_server_end_point() {
            Some(data) => tls::ChannelBinding::tls_server_end_point(data),
            None => tls::ChannelBinding::none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    fn message(kind: u8, body_bytes: usize) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend(u32::try_from(body_bytes + 4).unwrap().to_be_bytes());
        message.resize(message.len() + body_bytes, 7);
        message
    }

    #[test]
    fn messages_are_found_however_they_come() {
        let bytes = [message(b'T', 0), message(b'd', 300), message(b'd', 1), message(b'Z', 5)].concat();
        for step in 1..bytes.len() {
            let (mut place, mut found) = (Place::default(), Vec::new());
            for part in bytes.chunks(step) {
                let note = |kind, bytes| {
                    found.push((kind, bytes));
                    Ok(())
                };
                place.pass(part, note).unwrap();
            }
            assert_eq!(found, [(b'T', 5), (b'd', 305), (b'd', 6), (b'Z', 10)], "by {step}");
            assert!(place.is_between_messages());
        }
    }

    #[tokio::test]
    async fn the_next_large_row_is_read_once_the_one_before_it_has_been_used() {
        const LARGE: usize = 2 * UNUSED_BYTES_MAX;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let meter = Arc::new(Meter::new(3 * LARGE));
        let mut stream = Metered::new(NetStream::Unix(ours), Some(Arc::clone(&meter)), Arc::default());
        let writer = tokio::spawn(async move {
            for body in [LARGE, LARGE, 4 * LARGE] {
                if theirs.write_all(&message(COPY_DATA, body)).await.is_err() {
                    break;
                }
            }
        });
        // Larger than a row, as the driver's buffer may be.
        let mut buffer = vec![0; 2 * LARGE];
        let rows = meter.rows();
        let mut row = async |stream: &mut Metered| {
            let mut bytes = 0;
            while bytes < LARGE + HEADER_BYTES {
                bytes += stream.read(&mut buffer).await.unwrap();
            }
            assert_eq!(bytes, LARGE + HEADER_BYTES, "nothing is read beyond its end");
        };
        row(&mut stream).await;
        let more = tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await;
        assert!(more.is_err(), "it waits");
        rows.used(LARGE);
        row(&mut stream).await;
        assert_eq!(meter.refused(), None);
        drop(rows);
        assert!(stream.read_exact(&mut buffer).await.is_err());
        assert_eq!(meter.refused(), Some((4 * LARGE + HEADER_BYTES, 3 * LARGE)));
        drop(stream);
        writer.await.unwrap();
    }
}
