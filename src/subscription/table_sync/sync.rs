//! One synchronisation of a table: from its temporary slot, over the copy and the table's own stream, to the COMMIT.

use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};

use crate::apply::{Applies, CatchUp, Member};
use crate::copy::{self, CommitOf, CopyJob};
use crate::error::Diagnosis;
use crate::net;
use crate::net::places::{self, Place};
use crate::pg::{Lsn, quote_literal};
use crate::pgoutput::Format;
use crate::replication::{CreatedSlot, ReplicationConnection, SlotLifetime, SlotSnapshot, SlotSpec};
use crate::schema::catalog::PublisherSettings;
use crate::store::TableState;
use crate::subscription::context::Context;
use crate::subscription::failure::Failure;
use crate::subscription::findings;
use crate::subscription::first_rows::{CopyStart, copy_job};
use crate::subscription::format::Transactions;
use crate::subscription::misfits::with_facts;
use crate::subscription::publisher::{self, Encoding, Publisher, Wanted};
use crate::subscription::reader::{Done, Patience, ReadError, Reader, StreamEvent};
use crate::subscription::sharing;
use crate::subscription::slot;
use crate::subscription::slot_wait::{Progress, SlotCreation};
use crate::subscription::take_up::{PendingTable, compare_again};
use crate::target::{OriginUse, TargetSession};

/// A table's stream may be silent so many times as long as the main one. An old publisher decodes a very large transaction
/// without a word, and the table would be copied again.
const SILENCE_FACTOR: u32 = 10;

/// What a synchronisation tells the queue.
pub(super) enum Report {
    /// The rows have been copied, by the copy with this number.
    CatchingUp(i32),
    Reached(Lsn),
}

/// What one synchronisation needs.
pub(super) struct Sync {
    pub(super) context: Context,
    pub(super) settings: PublisherSettings,
    pub(super) encoding: Encoding,
    /// The publications that the stream is asked for.
    pub(super) publications: Vec<String>,
}

impl Sync {
    /// Synchronises the table. Returns the position from which on the main stream applies its changes.
    pub(super) async fn run(
        &self,
        table: &mut PendingTable,
        reports: mpsc::Sender<Report>,
        finish: oneshot::Receiver<()>,
    ) -> Result<Lsn, Failure> {
        let (context, subscription) = (&self.context, &self.context.subscription);
        let _place = self.place(table).await?;
        let mut target = TargetSession::open(&context.target, &format!("{} sync", subscription.name)).await?;
        target.set_origin(&subscription.name, OriginUse::TableSync).await?;
        let publisher = Publisher {
            client: net::client(&subscription.publisher, &self.copy_options()).await?,
            settings: self.settings.clone(),
            encoding: self.encoding,
        };
        if let Err(failure) = compare_again(&target, table).await {
            return Err(with_facts(context, &target, &publisher, failure).await);
        }
        if table.resync.is_some() {
            self.expect_own_rows(table, &target).await?;
        }
        let job = match copy_job(context, table).await? {
            CopyStart::Job(job) => job,
            CopyStart::Ready(position) => return Ok(position),
        };
        let (table, source) = (&*table, &job.source);
        let mut replication = publisher::replication(subscription, publisher.encoding).await?;
        let slot_name = slot::temporary_name(&subscription.slot);
        let spec = SlotSpec {
            name: slot_name.clone(),
            lifetime: SlotLifetime::Temporary,
            snapshot: SlotSnapshot::Export,
            two_phase: false,
            failover: false,
        };
        let slot = self.create_slot(&publisher, &mut replication, &spec, &job).await?;
        let snapshot = slot.snapshot.unwrap_or_default();
        context.snapshot.send_modify(|seen| seen.copies_begin(std::slice::from_ref(&job)));
        let rows = self.copy(&publisher, &target, &job, &snapshot).await;
        context.snapshot.send_modify(|seen| seen.copy_ends(source));
        let rows = rows?;
        info!(subscription = %subscription.name, relation = %source, rows, "table copied, catching up");
        let _ = reports.send(Report::CatchingUp(job.attempt)).await;
        let from = slot.consistent_point;
        let wanted = Wanted {
            publications: self.publications.clone(),
            format: Format::Text,
            transactions: Transactions::Whole,
        };
        let stream = publisher.start(subscription, replication, &slot_name, from, wanted).await?;
        let silence = subscription.peer_timeout * SILENCE_FACTOR;
        let patience = Patience { stall: subscription.stall_timeout, silence };
        let mut reader = Reader::start(stream, from, publisher.wal_sender_timeout(), patience);
        let position = match self.catch_up(table, &target, &mut reader, from, &reports, finish).await {
            Err(failure) if failure.has_misfits() => {
                return Err(with_facts(context, &target, &publisher, failure).await);
            }
            position => position?,
        };
        let finished = async {
            copy::finish_table(target.client(), &context.owner, &job, from, position, rows).await?;
            copy::commit(CommitOf::TableSync, &target, &context.target, &context.owner, &job, position).await
        };
        let role = &subscription.publisher.user;
        finished.await.map_err(|error| Failure::of_copy(&error, source, role))?;
        // The rows are committed, so a failure of this session does not matter any more.
        if let Err(error) = target.release_origin().await {
            debug!(subscription = %subscription.name, %error, "a sync's session ended early");
        }
        Ok(position)
    }

    /// Waits for a place for the session on the target, where they are bounded. The table's record says so meanwhile.
    async fn place(&self, table: &PendingTable) -> Result<Option<Place>, Failure> {
        if let Some(place) = places::try_copy() {
            return Ok(Some(place));
        }
        let (context, source) = (&self.context, &table.published.relation.name);
        let (waits, pending) = (findings::no_session_for_a_copy(), TableState::Pending);
        context.attention(Some(source), &waits);
        let record = async |diagnosis| {
            context.store.set_table_state(&context.owner, source, table.attempt, pending, diagnosis).await
        };
        record(Some(&waits)).await?;
        let place = places::copy().await;
        record(None).await?;
        Ok(place)
    }

    /// Refuses a synchronisation that was asked for before other tables brought rows into its target.
    async fn expect_own_rows(&self, table: &PendingTable, target: &TargetSession) -> Result<(), Failure> {
        let source = std::slice::from_ref(&table.published.relation.name);
        let shared = sharing::of_resync(&self.context, target, source).await;
        shared.map(drop).map_err(|refused| Failure::retry(refused.diagnosis))
    }

    /// Creates the temporary slot. While the publisher makes it wait, the table's record says for whom.
    async fn create_slot(
        &self,
        publisher: &Publisher,
        replication: &mut ReplicationConnection,
        spec: &SlotSpec,
        job: &CopyJob,
    ) -> Result<CreatedSlot, Failure> {
        let mut creation = SlotCreation::begin(replication, spec, &publisher.client);
        let created = loop {
            match creation.next().await {
                Progress::Waits(diagnosis) => {
                    self.context.attention(Some(&job.source), &diagnosis);
                    self.record_wait(job, Some(&diagnosis)).await?;
                }
                Progress::Ended(created) => break created,
            }
        };
        if creation.has_waited() {
            self.record_wait(job, None).await?;
        }
        Ok(created?)
    }

    async fn record_wait(&self, job: &CopyJob, diagnosis: Option<&Diagnosis>) -> Result<(), Failure> {
        let (owner, state) = (&self.context.owner, TableState::Copying);
        self.context.store.set_table_state(owner, &job.source, job.attempt, state, diagnosis).await?;
        Ok(())
    }

    async fn copy(
        &self,
        publisher: &Publisher,
        target: &TargetSession,
        job: &CopyJob,
        snapshot: &str,
    ) -> Result<u64, Failure> {
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            quote_literal(snapshot)
        );
        let rows = async {
            let source = &publisher.client;
            source.batch_execute(&begin).await.map_err(copy::CopyError::publisher)?;
            target.client().batch_execute("BEGIN").await.map_err(copy::CopyError::target)?;
            let rows = copy::copy_rows(source, target, job).await?;
            // All rows have been read, so a failure of this session does not matter any more.
            let ended = source.batch_execute("COMMIT").await;
            debug!(relation = %job.source, ?ended, "the publisher's session has been read");
            copy::settle_rows(target, job).await?;
            Ok(rows)
        };
        let role = &self.context.subscription.publisher.user;
        let rows = rows.await.map_err(|error| Failure::of_copy(&error, &job.source, role))?;
        let (context, copied) = (&self.context, job.copied.load(Ordering::Relaxed));
        context.store.report_copy(&context.owner, &job.source, job.attempt, copied, job.estimated).await?;
        Ok(rows)
    }

    /// Applies the table's changes until asked to finish; ends between two transactions.
    async fn catch_up(
        &self,
        table: &PendingTable,
        target: &TargetSession,
        reader: &mut Reader,
        from: Lsn,
        reports: &mpsc::Sender<Report>,
        mut finish: oneshot::Receiver<()>,
    ) -> Result<Lsn, Failure> {
        let member = Member { applies: Applies::from(from), ..table.member.clone() };
        let mut catch_up = CatchUp::new(target, table.published.relation.name.clone(), member);
        let mut reached = from;
        let mut finishing = false;
        let _ = reports.send(Report::Reached(reached)).await;
        loop {
            if finishing && catch_up.is_between_transactions() {
                return Ok(reached);
            }
            let chunk = tokio::select! {
                biased;
                asked = &mut finish, if !finishing => {
                    // The sender has been dropped: the stream has ended.
                    asked.map_err(|_| Failure::retry(Diagnosis::new("the stream has ended")))?;
                    finishing = true;
                    continue;
                }
                chunk = reader.chunks.recv() => chunk,
            };
            let Some(chunk) = chunk else {
                return Err(match reader.end().await {
                    ReadError::TooLarge(message) => catch_up.refuse(message).into(),
                    error => error.into(),
                });
            };
            let _hold = chunk.hold;
            for event in chunk.events {
                let position = match event {
                    StreamEvent::Message(message) => {
                        let handled = catch_up.handle(message).await?;
                        reader.note_progress();
                        handled
                    }
                    StreamEvent::Keepalive { wal_end, .. } => {
                        catch_up.is_between_transactions().then_some(wal_end)
                    }
                };
                reached = position.map_or(reached, |position| position.max(reached));
            }
            catch_up.settle().await?;
            // The slot is temporary: after a failure another one is created, so its WAL is not needed again.
            reader.report(Done::all(reached));
            let _ = reports.send(Report::Reached(reached)).await;
        }
    }

    fn copy_options(&self) -> net::ClientOptions {
        publisher::copy_options(&self.context.subscription, self.encoding)
    }
}
