//! The exact path: one publisher transaction is one target transaction, row by row in order.
//!
//! Events go in as they come, also of a transaction too large to keep: its rows flow into the open
//! target transaction, so memory stays bounded. A failed transaction is rolled back at once; the
//! rest of its events are only counted, so that the evidence can say how large it is.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::debug;

use crate::apply::change::RowChange;
use crate::apply::incoming::event::Event;
use crate::apply::incoming::tables::Tables;
use crate::apply::progress::{self, Advance};
use crate::apply::rows::evidence::{self, ConflictFacts};
use crate::apply::rows::executor::Executor;
use crate::apply::stamp::Stamps;
use crate::apply::statement::{Sequences, truncate_sql};
use crate::apply::{Applied, ApplyError, How, Outcome, TableContext, unix_time_us};
use crate::pg::{Lsn, SubscriptionName, Term};
use crate::pgoutput::{Begin, Commit};
use crate::target::TargetSession;
use crate::telemetry::Tally;

/// Applies events one by one.
#[derive(Debug)]
pub(crate) struct Exact<'a> {
    session: &'a TargetSession,
    executor: Executor,
    subscription: SubscriptionName,
    term: Term,
    /// Pass over exactly the transaction that finishes here.
    skip: Option<Lsn>,
    transaction: Option<Transaction>,
}

/// The publisher's transaction that is being applied.
#[derive(Debug)]
struct Transaction {
    begin: Begin,
    /// What has been applied of it.
    tally: Tally,
    stage: Stage,
    /// The tables that it has written to.
    stamps: Stamps,
}

#[derive(Debug)]
enum Stage {
    /// Nothing to apply so far.
    Empty,
    /// The target transaction is open.
    Open { since: Instant },
    /// Passed over on an operator's word.
    Skipped,
    /// Rolled back; waiting for the end to know its size.
    Failed(Box<ConflictFacts>),
}

impl<'a> Exact<'a> {
    pub(crate) fn new(
        session: &'a TargetSession,
        subscription: SubscriptionName,
        term: Term,
        skip: Option<Lsn>,
    ) -> Self {
        let executor = Executor::new(Arc::clone(session.client()));
        Self { session, executor, subscription, term, skip, transaction: None }
    }

    /// Whether the transaction that finishes at `lsn` is to be passed over.
    pub(crate) fn skips(&self, lsn: Lsn) -> bool {
        self.skip == Some(lsn)
    }

    pub(crate) fn subscription(&self) -> &SubscriptionName {
        &self.subscription
    }

    pub(crate) fn is_between_transactions(&self) -> bool {
        self.transaction.is_none()
    }

    pub(crate) fn forget(&mut self, table: u64) {
        self.executor.forget(table);
    }

    /// Takes the next event. `recorded` is the progress row's position and moves with it; `names`
    /// tells which published table is meant by a target table that the server names.
    ///
    /// # Errors
    /// After an error nothing more can be applied, and the session's transaction may be open
    /// ([`TargetSession::reset`]).
    pub(crate) async fn handle(
        &mut self,
        event: Event,
        recorded: &mut Lsn,
        names: &Tables,
    ) -> Result<Outcome, ApplyError> {
        match event {
            Event::Begin(begin) => self.begin(begin),
            Event::Change { table, change, index } => self.change(&table, change, index).await,
            Event::Truncate { tables, restart_seqs, index } => {
                self.truncate(&tables, restart_seqs, index).await
            }
            Event::Commit { commit, changes } => self.commit(&commit, changes, recorded, names).await,
            Event::Idle(lsn) => Ok(Outcome::Durable { lsn, transaction: None }),
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<Outcome, ApplyError> {
        if self.transaction.is_some() {
            return Err(ApplyError::OutOfOrder("BEGIN within a transaction".to_owned()));
        }
        let stage = if self.skips(begin.final_lsn) { Stage::Skipped } else { Stage::Empty };
        let (tally, stamps) = (Tally::default(), Stamps::default());
        self.transaction = Some(Transaction { begin, tally, stage, stamps });
        Ok(Outcome::Pending)
    }

    async fn change(
        &mut self,
        table: &Arc<TableContext>,
        change: RowChange,
        index: u64,
    ) -> Result<Outcome, ApplyError> {
        if !self.applies()? {
            return Ok(Outcome::Pending);
        }
        self.open([table]).await?;
        if let Some(transaction) = &mut self.transaction {
            match change {
                RowChange::Insert { .. } => transaction.tally.inserts += 1,
                RowChange::Update { .. } => transaction.tally.updates += 1,
                RowChange::Delete { .. } => transaction.tally.deletes += 1,
            }
        }
        let result = self.executor.submit(table, change, index).await;
        self.settle(result, |_| ()).await
    }

    async fn truncate(
        &mut self,
        tables: &[Arc<TableContext>],
        restart_seqs: bool,
        index: u64,
    ) -> Result<Outcome, ApplyError> {
        if !self.applies()? {
            return Ok(Outcome::Pending);
        }
        self.open(tables).await?;
        if let Some(transaction) = &mut self.transaction {
            transaction.tally.truncates += tables.len() as u64;
        }
        let sequences = if restart_seqs { Sequences::Restart } else { Sequences::Continue };
        let sql = truncate_sql(tables.iter().map(|table| &table.plan), sequences);
        let result = match self.executor.drain().await {
            Ok(()) => self.session.client().batch_execute(&sql).await.map_err(ApplyError::from),
            Err(error) => Err(error),
        };
        if let Err(ApplyError::Server(_)) = &result {
            self.roll_back().await?;
            for table in tables {
                table.check_current(self.session).await?;
            }
        }
        self.settle(result, |finding| finding.of_truncate(tables, index)).await
    }

    /// Waits for what is in flight, and judges it: whatever is asked of the session next must not
    /// meet a transaction that an earlier change has aborted.
    pub(crate) async fn come_to_rest(&mut self) -> Result<(), ApplyError> {
        let result = self.executor.drain().await;
        if result.is_err() {
            self.settle(result, |_| ()).await?;
        }
        Ok(())
    }

    /// Whether changes of the transaction are still applied.
    fn applies(&self) -> Result<bool, ApplyError> {
        match &self.transaction {
            None => Err(ApplyError::OutOfOrder("a change outside a transaction".to_owned())),
            Some(transaction) => Ok(matches!(transaction.stage, Stage::Empty | Stage::Open { .. })),
        }
    }

    async fn commit(
        &mut self,
        commit: &Commit,
        changes: u64,
        recorded: &mut Lsn,
        names: &Tables,
    ) -> Result<Outcome, ApplyError> {
        let Some(Transaction { begin, tally, stage, stamps }) = self.transaction.take() else {
            return Err(ApplyError::OutOfOrder("COMMIT outside a transaction".to_owned()));
        };
        let (how, since) = match stage {
            Stage::Failed(finding) => return Ok(self.conflict(*finding, &begin, changes)),
            Stage::Empty => (How::Empty, None),
            Stage::Skipped => (How::Skipped, None),
            Stage::Open { since } => (How::Committed, Some(since)),
        };
        let applied = Applied {
            commit_lsn: commit.commit_lsn,
            commit_time_us: unix_time_us(commit.commit_time),
            changes,
            how,
        };
        let durable = || match since {
            Some(since) => Outcome::Batch {
                lsn: commit.end_lsn,
                last: applied,
                tally: Tally { transactions: 1, ..tally },
                took: since.elapsed(),
            },
            None => Outcome::Durable { lsn: commit.end_lsn, transaction: Some(applied) },
        };
        match how {
            // Nothing to write, and nothing to remember: should it come again, it is empty again.
            How::Empty => return Ok(durable()),
            How::Skipped => self.session.client().batch_execute("BEGIN").await?,
            How::Committed => {}
        }
        let step = Advance {
            from: *recorded,
            to: commit.end_lsn,
            commit_time_us: applied.commit_time_us,
            transactions: 1,
        };
        match self.finish(step, &stamps).await {
            Ok(()) => {
                *recorded = commit.end_lsn;
                Ok(durable())
            }
            Err(error) => {
                self.roll_back().await?;
                let mut finding = evidence::collect(error, self.session).await?;
                finding.of_commit(names.source_of(finding.target()), changes);
                Ok(self.conflict(finding, &begin, changes))
            }
        }
    }

    fn conflict(&self, finding: ConflictFacts, begin: &Begin, changes: u64) -> Outcome {
        Outcome::Conflict(Box::new(finding.into_report(&self.subscription, begin, changes)))
    }

    /// Rows, progress, COMMIT.
    async fn finish(&mut self, step: Advance, stamps: &Stamps) -> Result<(), ApplyError> {
        self.executor.drain().await?;
        let client = self.session.client();
        let advanced = progress::advance(client, &self.subscription, self.term, step);
        tokio::try_join!(stamps.check(client), advanced)?;
        fail::fail_point!("apply::before_commit");
        self.session.client().batch_execute("COMMIT").await?;
        fail::fail_point!("apply::after_commit");
        Ok(())
    }

    async fn open(&mut self, tables: impl IntoIterator<Item = &Arc<TableContext>>) -> Result<(), ApplyError> {
        let Some(transaction) = &mut self.transaction else { return Ok(()) };
        for table in tables {
            transaction.stamps.add(table);
        }
        if matches!(transaction.stage, Stage::Empty) {
            self.session.client().batch_execute("BEGIN").await?;
            transaction.stage = Stage::Open { since: Instant::now() };
        }
        Ok(())
    }

    /// Judges a statement's result. A conflict ends the target transaction and keeps its evidence;
    /// anything else goes up. `name` says what a refusal that belongs to no row belongs to.
    async fn settle(
        &mut self,
        result: Result<(), ApplyError>,
        name: impl FnOnce(&mut ConflictFacts),
    ) -> Result<Outcome, ApplyError> {
        let Err(error) = result else { return Ok(Outcome::Pending) };
        self.roll_back().await?;
        let mut finding = evidence::collect(error, self.session).await?;
        name(&mut finding);
        debug!(subscription = %self.subscription, "transaction rolled back on a conflict");
        if let Some(transaction) = &mut self.transaction {
            transaction.stage = Stage::Failed(Box::new(finding));
        }
        Ok(Outcome::Pending)
    }

    async fn roll_back(&mut self) -> Result<(), ApplyError> {
        self.executor.abandon();
        Ok(self.session.client().batch_execute("ROLLBACK").await?)
    }
}
