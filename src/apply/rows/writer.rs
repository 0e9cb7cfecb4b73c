//! One publisher transaction as one target transaction, row by row: the shell of the core's phase `Rows`.
//!
//! # Invariants
//! - After a refusal the transaction is rolled back, the evidence is gathered while what stood in the way is
//!   still there, and what was sent behind the refused row counts as passed over.
//! - Rows and progress are committed together.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::evidence;
use super::executor::Executor;
use super::facts::ConflictFacts;
use crate::apply::change::RowChange;
use crate::apply::core::Advance;
use crate::apply::stamp::Stamps;
use crate::apply::statement::{Sequences, truncate_sql};
use crate::apply::{ApplyError, TableContext, progress};
use crate::boundary;
use crate::pg::{SubscriptionName, Term};
use crate::target::TargetSession;

pub(crate) struct RowWriter<'a> {
    session: &'a TargetSession,
    executor: Executor,
    subscription: SubscriptionName,
    term: Term,
    /// The tables that the transaction has written to.
    stamps: Stamps,
    since: Instant,
    /// Rows that have been taken and not told of.
    untold: usize,
    stage: Stage,
}

/// Whether rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The transaction has ended, well or not: rows that still come belong to it, and are passed over.
    Ended,
}

/// What there is to tell.
pub(crate) enum Told {
    /// A row, or the COMMIT, is done.
    Done(Duration),
    /// Something was refused; this many rows behind it are passed over.
    Refused { facts: Box<ConflictFacts>, passed_over: usize },
    /// A row came behind a refused one.
    PassedOver,
}

impl<'a> RowWriter<'a> {
    pub(crate) fn new(session: &'a TargetSession, subscription: SubscriptionName, term: Term) -> Self {
        Self {
            session,
            executor: Executor::new(Arc::clone(session.client())),
            subscription,
            term,
            stamps: Stamps::default(),
            since: Instant::now(),
            untold: 0,
            stage: Stage::Ended,
        }
    }

    pub(crate) fn forget(&mut self, table: u64) {
        self.executor.forget(table);
    }

    /// Whether rows have been sent that are not answered.
    pub(crate) fn is_busy(&self) -> bool {
        !self.executor.is_idle()
    }

    /// Begins a target transaction.
    pub(crate) async fn begin(&mut self) -> Result<(), ApplyError> {
        self.stamps = Stamps::default();
        self.since = Instant::now();
        self.stage = Stage::Open;
        Ok(self.session.client().batch_execute("BEGIN").await?)
    }

    /// Sends a row's statement. None if its answer is still to come ([`Self::oldest`]).
    pub(crate) async fn row(
        &mut self,
        table: &Arc<TableContext>,
        change: RowChange,
        index: u64,
    ) -> Result<Option<Told>, ApplyError> {
        if self.stage == Stage::Ended {
            return Ok(Some(Told::PassedOver));
        }
        self.untold += 1;
        self.stamps.add(table);
        match self.executor.start(table, change, index).await {
            Ok(()) => Ok(None),
            Err(error) => self.refused(error).await.map(Some),
        }
    }

    /// The next answer to a row. Waits for ever if none is to come. Cancel-safe.
    pub(crate) async fn oldest(&mut self) -> Result<(), ApplyError> {
        if self.executor.is_idle() {
            return std::future::pending().await;
        }
        self.executor.settle_oldest().await
    }

    /// What the oldest answer means.
    pub(crate) async fn judge(&mut self, answer: Result<(), ApplyError>) -> Result<Told, ApplyError> {
        match answer {
            Ok(()) => {
                self.untold = self.untold.saturating_sub(1);
                Ok(Told::Done(self.since.elapsed()))
            }
            Err(error) => self.refused(error).await,
        }
    }

    /// Truncates tables once everything before has been answered.
    pub(crate) async fn truncate(
        &mut self,
        tables: &[Arc<TableContext>],
        restart_seqs: bool,
        index: u64,
    ) -> Result<Told, ApplyError> {
        if self.stage == Stage::Ended {
            return Ok(Told::PassedOver);
        }
        self.untold += 1;
        for table in tables {
            self.stamps.add(table);
        }
        let sequences = if restart_seqs { Sequences::Restart } else { Sequences::Continue };
        let sql = truncate_sql(tables.iter().map(|table| &table.plan), sequences);
        match self.session.client().batch_execute(&sql).await.map_err(ApplyError::from) {
            Ok(()) => self.judge(Ok(())).await,
            Err(error @ ApplyError::Server(_)) => {
                self.roll_back().await?;
                for table in tables {
                    evidence::check_current(table, self.session).await?;
                }
                let mut facts = evidence::collect(error, self.session).await?;
                facts.of_truncate(tables, index);
                Ok(self.told(facts))
            }
            Err(error) => Err(error),
        }
    }

    /// Rows, progress, COMMIT.
    ///
    /// # Errors
    /// [`ApplyError::ProgressMoved`] if another writer was faster. Nothing is committed then.
    pub(crate) async fn commit(&mut self, advance: Advance) -> Result<Told, ApplyError> {
        self.untold += 1;
        let client = self.session.client();
        let guarded = async {
            tokio::try_join!(
                self.stamps.check(client),
                progress::advance(client, &self.subscription, self.term, advance)
            )?;
            boundary::deed!("apply::rows", client.batch_execute("COMMIT").await, Err(client.lose().await))?;
            Ok(())
        };
        let committed = guarded.await;
        self.stage = Stage::Ended;
        match committed {
            Ok(()) => self.judge(Ok(())).await,
            Err(error) => self.refused(error).await,
        }
    }

    /// Ends the transaction on a refusal.
    ///
    /// # Errors
    /// The refusal itself, if it is no conflict.
    async fn refused(&mut self, error: ApplyError) -> Result<Told, ApplyError> {
        self.roll_back().await?;
        let facts = evidence::collect(error, self.session).await?;
        Ok(self.told(facts))
    }

    fn told(&mut self, facts: ConflictFacts) -> Told {
        let passed_over = std::mem::take(&mut self.untold).saturating_sub(1);
        Told::Refused { facts: Box::new(facts), passed_over }
    }

    async fn roll_back(&mut self) -> Result<(), ApplyError> {
        self.stage = Stage::Ended;
        self.executor.abandon();
        Ok(self.session.client().batch_execute("ROLLBACK").await?)
    }
}
