//! The logical replication stream: frames in, feedback out, over one CopyBoth.
//!
//! ```text
//!          next / try_next ◀── channel ◀── publisher
//! caller ─┤
//!          send_status ──────▶ channel ──▶ publisher
//! ```
//! A caller waits with `next` for a frame, then takes those that arrived with it from `try_next` until
//! it returns `None`; so one wake-up handles a whole read buffer.
//!
//! # Invariants
//! - Both directions are cancel-safe: a dropped future loses no byte and duplicates none.
//! - Nothing is answered automatically. The caller answers keepalives that want a reply, because only
//!   it knows what is durable; without an answer for `wal_sender_timeout`, the publisher closes the
//!   connection.
//! - The caller supplies the time (`Feedback::clock_us`).

use std::time::Duration;

use bytes::Bytes;
use postgres_protocol::message::frontend;

use super::channel::{Channel, ChannelError};
use super::error::StreamError;
use super::frame::{self, Feedback, Frame};
use super::wire::{self, Message, WireError};

/// Longest time for ending the stream normally.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest amount of feedback that waits for the socket, bytes: a hundred updates.
const BACKLOG_BYTES_MAX: usize = 4096;

/// A publisher's logical replication stream.
#[derive(Debug)]
pub struct ReplicationStream {
    channel: Channel,
}

/// How a stream ended that this side closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The publisher confirmed the end, so the slot is free.
    Confirmed,
    /// The publisher did not confirm in time; the socket is closed, which it will notice.
    Abandoned,
}

impl ReplicationStream {
    pub(super) fn new(mut channel: Channel) -> Self {
        channel.pace();
        Self { channel }
    }

    /// From now on, a message of more bytes is an error ([`StreamError::TooLarge`]).
    pub fn limit_messages(&mut self, bytes_max: usize) {
        self.channel.limit_messages(bytes_max);
    }

    /// Waits for the next frame for as long as the publisher is silent; the caller bounds the time.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Frame, StreamError> {
        match self.channel.receive().await {
            Ok(message) => frame_of(message),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Returns the next frame that has already been read from the socket, if any, without I/O.
    pub fn try_next(&mut self) -> Result<Option<Frame>, StreamError> {
        match self.channel.buffered() {
            Ok(Some(message)) => frame_of(message).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Reports positions to the publisher. Cancel-safe: the next call completes a partly written
    /// message. While the socket takes nothing, updates beyond a small backlog are left out, because
    /// each one supersedes those before it.
    pub async fn send_status(&mut self, feedback: &Feedback) -> Result<(), StreamError> {
        if self.channel.output.len() < BACKLOG_BYTES_MAX {
            frame::encode_status(feedback, &mut self.channel.output);
        }
        match self.channel.flush().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Returns a run-time parameter as last reported by the server.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.channel.parameter(name)
    }

    /// Ends the stream normally, bounded by `CLOSE_TIMEOUT`: sends CopyDone, reads and drops what is
    /// still on its way, and sends Terminate. Changes that were not confirmed as flushed are sent again
    /// by the next stream.
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
        // A publisher that shuts down sends CommandComplete without CopyDone (`WalSndDone`). A further
        // read after the end gets the messages that follow it.
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
        // The publisher may have closed the connection first, after its confirmation.
        Ok(()) | Err(_) => Closing::Confirmed,
    }
}
