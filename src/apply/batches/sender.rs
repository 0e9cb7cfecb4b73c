//! Sends batches of set statements without waiting for earlier ones, and reads their answers later.
//!
//! ```text
//! send n:   BEGIN · sets · progress n-1→n · COMMIT
//! send n+1: BEGIN · sets · progress n→n+1 · COMMIT      (before the answers to n are in)
//! ```
//! # Why COMMIT may be sent before the answers
//! Every statement of a batch fails by itself if its precondition does not hold: set statements if they find
//! other rows than planned, the check of the tables' stamps, and the compare-and-set of the progress row. The
//! server then aborts the transaction, and the COMMIT that follows rolls back. The next batch does not find
//! the progress row where it expects it, and fails, too. So commits stay in order, and nothing after a
//! failure is committed. The row counts of a slice may be compared here when its answers come, because the
//! last slice, with the COMMIT, is sent only after all others have been answered. A long round trip costs
//! latency, not throughput.
//!
//! A batch of very many sets is sent so, too, and its COMMIT follows when they have been answered: it takes the server
//! longer to plan statements that count their rows than to wait for one round trip.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::PgLsn;

use super::copy_in::CopyIn;
use super::prepared::{Breadth, Prepared, Sendable};
use super::single_statement::BoxedParam;
use crate::apply::ApplyError;
use crate::apply::change::Param;
use crate::apply::core::{Advance, Batch};
use crate::apply::dispatch::Dispatched;
use crate::apply::sets::compact::SetStep;
use crate::apply::sets::row_search::PLAN_BY_KEY;
use crate::apply::sets::sql::{self, Count};
use crate::apply::stamp::Stamps;
use crate::apply::statement::{common_role, run_as_sql};
use crate::boundary;
use crate::net::PgClient;
use crate::pg::{SubscriptionName, Term};
use crate::pgoutput::Format;
use crate::target::TargetSession;

/// Maximum number of rows in a batch that is sent as one statement. For larger ones, the round trips that it
/// saves do not matter.
const SINGLE_STATEMENT_ROWS_MAX: usize = 256;

/// Minimum number of sets of a batch whose COMMIT is sent after their answers.
const WIDE_SETS_MIN: usize = 512;

/// Maximum number of sets whose statements are prepared together.
const PREPARED_TOGETHER: usize = 1024;

type Answer = Dispatched<Result<(), ApplyError>>;

pub(crate) struct BatchSender {
    client: Arc<PgClient>,
    subscription: SubscriptionName,
    term: Term,
    prepared: Prepared,
    /// Upper bound of a round trip to the target.
    round_trip: Duration,
    /// COPYs that have not ended.
    copies: JoinSet<()>,
}

/// A batch that has been sent and not answered.
pub(crate) struct InFlight {
    answers: VecDeque<Answer>,
    failed: Option<ApplyError>,
    sent: Instant,
    commits: bool,
}

/// The result of a batch.
pub(crate) struct Answered {
    pub(crate) result: Result<(), ApplyError>,
    /// Time from sending the batch to its last answer.
    pub(crate) took: Duration,
    commits: bool,
}

impl BatchSender {
    pub(crate) fn new(
        session: &TargetSession,
        subscription: SubscriptionName,
        term: Term,
        format: Format,
    ) -> Self {
        Self {
            client: Arc::clone(session.client()),
            subscription,
            term,
            prepared: Prepared::new(Arc::clone(session.client()), format),
            round_trip: session.round_trip().unwrap_or(Duration::MAX),
            copies: JoinSet::new(),
        }
    }

    /// Drops a table's prepared statements: its definition has changed.
    pub(crate) fn forget(&mut self, table: u64) {
        self.prepared.forget(table);
    }

    /// Lowers the bound of a round trip if this batch took less.
    pub(crate) fn note(&mut self, answered: &Answered) {
        if answered.commits && answered.result.is_ok() {
            self.round_trip = self.round_trip.min(answered.took);
        }
        while self.copies.try_join_next().is_some() {}
    }

    /// Fails if a test has asked for the answer to be lost.
    pub(crate) async fn receive(&self, answered: &Answered) -> Result<(), ApplyError> {
        let lost = match (answered.commits, &answered.result) {
            (_, Err(_)) => false,
            (true, Ok(())) => boundary::is_lost!("apply::batch", "::after"),
            (false, Ok(())) => boundary::is_lost!("apply::slice", "::after"),
        };
        if lost { Err(self.client.lose().await.into()) } else { Ok(()) }
    }

    /// Sends a batch. Waits only for statements that are not prepared yet.
    ///
    /// # Errors
    /// It could not be sent, and nothing of it was.
    pub(crate) async fn send(&mut self, batch: &Batch, alone: Alone) -> Result<InFlight, ApplyError> {
        let lost = match batch.advance {
            Some(_) => boundary::is_lost!("apply::batch", "::before"),
            None => boundary::is_lost!("apply::slice", "::before"),
        };
        if lost {
            return Err(self.client.lose().await.into());
        }
        match self.single_statement(batch, alone).await? {
            Some(answers) => Ok(InFlight::new(answers, batch)),
            None => self.statements(batch).await,
        }
    }

    async fn statements(&mut self, batch: &Batch) -> Result<InFlight, ApplyError> {
        // Everything that can fail before sending comes first, so that a batch is sent completely or not at
        // all.
        let mut statements = Vec::with_capacity(batch.sets.len());
        let breadth = if batch.sets.len() < WIDE_SETS_MIN { Breadth::Narrow } else { Breadth::Wide };
        let commits_later = batch.advance.is_some() && breadth == Breadth::Wide;
        // Where COMMIT is sent after the answers, as that of slices is, row counts can be compared here.
        let counted =
            if batch.advance.is_none() || commits_later { Count::ByAnswer } else { Count::ByStatement };
        for sets in batch.sets.chunks(PREPARED_TOGETHER) {
            self.prepared.steps(sets, counted, breadth).await?;
            for set in sets {
                statements.push(self.prepared.step(set, counted, breadth, self.round_trip).await?);
            }
        }
        let stamps = stamps(&batch.sets);
        let last = match batch.advance {
            Some(advance) => Last::Commit(self.prepared.progress().await?, advance),
            None => Last::Guard(self.prepared.guard().await?),
        };
        let mut in_flight = InFlight::new(VecDeque::new(), batch);
        let answers = &mut in_flight.answers;
        if batch.begins {
            answers.push_back(self.text("BEGIN".to_owned()));
        }
        let mut role = None;
        for (set, statement) in batch.sets.iter().zip(statements) {
            let wanted = writes_as(set);
            if wanted != std::mem::replace(&mut role, wanted) {
                answers.push_back(self.text(run_as_sql(wanted)));
            }
            match statement {
                Sendable::Text(sql) => answers.push_back(self.text(sql)),
                Sendable::Set { statement, params, search, expected } => {
                    let settings = search.settings();
                    answers.extend(settings.map(|settings| self.text(settings.to_owned())));
                    answers.push_back(self.set(statement, params, expected));
                    answers.extend(settings.map(|_| self.text(PLAN_BY_KEY.to_owned())));
                }
                Sendable::Rows { statement, rows, expected } => {
                    answers.extend(rows.into_iter().map(|row| self.set(statement.clone(), row, expected)));
                }
                Sendable::Copy(statement, data, rows) => answers.push_back(self.copy(statement, data, rows)),
            }
        }
        answers.extend(role.map(|_| self.text(run_as_sql(None))));
        if commits_later && in_flight.fails().await {
            // Without an answer that can be assigned, the session is not used any more.
            if !matches!(in_flight.failed, Some(ApplyError::CopyRefused(_))) {
                in_flight.answers.push_back(self.text("ROLLBACK".to_owned()));
            }
            return Ok(in_flight);
        }
        let answers = &mut in_flight.answers;
        match last {
            Last::Commit(statement, advance) => {
                answers.push_back(self.advance(statement, advance, &stamps));
                answers.push_back(self.text("COMMIT".to_owned()));
            }
            Last::Guard(statement) => answers.push_back(self.guard(statement, stamps)),
        }
        Ok(in_flight)
    }

    /// Sends the batch as one statement, if it is one set and no other batch is unanswered: a small transaction
    /// then waits for one answer. Returns none if the batch does not suit that, and sends nothing then.
    async fn single_statement(
        &mut self,
        batch: &Batch,
        alone: Alone,
    ) -> Result<Option<VecDeque<Answer>>, ApplyError> {
        let [SetStep::Set { table, kind, rows, .. }] = batch.sets.as_slice() else { return Ok(None) };
        let Some(advance) = batch.advance else { return Ok(None) };
        let own_role = table.plan.run_as.is_none();
        let suits = alone == Alone::Yes && batch.begins && sql::is_plain(kind) && own_role;
        if !suits || rows.len() > SINGLE_STATEMENT_ROWS_MAX {
            return Ok(None);
        }
        let (statement, params) = self.prepared.single_statement(table, kind, rows).await?;
        let params = params.into_iter().map(|param| Box::new(param) as BoxedParam);
        let params = params.chain(self.progress_params(advance)).collect();
        let client = Arc::clone(&self.client);
        if let Some(plan) = statement.fitting() {
            let run = async move { statement.run(&client, params, plan).await };
            return Ok(Some([Dispatched::new(run)].into()));
        }
        let guard = self.prepared.guard().await?;
        let stamps = stamps(&batch.sets);
        let begin = self.text("BEGIN".to_owned());
        let first = Dispatched::new(async move {
            statement.run_first(&client, params, ask(&client, &guard, &stamps)).await
        });
        Ok(Some([begin, first, self.text("COMMIT".to_owned())].into()))
    }

    fn guard(&self, statement: Statement, stamps: Stamps) -> Answer {
        let client = Arc::clone(&self.client);
        Dispatched::new(async move { ask(&client, &statement, &stamps).await })
    }

    fn text(&self, sql: String) -> Answer {
        let client = Arc::clone(&self.client);
        Dispatched::new(async move { Ok(client.batch_execute(&sql).await?) })
    }

    /// `expected` is the row count that the server must report; none if the statement checks it itself.
    fn set(&self, statement: Statement, params: Vec<Param>, expected: Option<u64>) -> Answer {
        let client = Arc::clone(&self.client);
        Dispatched::new(async move {
            let found = client.execute_raw(&statement, params).await?;
            if expected.is_none_or(|expected| found == expected) {
                Ok(())
            } else {
                Err(ApplyError::SetMissed)
            }
        })
    }

    fn copy(&mut self, statement: Statement, data: Bytes, rows: u64) -> Answer {
        let client = Arc::clone(&self.client);
        let (answer, answered) = oneshot::channel();
        let copy = CopyIn { statement, data, rows, answer };
        let mut asked = Dispatched::new(async move { copy.run(client).await });
        // The task sends data while the next batch is being built.
        self.copies.spawn(async move { asked.answer().await });
        Dispatched::new(async move { answered.await.unwrap_or(Err(ApplyError::SetMissed)) })
    }

    fn advance(&self, statement: Statement, advance: Advance, stamps: &Stamps) -> Answer {
        let client = Arc::clone(&self.client);
        let (oids, stamps) = stamps.parameters();
        let guarded: [BoxedParam; 2] = [Box::new(oids), Box::new(stamps)];
        let params: Vec<_> = self.progress_params(advance).into_iter().chain(guarded).collect();
        Dispatched::new(async move {
            client.execute_raw(&statement, params).await?;
            Ok(())
        })
    }

    /// The parameters of `progress::advance_counted`.
    fn progress_params(&self, advance: Advance) -> [BoxedParam; 6] {
        let transactions = i64::try_from(advance.transactions).unwrap_or(i64::MAX);
        [
            Box::new(self.subscription.to_string()),
            Box::new(PgLsn::from(advance.from.as_u64())),
            Box::new(PgLsn::from(advance.to.as_u64())),
            Box::new(advance.commit_time_us),
            Box::new(transactions),
            Box::new(self.term.as_i64()),
        ]
    }
}

/// Whether a batch is sent while nothing else is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alone {
    Yes,
    No,
}

impl InFlight {
    fn new(answers: VecDeque<Answer>, batch: &Batch) -> Self {
        Self { answers, failed: None, sent: Instant::now(), commits: batch.advance.is_some() }
    }

    /// Waits for all answers. Cancel-safe.
    pub(crate) async fn answered(&mut self) -> Answered {
        self.fails().await;
        let result = self.failed.take().map_or(Ok(()), Err);
        Answered { result, took: self.sent.elapsed(), commits: self.commits }
    }

    /// Waits for all answers so far, and returns whether one of them is a failure. Cancel-safe.
    async fn fails(&mut self) -> bool {
        while let Some(answer) = self.answers.front_mut() {
            let result = answer.answer().await;
            self.answers.pop_front();
            if let Err(error) = result {
                if matches!(error, ApplyError::CopyRefused(_)) {
                    // Later answers cannot be assigned to requests any more, which matters more than the first
                    // failure.
                    self.answers.clear();
                    self.failed = Some(error);
                } else {
                    self.failed.get_or_insert(error);
                }
            }
        }
        self.failed.is_some()
    }
}

/// The role as which a step is carried out.
fn writes_as(set: &SetStep) -> Option<&str> {
    match set {
        SetStep::Set { table, .. } => table.plan.run_as.as_deref(),
        SetStep::Truncate { tables, .. } => common_role(tables.iter().map(|table| &table.plan)),
    }
}

/// Returns the stamps of the tables that the sets write to.
fn stamps(sets: &[SetStep]) -> Stamps {
    let mut stamps = Stamps::default();
    for set in sets {
        match set {
            SetStep::Set { table, .. } => stamps.add(table),
            SetStep::Truncate { tables, .. } => tables.iter().for_each(|table| stamps.add(table)),
        }
    }
    stamps
}

/// Runs `guard`, which fails if a table's definition has changed since it was planned.
async fn ask(client: &PgClient, guard: &Statement, stamps: &Stamps) -> Result<(), ApplyError> {
    let (oids, stamps) = stamps.parameters();
    client.execute(guard, &[&oids, &stamps]).await?;
    Ok(())
}

/// The end of a batch.
enum Last {
    Commit(Statement, Advance),
    /// The end of a slice: its transaction stays open.
    Guard(Statement),
}
