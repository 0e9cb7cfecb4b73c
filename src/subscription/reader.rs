//! Reads the stream: decodes messages, answers keepalives, reports durable positions.
//!
//! ```text
//! socket ──frames──▶ reader ──chunks (bounded)──▶ apply
//!    ▲                 ▲
//!    └── status ◀──────┴── applied and durable positions (watch)
//! ```
//!
//! It is a task of its own, so that it sends status updates while the target is busy or blocked, or the
//! subscription is paused. When the queue is full it stops reading, but it still sends status updates. It
//! reports a position as flushed only if its commit on the target is durable.
//!
//! # A publisher does not wait for long
//! While nothing is read, the walsender waits in a write. If it is to end then, because the publisher stops or gives the
//! slot up, it waits for its last message to be read, and the checkpointer waits for it. So the connection is closed if
//! the target gets nothing done for [`Subscription::stall_timeout`](crate::config::Subscription::stall_timeout).
//!
//! # A silent publisher
//! While it is read and nothing comes for half of [`Subscription::peer_timeout`](crate::config::Subscription::peer_timeout),
//! the publisher is asked for a keepalive. If it still sends nothing, the connection counts as dead.

use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::pg::Lsn;
use crate::pgoutput::{DecodeError, Decoder, LargeMessage, Message, Tally};
use crate::replication::{Feedback, Frame, ReplicationStream, Reply, StreamError, micros_since_2000};

/// Maximum number of chunks between reader and apply, so that apply has work while the publisher only decodes.
const CHUNKS_MAX: usize = 8;
/// Maximum number of messages in a chunk. It is also handed over when its bytes reach a maximum, which a
/// single message may exceed.
const CHUNK_MESSAGES_MAX: usize = 1024;
const CHUNK_BYTES_MAX: usize = 128 << 10;
/// A chunk of more bytes has a large row. Nothing is read until it has been applied, so that there is only one.
const LARGE_CHUNK_BYTES: usize = 1 << 20;
/// Maximum time between two status updates (PostgreSQL's `wal_receiver_status_interval`).
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Minimum number of status updates within the publisher's `wal_sender_timeout`.
const STATUS_PER_TIMEOUT: u32 = 4;

/// The stream's messages in order.
#[derive(Debug)]
pub(super) enum StreamEvent {
    Message(Message),
    /// Everything up to here has been sent.
    Keepalive {
        wal_end: Lsn,
        reply: Reply,
    },
}

/// A part of the stream.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) events: Vec<StreamEvent>,
    bytes: usize,
    /// Present if the chunk is large: the next message is read once this has been dropped.
    pub(super) hold: Option<oneshot::Sender<()>>,
    /// The number of transactions and changes in its messages.
    pub(super) received: Tally,
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the replication stream broke")]
    Stream(#[from] StreamError),
    #[error("the replication stream holds something that cannot be understood")]
    Decode(#[from] DecodeError),
    #[error("the publisher ended the stream")]
    Ended,
    #[error("a row has {} bytes", .0.bytes)]
    TooLarge(LargeMessage),
    /// Nothing could be handed over for this long, so the connection was closed.
    #[error("the target got nothing done for {} s", .0.as_secs())]
    Stalled(Duration),
    /// Nothing came for this long, although the publisher was asked for a keepalive.
    #[error("the publisher sent nothing for {} s", .0.as_secs())]
    Silent(Duration),
}

/// For how long each side may wait for the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// How long the publisher may wait for us to read on.
    pub(super) stall: Duration,
    /// How long the publisher may send nothing.
    pub(super) silence: Duration,
}

/// The target's positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    /// Everything up to here is committed on the target.
    pub(super) applied: Lsn,
    /// Everything up to here has also been flushed: the publisher may remove it.
    pub(super) durable: Lsn,
}

impl Done {
    pub(super) fn all(lsn: Lsn) -> Self {
        Self { applied: lsn, durable: lsn }
    }
}

/// The reading task and the ends of its channels. Dropping it ends the task and the connection.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) chunks: mpsc::Receiver<Chunk>,
    done: watch::Sender<Done>,
    /// When the target last got something done.
    progressed: watch::Sender<Instant>,
    /// For how long the publisher waited before the connection was closed because of that.
    stalled: watch::Receiver<Option<Duration>>,
    received: watch::Receiver<Lsn>,
    task: Option<JoinHandle<ReadError>>,
}

impl Reader {
    /// Starts reading. `from` counts as durable; `wal_sender_timeout` is the publisher's (none if
    /// it has switched it off).
    pub(super) fn start(
        stream: ReplicationStream,
        from: Lsn,
        wal_sender_timeout: Option<Duration>,
        patience: Patience,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
        let (done, done_seen) = watch::channel(Done::all(from));
        let (received_here, received) = watch::channel(from);
        let (progressed, progress) = watch::channel(Instant::now());
        let (stalled_here, stalled) = watch::channel(None);
        let status_interval = wal_sender_timeout
            .map_or(STATUS_INTERVAL_MAX, |t| STATUS_INTERVAL_MAX.min(t / STATUS_PER_TIMEOUT));
        let task = Task {
            stream,
            decoder: Decoder::default(),
            sender,
            done: done_seen,
            received: received_here,
            status_interval,
            patience,
            progress,
            stalled: stalled_here,
            broken: None,
        };
        Self { chunks, done, progressed, stalled, received, task: Some(tokio::spawn(task.run())) }
    }

    /// Notes that the target has got something done.
    pub(super) fn note_progress(&self) {
        self.progressed.send_replace(Instant::now());
    }

    /// Receives for how long the publisher waited, once the connection has been closed because of that.
    pub(super) fn stalled(&self) -> watch::Receiver<Option<Duration>> {
        self.stalled.clone()
    }

    /// Whether the connection was closed because the publisher waited.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.borrow().is_some()
    }

    /// Reports positions to the publisher, at once if they have changed.
    pub(super) fn report(&self, now: Done) {
        self.done.send_if_modified(|done| {
            let before = *done;
            *done = Done {
                applied: now.applied.max(before.applied).max(now.durable),
                durable: now.durable.max(before.durable),
            };
            *done != before
        });
    }

    /// The last position received.
    pub(super) fn received(&self) -> Lsn {
        *self.received.borrow()
    }

    /// Why the chunks ended.
    pub(super) async fn end(&mut self) -> ReadError {
        match self.task.take() {
            Some(task) => task.await.unwrap_or(ReadError::Ended),
            None => ReadError::Ended,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Waits until a large chunk has been applied.
async fn released(held: &mut Option<oneshot::Receiver<()>>) {
    match held {
        // The sender is dropped, which is an error here.
        Some(held) => {
            let _ = held.await;
        }
        None => std::future::pending().await,
    }
}

struct Task {
    stream: ReplicationStream,
    decoder: Decoder,
    sender: mpsc::Sender<Chunk>,
    done: watch::Receiver<Done>,
    received: watch::Sender<Lsn>,
    status_interval: Duration,
    patience: Patience,
    progress: watch::Receiver<Instant>,
    stalled: watch::Sender<Option<Duration>>,
    /// Why nothing more can be read. The messages before are handed over first.
    broken: Option<ReadError>,
}

/// An event for the task.
enum Wake {
    Progress,
    StatusDue,
    Frame(Result<Frame, StreamError>),
    Handed,
    /// A large chunk has been applied.
    Released,
    /// Nothing has been read for as long as the publisher may wait, unless the target made progress.
    StallDue,
    /// Nothing has come for as long as the publisher may be silent before it is asked, or altogether.
    SilenceDue,
    /// The reader has been dropped.
    Abandoned,
}

impl Task {
    async fn run(mut self) -> ReadError {
        match self.read().await {
            Ok(()) => ReadError::Ended,
            Err(error) => error,
        }
    }

    async fn read(&mut self) -> Result<(), ReadError> {
        let mut status = interval_at(Instant::now() + self.status_interval, self.status_interval);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.send_status(Reply::NotNeeded).await?;
        let mut chunk = Chunk::default();
        let mut held: Option<oneshot::Receiver<()>> = None;
        // When reading last stopped, and when something last came or reading went on.
        let (mut stopped, mut heard) = (Instant::now(), Instant::now());
        let mut asked = Reply::NotNeeded;
        loop {
            let reads = chunk.events.is_empty() && held.is_none();
            let stall_due = stopped.max(*self.progress.borrow()) + self.patience.stall;
            let silence_due = heard + self.patience.silence / if asked == Reply::Requested { 1 } else { 2 };
            if chunk.events.is_empty()
                && let Some(broken) = self.broken.take()
            {
                return Err(broken);
            }
            let wake = tokio::select! {
                // Reports come first: they are short, and the publisher waits for them.
                biased;
                changed = self.done.changed() => if changed.is_ok() { Wake::Progress } else { Wake::Abandoned },
                _ = status.tick() => Wake::StatusDue,
                permit = self.sender.reserve(), if !chunk.events.is_empty() => match permit {
                    Ok(permit) => {
                        if chunk.bytes >= LARGE_CHUNK_BYTES {
                            let (hold, released) = oneshot::channel();
                            (chunk.hold, held) = (Some(hold), Some(released));
                        }
                        permit.send(std::mem::take(&mut chunk));
                        Wake::Handed
                    }
                    Err(_) => Wake::Abandoned,
                },
                () = released(&mut held), if held.is_some() => Wake::Released,
                () = sleep_until(stall_due), if !reads => Wake::StallDue,
                () = sleep_until(silence_due), if reads => Wake::SilenceDue,
                frame = self.stream.next(), if reads => Wake::Frame(frame),
            };
            match wake {
                Wake::Handed => heard = Instant::now(),
                Wake::Released => (held, heard) = (None, Instant::now()),
                Wake::Abandoned => return Ok(()),
                Wake::Progress => {
                    self.send_status(Reply::NotNeeded).await?;
                    status.reset();
                }
                Wake::StatusDue => self.send_status(Reply::NotNeeded).await?,
                Wake::StallDue if *self.progress.borrow() + self.patience.stall > Instant::now() => {}
                Wake::StallDue => {
                    self.stalled.send_replace(Some(self.patience.stall));
                    return Err(ReadError::Stalled(self.patience.stall));
                }
                Wake::SilenceDue if asked == Reply::Requested => {
                    return Err(ReadError::Silent(self.patience.silence));
                }
                Wake::SilenceDue => {
                    asked = Reply::Requested;
                    self.send_status(asked).await?;
                }
                Wake::Frame(frame) => {
                    (stopped, heard, asked) = (Instant::now(), Instant::now(), Reply::NotNeeded);
                    let gathered = match frame {
                        Ok(frame) => self.gather(frame, &mut chunk).await,
                        Err(error) => Err(error.into()),
                    };
                    self.broken = gathered.err().map(|error| self.explained(error));
                }
            }
        }
    }

    /// Takes a frame, and those after it that have already arrived.
    async fn gather(&mut self, first: Frame, chunk: &mut Chunk) -> Result<(), ReadError> {
        let mut next = Some(first);
        let mut received = None;
        while let Some(frame) = next {
            match frame {
                Frame::XLogData { wal_start, wal_end, payload, .. } => {
                    received = Some(wal_end.max(wal_start));
                    chunk.bytes += payload.len();
                    let message = self.decoder.decode(payload)?;
                    chunk.received.count(&message);
                    chunk.events.push(StreamEvent::Message(message));
                }
                Frame::Keepalive { wal_end, reply, .. } => {
                    received = Some(wal_end);
                    chunk.events.push(StreamEvent::Keepalive { wal_end, reply });
                    if reply == Reply::Requested {
                        self.send_status(Reply::NotNeeded).await?;
                    }
                }
                Frame::End => return Err(ReadError::Ended),
            }
            let full = chunk.events.len() >= CHUNK_MESSAGES_MAX || chunk.bytes >= CHUNK_BYTES_MAX;
            next = if full { None } else { self.stream.try_next()? };
        }
        if let Some(received) = received {
            self.received.send_if_modified(|seen| {
                *seen = received.max(*seen);
                false
            });
        }
        Ok(())
    }

    /// Adds to the refusal of a large message which value it is about.
    fn explained(&self, error: ReadError) -> ReadError {
        match error {
            ReadError::Stream(StreamError::TooLarge { bytes, bytes_max, head }) => {
                let value = self.decoder.large_value(&head);
                ReadError::TooLarge(LargeMessage { bytes, bytes_max, value })
            }
            error => error,
        }
    }

    async fn send_status(&mut self, reply: Reply) -> Result<(), ReadError> {
        let Done { applied, durable } = *self.done.borrow_and_update();
        // PostgreSQL's subscriber, too, reports the received position as written.
        let write = applied.max(*self.received.borrow());
        let clock_us = micros_since_2000(SystemTime::now());
        let feedback = Feedback { write, flush: durable, apply: applied, clock_us, reply };
        Ok(self.stream.send_status(&feedback).await?)
    }
}
