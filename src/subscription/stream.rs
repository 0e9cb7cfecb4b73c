//! The streaming part of an attempt: what the reader brings goes to the applier, what is durable
//! goes back, and tables that are still being copied are taken in at a transaction's boundary.

use std::collections::HashMap;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use crate::apply::{Applied, Applier, ApplyError, ExactBecause, How, Outcome};
use crate::config::SynchronousCommit;
use crate::conflict::ConflictReport;
use crate::error::{Diagnosis, PauseReason};
use crate::pg::{Lsn, QualifiedName};
use crate::replication::Reply;
use crate::store::{StoreError, TableState, TableStep};
use crate::telemetry::{BatchApplied, FellBack, Received};

use super::attempt::{Context, Phase};
use super::failure::{Cause, Failure, Restart};
use super::findings;
use super::flushes::Flushes;
use super::format::Choice;
use super::publications::Publications;
use super::reader::{Chunk, Done, Reader, StreamEvent};
use super::table_sync::{SyncEvent, TableSyncs};

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
    /// The target has answered, or time has passed.
    Applied(Result<(), ApplyError>),
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
    };
    stream.publish(reader);
    let mut publications = context.publications.subscribe();
    loop {
        let may_end = stream.may_begin_anew();
        let promptness = *context.promptness.borrow();
        stream.applier.set_idle_record_interval(promptness.idle_record_interval());
        // What has been sent to the target is not thrown away either: first it settles.
        let more_to_ask = may_end && stream.may_ask_for_more();
        let ending = more_to_ask || (may_end && publications.borrow().have_changed());
        let resume = stream.waits_for_sync();
        let busy = stream.applier.is_busy();
        let open = !ending && resume.is_none() && stream.applier.takes_messages();
        let more = !stream.rest.as_slice().is_empty();
        let event = tokio::select! {
            // Hand-overs are rare and somebody waits for them; what is done makes room.
            biased;
            event = stream.syncs.next() => Event::Sync(event),
            flushed = next_flush(&mut stream.flushes) => Event::Flushed(flushed),
            applied = stream.applier.next() => Event::Applied(applied),
            Ok(_) = publications.wait_for(Publications::have_changed), if may_end && !busy => {
                Event::Anew(StreamEnd::PublicationsChanged)
            }
            () = std::future::ready(()), if more_to_ask && !busy => Event::Anew(StreamEnd::AskForMore),
            () = sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => Event::Resume,
            () = std::future::ready(()), if open && more => Event::Rest,
            chunk = reader.chunks.recv(), if open && !more => chunk.map_or(Event::Ended, Event::Chunk),
        };
        let done = match event {
            Event::Chunk(chunk) => {
                Received { subscription: context.name(), tally: chunk.received }.emit();
                stream.rest = chunk.events.into_iter();
                stream.take(reader).await
            }
            Event::Rest => stream.take(reader).await,
            Event::Resume => Ok(()),
            Event::Applied(applied) => applied.map_err(Failure::from),
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
}

impl Stream<'_> {
    /// Takes the chunk, up to the end of the transaction at which something else is due: a chunk
    /// seldom ends where a transaction does, and a hand-over must not depend on that luck.
    async fn take(&mut self, reader: &Reader) -> Result<(), Failure> {
        while self.applier.takes_messages()
            && let Some(event) = self.rest.next()
        {
            match event {
                StreamEvent::Message(message) => self.applier.take(message)?,
                StreamEvent::Keepalive { wal_end, reply } => {
                    self.applier.keepalive(wal_end, reply == Reply::Requested);
                }
            }
            if self.applier.received().is_some() && self.is_something_due() {
                break;
            }
        }
        self.applier.quiet()?;
        self.hand_over().await?;
        self.publish(reader);
        Ok(())
    }

    /// Reports what has become durable, and how the stream ends, if it does.
    async fn outcomes(&mut self, reader: &Reader) -> Result<Option<StreamEnd>, Failure> {
        while let Some(outcome) = self.applier.outcome() {
            match outcome {
                Outcome::Durable { lsn, skipped } => {
                    self.advance(lsn, reader);
                    if let Some(skipped) = skipped {
                        self.note(lsn, skipped).await?;
                    }
                }
                Outcome::Batch { lsn, last, tally, took } => {
                    self.advance(lsn, reader);
                    BatchApplied { subscription: self.context.name(), tally, duration: took }.emit();
                    self.note(lsn, last).await?;
                }
                Outcome::Planned { source, exact_because } => {
                    let because = exact_because.map(ExactBecause::as_str);
                    let (store, owner) = (&self.context.store, &self.context.owner);
                    store.set_exact_because(owner, &source, because).await?;
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
        let (store, name, owner) = (&self.context.store, self.context.name(), &self.context.owner);
        match applied.how {
            How::Skipped => {
                let lsn = applied.commit_lsn;
                info!(subscription = name, %lsn, changes = applied.changes, "transaction passed over");
                store.finish_skip(owner, lsn).await?;
            }
            How::Committed if self.first => {
                let settled = store.resolve_applied(owner, lsn).await?;
                debug!(subscription = name, %lsn, ?settled, "first transaction applied");
            }
            How::Committed => {}
        }
        self.first = false;
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
        let (store, owner) = (&self.context.store, &self.context.owner);
        match event {
            SyncEvent::CaughtUp => return Box::pin(self.hand_over()).await,
            SyncEvent::State { source, attempt, state } => {
                // One that is ready by now is told so by its own event.
                store.set_table_state(owner, &source, attempt, state, None).await?;
            }
            SyncEvent::Done { source, position } => self.take_in(source, position).await?,
            SyncEvent::Failed { source, attempt, diagnosis } => {
                // It is tried again every few seconds: said once, until it fails of something else.
                if self.said.get(&source) != Some(&diagnosis) {
                    self.context.attention(Some(&source), &diagnosis);
                    self.said.insert(source.clone(), diagnosis.clone());
                }
                let pending = TableState::Pending;
                match store.set_table_state(owner, &source, attempt, pending, Some(&diagnosis)).await? {
                    TableStep::Taken { .. } => self.report_held_back(Some(diagnosis)).await,
                    // It has landed all the same: nothing more may be passed over.
                    TableStep::Ready { .. } => {
                        return Err(Failure::retry(diagnosis).because_of(Cause::Record));
                    }
                }
            }
            SyncEvent::Ended(failure) => return Err(failure),
        }
        Ok(())
    }

    /// From the position on, the table is the stream's. Until now its changes have been passed over.
    async fn take_in(&mut self, source: QualifiedName, position: Lsn) -> Result<(), Failure> {
        let name = self.context.name();
        if self.applier.received().is_none_or(|received| received > position) {
            return Err(Failure::pause(
                PauseReason::TargetError,
                findings::passed_over(&source, position, &self.context.subscription.name),
            ));
        }
        info!(subscription = name, relation = %source, lsn = %position, "table synchronised");
        self.applier.set_position(&source, position);
        self.report_held_back(None).await;
        Ok(())
    }

    async fn report_held_back(&mut self, failed: Option<Diagnosis>) {
        if failed.is_some() || self.syncs.is_empty() {
            self.context.tell(Phase::TableHeldBack(failed)).await;
        }
    }
}
