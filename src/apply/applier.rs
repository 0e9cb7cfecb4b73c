//! The exact path: one publisher transaction is one target transaction, row by row in order.
//!
//! Messages go in as they come, also of a transaction too large to keep: its rows flow into the
//! open target transaction, so memory stays bounded. A failed transaction is rolled back at once;
//! the rest of its messages are only counted, so that the evidence can say how large it is.

use tracing::debug;

use super::evidence::{self, Finding};
use super::executor::Executor;
use super::plan::RowChange;
use super::progress::{self, Step};
use super::statement::{Sequences, truncate_sql};
use super::tables::{Lookup, Tables};
use super::{ApplyError, FailedChange, Membership, TargetSession, unix_time_us};
use crate::conflict::ConflictReport;
use crate::pg::{Lsn, SubscriptionName};
use crate::pgoutput::{Begin, Commit, Message, Truncate};
use crate::telemetry::Tally;

/// Applies one subscription's stream through one session.
pub struct Applier<'a> {
    session: &'a TargetSession,
    executor: Executor,
    subscription: SubscriptionName,
    /// The position in the progress row.
    recorded: Lsn,
    tables: Tables,
    /// Pass over exactly the transaction that finishes here.
    skip: Option<Lsn>,
    transaction: Option<Transaction>,
}

/// The publisher's transaction that is being received.
struct Transaction {
    begin: Begin,
    /// Row changes and truncations seen, those of other tables included.
    changes: u64,
    /// Those that were applied.
    tally: Tally,
    stage: Stage,
}

enum Stage {
    /// Nothing to apply so far.
    Empty,
    /// The target transaction is open.
    Open,
    /// Passed over on an operator's word.
    Skipped,
    /// Rolled back; waiting for the end to know its size.
    Failed(Box<Finding>),
}

/// What a message led to.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing durable yet.
    Pending,
    /// Everything up to `lsn` is durable in the target, or needs nothing there.
    Durable { lsn: Lsn, transaction: Option<Applied> },
    /// A transaction was rolled back; this is why.
    Conflict(Box<ConflictReport>),
}

/// A transaction that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Where it finishes: its commit record.
    pub commit_lsn: Lsn,
    /// When it committed on the publisher, µs since the Unix epoch.
    pub commit_time_us: i64,
    pub changes: u64,
    /// What was applied of it.
    pub tally: Tally,
    pub how: How,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its rows are in the target.
    Committed,
    /// None of its rows concern the target.
    Empty,
    /// Passed over on an operator's word.
    Skipped,
}

impl<'a> Applier<'a> {
    /// `recorded` is the progress row's position; `skip` the finish LSN of a transaction to pass over.
    pub fn new(
        session: &'a TargetSession,
        subscription: SubscriptionName,
        recorded: Lsn,
        members: Membership,
        skip: Option<Lsn>,
    ) -> Self {
        let executor = Executor::new(std::sync::Arc::clone(session.client()));
        Self {
            session,
            executor,
            subscription,
            recorded,
            tables: Tables::new(members),
            skip,
            transaction: None,
        }
    }

    pub fn members_mut(&mut self) -> &mut Membership {
        self.tables.members_mut()
    }

    /// Whether the stream is between two transactions.
    pub fn is_between_transactions(&self) -> bool {
        self.transaction.is_none()
    }

    /// Takes the stream's next message.
    ///
    /// # Errors
    /// After an error the applier is of no more use, and the session's transaction may be open
    /// ([`TargetSession::reset`]).
    pub async fn handle(&mut self, message: Message) -> Result<Outcome, ApplyError> {
        match message {
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => self.commit(&commit).await,
            Message::Relation(relation) => {
                if let Some(replaced) = self.tables.announce(relation, self.session).await? {
                    self.executor.forget(replaced);
                }
                Ok(Outcome::Pending)
            }
            Message::Type(message) => {
                self.tables.announce_type(message)?;
                Ok(Outcome::Pending)
            }
            Message::Insert(m) => self.change(m.relation_oid, RowChange::Insert { new: m.new }).await,
            Message::Update(m) => {
                self.change(m.relation_oid, RowChange::Update { old: m.old, new: m.new }).await
            }
            Message::Delete(m) => self.change(m.relation_oid, RowChange::Delete { old: m.old.into() }).await,
            Message::Truncate(truncate) => self.truncate(&truncate).await,
            // Neither carries anything for a table: where a transaction first came from, and what
            // an application said beside its rows.
            Message::Origin(_) | Message::Logical(_) => Ok(Outcome::Pending),
        }
    }

    /// The publisher's position while it has nothing to send: everything before it is done with,
    /// unless a transaction is still being received.
    pub fn keepalive(&self, wal_end: Lsn) -> Outcome {
        match self.transaction {
            Some(_) => Outcome::Pending,
            None => Outcome::Durable { lsn: wal_end, transaction: None },
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<Outcome, ApplyError> {
        if self.transaction.is_some() {
            return Err(ApplyError::OutOfOrder("BEGIN within a transaction".to_owned()));
        }
        let stage = if self.skip == Some(begin.final_lsn) { Stage::Skipped } else { Stage::Empty };
        self.transaction = Some(Transaction { begin, changes: 0, tally: Tally::default(), stage });
        Ok(Outcome::Pending)
    }

    async fn change(&mut self, relation: u32, change: RowChange) -> Result<Outcome, ApplyError> {
        let transaction = self.transaction.as_mut().ok_or_else(|| outside(change.operation()))?;
        transaction.changes += 1;
        if matches!(transaction.stage, Stage::Skipped | Stage::Failed(_)) {
            return Ok(Outcome::Pending);
        }
        let table = match self.tables.lookup(relation, transaction.begin.final_lsn) {
            Lookup::Apply(table) => std::sync::Arc::clone(table),
            Lookup::PassOver => return Ok(Outcome::Pending),
            Lookup::Unannounced => return Err(unannounced(relation)),
        };
        let index = transaction.changes;
        match change {
            RowChange::Insert { .. } => transaction.tally.inserts += 1,
            RowChange::Update { .. } => transaction.tally.updates += 1,
            RowChange::Delete { .. } => transaction.tally.deletes += 1,
        }
        self.open().await?;
        let result = self.executor.submit(&table, change, index).await;
        self.settle(result).await
    }

    async fn truncate(&mut self, truncate: &Truncate) -> Result<Outcome, ApplyError> {
        let transaction = self.transaction.as_mut().ok_or_else(|| outside("TRUNCATE"))?;
        transaction.changes += 1;
        if matches!(transaction.stage, Stage::Skipped | Stage::Failed(_)) {
            return Ok(Outcome::Pending);
        }
        let mut tables = Vec::new();
        for &relation in &truncate.relation_oids {
            match self.tables.lookup(relation, transaction.begin.final_lsn) {
                Lookup::Apply(table) => tables.push(std::sync::Arc::clone(table)),
                Lookup::PassOver => {}
                Lookup::Unannounced => return Err(unannounced(relation)),
            }
        }
        if tables.is_empty() {
            return Ok(Outcome::Pending);
        }
        transaction.tally.truncates += tables.len() as u64;
        self.open().await?;
        let identity = if truncate.restart_seqs { Sequences::Restart } else { Sequences::Continue };
        let sql = truncate_sql(tables.iter().map(|table| &table.plan), identity);
        let result = match self.executor.drain().await {
            Ok(()) => self.session.client().batch_execute(&sql).await.map_err(ApplyError::from),
            Err(error) => Err(error),
        };
        self.settle(result).await
    }

    async fn commit(&mut self, commit: &Commit) -> Result<Outcome, ApplyError> {
        let transaction = self.transaction.take().ok_or_else(|| outside("COMMIT"))?;
        let applied = |how| Applied {
            commit_lsn: commit.commit_lsn,
            commit_time_us: unix_time_us(commit.commit_time),
            changes: transaction.changes,
            tally: Tally { transactions: 1, ..transaction.tally },
            how,
        };
        match transaction.stage {
            Stage::Failed(finding) => {
                let report = finding.into_report(&self.subscription, &transaction.begin, transaction.changes);
                return Ok(Outcome::Conflict(Box::new(report)));
            }
            // Nothing to write, and nothing to remember: should it come again, it is empty again.
            Stage::Empty => {
                return Ok(Outcome::Durable { lsn: commit.end_lsn, transaction: Some(applied(How::Empty)) });
            }
            Stage::Skipped => self.session.client().batch_execute("BEGIN").await?,
            Stage::Open => {}
        }
        let how = if matches!(transaction.stage, Stage::Skipped) { How::Skipped } else { How::Committed };
        let applied = applied(how);
        if let Err(error) = self.finish(commit.end_lsn, applied.commit_time_us).await {
            // Put it back, so that the failure is judged as that of this transaction.
            let (changes, tally) = (transaction.changes, transaction.tally);
            self.transaction =
                Some(Transaction { begin: transaction.begin, changes, tally, stage: Stage::Open });
            self.settle(Err(error)).await?;
            return match self.transaction.take() {
                Some(Transaction { begin, stage: Stage::Failed(finding), .. }) => {
                    Ok(Outcome::Conflict(Box::new(finding.into_report(&self.subscription, &begin, changes))))
                }
                _ => Err(ApplyError::OutOfOrder("a failed COMMIT left no finding".to_owned())),
            };
        }
        self.recorded = commit.end_lsn;
        Ok(Outcome::Durable { lsn: commit.end_lsn, transaction: Some(applied) })
    }

    /// Rows, progress, COMMIT.
    async fn finish(&mut self, end_lsn: Lsn, commit_time_us: i64) -> Result<(), ApplyError> {
        self.executor.drain().await?;
        let step = Step { from: self.recorded, to: end_lsn, commit_time_us, transactions: 1 };
        progress::advance(self.session.client(), &self.subscription, step).await?;
        fail::fail_point!("apply::before_commit");
        self.session.client().batch_execute("COMMIT").await?;
        fail::fail_point!("apply::after_commit");
        Ok(())
    }

    async fn open(&mut self) -> Result<(), ApplyError> {
        if let Some(Transaction { stage: stage @ Stage::Empty, .. }) = &mut self.transaction {
            self.session.client().batch_execute("BEGIN").await?;
            *stage = Stage::Open;
        }
        Ok(())
    }

    /// Judges a statement's result. A conflict ends the target transaction and keeps its evidence;
    /// anything else goes up.
    async fn settle(&mut self, result: Result<(), ApplyError>) -> Result<Outcome, ApplyError> {
        let Err(error) = result else { return Ok(Outcome::Pending) };
        self.roll_back_open().await?;
        let finding = evidence::collect(error, self.session).await?;
        debug!(subscription = %self.subscription, "transaction rolled back on a conflict");
        if let Some(transaction) = &mut self.transaction {
            transaction.stage = Stage::Failed(Box::new(finding));
        }
        Ok(Outcome::Pending)
    }

    async fn roll_back_open(&mut self) -> Result<(), ApplyError> {
        self.executor.abandon();
        Ok(self.session.client().batch_execute("ROLLBACK").await?)
    }
}

impl std::fmt::Debug for Applier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier")
            .field("subscription", &self.subscription)
            .field("recorded", &self.recorded)
            .finish_non_exhaustive()
    }
}

fn outside(what: &str) -> ApplyError {
    ApplyError::OutOfOrder(format!("{what} outside a transaction"))
}

fn unannounced(relation: u32) -> ApplyError {
    ApplyError::OutOfOrder(format!("a change of relation {relation}, which no Relation message announced"))
}

/// A change, as evidence names it.
impl FailedChange {
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.change.operation()
    }
}
