//! Carries out the core's steps on the target session, in order, and answers them.
//!
//! ```text
//! core ──Step──▶ Performer ──SQL──▶ target
//!      ◀─Answer─           ◀────────
//! ```
//! It is a future of its own, polled in the same task as the stream's loop. So while it waits for the target,
//! the loop takes messages, sends status updates and can end.
//!
//! Catalog queries use the applying session if that is idle, and a session of their own while batches are under
//! way: they must not queue behind statements that wait for a row lock. If the applying session keeps a
//! transaction open, the query goes there once everything sent has been answered. The catalog's functions lock
//! the table that they are asked about (`pg_get_expr`, `pg_get_constraintdef`), and another session would wait
//! for the locks of the open transaction (TRUNCATE takes an ACCESS EXCLUSIVE one), which cannot end before the
//! answer has come.
//!
//! It decides nothing. An error that is not among the core's answers (a lost connection, or a failure that is
//! no conflict) ends it, and with it the attempt.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::ApplyError;
use super::batches::sender::{Alone, Answered, BatchSender, InFlight};
use super::core::{Answer, Batch, Description, Reading, Step};
use super::rows::writer::{RowWriter, Told};
use super::{outcome::Start, progress};
use crate::error::ServerError;
use crate::net::PgClient;
use crate::pg::{Lsn, QualifiedName, SubscriptionName, Term};
use crate::running::Running;
use crate::schema::catalog::{self, KnownTables, Look};
use crate::target::TargetSession;

/// A message from the performer to the core.
#[derive(Debug)]
pub(super) enum Heard {
    Answer(Answer),
    Described(Description),
}

pub(super) struct Performer<'a> {
    session: &'a TargetSession,
    subscription: SubscriptionName,
    term: Term,
    sender: BatchSender,
    rows: RowWriter<'a>,
    under_way: VecDeque<UnderWay>,
    slices: SliceTransaction,
    /// The catalog queries for a description. They may use the applying session, whose later answers are read only
    /// after theirs, so they go on while a step is carried out.
    describing: Running<'static, Result<Look, ApplyError>>,
    /// What is known of the target's tables, also from earlier attempts.
    known: watch::Sender<KnownTables>,
    /// The session for catalog queries while the applying one is busy. Opened when first needed.
    catalog: Option<Arc<PgClient>>,
    answers: mpsc::UnboundedSender<Heard>,
}

/// The target transaction that slices have been sent into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SliceTransaction {
    None,
    Open,
    /// A slice, or a batch before it, has failed.
    Failed,
}

/// A batch that is to be answered, in the order of its step.
enum UnderWay {
    Batch(InFlight),
    /// The batch could not be sent, for this cause.
    NotSent(String),
}

impl<'a> Performer<'a> {
    pub(super) fn new(
        session: &'a TargetSession,
        subscription: SubscriptionName,
        start: Start,
        known: watch::Sender<KnownTables>,
        answers: mpsc::UnboundedSender<Heard>,
    ) -> Self {
        Self {
            session,
            subscription: subscription.clone(),
            term: start.term,
            sender: BatchSender::new(session, subscription.clone(), start.term, start.format),
            rows: RowWriter::new(session, subscription, start.term),
            under_way: VecDeque::new(),
            slices: SliceTransaction::None,
            describing: Running::default(),
            known,
            catalog: None,
            answers,
        }
    }

    /// Runs until an error that is not among the core's answers, or until the channel of steps is closed.
    pub(super) async fn run(mut self, mut steps: mpsc::UnboundedReceiver<Step>) -> Result<(), ApplyError> {
        loop {
            let step = tokio::select! {
                // Answers come first: the position that is reported to the publisher depends on them.
                biased;
                answered = oldest(&mut self.under_way) => {
                    self.tell_oldest(&answered?).await?;
                    continue;
                }
                answer = self.rows.oldest() => {
                    let told = self.rows.judge(answer).await?;
                    self.tell_rows(told);
                    continue;
                }
                described = self.describing.end() => {
                    let Look { tables, known } = described?;
                    self.known.send_modify(|kept| kept.learn(known));
                    self.tell(Heard::Described(tables));
                    continue;
                }
                step = steps.recv() => step,
            };
            match step {
                Some(step) => {
                    let mut describing = std::mem::take(&mut self.describing);
                    describing.beside(self.perform(step)).await?;
                    if self.describing.is_nothing() {
                        self.describing = describing;
                    }
                }
                None => return Ok(()),
            }
        }
    }

    async fn perform(&mut self, step: Step) -> Result<(), ApplyError> {
        match step {
            Step::Describe { tables, reading } => self.describe(tables, reading).await,
            Step::Apply(batch) => self.send(batch).await,
            Step::Settle { expected } => self.settle(expected).await,
            Step::BeginRows { finish } => self.rows.begin(finish).await,
            Step::Row { table, change, index } => {
                if table.plan.fires.before_row {
                    self.drain_rows().await?;
                }
                let told = self.rows.row(&table, change, index).await?;
                if let Some(told) = told {
                    self.tell_rows(told);
                }
                Ok(())
            }
            Step::TruncateRows { tables, restart_seqs, index } => {
                self.drain_rows().await?;
                let told = self.rows.truncate(&tables, restart_seqs, index).await?;
                self.tell_rows(told);
                Ok(())
            }
            Step::CommitRows(advance) => self.commit_rows(advance).await,
            Step::Forget { table } => {
                self.sender.forget(table);
                self.rows.forget(table);
                Ok(())
            }
            // The applier handles these and does not pass them on.
            Step::Tell(_) | Step::End(_) => Ok(()),
        }
    }

    /// Sends a batch. While its statements are being prepared, answers to earlier batches are passed on.
    async fn send(&mut self, batch: Batch) -> Result<(), ApplyError> {
        let alone = if self.under_way.is_empty() { Alone::Yes } else { Alone::No };
        self.slices = if batch.advance.is_none() { SliceTransaction::Open } else { SliceTransaction::None };
        let mut early = Vec::new();
        let sent = {
            let mut sending = pin!(self.sender.send(&batch, alone));
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sending => break sent,
                    answered = oldest(&mut self.under_way) => {
                        let answered = answered?;
                        let _ = self.answers.send(Heard::Answer(answer_of(&answered)));
                        early.push(answered);
                    }
                }
            }
        };
        for answered in &early {
            self.note(answered);
            self.watch_slices(&answer_of(answered));
        }
        match sent {
            Ok(in_flight) => self.under_way.push_back(UnderWay::Batch(in_flight)),
            // Earlier answers come first: a COPY that was refused closes the connection, and they tell why.
            Err(error @ ApplyError::Connection(_)) if self.under_way.is_empty() => return Err(error),
            Err(error) => {
                if let Some(refused) = error.server_error() {
                    tracing::warn!(
                        error = refused.to_code(),
                        "a set statement could not be prepared; rows go one by one"
                    );
                }
                self.under_way.push_back(UnderWay::NotSent(cause(&error)));
            }
        }
        Ok(())
    }

    /// Rolls back the open transaction, and compares the progress row with `expected`.
    async fn settle(&mut self, expected: Lsn) -> Result<(), ApplyError> {
        self.session.client().batch_execute("ROLLBACK").await?;
        self.slices = SliceTransaction::None;
        let agrees = progress::expect(self.session.client(), &self.subscription, self.term, expected).await;
        let answer = match agrees {
            Ok(()) => done(Duration::ZERO),
            Err(ApplyError::ProgressMoved { .. }) => Answer::Moved,
            Err(error) => return Err(error),
        };
        self.tell(Heard::Answer(answer));
        Ok(())
    }

    async fn commit_rows(&mut self, advance: super::core::Advance) -> Result<(), ApplyError> {
        match self.rows.commit(advance).await {
            Ok(told) => self.tell_rows(told),
            Err(ApplyError::ProgressMoved { .. }) => self.tell(Heard::Answer(Answer::Moved)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn drain_rows(&mut self) -> Result<(), ApplyError> {
        while self.rows.is_busy() {
            let answer = self.rows.oldest().await;
            let told = self.rows.judge(answer).await?;
            self.tell_rows(told);
        }
        Ok(())
    }

    /// Waits for the answers to everything that was sent into the open transaction, and before it.
    async fn drain_slices(&mut self) -> Result<(), ApplyError> {
        while !self.under_way.is_empty() {
            let answered = oldest(&mut self.under_way).await?;
            self.tell_oldest(&answered).await?;
        }
        Ok(())
    }

    /// Begins to read tables' descriptions.
    async fn describe(&mut self, tables: Vec<QualifiedName>, reading: Reading) -> Result<(), ApplyError> {
        self.drain_rows().await?;
        if self.slices == SliceTransaction::Open {
            self.drain_slices().await?;
        }
        if self.slices == SliceTransaction::Failed {
            // The core ends because of that, and needs no description.
            return Ok(());
        }
        let busy = !self.under_way.is_empty();
        let client = if busy { self.catalog_session().await? } else { Arc::clone(self.session.client()) };
        let known = match reading {
            Reading::Changed => self.known.borrow().of(&tables),
            Reading::All => KnownTables::default(),
        };
        self.describing = Running::new(async move { Ok(catalog::look_at(&**client, &tables, known).await?) });
        Ok(())
    }

    async fn catalog_session(&mut self) -> Result<Arc<PgClient>, ApplyError> {
        if let Some(client) = self.catalog.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(self.session.open_catalog_session().await?);
        Ok(Arc::clone(self.catalog.insert(client)))
    }

    async fn tell_oldest(&mut self, answered: &OldestAnswer) -> Result<(), ApplyError> {
        if let OldestAnswer::Batch(answered) = answered {
            self.sender.receive(answered).await?;
        }
        self.note(answered);
        let answer = answer_of(answered);
        self.watch_slices(&answer);
        self.tell(Heard::Answer(answer));
        Ok(())
    }

    /// Notes that a slice, or a batch before it, has failed.
    fn watch_slices(&mut self, answer: &Answer) {
        if self.slices == SliceTransaction::Open && !matches!(answer, Answer::Done { .. }) {
            self.slices = SliceTransaction::Failed;
        }
    }

    fn note(&mut self, answered: &OldestAnswer) {
        if let OldestAnswer::Batch(answered) = answered {
            self.sender.note(answered);
        }
    }

    fn tell_rows(&mut self, told: Told) {
        match told {
            Told::Done(took) => self.tell(Heard::Answer(done(took))),
            Told::PassedOver => self.tell(Heard::Answer(Answer::PassedOver)),
            Told::Refused { facts, passed_over } => {
                self.tell(Heard::Answer(Answer::Refused(facts)));
                for _ in 0..passed_over {
                    self.tell(Heard::Answer(Answer::PassedOver));
                }
            }
        }
    }

    fn tell(&self, heard: Heard) {
        // Sending fails only if the receiver has been dropped, and then no answer is needed.
        let _ = self.answers.send(heard);
    }
}

enum OldestAnswer {
    Batch(Answered),
    NotSent(String),
}

/// Returns the oldest batch's answer; waits for ever if no batch is unanswered. Cancel-safe.
///
/// # Errors
/// The connection is lost, so it is unknown whether the batch was committed.
async fn oldest(under_way: &mut VecDeque<UnderWay>) -> Result<OldestAnswer, ApplyError> {
    let answered = match under_way.front_mut() {
        None => return std::future::pending().await,
        Some(UnderWay::NotSent(cause)) => OldestAnswer::NotSent(std::mem::take(cause)),
        Some(UnderWay::Batch(batch)) => OldestAnswer::Batch(batch.answered().await),
    };
    under_way.pop_front();
    match answered {
        OldestAnswer::Batch(Answered { result: Err(error @ ApplyError::Connection(_)), .. }) => Err(error),
        answered => Ok(answered),
    }
}

fn answer_of(oldest: &OldestAnswer) -> Answer {
    match oldest {
        OldestAnswer::NotSent(cause) => Answer::NotSent { cause: cause.clone() },
        OldestAnswer::Batch(Answered { result: Ok(()), took, .. }) => done(*took),
        OldestAnswer::Batch(Answered { result: Err(error), .. }) => {
            let cause = cause(error);
            if matches!(error, ApplyError::CopyRefused(_)) {
                Answer::OutOfStep { cause }
            } else {
                Answer::Failed { cause }
            }
        }
    }
}

/// Describes an error without the server's message, which may quote a row's values.
fn cause(error: &ApplyError) -> String {
    error.server_error().map_or_else(|| error.to_string(), ServerError::to_code)
}

fn done(took: Duration) -> Answer {
    Answer::Done { took }
}
