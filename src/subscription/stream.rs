//! The streaming part of an attempt: what the reader brings goes to the applier, what is durable
//! goes back, and tables that are still being copied are taken in at a transaction's boundary.

use tokio::time::Instant;
use tracing::{debug, info};

use crate::apply::{Applied, Applier, How, Outcome};
use crate::conflict::ConflictReport;
use crate::error::Diagnosis;
use crate::pg::Lsn;
use crate::store::TableState;
use crate::telemetry::{BatchApplied, Received};

use super::attempt::{Context, Phase};
use super::failure::Failure;
use super::reader::{Chunk, Reader, StreamEvent};
use super::table_sync::{SyncEvent, TableSyncs};

/// How a stream that did not fail ended.
#[derive(Debug)]
pub(super) enum StreamEnd {
    /// A transaction was rolled back on a conflict.
    Conflict(Box<ConflictReport>),
}

/// What happened next.
enum Event {
    Chunk(Chunk),
    /// The reader has stopped.
    Ended,
    Sync(SyncEvent),
}

/// Applies what comes, from `from` on, until a conflict or a failure.
pub(super) async fn run(
    context: &Context,
    applier: Applier<'_>,
    reader: &mut Reader,
    syncs: TableSyncs,
    from: Lsn,
) -> Result<StreamEnd, Failure> {
    let mut stream = Stream { context, applier, syncs, durable: from, first: true, batch_began: None };
    stream.publish(reader);
    loop {
        let event = tokio::select! {
            // Hand-overs are rare and somebody waits for them.
            biased;
            event = stream.syncs.next() => Event::Sync(event),
            chunk = reader.chunks.recv() => chunk.map_or(Event::Ended, Event::Chunk),
        };
        match event {
            Event::Chunk(chunk) => {
                if let Some(end) = stream.take(chunk, reader).await? {
                    return Ok(end);
                }
            }
            Event::Ended => return Err(reader.end().await.into()),
            Event::Sync(event) => stream.on_sync(event).await?,
        }
    }
}

struct Stream<'a> {
    context: &'a Context,
    applier: Applier<'a>,
    syncs: TableSyncs,
    /// Everything up to here is durable in the target.
    durable: Lsn,
    /// No transaction has been applied by this attempt yet.
    first: bool,
    /// When the first change of the transaction that is being applied came.
    batch_began: Option<Instant>,
}

impl Stream<'_> {
    async fn take(&mut self, chunk: Chunk, reader: &Reader) -> Result<Option<StreamEnd>, Failure> {
        Received { subscription: self.context.name(), tally: chunk.received }.emit();
        for event in chunk.events {
            if matches!(event, StreamEvent::Message(_)) {
                self.batch_began.get_or_insert_with(Instant::now);
            }
            let outcome = match event {
                StreamEvent::Message(message) => self.applier.handle(message).await?,
                StreamEvent::Keepalive(wal_end) => self.applier.keepalive(wal_end),
            };
            match outcome {
                Outcome::Pending => {}
                Outcome::Durable { lsn, transaction } => {
                    self.advance(lsn, reader);
                    if let Some(applied) = transaction {
                        self.note(lsn, applied).await?;
                    }
                    self.hand_over().await?;
                }
                Outcome::Conflict(report) => return Ok(Some(StreamEnd::Conflict(report))),
            }
        }
        self.publish(reader);
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
        let duration = self.batch_began.take().map(|began| began.elapsed()).unwrap_or_default();
        if applied.how == How::Committed {
            BatchApplied { subscription: name, tally: applied.tally, duration }.emit();
        }
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

    /// Takes in a table whose sync has come as far as the stream. Only between transactions.
    async fn hand_over(&mut self) -> Result<(), Failure> {
        if !self.applier.is_between_transactions() || !self.syncs.is_waiting_at(self.durable) {
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
                self.context.attention(Some(&source), &diagnosis);
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
