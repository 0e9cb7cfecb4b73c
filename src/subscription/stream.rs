//! The streaming part of an attempt: what the reader brings goes to the applier, what is durable
//! goes back, and tables that are still being copied are taken in at a transaction's boundary.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use crate::apply::{Applied, Applier, ApplyError, ExactBecause, How, Outcome};
use crate::config::SynchronousCommit;
use crate::conflict::ConflictReport;
use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName};
use crate::store::{StoreError, TableState};
use crate::telemetry::{BatchApplied, FellBack, Received};

use super::attempt::{Context, Phase};
use super::failure::{Failure, Restart};
use super::flushes::Flushes;
use super::format::Choice;
use super::publications::Publications;
use super::reader::{Chunk, Done, Reader, StreamEvent};
use super::table_sync::{SyncEvent, TableSyncs};

/// How long a transaction in progress may send nothing: until its end, the target's rows are locked.
const IN_PROGRESS_SILENCE_MAX: Duration = Duration::from_secs(10);

/// How a stream that did not fail ended.
#[derive(Debug)]
pub(super) enum StreamEnd {
    /// A transaction was rolled back on a conflict.
    Conflict(Box<ConflictReport>),
    /// Not a failure: what could not be applied is streamed again, and judged then.
    Restart(Restart, Failure),
    /// Something else is published now: an attempt from here on takes it up.
    PublicationsChanged,
    /// What kept the stream from being asked for in a better form has passed.
    AskForMore,
}

/// What happened next.
enum Event {
    Chunk(Chunk),
    /// There is more of the last chunk.
    Rest,
    /// The stream has waited for a table's sync long enough.
    Resume,
    /// A transaction in progress has stood still long enough with the target's locks.
    Stale,
    /// A batch has been answered.
    Settled,
    /// An idle position is to be recorded.
    Idle,
    /// The reader has stopped.
    Ended,
    Sync(SyncEvent),
    /// The target has written out commits that did not wait for it.
    Flushed(Result<Lsn, StoreError>),
    /// Nothing more is under way, and there is a reason to end here.
    Anew(StreamEnd),
}

/// Applies what comes, from `from` on, until a conflict or a failure.
pub(super) async fn run(
    context: &Context,
    applier: Applier<'_>,
    reader: &mut Reader,
    syncs: TableSyncs,
    from: Lsn,
    choice: Choice,
) -> Result<StreamEnd, Failure> {
    let mut stream = Stream {
        context,
        applier,
        syncs,
        rest: Vec::new().into_iter(),
        done: Done::all(from),
        flushes: (context.subscription.synchronous_commit == SynchronousCommit::Off)
            .then(|| Flushes::new(context.store.clone(), from)),
        first: true,
        said: HashMap::new(),
        choice,
        heard: Instant::now(),
    };
    stream.publish(reader);
    let mut publications = context.publications.subscribe();
    loop {
        let may_end = stream.may_begin_anew();
        // What has been sent to the target is not thrown away either: first it settles.
        let more_to_ask = may_end && stream.may_ask_for_more();
        let ending = more_to_ask || (may_end && publications.borrow().have_changed());
        let resume = stream.waits_for_sync();
        let stale = stream.goes_stale();
        let idle = stream.applier.idle_due();
        let (busy, open) = (stream.applier.is_busy(), !ending && resume.is_none());
        let more = !stream.rest.as_slice().is_empty();
        let event = tokio::select! {
            // Hand-overs are rare and somebody waits for them; what is done makes room.
            biased;
            event = stream.syncs.next() => Event::Sync(event),
            flushed = next_flush(&mut stream.flushes) => Event::Flushed(flushed),
            () = stream.applier.wait(), if busy => Event::Settled,
            Ok(_) = publications.wait_for(Publications::have_changed), if may_end && !busy => {
                Event::Anew(StreamEnd::PublicationsChanged)
            }
            () = std::future::ready(()), if more_to_ask && !busy => Event::Anew(StreamEnd::AskForMore),
            () = sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => Event::Resume,
            () = sleep_until(stale.unwrap_or_else(Instant::now)), if stale.is_some() => Event::Stale,
            () = sleep_until(idle.unwrap_or_else(Instant::now)), if idle.is_some() && !busy => Event::Idle,
            () = std::future::ready(()), if open && more => Event::Rest,
            chunk = reader.chunks.recv(), if open && !more => chunk.map_or(Event::Ended, Event::Chunk),
        };
        let done = match event {
            Event::Chunk(chunk) => {
                Received { subscription: context.name(), tally: chunk.received }.emit();
                // A keepalive says nothing of a transaction in progress.
                if chunk.events.iter().any(|event| matches!(event, StreamEvent::Message(_))) {
                    stream.heard = Instant::now();
                }
                stream.rest = chunk.events.into_iter();
                stream.take(reader).await
            }
            Event::Rest => stream.take(reader).await,
            Event::Resume => Ok(()),
            Event::Stale => Err(ApplyError::SendWhole.into()),
            Event::Settled => stream.applier.settle().await.map_err(Failure::from),
            Event::Idle => stream.applier.flush().await.map_err(Failure::from),
            Event::Ended => return Err(reader.end().await.into()),
            Event::Sync(event) => stream.on_sync(event).await,
            Event::Flushed(flushed) => stream.on_flushed(flushed, reader),
            Event::Anew(end) => return Ok(end),
        };
        if let Some(end) = stream.outcomes(reader).await? {
            return Ok(end);
        }
        done?;
    }
}

async fn next_flush(flushes: &mut Option<Flushes>) -> Result<Lsn, StoreError> {
    match flushes {
        Some(flushes) => flushes.next().await,
        None => std::future::pending().await,
    }
}

struct Stream<'a> {
    context: &'a Context,
    applier: Applier<'a>,
    syncs: TableSyncs,
    /// What has been received and not been taken yet.
    rest: std::vec::IntoIter<StreamEvent>,
    /// How far the target has come.
    done: Done,
    /// Where commits don't wait until they are durable: tells when they are.
    flushes: Option<Flushes>,
    /// No transaction has been applied by this attempt yet.
    first: bool,
    /// What was last said of a table whose copy fails.
    said: HashMap<QualifiedName, Diagnosis>,
    choice: Choice,
    /// When the last message came.
    heard: Instant,
}

impl Stream<'_> {
    /// Takes the chunk, up to the end of the transaction at which something else is due: a chunk
    /// seldom ends where a transaction does, and a hand-over must not depend on that luck.
    async fn take(&mut self, reader: &Reader) -> Result<(), Failure> {
        while let Some(event) = self.rest.next() {
            match event {
                StreamEvent::Message(message) => {
                    if let Some(work) = self.applier.take(message)? {
                        self.applier.work(work).await?;
                    }
                }
                StreamEvent::Keepalive(wal_end) => self.applier.keepalive(wal_end),
            }
            if self.applier.received().is_some() && self.is_something_due() {
                break;
            }
        }
        self.applier.flush().await?;
        self.hand_over().await?;
        self.publish(reader);
        Ok(())
    }

    /// Reports what has become durable, and how the stream ends, if it does.
    async fn outcomes(&mut self, reader: &Reader) -> Result<Option<StreamEnd>, Failure> {
        while let Some(outcome) = self.applier.outcome() {
            match outcome {
                Outcome::Pending => {}
                Outcome::Durable { lsn, transaction } => {
                    self.advance(lsn, reader);
                    if let Some(applied) = transaction {
                        self.note(lsn, applied).await?;
                    }
                }
                Outcome::Batch { lsn, last, tally, took } => {
                    self.advance(lsn, reader);
                    BatchApplied { subscription: self.context.name(), tally, duration: took }.emit();
                    self.note(lsn, last).await?;
                }
                Outcome::Planned { source, exact_because } => {
                    let because = exact_because.map(ExactBecause::as_str);
                    self.context.store.set_exact_because(self.context.name(), &source, because).await?;
                }
                Outcome::FellBack { cause } => {
                    FellBack { subscription: self.context.name(), cause: &cause }.emit();
                }
                Outcome::Conflict(report) => return Ok(Some(StreamEnd::Conflict(report))),
            }
            self.publish(reader);
        }
        Ok(None)
    }

    fn advance(&mut self, lsn: Lsn, reader: &Reader) {
        self.done.applied = lsn.max(self.done.applied);
        match &mut self.flushes {
            Some(flushes) => flushes.note_applied(self.done.applied),
            None => self.done.durable = self.done.applied,
        }
        reader.report(self.done);
    }

    fn on_flushed(&mut self, flushed: Result<Lsn, StoreError>, reader: &Reader) -> Result<(), Failure> {
        self.done.durable = flushed?.max(self.done.durable);
        reader.report(self.done);
        self.publish(reader);
        Ok(())
    }

    /// Publishes positions for status and metrics.
    fn publish(&self, reader: &Reader) {
        self.context.positions.send_modify(|positions| {
            positions.received = Some(reader.received().max(self.done.applied));
            positions.applied = Some(self.done.applied);
            positions.flushed = Some(self.done.durable);
        });
    }

    /// What a transaction's end means beyond its rows: a retried conflict is settled, a skip spent.
    async fn note(&mut self, lsn: Lsn, applied: Applied) -> Result<(), Failure> {
        let (store, name) = (&self.context.store, self.context.name());
        match applied.how {
            How::Skipped => {
                let lsn = applied.commit_lsn;
                info!(subscription = name, %lsn, changes = applied.changes, "transaction passed over");
                store.finish_skip(name, lsn).await?;
            }
            How::Committed if self.first => {
                let settled = store.resolve_applied(name, lsn).await?;
                debug!(subscription = name, %lsn, ?settled, "first transaction applied");
            }
            How::Committed | How::Empty => {}
        }
        self.first &= applied.how == How::Empty;
        Ok(())
    }

    /// Whether ending here throws nothing away: neither part of a transaction nor of a table's sync,
    /// which may be hours long. (A table that joins waits for the running sync in any case.)
    fn may_begin_anew(&self) -> bool {
        self.applier.received().is_some() && !self.syncs.is_running()
    }

    /// Whether an attempt that begins anew would be sent more than this one.
    fn may_ask_for_more(&self) -> bool {
        let better = self.choice.better_after.filter(|_| self.syncs.is_empty());
        better.is_some_and(|better| better.is_due(Instant::now(), self.done.applied))
    }

    /// Until when more of a transaction in progress has to come; none if there is none.
    fn goes_stale(&self) -> Option<Instant> {
        self.applier.is_in_progress().then_some(self.heard + IN_PROGRESS_SILENCE_MAX)
    }

    /// Until when the stream keeps still for a table's sync that is about to reach it, if it does.
    fn waits_for_sync(&mut self) -> Option<Instant> {
        self.applier.received().and_then(|received| self.syncs.worth_waiting_until(received))
    }

    /// Whether the end of a transaction is where the stream should stop and look around.
    fn is_something_due(&mut self) -> bool {
        self.waits_for_sync().is_some()
            || (self.may_begin_anew() && self.context.publications.borrow().have_changed())
    }

    /// Takes in a table whose sync has come as far as the stream has been received. Only between
    /// transactions.
    async fn hand_over(&mut self) -> Result<(), Failure> {
        if !self.applier.received().is_some_and(|received| self.syncs.is_waiting_at(received)) {
            return Ok(());
        }
        let event = self.syncs.finish().await;
        self.on_sync(event).await
    }

    async fn on_sync(&mut self, event: SyncEvent) -> Result<(), Failure> {
        let (store, name) = (&self.context.store, self.context.name());
        match event {
            SyncEvent::CaughtUp => return Box::pin(self.hand_over()).await,
            SyncEvent::State { source, state } => store.set_table_state(name, &source, state, None).await?,
            SyncEvent::Done { source, position } => {
                info!(subscription = name, relation = %source, lsn = %position, "table synchronised");
                self.applier.set_position(&source, position);
                self.report_held_back(None).await;
            }
            SyncEvent::Failed { source, diagnosis } => {
                // It is tried again every few seconds: said once, until it fails of something else.
                if self.said.get(&source) != Some(&diagnosis) {
                    self.context.attention(Some(&source), &diagnosis);
                    self.said.insert(source.clone(), diagnosis.clone());
                }
                store.set_table_state(name, &source, TableState::Pending, Some(&diagnosis)).await?;
                self.report_held_back(Some(diagnosis)).await;
            }
        }
        Ok(())
    }

    async fn report_held_back(&mut self, failed: Option<Diagnosis>) {
        if failed.is_some() || self.syncs.is_empty() {
            self.context.tell(Phase::TableHeldBack(failed)).await;
        }
    }
}
