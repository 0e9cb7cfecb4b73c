//! Applies one publisher transaction as one target transaction, row by row: carries out the steps of the core's
//! phase `Rows`.
//!
//! # Invariants
//! - After a refusal the transaction is rolled back and the evidence is collected. Rows that were sent after
//!   the refused one are answered as passed over.
//! - Rows and progress are committed together.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::evidence;
use super::executor::Executor;
use super::facts::ConflictFacts;
use crate::apply::change::RowChange;
use crate::apply::core::Advance;
use crate::apply::end::{End, Unfit};
use crate::apply::stamp::Stamps;
use crate::apply::statement::{Sequences, common_role, truncate_sql};
use crate::apply::{ApplyError, TableContext, progress};
use crate::boundary;
use crate::pg::{Lsn, SubscriptionName, Term};
use crate::target::TargetSession;

pub(crate) struct RowWriter<'a> {
    session: &'a TargetSession,
    executor: Executor,
    subscription: SubscriptionName,
    term: Term,
    /// The tables that the transaction has written to.
    stamps: Stamps,
    since: Instant,
    /// Where the publisher's transaction finishes.
    finish: Option<Lsn>,
    /// Number of steps that have been taken and not answered.
    untold: usize,
    stage: Stage,
}

/// Whether rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// The transaction has been committed or rolled back. Rows that still come belong to it and are passed
    /// over.
    Ended,
}

/// The answer to a step.
pub(crate) enum Told {
    /// A row, or the COMMIT, is done.
    Done(Duration),
    /// A step was refused; this many unanswered rows after it are passed over.
    Refused { facts: Box<ConflictFacts>, passed_over: usize },
    /// The row came after a refused one.
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
            finish: None,
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

    /// Begins a target transaction for the publisher's that finishes at `finish`.
    pub(crate) async fn begin(&mut self, finish: Lsn) -> Result<(), ApplyError> {
        self.finish = Some(finish);
        self.stamps = Stamps::default();
        self.since = Instant::now();
        self.stage = Stage::Open;
        Ok(self.session.client().batch_execute("BEGIN").await?)
    }

    /// Sends a row's statement. Returns none if its answer is outstanding ([`Self::oldest`]).
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

    /// Waits for the oldest row's answer; for ever if no row is unanswered. Cancel-safe.
    pub(crate) async fn oldest(&mut self) -> Result<(), ApplyError> {
        if self.executor.is_idle() {
            return std::future::pending().await;
        }
        self.executor.settle_oldest().await
    }

    /// Turns the oldest row's result into its answer, and rolls back after a refusal.
    pub(crate) async fn judge(&mut self, answer: Result<(), ApplyError>) -> Result<Told, ApplyError> {
        match answer {
            Ok(()) => {
                self.untold = self.untold.saturating_sub(1);
                Ok(Told::Done(self.since.elapsed()))
            }
            Err(error) => self.refused(error).await,
        }
    }

    /// Truncates tables. Everything before must have been answered.
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
        let plans = || tables.iter().map(|table| &table.plan);
        let truncated = async {
            self.executor.run_as(common_role(plans())).await?;
            self.session.client().batch_execute(&truncate_sql(plans(), sequences)).await
        };
        match truncated.await.map_err(ApplyError::from) {
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

    /// Checks the tables' stamps, moves the progress row and commits.
    ///
    /// # Errors
    /// [`ApplyError::ProgressMoved`] if another writer has moved the progress row. Nothing is committed then.
    pub(crate) async fn commit(&mut self, advance: Advance) -> Result<Told, ApplyError> {
        self.untold += 1;
        let client = self.session.client();
        let guarded = async {
            self.executor.run_as(None).await?;
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

    /// Rolls the transaction back after a refusal, and collects the evidence.
    ///
    /// # Errors
    /// The error itself, if it is no conflict.
    async fn refused(&mut self, error: ApplyError) -> Result<Told, ApplyError> {
        self.roll_back().await?;
        match evidence::collect(error, self.session).await {
            Ok(facts) => Ok(self.told(facts)),
            Err(ApplyError::Ended(End::Unfit(unfit))) => {
                Err(End::Unfit(Unfit { finish: self.finish, ..unfit }).into())
            }
            Err(error) => Err(error),
        }
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
