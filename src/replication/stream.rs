//! The stream itself: frames in, feedback out, over one CopyBoth.
//!
//! ```text
//!          next / try_next ◀── channel ◀── publisher
//! caller ─┤
//!          send_status ──────▶ channel ──▶ publisher
//! ```
//! A caller gathers: `next` waits for a frame, then `try_next` takes those that came with it, until
//! it says `None`; so one wake-up serves a whole read buffer.
//!
//! # Invariants
//! - Both directions are cancel-safe: a dropped future loses no byte and duplicates none.
//! - Nothing is answered by itself. Keepalives that want a reply are the caller's to answer, since
//!   only it knows what is durable; unanswered for `wal_sender_timeout`, the publisher hangs up.
//! - The clock is the caller's (`Feedback::clock_us`).

use std::time::Duration;

use bytes::Bytes;
use postgres_protocol::message::frontend;

use super::channel::{Channel, ChannelError};
use super::error::StreamError;
use super::frame::{self, Feedback, Frame};
use super::wire::{self, Message, WireError};

/// How long ending the stream in good order may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Feedback waiting for the socket at most, bytes: a hundred updates.
const BACKLOG_BYTES_MAX: usize = 4096;

/// A publisher's logical replication stream.
#[derive(Debug)]
pub struct ReplicationStream {
    channel: Channel,
}

/// How a stream ended when we closed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The publisher confirmed: the slot is free.
    Confirmed,
    /// It did not, in time or at all; the socket is closed, and the publisher will notice.
    Abandoned,
}

impl ReplicationStream {
    pub(super) fn new(mut channel: Channel) -> Self {
        channel.pace();
        Self { channel }
    }

    /// The next frame. Waits as long as the publisher is silent; the caller keeps the time.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Frame, StreamError> {
        match self.channel.receive().await {
            Ok(message) => frame_of(message),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// The next frame that has already been read from the socket, if any. Touches no socket.
    pub fn try_next(&mut self) -> Result<Option<Frame>, StreamError> {
        match self.channel.buffered() {
            Ok(Some(message)) => frame_of(message).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Tells the publisher how far we are. Cancel-safe: a half-written message is completed by the
    /// next call. While the socket takes nothing, updates beyond a small backlog are left out: each
    /// one supersedes those before it.
    pub async fn send_status(&mut self, feedback: &Feedback) -> Result<(), StreamError> {
        if self.channel.output.len() < BACKLOG_BYTES_MAX {
            frame::encode_status(feedback, &mut self.channel.output);
        }
        match self.channel.flush().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// A run-time parameter as last reported by the server.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.channel.parameter(name)
    }

    /// Ends the stream in good order, for a few seconds at most: CopyDone, what is still under way
    /// is read and dropped, Terminate. Whatever was not confirmed as flushed comes again.
    pub async fn close(self) -> Closing {
        tokio::time::timeout(CLOSE_TIMEOUT, end(self.channel)).await.unwrap_or(Closing::Abandoned)
    }

    fn broken(&mut self, error: ChannelError) -> StreamError {
        StreamError::channel(error, self.channel.take_notice())
    }
}

fn frame_of(message: Message) -> Result<Frame, StreamError> {
    match message.tag {
        b'd' => frame::parse(message.body).map_err(StreamError::Frame),
        // A publisher that shuts down sends CommandComplete without CopyDone (`WalSndDone`); asking
        // on after the end meets what follows it.
        b'c' | b'C' | b'Z' => Ok(Frame::End),
        b'E' => Err(StreamError::Server(Box::new(wire::server_error(&message)))),
        tag => Err(StreamError::Wire(WireError::Unexpected { tag, during: "streaming" })),
    }
}

async fn end(mut channel: Channel) -> Closing {
    frontend::copy_done(&mut channel.output);
    if channel.flush().await.is_err() {
        return Closing::Abandoned;
    }
    loop {
        match channel.receive().await {
            Ok(Message { tag: b'Z', .. }) => break,
            Ok(Message { body, .. }) => drop::<Bytes>(body),
            Err(_) => return Closing::Abandoned,
        }
    }
    match channel.terminate().await {
        // The publisher may have closed first; it had confirmed before.
        Ok(()) | Err(_) => Closing::Confirmed,
    }
}
