//! A stream that knows where the server's messages begin: it refuses messages that are too large by their length, and
//! stops reading while rows that it has read are not used.
//!
//! tokio-postgres takes messages of any size, and reads ahead by a number of messages. That is bounded for ordinary
//! rows, but several rows of hundreds of megabytes would be in memory at a time.
//!
//! # Invariants
//! - A message that is too large for its kind and the phase ([`Sizes`]) is refused before any of it is handed over.
//! - Nothing is buffered or changed except for parts of headers, and errors and notices with long texts, which are
//!   shortened.
//! - Reading stops only between two messages, because a message can only be used as a whole. While too much is
//!   unused, nothing is read beyond the end of the message that has begun.
//! - Without a [`Meter`], or while nobody uses rows ([`Meter::rows`]), reading does not stop.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{self, TlsStream};

use super::activity::Activity;
use super::sizes::{HEADER_BYTES, Handling, Shortener, Sizes};
use super::stream::NetStream;

/// Bytes of rows that are read before those before them are used. A larger row is read alone.
const UNUSED_BYTES_MAX: usize = 1 << 20;
/// Maximum bytes of a read that must not go beyond a message's end.
const BOUNDED_READ_BYTES: usize = 256 << 10;
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

    /// Notes a message that begins, and refuses a row that is too large.
    fn found(&self, kind: u8, bytes: usize) -> io::Result<()> {
        if kind == COPY_DATA && bytes > self.row_bytes_max {
            self.refused.store(bytes, Ordering::Release);
            return Err(io::Error::other("a row is larger than the limit"));
        }
        if kind == COPY_DATA {
            self.unused_bytes.fetch_add(bytes, Ordering::AcqRel);
        }
        Ok(())
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

/// Follows the server's messages through what is read.
#[derive(Debug, Default)]
struct Incoming {
    sizes: Sizes,
    /// What has come of a header. A header in parts is not handed over until it is whole.
    header: [u8; HEADER_BYTES],
    header_len: usize,
    /// Bytes of the body that are still to come, and are handed over as they come.
    body_left: usize,
    /// A message of which only the beginning of each text will be handed over.
    shortener: Option<Shortener>,
    /// What was withheld, and is to be handed over next.
    ready: BytesMut,
}

impl Incoming {
    fn is_between_messages(&self) -> bool {
        self.header_len == 0 && self.body_left == 0 && self.shortener.is_none()
    }

    /// Number of bytes to the end of the message or header that has begun.
    fn left(&self) -> usize {
        match &self.shortener {
            Some(shortener) => shortener.left(),
            None if self.body_left > 0 => self.body_left,
            None => HEADER_BYTES - self.header_len,
        }
    }

    /// Passes over `bytes`, and calls `found` with the type and size of each message that begins. Returns how many of
    /// them are handed over where they are; what is handed over of the others is in `ready`.
    fn pass(
        &mut self,
        bytes: &[u8],
        mut found: impl FnMut(u8, usize) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut at = 0;
        let mut in_place = (self.header_len > 0 || self.shortener.is_some()).then_some(0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            if let Some(shortener) = &mut self.shortener {
                at += shortener.feed(rest);
                if shortener.left() == 0
                    && let Some(whole) = self.shortener.take()
                {
                    self.ready.extend_from_slice(&whole.message());
                }
            } else if self.body_left > 0 {
                let passed = self.body_left.min(rest.len());
                if in_place.is_some() {
                    self.ready.extend_from_slice(&rest[..passed]);
                }
                self.body_left -= passed;
                at += passed;
            } else {
                let part = rest.len().min(HEADER_BYTES - self.header_len);
                self.header[self.header_len..][..part].copy_from_slice(&rest[..part]);
                self.header_len += part;
                at += part;
                if self.header_len < HEADER_BYTES {
                    in_place.get_or_insert(at - part);
                } else if self.begin(&mut found)? == Handling::Shortened {
                    in_place.get_or_insert(at - HEADER_BYTES);
                } else if in_place.is_some() {
                    self.ready.extend_from_slice(&self.header);
                }
            }
        }
        Ok(in_place.unwrap_or(bytes.len()))
    }

    /// Begins the message whose header has come.
    fn begin(&mut self, found: &mut impl FnMut(u8, usize) -> io::Result<()>) -> io::Result<Handling> {
        let [kind, a, b, c, d] = self.header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        self.header_len = 0;
        let handling = self.sizes.next(kind, length.saturating_add(1))?;
        found(kind, length + 1)?;
        // The length counts itself. The driver refuses a smaller one.
        let body_bytes = length.saturating_sub(4);
        match handling {
            Handling::Whole => self.body_left = body_bytes,
            Handling::Shortened => self.shortener = Some(Shortener::new(kind, body_bytes)),
        }
        Ok(handling)
    }

    /// The server has ended the connection: hands over a header that has come in part.
    fn end(&mut self) {
        self.ready.extend_from_slice(&self.header[..self.header_len]);
        self.header_len = 0;
    }

    /// Hands over what was withheld; returns whether there was something.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let bytes = self.ready.len().min(buf.remaining());
        buf.put_slice(&self.ready.split_to(bytes));
        bytes > 0
    }
}

#[derive(Debug)]
pub(super) struct Metered {
    stream: NetStream,
    incoming: Incoming,
    meter: Option<Arc<Meter>>,
    activity: Arc<Activity>,
}

impl Metered {
    pub(super) fn new(stream: NetStream, meter: Option<Arc<Meter>>, activity: Arc<Activity>) -> Self {
        Self { stream, incoming: Incoming::default(), meter, activity }
    }

    /// Reads once, no further than the meter has room for.
    fn poll_once(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, incoming, meter, .. } = self;
        let Some(meter) = meter else { return Pin::new(stream).poll_read(cx, buf) };
        if incoming.is_between_messages() && !meter.has_room() {
            meter.reader.register(cx.waker());
            // Rows may have been used in between.
            if !meter.has_room() {
                return Poll::Pending;
            }
        }
        if meter.has_room() {
            return Pin::new(stream).poll_read(cx, buf);
        }
        let bytes_max = incoming.left().min(BOUNDED_READ_BYTES).min(buf.remaining());
        let mut bounded = ReadBuf::new(buf.initialize_unfilled_to(bytes_max));
        let read = Pin::new(stream).poll_read(cx, &mut bounded);
        let bytes = bounded.filled().len();
        buf.advance(bytes);
        read
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if this.incoming.hand_over(buf) {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_once(cx, buf))?;
            let read = &buf.filled()[before..];
            this.activity.note(read.len());
            if read.is_empty() && this.incoming.header_len > 0 {
                this.incoming.end();
                continue;
            }
            let is_end = read.is_empty();
            let meter = this.meter.as_deref();
            let in_place = this.incoming.pass(read, |kind, bytes| match meter {
                Some(meter) => meter.found(kind, bytes),
                None => Ok(()),
            })?;
            buf.set_filled(before + in_place);
            // If everything was withheld, there is more to read.
            if in_place > 0 || is_end {
                return Poll::Ready(Ok(()));
            }
        }
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

    /// Hands `bytes` over in parts of `step` bytes; returns what the driver gets.
    fn passed(bytes: &[u8], step: usize, found: &mut Vec<(u8, usize)>) -> io::Result<Vec<u8>> {
        let mut incoming = Incoming::default();
        let mut passed = Vec::new();
        for part in bytes.chunks(step) {
            let note = |kind, bytes| {
                found.push((kind, bytes));
                Ok(())
            };
            let in_place = incoming.pass(part, note)?;
            passed.extend(&part[..in_place]);
            passed.extend(incoming.ready.split());
        }
        assert!(incoming.is_between_messages());
        Ok(passed)
    }

    #[test]
    fn messages_are_found_however_they_come() {
        let bytes = [message(b'T', 0), message(b'd', 300), message(b'd', 1), message(b'Z', 5)].concat();
        for step in 1..=bytes.len() {
            let mut found = Vec::new();
            let passed = passed(&bytes, step, &mut found).unwrap();
            assert!(passed == bytes, "by {step}");
            assert_eq!(found, [(b'T', 5), (b'd', 305), (b'd', 6), (b'Z', 10)], "by {step}");
        }
    }

    /// An error with one text.
    fn error(text_bytes: usize) -> Vec<u8> {
        let mut error = message(b'E', text_bytes + 3);
        error[HEADER_BYTES] = b'M';
        let end = error.len() - 2;
        error[end..].fill(0);
        error
    }

    #[test]
    fn a_long_error_is_shortened_and_its_neighbours_stay() {
        let start = [message(b'Z', 1), message(b'C', 9)].concat();
        let end = [message(b'D', 100_000), message(b'Z', 1)].concat();
        let bytes = [&start[..], &error(3_000_000), &end].concat();
        for step in [1000, 7919, 60_007, bytes.len()] {
            let passed = passed(&bytes, step, &mut Vec::new()).unwrap();
            assert!(passed.starts_with(&start) && passed.ends_with(&end), "by {step}");
            let shortened = &passed[start.len()..passed.len() - end.len()];
            let text_bytes = shortened.len() - HEADER_BYTES - 3;
            assert!(shortened == error(text_bytes) && text_bytes < 100_000, "by {step}: {text_bytes}");
        }
    }

    #[test]
    fn before_authentication_a_length_alone_is_refused() {
        let header = [b'R', 0xff, 0xff, 0xff, 0xff];
        let refused = passed(&header, HEADER_BYTES, &mut Vec::new()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        let later = [&message(b'Z', 1)[..], &header].concat();
        assert!(passed(&later, later.len(), &mut Vec::new()).is_err());
    }

    #[tokio::test]
    async fn a_header_that_ends_half_way_is_handed_over() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut stream = Metered::new(NetStream::Unix(ours), None, Arc::default());
        let bytes = [message(b'Z', 1), message(b'Z', 1)].concat();
        theirs.write_all(&bytes[..8]).await.unwrap();
        drop(theirs);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, bytes[..8]);
    }

    #[tokio::test]
    async fn the_next_large_row_is_read_once_the_one_before_it_has_been_used() {
        const LARGE: usize = 2 * UNUSED_BYTES_MAX;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let meter = Arc::new(Meter::new(3 * LARGE));
        let mut stream = Metered::new(NetStream::Unix(ours), Some(Arc::clone(&meter)), Arc::default());
        let writer = tokio::spawn(async move {
            // The first message ends the start-up.
            theirs.write_all(&message(b'Z', 1)).await.unwrap();
            for body in [LARGE, LARGE, 4 * LARGE] {
                if theirs.write_all(&message(COPY_DATA, body)).await.is_err() {
                    break;
                }
            }
        });
        stream.read_exact(&mut [0; 6]).await.unwrap();
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
