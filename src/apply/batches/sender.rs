//! Sends batches of set statements without waiting, and learns later how they fared.
//!
//! ```text
//! send n:   BEGIN · sets · progress n-1→n · COMMIT
//! send n+1: BEGIN · sets · progress n→n+1 · COMMIT      (before the answers to n are in)
//! ```
//! # Why a COMMIT may be sent unseen
//! Every statement guards itself (`sets`; the tables' `stamp` and the progress row's compare-and-set
//! fail the same way), so a batch whose rows differ from the plan is aborted by the server, and its COMMIT rolls
//! back. The next batch then finds the progress row not where it expects it, and fails, too: commits
//! stay in order and nothing overtakes a failure. Only a slice, whose COMMIT is not sent yet, may leave the
//! counting to its answer: the last slice is sent when all others have been answered. A long way to the
//! target costs latency, not speed.

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
use super::prepared::{Prepared, Sendable};
use super::single_statement::BoxedParam;
use crate::apply::ApplyError;
use crate::apply::change::Param;
use crate::apply::core::{Advance, Batch};
use crate::apply::dispatch::Dispatched;
use crate::apply::sets::compact::SetStep;
use crate::apply::sets::row_search::PLAN_BY_KEY;
use crate::apply::sets::sql::{self, Count};
use crate::apply::stamp::Stamps;
use crate::boundary;
use crate::net::PgClient;
use crate::pg::{SubscriptionName, Term};
use crate::pgoutput::Format;
use crate::target::TargetSession;

/// A batch with more rows does not go as one statement: what that would save is nothing to them.
const SINGLE_STATEMENT_ROWS_MAX: usize = 256;

type Answer = Dispatched<Result<(), ApplyError>>;

pub(crate) struct BatchSender {
    client: Arc<PgClient>,
    subscription: SubscriptionName,
    term: Term,
    prepared: Prepared,
    /// The way to the target and back takes no longer than this.
    round_trip: Duration,
    /// COPYs whose data is on its way.
    copies: JoinSet<()>,
}

/// A batch on its way.
pub(crate) struct InFlight {
    answers: VecDeque<Answer>,
    failed: Option<ApplyError>,
    sent: Instant,
    commits: bool,
}

/// How a batch fared.
pub(crate) struct Answered {
    pub(crate) result: Result<(), ApplyError>,
    /// From its sending to its last answer.
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

    /// Learns from a batch how far the target is.
    pub(crate) fn note(&mut self, answered: &Answered) {
        if answered.commits && answered.result.is_ok() {
            self.round_trip = self.round_trip.min(answered.took);
        }
        while self.copies.try_join_next().is_some() {}
    }

    /// Fails if a test wants the answer to be lost.
    pub(crate) async fn receive(&self, answered: &Answered) -> Result<(), ApplyError> {
        let lost = match (answered.commits, &answered.result) {
            (_, Err(_)) => false,
            (true, Ok(())) => boundary::is_lost!("apply::batch", "::after"),
            (false, Ok(())) => boundary::is_lost!("apply::slice", "::after"),
        };
        if lost { Err(self.client.lose().await.into()) } else { Ok(()) }
    }

    /// Sends a batch. Waits only for statements that are not prepared yet. `alone`: nothing else is under
    /// way.
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
        let answers = match self.single_statement(batch, alone).await? {
            Some(answers) => answers,
            None => self.statements(batch).await?,
        };
        let commits = batch.advance.is_some();
        Ok(InFlight { answers, failed: None, sent: Instant::now(), commits })
    }

    async fn statements(&mut self, batch: &Batch) -> Result<VecDeque<Answer>, ApplyError> {
        // Everything that can fail here comes first, so that a batch is sent whole or not at all.
        let mut statements = Vec::with_capacity(batch.sets.len());
        // A slice's COMMIT comes with the last one, and that is sent when all others have been answered.
        let counted = if batch.advance.is_some() { Count::ByStatement } else { Count::ByAnswer };
        for set in &batch.sets {
            statements.push(self.prepared.step(set, counted, self.round_trip).await?);
        }
        let stamps = stamps(&batch.sets);
        let last = match batch.advance {
            Some(advance) => Last::Commit(self.prepared.progress().await?, advance),
            None => Last::Guard(self.prepared.guard().await?),
        };
        let mut answers = VecDeque::new();
        if batch.begins {
            answers.push_back(self.text("BEGIN".to_owned()));
        }
        for statement in statements {
            match statement {
                Sendable::Text(sql) => answers.push_back(self.text(sql)),
                Sendable::Set { statement, params, search, expected } => {
                    let settings = search.settings();
                    answers.extend(settings.map(|settings| self.text(settings.to_owned())));
                    answers.push_back(self.set(statement, params, expected));
                    answers.extend(settings.map(|_| self.text(PLAN_BY_KEY.to_owned())));
                }
                Sendable::Copy(statement, data, rows) => answers.push_back(self.copy(statement, data, rows)),
            }
        }
        match last {
            Last::Commit(statement, advance) => {
                answers.push_back(self.advance(statement, advance, &stamps));
                answers.push_back(self.text("COMMIT".to_owned()));
            }
            Last::Guard(statement) => answers.push_back(self.guard(statement, stamps)),
        }
        Ok(answers)
    }

    /// Sends the batch as one statement, if it is one set and nothing is under way: a small transaction
    /// then waits for one answer. None if it is more.
    async fn single_statement(
        &mut self,
        batch: &Batch,
        alone: Alone,
    ) -> Result<Option<VecDeque<Answer>>, ApplyError> {
        let [SetStep::Set { table, kind, rows, .. }] = batch.sets.as_slice() else { return Ok(None) };
        let Some(advance) = batch.advance else { return Ok(None) };
        let suits = alone == Alone::Yes && batch.begins && sql::is_plain(kind);
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

    /// `expected` is the number of rows that the answer must tell, if it has to.
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
        // A task of its own: data flows while the next batch is being built.
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

    /// As `progress::advance_counted` takes them.
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
    /// Waits for all answers. Cancel-safe.
    pub(crate) async fn answered(&mut self) -> Answered {
        while let Some(answer) = self.answers.front_mut() {
            let result = answer.answer().await;
            self.answers.pop_front();
            if let Err(error) = result {
                if matches!(error, ApplyError::CopyRefused(_)) {
                    // From here on, answers are not what they seem to be. That counts more than what failed first.
                    self.answers.clear();
                    self.failed = Some(error);
                } else {
                    self.failed.get_or_insert(error);
                }
            }
        }
        let result = self.failed.take().map_or(Ok(()), Err);
        Answered { result, took: self.sent.elapsed(), commits: self.commits }
    }
}

/// The tables that the sets write to.
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

/// Asks whether the tables are still what they were planned for; `guard` fails if not.
async fn ask(client: &PgClient, guard: &Statement, stamps: &Stamps) -> Result<(), ApplyError> {
    let (oids, stamps) = stamps.parameters();
    client.execute(guard, &[&oids, &stamps]).await?;
    Ok(())
}

/// What a batch is closed with.
enum Last {
    Commit(Statement, Advance),
    /// A slice leaves its transaction open.
    Guard(Statement),
}
