//! The replication connection's socket with its two buffers.
//!
//! ```text
//! socket ─read─▶ input ─split, freeze─▶ messages whose bodies are slices of the read buffer
//! output ─write─▶ socket
//! ```
//! # Why no codec
//!
//! The kernel copies a payload once into the buffer that its `Bytes` then shares. Many messages arrive
//! per read, and callers take them one by one without another system call.
//!
//! # Invariants
//! - Cancel-safe: bytes are only ever in `input` or `output`. A dropped future loses none, and the next
//!   flush continues where the last one stopped.
//! - `input` grows as bytes arrive, to at most four times as much, and a large buffer is released as soon as
//!   the message that needed it was taken.
//! - A message that is too large for its kind and the phase is refused by its header, and one that is larger than the
//!   caller takes when its beginning has arrived.
//! - A message whose body is kept keeps its whole read buffer (128 KiB, or its own size).

use std::collections::BTreeMap;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::wire::{self, Message, Split, WireError};
use crate::error::ServerError;
use crate::net::{HEADER_BYTES, Handling, MESSAGE_BYTES_MAX, NetStream, Shortener, Sizes};

/// Size of the read buffer, bytes, which bounds one system call.
const READ_BYTES: usize = 128 * 1024;

/// With less room than this, a read gets a new buffer, bytes.
const READ_BYTES_MIN: usize = 16 * 1024;

/// Number of bytes that are read of a message that is too large, to see what it is.
const HEAD_BYTES: usize = 64 * 1024;

/// Largest number of server parameters that are recorded; a server reports about fifteen.
const PARAMETERS_MAX: usize = 256;

/// A failure of the connection itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error("the server closed the connection")]
    Closed,
    #[error("the connection broke")]
    Io(#[source] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A message is larger than this side takes. The rest of it has not been read.
    #[error("a message of {bytes} bytes, more than {bytes_max}")]
    TooLarge {
        bytes: usize,
        bytes_max: usize,
        /// The beginning of its body.
        head: Bytes,
    },
}

/// The message at the beginning of the input.
#[derive(Debug, Default)]
enum Begun {
    /// Its header has not come.
    #[default]
    Nothing,
    /// It has been judged by its header, which is still in the input.
    Whole,
    /// It is taken with shortened texts, and its header is gone.
    Shortened(Shortener),
}

#[derive(Debug)]
pub(super) struct Channel {
    stream: NetStream,
    input: BytesMut,
    sizes: Sizes,
    begun: Begun,
    /// Largest message that is taken, bytes.
    message_bytes_max: usize,
    /// Bytes that the socket has not taken yet. Callers append complete messages, then flush.
    pub(super) output: BytesMut,
    /// `ParameterStatus` values as last reported.
    parameters: BTreeMap<String, String>,
    /// The last notice: a server may announce the end of a connection in one.
    notice: Option<ServerError>,
}

impl Channel {
    pub(super) fn new(stream: NetStream) -> Self {
        Self {
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
            sizes: Sizes::default(),
            begun: Begun::Nothing,
            message_bytes_max: MESSAGE_BYTES_MAX + 1,
            output: BytesMut::new(),
            parameters: BTreeMap::new(),
            notice: None,
        }
    }

    /// Prepares the socket for large amounts of data.
    pub(super) fn pace(&mut self) {
        self.stream.pace();
    }

    /// Takes no message larger than this, or than the read buffer if that is larger.
    pub(super) fn limit_messages(&mut self, bytes_max: usize) {
        self.message_bytes_max = bytes_max.max(READ_BYTES);
    }

    pub(super) fn stream(&self) -> &NetStream {
        &self.stream
    }

    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub(super) fn take_notice(&mut self) -> Option<ServerError> {
        self.notice.take()
    }

    /// Waits for the next message other than notices and parameter reports. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<Message, ChannelError> {
        loop {
            match self.split()? {
                Split::Complete(message) => {
                    if let Some(message) = self.keep(message)? {
                        return Ok(message);
                    }
                }
                Split::Partial { total }
                    if total > self.message_bytes_max && self.input.len() >= HEAD_BYTES =>
                {
                    let head = Bytes::copy_from_slice(&self.input[HEADER_BYTES..HEAD_BYTES]);
                    return Err(ChannelError::TooLarge {
                        bytes: total,
                        bytes_max: self.message_bytes_max,
                        head,
                    });
                }
                Split::Partial { total } => self.fill(total).await?,
            }
        }
    }

    /// Returns the next message that has already been read from the socket, if any.
    pub(super) fn buffered(&mut self) -> Result<Option<Message>, ChannelError> {
        while let Split::Complete(message) = self.split()? {
            if let Some(message) = self.keep(message)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Writes what `output` holds. Cancel-safe.
    pub(super) async fn flush(&mut self) -> Result<(), ChannelError> {
        while !self.output.is_empty() {
            let written = self.stream.write_buf(&mut self.output).await.map_err(ChannelError::Io)?;
            if written == 0 {
                return Err(ChannelError::Closed);
            }
        }
        self.stream.flush().await.map_err(ChannelError::Io)
    }

    /// Sends Terminate and closes the connection. The caller bounds the time.
    pub(super) async fn terminate(mut self) -> Result<(), ChannelError> {
        postgres_protocol::message::frontend::terminate(&mut self.output);
        self.flush().await?;
        self.stream.shutdown().await.map_err(ChannelError::Io)
    }

    /// Takes the next message off `input`.
    fn split(&mut self) -> Result<Split, ChannelError> {
        if matches!(self.begun, Begun::Nothing) {
            self.begun = self.begin()?;
        }
        if let Begun::Shortened(shortener) = std::mem::take(&mut self.begun) {
            return Ok(self.shorten(shortener));
        }
        let split = wire::split(&mut self.input)?;
        match &split {
            Split::Partial { .. } if self.input.len() >= HEADER_BYTES => self.begun = Begun::Whole,
            Split::Complete(message) if message.body.len() > READ_BYTES => {
                let mut fresh = BytesMut::with_capacity(READ_BYTES.max(self.input.len()));
                fresh.extend_from_slice(&self.input);
                self.input = fresh;
            }
            Split::Partial { .. } | Split::Complete(_) => {}
        }
        Ok(split)
    }

    /// Judges the next message by its header, before memory is taken for it.
    fn begin(&mut self) -> Result<Begun, WireError> {
        let Some((tag, total)) = wire::header(&self.input)? else { return Ok(Begun::Nothing) };
        Ok(match self.sizes.next(tag, total)? {
            Handling::Whole => Begun::Whole,
            Handling::Shortened => {
                self.input.advance(HEADER_BYTES);
                Begun::Shortened(Shortener::new(tag, total - HEADER_BYTES))
            }
        })
    }

    /// Gives what has come of a message with long texts to the shortener.
    fn shorten(&mut self, mut shortener: Shortener) -> Split {
        let taken = shortener.feed(&self.input);
        self.input.advance(taken);
        if shortener.left() == 0 {
            return Split::Complete(Message { tag: shortener.tag(), body: shortener.body().into() });
        }
        self.begun = Begun::Shortened(shortener);
        // What comes next is taken as it comes.
        Split::Partial { total: self.input.len() + 1 }
    }

    /// Records notices and parameter reports, and passes on other messages.
    fn keep(&mut self, message: Message) -> Result<Option<Message>, ChannelError> {
        match message.tag {
            b'S' => {
                let (name, value) = wire::parameter_status(&message)?;
                if self.parameters.len() < PARAMETERS_MAX || self.parameters.contains_key(&name) {
                    self.parameters.insert(name, value);
                }
            }
            b'N' => self.notice = Some(wire::server_error(&message)),
            // A notification. This session does not listen, but settings of its role could make it.
            b'A' => {}
            _ => return Ok(Some(message)),
        }
        Ok(None)
    }

    /// Reads once, for a message of `total` bytes.
    async fn fill(&mut self, total: usize) -> Result<(), ChannelError> {
        let missing = total.saturating_sub(self.input.len());
        let room = self.input.capacity() - self.input.len();
        let limit = if missing > READ_BYTES {
            self.input.reserve(growth(self.input.len(), room, missing));
            missing
        } else {
            if room < missing.max(READ_BYTES_MIN) {
                self.input.reserve(READ_BYTES);
            }
            usize::MAX
        };
        let room = self.input.capacity() - self.input.len();
        let mut window = (&mut self.input).limit(limit.min(room));
        match self.stream.read_buf(&mut window).await {
            Ok(0) => Err(ChannelError::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(ChannelError::Io(error)),
        }
    }
}

/// Returns how much room to make for a long message of which `len` bytes have arrived, with `room` for more, and
/// `missing` bytes are to come. A buffer at least doubles when it grows. So it is doubled until a quarter of the
/// message has arrived, and then grows to its end and not a byte beyond.
fn growth(len: usize, room: usize, missing: usize) -> usize {
    if room > 0 && room < missing {
        // There is room for what comes next.
        return 0;
    }
    if missing / 3 <= len { missing } else { len.max(READ_BYTES) }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(NetStream::Unix(ours));
        // ReadyForQuery ends the start-up.
        channel.sizes.next(b'Z', 6).unwrap();
        (channel, theirs)
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[tokio::test]
    async fn a_large_message_grows_the_buffer_and_lets_it_go() {
        let (mut channel, mut server) = pair();
        let large = vec![7u8; 5 * READ_BYTES];
        let mut bytes = message(b'd', &large);
        bytes.extend(message(b'd', b"next"));
        let writer = tokio::spawn(async move {
            server.write_all(&bytes).await.unwrap();
            server
        });
        assert_eq!(channel.receive().await.unwrap().body, large);
        assert!(channel.input.capacity() <= READ_BYTES, "{}", channel.input.capacity());
        assert_eq!(channel.receive().await.unwrap().body, "next");
        drop(writer.await.unwrap());
        assert!(matches!(channel.receive().await, Err(ChannelError::Closed)));
    }

    #[test]
    fn a_buffer_ends_where_its_message_ends() {
        for total in [READ_BYTES * 3, 1_000_000, 1_000_001, 100 << 20, 0x3fff_fffe] {
            // Only lengths matter, so the arrival of bytes is played with numbers.
            let (mut len, mut capacity) = (0, READ_BYTES);
            while len < total {
                let more = growth(len, capacity - len, total - len);
                if more > 0 && capacity - len < more {
                    // As `Vec::reserve`.
                    capacity = (len + more).max(2 * capacity);
                }
                assert!(capacity <= (4 * len).max(4 * READ_BYTES), "{total}: {capacity} for {len}");
                len = total.min(capacity);
            }
            assert!(capacity <= total.max(4 * READ_BYTES), "{total}: {capacity}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_is_refused_before_it_is_read() {
        let (mut channel, mut server) = pair();
        channel.limit_messages(1 << 20);
        let mut bytes = vec![b'd'];
        bytes.extend((3_u32 << 20).to_be_bytes());
        bytes.resize(HEAD_BYTES, 7);
        let mut first = message(b'd', &vec![1; (1 << 20) - 5]);
        first.extend(&bytes);
        let writer = tokio::spawn(async move {
            server.write_all(&first).await.unwrap();
            server
        });
        assert_eq!(channel.receive().await.unwrap().body.len(), (1 << 20) - 5);
        let refused = channel.receive().await;
        let Err(ChannelError::TooLarge { bytes, bytes_max, head }) = refused else { panic!("{refused:?}") };
        assert_eq!((bytes, bytes_max), ((3 << 20) + 1, 1 << 20));
        assert_eq!(head.len(), HEAD_BYTES - HEADER_BYTES);
        assert!(channel.input.capacity() <= 2 * READ_BYTES, "{}", channel.input.capacity());
        drop(writer.await.unwrap());
    }

    #[tokio::test]
    async fn a_claimed_length_alone_allocates_little() {
        let (mut channel, mut server) = pair();
        let mut bytes = vec![b'd'];
        bytes.extend(0x3fff_fff0u32.to_be_bytes());
        server.write_all(&bytes).await.unwrap();
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), channel.receive()).await;
        assert!(waited.is_err(), "still waiting for the rest");
        assert!(channel.input.capacity() < 1024 * 1024, "{}", channel.input.capacity());
    }

    #[tokio::test]
    async fn a_cancelled_receive_loses_nothing() {
        let (mut channel, mut server) = pair();
        let bytes = message(b'd', b"split over two writes");
        server.write_all(&bytes[..9]).await.unwrap();
        for _ in 0..3 {
            let waited = tokio::time::timeout(std::time::Duration::from_millis(10), channel.receive()).await;
            assert!(waited.is_err());
        }
        server.write_all(&bytes[9..]).await.unwrap();
        assert_eq!(channel.receive().await.unwrap().body, "split over two writes");
    }

    #[tokio::test]
    async fn notices_and_parameters_are_recorded_on_the_way() {
        let (mut channel, mut server) = pair();
        let mut bytes = message(b'S', b"TimeZone\0UTC\0");
        bytes.extend(message(b'N', b"C57P02\0Mcrash\0\0"));
        bytes.extend(message(b'd', b"one"));
        bytes.extend(message(b'd', b"two"));
        server.write_all(&bytes).await.unwrap();
        assert_eq!(channel.receive().await.unwrap().body, "one");
        assert_eq!(channel.parameter("TimeZone"), Some("UTC"));
        assert_eq!(channel.take_notice().unwrap().message, "crash");
        assert_eq!(channel.buffered().unwrap().unwrap().body, "two");
        assert!(channel.buffered().unwrap().is_none());
    }

    #[tokio::test]
    async fn before_authentication_a_length_alone_is_refused() {
        let (ours, mut server) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(NetStream::Unix(ours));
        server.write_all(&[b'R', 0x3f, 0xff, 0xff, 0xf0]).await.unwrap();
        let refused = channel.receive().await;
        assert!(matches!(refused, Err(ChannelError::Wire(WireError::Oversize(_)))), "{refused:?}");
        assert!(channel.input.capacity() <= READ_BYTES);
    }

    #[tokio::test]
    async fn a_long_error_is_shortened_while_it_comes() {
        const LONG: usize = 50 << 20;
        let (mut channel, mut server) = pair();
        let mut body = vec![b'M'];
        body.resize(LONG, b'x');
        body.extend(b"\0C22P02\0\0");
        let mut bytes = message(b'E', &body);
        bytes.extend(message(b'Z', b"I"));
        let writer = tokio::spawn(async move {
            server.write_all(&bytes).await.unwrap();
            server
        });
        let error = wire::server_error(&channel.receive().await.unwrap());
        assert!(error.message.starts_with("xxx") && error.message.len() < 100_000, "{}", error.message.len());
        assert_eq!(error.code, "22P02");
        assert!(channel.input.capacity() <= 4 * READ_BYTES, "{}", channel.input.capacity());
        assert_eq!(channel.receive().await.unwrap().tag, b'Z');
        drop(writer.await.unwrap());
    }
}
