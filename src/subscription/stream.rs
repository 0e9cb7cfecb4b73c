//! The streaming part of an attempt: what the reader brings goes to the applier, what is durable
//! goes back, and tables that are still being copied are taken in at a transaction's boundary.

use std::collections::HashMap;

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use crate::apply::{Applied, Applier, ExactBecause, How, Outcome};
use crate::conflict::ConflictReport;
use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName};
use crate::store::TableState;
use crate::telemetry::{BatchApplied, FellBack, Received};

use super::attempt::{Context, Phase};
use super::failure::{Failure, Restart};
use super::publications::Publications;
use super::reader::{Chunk, Reader, StreamEvent};
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
}

/// What happened next.
enum Event {
    Chunk(Chunk),
    /// There is more of the last chunk.
    Rest,
    /// The stream has waited for a table's sync long enough.
    Resume,
    /// A batch has been answered.
    Settled,
    /// The reader has stopped.
    Ended,
    Sync(SyncEvent),
    PublicationsChanged,
}

/// Applies what comes, from `from` on, until a conflict or a failure.
pub(super) async fn run(
    context: &Context,
    applier: Applier<'_>,
    reader: &mut Reader,
    syncs: TableSyncs,
    from: Lsn,
) -> Result<StreamEnd, Failure> {
    let rest = Vec::new().into_iter();
    let mut stream =
        Stream { context, applier, syncs, rest, durable: from, first: true, said: HashMap::new() };
    stream.publish(reader);
    let mut publications = context.publications.subscribe();
    loop {
        let may_end = stream.may_begin_anew();
        // What has been sent to the target is not thrown away either: first it settles.
        let ending = may_end && publications.borrow().have_changed();
        let resume = stream.waits_for_sync();
        let (busy, open) = (stream.applier.is_busy(), !ending && resume.is_none());
        let more = !stream.rest.as_slice().is_empty();
        let event = tokio::select! {
            // Hand-overs are rare and somebody waits for them; what is done makes room.
            biased;
            event = stream.syncs.next() => Event::Sync(event),
            () = stream.applier.wait(), if busy => Event::Settled,
            Ok(_) = publications.wait_for(Publications::have_changed), if may_end && !busy => {
                Event::PublicationsChanged
            }
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
            Event::Settled => stream.applier.settle().await.map_err(Failure::from),
            Event::Ended => return Err(reader.end().await.into()),
            Event::Sync(event) => stream.on_sync(event).await,
            Event::PublicationsChanged => return Ok(StreamEnd::PublicationsChanged),
        };
        if let Some(end) = stream.outcomes(reader).await? {
            return Ok(end);
        }
        done?;
    }
}

struct Stream<'a> {
    context: &'a Context,
    applier: Applier<'a>,
    syncs: TableSyncs,
    /// What has been received and not been taken yet.
    rest: std::vec::IntoIter<StreamEvent>,
    /// Everything up to here is durable in the target.
    durable: Lsn,
    /// No transaction has been applied by this attempt yet.
    first: bool,
    /// What was last said of a table whose copy fails.
    said: HashMap<QualifiedName, Diagnosis>,
}

impl Stream<'_> {
    /// Takes the chunk, up to the end of the transaction at which something else is due: a chunk
    /// seldom ends where a transaction does, and a hand-over must not depend on that luck.
    async fn take(&mut self, reader: &Reader) -> Result<(), Failure> {
        while let Some(event) = self.rest.next() {
            match event {
                StreamEvent::Message(message) => self.applier.take(message).await?,
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
        if lsn > self.durable {
            self.durable = lsn;
            reader.report_durable(lsn);
        }
    }

    /// Publishes positions for status and metrics.
    fn publish(&self, reader: &Reader) {
        self.context.positions.send_modify(|positions| {
            positions.received = Some(reader.received().max(self.durable));
            positions.applied = Some(self.durable);
            positions.flushed = Some(self.durable);
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
                if let Some(member) = self.applier.members_mut().get_mut(&source) {
                    member.position = Some(position);
                }
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
