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
//!
//! # Invariants
//! - At most [`BATCHES_MAX`] batches are under way; each is bounded by its sender.
//! - A batch's events are kept until its COMMIT has been answered, for the exact path; only a slice
//!   of a transaction too large to keep is let go, and would be sent again by the publisher.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::PgLsn;

use crate::apply::ApplyError;
use crate::apply::batches::copy_in::Copying;
use crate::apply::batches::prepared::{Prepared, Sendable};
use crate::apply::batches::single_statement::BoxedParam;
use crate::apply::change::Param;
use crate::apply::incoming::event::Event;
use crate::apply::progress::Advance;
use crate::apply::sets::compact::SetStep;
use crate::apply::sets::row_search::PLAN_BY_KEY;
use crate::apply::sets::sql::{self, Count};
use crate::apply::stamp::Stamps;
use crate::net::PgClient;
use crate::pg::{SubscriptionName, Term};
use crate::pgoutput::Format;
use crate::target::TargetSession;
use crate::telemetry::Tally;

/// Batches under way, at most: one that the target works on, and those that are on their way.
pub(crate) const BATCHES_MAX: usize = 3;
/// A batch of more rows does not go as one statement: what it would save is nothing to them.
const ALONE_ROWS_MAX: usize = 256;

type Answer = Pin<Box<dyn Future<Output = Result<(), ApplyError>> + Send>>;

pub(crate) struct Pipeline {
    client: Arc<PgClient>,
    subscription: SubscriptionName,
    term: Term,
    prepared: Prepared,
    /// The way to the target and back takes no longer than this.
    round_trip: Duration,
    under_way: VecDeque<UnderWay>,
    /// A slice has been sent whose transaction is still open on the target.
    open: Open,
}

/// Whether a target transaction is open between two sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    No,
    Yes,
}

/// What is sent at once.
pub(crate) struct Batch {
    pub(crate) steps: Vec<SetStep>,
    /// Kept for the exact path; empty for a slice.
    pub(crate) events: Vec<Event>,
    /// Where the transaction ends, with its progress; none for a slice that leaves it open.
    pub(crate) end: Option<Advance>,
    pub(crate) tally: Tally,
}

struct UnderWay {
    answers: VecDeque<Answer>,
    failed: Option<ApplyError>,
    in_step: InStep,
    sent: Instant,
    batch: Settled,
}

/// A batch whose answers are in.
pub(crate) struct Settled {
    pub(crate) events: Vec<Event>,
    pub(crate) slice: bool,
    pub(crate) end: Option<Advance>,
    pub(crate) tally: Tally,
    /// From its sending to its last answer.
    pub(crate) took: Duration,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("under_way", &self.under_way.len())
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Pipeline {
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
            under_way: VecDeque::new(),
            open: Open::No,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.under_way.len() >= BATCHES_MAX
    }

    pub(crate) fn open(&self) -> Open {
        self.open
    }

    /// Lets go of a table's prepared statements: its definition has changed.
    pub(crate) fn forget(&mut self, table: u64) {
        self.prepared.forget(table);
    }

    /// Sends a batch. Waits only for statements that are not prepared yet.
    ///
    /// # Errors
    /// The batch comes back: it could not be sent, and nothing of it was.
    pub(crate) async fn send(&mut self, batch: Batch) -> Result<(), (ApplyError, Batch)> {
        match self.answers(&batch).await {
            Ok(answers) => {
                let leaves_open = batch.end.is_none() && !answers.is_empty();
                // The end of a transaction that went in slices cannot be applied again by itself.
                let slice = leaves_open || self.open == Open::Yes;
                self.open = if leaves_open { Open::Yes } else { Open::No };
                let Batch { mut events, end, tally, .. } = batch;
                if leaves_open {
                    events = Vec::new();
                }
                let batch = Settled { events, slice, end, tally, took: Duration::ZERO };
                self.under_way.push_back(UnderWay {
                    answers,
                    failed: None,
                    in_step: InStep::Yes,
                    sent: Instant::now(),
                    batch,
                });
                Ok(())
            }
            Err(error) => Err((error, batch)),
        }
    }

    async fn answers(&mut self, batch: &Batch) -> Result<VecDeque<Answer>, ApplyError> {
        if let Some(answers) = self.alone(batch).await? {
            return Ok(answers);
        }
        let mut answers = VecDeque::new();
        if batch.steps.is_empty() && self.open == Open::No {
            return Ok(answers);
        }
        // Everything that can fail here comes first, so that a batch is sent whole or not at all.
        let mut statements = Vec::with_capacity(batch.steps.len());
        // A slice's COMMIT comes with the last one, and that is sent when all others have been answered.
        let counted = if batch.end.is_some() { Count::ByStatement } else { Count::ByAnswer };
        for step in &batch.steps {
            statements.push(self.prepared.step(step, counted, self.round_trip).await?);
        }
        let stamps = stamps(&batch.steps);
        let last = match batch.end {
            Some(end) => Last::Commit(self.prepared.progress().await?, end),
            None => Last::Guard(self.prepared.guard().await?),
        };
        if self.open == Open::No {
            answers.push_back(self.text("BEGIN".to_owned()));
        }
        for statement in statements {
            match statement {
                Sendable::Text(sql) => answers.push_back(self.text(sql)),
                Sendable::Set { statement, params, finding, expected } => {
                    let settings = finding.settings();
                    answers.extend(settings.map(|settings| self.text(settings.to_owned())));
                    answers.push_back(self.set(statement, params, expected));
                    answers.extend(settings.map(|_| self.text(PLAN_BY_KEY.to_owned())));
                }
                Sendable::Copy(statement, data, rows) => answers.push_back(self.copy(statement, data, rows)),
            }
        }
        match last {
            Last::Commit(statement, end) => {
                answers.push_back(self.advance(statement, end, &stamps));
                answers.push_back(self.text("COMMIT".to_owned()));
            }
            Last::Guard(statement) => answers.push_back(self.guard(statement, stamps)),
        }
        Ok(answers)
    }

    /// Sends the batch as one statement, if it is one set and nothing is under way: whoever waits for one
    /// small transaction waits for one answer. None if it is more.
    async fn alone(&mut self, batch: &Batch) -> Result<Option<VecDeque<Answer>>, ApplyError> {
        let ([SetStep::Set { table, kind, rows, .. }], Some(end)) = (batch.steps.as_slice(), batch.end)
        else {
            return Ok(None);
        };
        let nothing_else = self.is_idle() && self.open == Open::No;
        if !nothing_else || !sql::is_plain(kind) || rows.len() > ALONE_ROWS_MAX {
            return Ok(None);
        }
        let (alone, params) = self.prepared.alone(table, kind, rows).await?;
        let params = params.into_iter().map(|param| Box::new(param) as BoxedParam);
        let params = params.chain(self.progress_params(end)).collect();
        let client = Arc::clone(&self.client);
        if let Some(plan) = alone.fitting() {
            return Ok(Some([Self::dispatch(async move { alone.run(&client, params, plan).await })].into()));
        }
        let guard = self.prepared.guard().await?;
        let stamps = stamps(&batch.steps);
        let begin = self.text("BEGIN".to_owned());
        let first =
            Self::dispatch(
                async move { alone.run_first(&client, params, ask(&client, &guard, &stamps)).await },
            );
        Ok(Some([begin, first, self.text("COMMIT".to_owned())].into()))
    }

    fn guard(&self, statement: Statement, stamps: Stamps) -> Answer {
        let client = Arc::clone(&self.client);
        Self::dispatch(async move { ask(&client, &statement, &stamps).await })
    }

    /// Hands a request to the connection, in order, by its first poll.
    fn dispatch(future: impl Future<Output = Result<(), ApplyError>> + Send + 'static) -> Answer {
        let mut answer: Answer = Box::pin(future);
        match (&mut answer).now_or_never() {
            None => answer,
            Some(result) => Box::pin(std::future::ready(result)),
        }
    }

    fn text(&self, sql: String) -> Answer {
        let client = Arc::clone(&self.client);
        Self::dispatch(async move { Ok(client.batch_execute(&sql).await?) })
    }

    /// `expected` is the number of rows that the answer must tell, if it has to.
    fn set(&self, statement: Statement, params: Vec<Param>, expected: Option<u64>) -> Answer {
        let client = Arc::clone(&self.client);
        Self::dispatch(async move {
            let found = client.execute_raw(&statement, params).await?;
            if expected.is_none_or(|expected| found == expected) {
                Ok(())
            } else {
                Err(ApplyError::SetMissed)
            }
        })
    }

    fn copy(&self, statement: Statement, data: Bytes, rows: u64) -> Answer {
        let client = Arc::clone(&self.client);
        let (answer, answered) = oneshot::channel();
        let copying = Copying { statement, data, rows, answer };
        let asked = Self::dispatch(async move {
            copying.run(&client).await;
            Ok(())
        });
        // Data flows whatever the batches' sender is doing.
        tokio::spawn(asked);
        Box::pin(async move { answered.await.unwrap_or(Err(ApplyError::SetMissed)) })
    }

    fn advance(&self, statement: Statement, step: Advance, stamps: &Stamps) -> Answer {
        let client = Arc::clone(&self.client);
        let (oids, stamps) = stamps.parameters();
        let guarded: [BoxedParam; 2] = [Box::new(oids), Box::new(stamps)];
        let params: Vec<_> = self.progress_params(step).into_iter().chain(guarded).collect();
        Self::dispatch(async move {
            client.execute_raw(&statement, params).await?;
            Ok(())
        })
    }

    /// As `progress::advance_counted` takes them.
    fn progress_params(&self, step: Advance) -> [BoxedParam; 6] {
        let transactions = i64::try_from(step.transactions).unwrap_or(i64::MAX);
        [
            Box::new(self.subscription.to_string()),
            Box::new(PgLsn::from(step.from.as_u64())),
            Box::new(PgLsn::from(step.to.as_u64())),
            Box::new(step.commit_time_us),
            Box::new(transactions),
            Box::new(self.term.as_i64()),
        ]
    }

    /// Waits until the oldest batch's answers are all in. Cancel safe.
    pub(crate) async fn wait_oldest(&mut self) {
        let Some(oldest) = self.under_way.front_mut() else { return std::future::pending().await };
        while oldest.answered().await {}
    }

    /// Takes the oldest batch, whose answers must be in ([`Self::wait_oldest`]).
    ///
    /// # Errors
    /// It failed and was rolled back; it is still the oldest, for [`Self::abandon`].
    pub(crate) fn take_oldest(&mut self) -> Result<Option<Settled>, ApplyError> {
        match self.under_way.front_mut().and_then(|oldest| oldest.failed.take()) {
            Some(error) => Err(error),
            None => {
                let done = self.under_way.pop_front();
                let done = done.map(|done| Settled { took: done.sent.elapsed(), ..done.batch });
                if let Some(done) = done.as_ref().filter(|done| done.end.is_some()) {
                    self.round_trip = self.round_trip.min(done.took);
                }
                Ok(done)
            }
        }
    }

    /// Rolls back the open transaction; everything sent of it must have been answered.
    pub(crate) async fn roll_back(&mut self) -> Result<(), ApplyError> {
        self.open = Open::No;
        Ok(self.client.batch_execute("ROLLBACK").await?)
    }

    /// After a failure: rolls back whatever is open and gives back the events of everything that
    /// is under way. None if some of them are no longer kept, or if the session has been given up.
    pub(crate) async fn abandon(&mut self) -> Result<Option<Vec<Event>>, ApplyError> {
        let mut events = Vec::new();
        let mut whole = true;
        for mut batch in std::mem::take(&mut self.under_way) {
            if batch.in_step().await == InStep::No {
                return Ok(None);
            }
            whole &= !batch.batch.slice;
            events.extend(batch.batch.events);
        }
        whole &= self.open == Open::No;
        self.open = Open::No;
        // Queued behind what has been sent: when it is answered, nothing of that is left.
        self.client.batch_execute("ROLLBACK").await?;
        Ok(whole.then_some(events))
    }
}

impl UnderWay {
    /// Waits for the next answer; false if there is none. Cancel safe.
    async fn answered(&mut self) -> bool {
        let Some(answer) = self.answers.front_mut() else { return false };
        let result = answer.await;
        self.answers.pop_front();
        if let Err(error) = result {
            if matches!(error, ApplyError::CopyRefused(_)) {
                // From here on, answers are not what they seem to be.
                self.in_step = InStep::No;
                self.answers.clear();
            }
            self.failed.get_or_insert(error);
        }
        true
    }

    /// Waits for all answers of a batch that does not matter any more.
    async fn in_step(&mut self) -> InStep {
        while self.answered().await {}
        self.in_step
    }
}

/// Whether the driver still knows which answer belongs to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InStep {
    Yes,
    No,
}

/// The tables that the steps write to.
fn stamps(steps: &[SetStep]) -> Stamps {
    let mut stamps = Stamps::default();
    for step in steps {
        match step {
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
