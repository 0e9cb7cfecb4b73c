//! Decides how the stream is applied: gathered into batches of sets, or exactly, row by row.
//!
//! ```text
//! message ─intake─▶ event ─▶ gathered ─whole transactions─▶ compact ─▶ pipeline ─▶ Durable
//!                        │                                        │ any error, any count that differs
//!                        └── tables or moments that sets don't suit ┴──▶ exact ─▶ Durable | Conflict
//! ```
//! While the target works on one batch the next gathers; an idle target gets what there is at once.
//! Sets are an optimisation and nothing else: whatever goes wrong with one is rolled back and
//! applied again on the exact path, which commits everything before the offending change's
//! transaction and names the change.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::apply::batches::gathered::{Gathered, last_applied, summarize};
use crate::apply::batches::pipeline::{Batch, Open, Pipeline};
use crate::apply::incoming::event::Event;
use crate::apply::incoming::intake::{Intake, Taken};
use crate::apply::incoming::tables::Tables;
use crate::apply::progress;
use crate::apply::rows::exact::Exact;
use crate::apply::sets::compact::compact;
use crate::apply::{Applied, ApplyError, How, Membership, Outcome, Start};
use crate::error::ServerError;
use crate::pg::{Lsn, QualifiedName, SubscriptionName};
use crate::pgoutput::{Format, Message, Relation};
use crate::target::TargetSession;
use crate::telemetry::Tally;

/// Applies one subscription's stream through one session.
#[derive(Debug)]
pub struct Applier<'a> {
    session: &'a TargetSession,
    intake: Intake,
    exact: Exact<'a>,
    pipeline: Pipeline,
    /// The progress row's position when everything that has been sent is through.
    recorded: Lsn,
    mode: Mode,
    gathered: Gathered,
    /// The finish LSN of the last transaction that went in slices.
    sliced: Lsn,
    /// What the slices applied so far hold, of a transaction whose last one has not been.
    slices: Option<Tally>,
    outcomes: VecDeque<Outcome>,
    idle: IdlePosition,
}

/// A position that the stream has passed without anything to apply: recorded before it is reported.
#[derive(Debug, Default)]
struct IdlePosition {
    waiting: Option<Lsn>,
    recorded_at: Option<Instant>,
}

/// Idle positions are recorded this often at most. Not less often: a publisher that commits synchronously
/// waits for them when it commits what is not published.
const IDLE_INTERVAL: Duration = Duration::from_millis(100);

/// How events are applied as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sets,
    /// Row by row, to the end of the transaction at least, and up to this finish LSN.
    Exact {
        until: Option<Lsn>,
    },
    /// A conflict was found: whatever comes after it must not be applied.
    Stopped,
}

/// What has to be done about a message before the next one can be taken.
#[derive(Debug)]
pub struct Work(Todo);

#[derive(Debug)]
enum Todo {
    /// Hold a table's description against the target.
    Announce(Relation),
    /// Sets do not suit it, or not now.
    Exactly(Event),
    /// As much has been gathered as may be.
    MakeRoom,
    /// A transaction that went in slices is whole.
    EndSlices,
    /// A transaction in progress was rolled back.
    RollBack,
}

impl<'a> Applier<'a> {
    pub fn new(
        session: &'a TargetSession,
        subscription: SubscriptionName,
        members: Membership,
        start: Start,
    ) -> Self {
        let mode = match start.exact_until {
            Some(_) => Mode::Exact { until: start.exact_until },
            None => Mode::Sets,
        };
        Self {
            session,
            intake: Intake::new(Tables::new(members), start.format, start.recorded),
            exact: Exact::new(session, subscription.clone(), start.skip),
            pipeline: Pipeline::new(session, subscription, start.format),
            recorded: start.recorded,
            mode,
            gathered: Gathered::default(),
            sliced: Lsn::ZERO,
            slices: None,
            outcomes: VecDeque::new(),
            idle: IdlePosition::default(),
        }
    }

    /// The table is synchronised: changes that commit from here on apply.
    pub fn set_position(&mut self, source: &QualifiedName, position: Lsn) {
        self.intake.tables.set_position(source, position);
    }

    /// The position up to which the stream has been received, between two transactions; none within
    /// one. What belongs to which table has been decided up to here.
    pub fn received(&self) -> Option<Lsn> {
        self.intake.received()
    }

    /// Whether a transaction is being applied that may yet be rolled back by the publisher.
    pub fn is_in_progress(&self) -> bool {
        self.intake.is_in_progress()
    }

    /// Whether everything received is applied, and the stream is between two transactions.
    fn is_at_rest(&self) -> bool {
        self.received().is_some() && self.gathered.is_empty() && self.pipeline.is_idle()
    }

    /// Whether batches are under way whose end [`Self::wait`] waits for.
    pub fn is_busy(&self) -> bool {
        !self.pipeline.is_idle()
    }

    /// What has happened since it was last asked.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Takes the stream's next message. Most only have to be kept; what takes time comes back as work
    /// to be done ([`Self::work`]) before the next message.
    ///
    /// # Errors
    /// After an error the applier is of no more use, and the session's transaction may be open
    /// ([`TargetSession::reset`]).
    pub fn take(&mut self, message: Message) -> Result<Option<Work>, ApplyError> {
        if self.mode == Mode::Stopped {
            return Ok(None);
        }
        let todo = match self.intake.take(message)? {
            Taken::Nothing => None,
            Taken::Event(Event::Idle(lsn)) => {
                self.keepalive(lsn);
                None
            }
            Taken::Event(event) => self.admit(event),
            Taken::Announce(relation) => Some(Todo::Announce(relation)),
            Taken::Ended(begin, commit) => {
                if self.pipeline.open() == Open::Yes {
                    self.sliced = begin.final_lsn;
                } else {
                    self.gathered.begin_last(begin);
                }
                self.admit(commit)
            }
            Taken::RolledBack => Some(Todo::RollBack),
        };
        Ok(todo.map(Work))
    }

    /// Gathers the event, unless more has to be done about it.
    fn admit(&mut self, event: Event) -> Option<Todo> {
        if self.mode != Mode::Sets || self.needs_exact(&event) {
            return Some(Todo::Exactly(event));
        }
        let ends = matches!(event, Event::Commit { .. });
        self.gathered.push(event);
        if ends {
            self.gathered.close();
            if self.pipeline.open() == Open::Yes {
                // The last slice of a transaction that the target has had open.
                return Some(Todo::EndSlices);
            }
        }
        self.gathered.is_full().then_some(Todo::MakeRoom)
    }

    /// Does what a message asked for.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub async fn work(&mut self, work: Work) -> Result<(), ApplyError> {
        match work.0 {
            Todo::Announce(relation) => self.announce(relation).await,
            Todo::Exactly(event) => {
                if self.is_in_progress() {
                    return Err(self.send_again());
                }
                if self.mode == Mode::Sets {
                    self.enter_exact().await?;
                }
                if self.mode == Mode::Stopped { Ok(()) } else { self.apply_exactly(event).await }
            }
            Todo::MakeRoom => self.send_full().await,
            Todo::EndSlices => self.end_slices().await,
            Todo::RollBack => self.roll_back().await,
        }
    }

    async fn announce(&mut self, relation: Relation) -> Result<(), ApplyError> {
        // Within an open target transaction a failed change would fail the look-up, too.
        while self.pipeline.open() == Open::Yes && self.is_busy() {
            self.settle().await?;
        }
        self.exact.come_to_rest().await?;
        let announced = match self.intake.tables.announce(relation, self.session).await {
            // Whether it matters is not known before the transaction's end.
            Err(ApplyError::Unfit(_)) if self.is_in_progress() => return Err(ApplyError::SendWhole),
            announced => announced?,
        };
        let Some(announced) = announced else { return Ok(()) };
        if let Some(replaced) = announced.replaced {
            self.exact.forget(replaced);
            self.pipeline.forget(replaced);
        }
        if self.intake.format() == Format::Binary && !announced.takes_binary {
            // The catalogs said otherwise when the stream was started.
            return Err(self.send_again());
        }
        let (source, exact_because) = (announced.source, announced.exact_because);
        self.outcomes.push_back(Outcome::Planned { source, exact_because });
        Ok(())
    }

    /// The publisher's position while it has nothing to send: once everything before it is done,
    /// it is done with, too; unless a transaction is still being received.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if self.received().is_none() || self.mode == Mode::Stopped {
            return;
        }
        self.intake.note_idle(wal_end);
        if self.is_at_rest() {
            self.hold_idle(wal_end);
        } else {
            self.gathered.note_idle(wal_end);
        }
    }

    /// Nothing more has come for now: an idle target gets what there is, a busy one what has waited long.
    pub async fn flush(&mut self) -> Result<(), ApplyError> {
        let wanted = self.pipeline.is_idle() && self.gathered.has_whole();
        let due = self.gathered.is_old() && !self.pipeline.is_full();
        if (wanted || due) && self.pipeline.open() == Open::No {
            self.send_whole().await?;
        }
        if self.idle_due().is_some_and(|due| due <= Instant::now()) {
            self.record_idle().await
        } else {
            Ok(())
        }
    }

    /// When [`Self::flush`] has an idle position to record; none if there is none, or work comes first.
    pub fn idle_due(&self) -> Option<Instant> {
        let at_rest = self.is_at_rest() && self.exact.is_between_transactions() && self.mode != Mode::Stopped;
        self.idle.waiting.filter(|_| at_rest)?;
        Some(self.idle.recorded_at.map_or_else(Instant::now, |at| at + IDLE_INTERVAL))
    }

    fn hold_idle(&mut self, lsn: Lsn) {
        self.idle.waiting = self.idle.waiting.max(Some(lsn)).filter(|lsn| *lsn > self.recorded);
    }

    async fn record_idle(&mut self) -> Result<(), ApplyError> {
        let Some(lsn) = self.idle.waiting.take().filter(|lsn| *lsn > self.recorded) else { return Ok(()) };
        progress::record_idle(self.session.client(), self.exact.subscription(), self.recorded, lsn).await?;
        self.recorded = lsn;
        self.idle.recorded_at = Some(Instant::now());
        self.outcomes.push_back(Outcome::Durable { lsn, transaction: None });
        Ok(())
    }

    /// Waits until the oldest batch has been answered. Cancel safe; [`Self::settle`] takes it up.
    pub async fn wait(&mut self) {
        self.pipeline.wait_oldest().await;
    }

    /// Takes up the oldest batch's answers.
    pub async fn settle(&mut self) -> Result<(), ApplyError> {
        if self.pipeline.is_idle() {
            return Ok(());
        }
        self.pipeline.wait_oldest().await;
        match self.pipeline.take_oldest() {
            Ok(Some(done)) => {
                self.report(&done);
                self.flush().await
            }
            Ok(None) => Ok(()),
            Err(error) => self.fall_back(error).await,
        }
    }

    fn needs_exact(&self, event: &Event) -> bool {
        match event {
            Event::Begin(begin) => self.exact.skips(begin.final_lsn),
            Event::Change { table, change, .. } => !table.suits_sets(change),
            Event::Truncate { tables, .. } => tables.iter().any(|table| table.acts()),
            Event::Commit { .. } | Event::Idle(_) => false,
        }
    }

    // --- the exact path -------------------------------------------------------------------

    async fn apply_exactly(&mut self, event: Event) -> Result<(), ApplyError> {
        let finished = match &event {
            Event::Commit { commit, .. } => Some(commit.commit_lsn),
            _ => None,
        };
        let outcome = self.exact.handle(event, &mut self.recorded, &self.intake.tables).await?;
        if matches!(outcome, Outcome::Conflict(_)) {
            if self.intake.format() == Format::Binary {
                // Evidence is for people: the transaction comes again, with its values as text.
                return Err(ApplyError::SendAgain { until: finished.unwrap_or(self.recorded) });
            }
            self.mode = Mode::Stopped;
        }
        match outcome {
            Outcome::Pending => {}
            Outcome::Durable { lsn, .. } if lsn > self.recorded => self.hold_idle(lsn),
            outcome => self.outcomes.push_back(outcome),
        }
        if let (Some(finished), Mode::Exact { until }) = (finished, self.mode)
            && until.is_none_or(|until| finished >= until)
        {
            self.mode = Mode::Sets;
        }
        Ok(())
    }

    /// Finishes everything before the open transaction, and goes on with it row by row.
    async fn enter_exact(&mut self) -> Result<(), ApplyError> {
        if self.pipeline.open() == Open::Yes || self.is_in_progress() {
            return Err(self.send_again());
        }
        if self.gathered.has_whole() {
            self.send_whole().await?;
        }
        while self.is_busy() {
            self.settle().await?;
        }
        if self.mode == Mode::Stopped {
            return Ok(());
        }
        self.mode = Mode::Exact { until: None };
        for event in self.gathered.take_all() {
            self.apply_exactly(event).await?;
        }
        Ok(())
    }

    /// A batch failed: rolls back, and applies what was under way and what has gathered since row
    /// by row. A conflict found there ends it.
    async fn fall_back(&mut self, error: ApplyError) -> Result<(), ApplyError> {
        if matches!(error, ApplyError::Connection(_)) {
            return Err(error);
        }
        if self.is_in_progress() {
            return Err(self.send_again());
        }
        let cause = error.server_error().map_or_else(|| error.to_string(), ServerError::to_code);
        let Some(mut events) = self.pipeline.abandon().await? else { return Err(self.send_again()) };
        self.outcomes.push_back(Outcome::FellBack { cause });
        let subscription = self.exact.subscription().clone();
        if let Some(recorded) = progress::load(self.session.client(), &subscription).await? {
            self.recorded = recorded;
        }
        events.extend(self.gathered.take_all());
        self.mode = Mode::Exact { until: None };
        for event in events {
            // Stays exact over all of them: they were one failure.
            self.mode = Mode::Exact { until: None };
            self.apply_exactly(event).await?;
            if self.mode == Mode::Stopped {
                return Ok(());
            }
        }
        self.mode =
            if self.exact.is_between_transactions() { Mode::Sets } else { Mode::Exact { until: None } };
        Ok(())
    }

    /// Up to the transaction that is being received, or the last one that has been sent to the target.
    fn send_again(&self) -> ApplyError {
        if self.is_in_progress() {
            return ApplyError::SendWhole;
        }
        let sent = self.sliced.max(self.recorded);
        ApplyError::SendAgain { until: self.intake.finishes_at().map_or(sent, |lsn| lsn.max(sent)) }
    }

    /// A transaction in progress was rolled back: so is what has been applied of it.
    async fn roll_back(&mut self) -> Result<(), ApplyError> {
        self.gathered.drop_unfinished();
        if self.pipeline.open() == Open::Yes {
            while self.is_busy() {
                self.settle().await?;
            }
            self.pipeline.roll_back().await?;
            self.slices = None;
        }
        self.flush().await
    }

    // --- batches --------------------------------------------------------------------------

    /// Sends the last slice of a transaction, and its COMMIT with it: not before all others are known to be
    /// what they should.
    async fn end_slices(&mut self) -> Result<(), ApplyError> {
        while self.is_busy() && self.pipeline.open() == Open::Yes {
            self.settle().await?;
        }
        self.send_whole().await
    }

    /// Sends all whole transactions.
    async fn send_whole(&mut self) -> Result<(), ApplyError> {
        let events = self.gathered.take_whole();
        self.send(events, Ends::Whole).await
    }

    /// The gathered events have reached their bound: sends whole transactions, or a slice of one.
    async fn send_full(&mut self) -> Result<(), ApplyError> {
        while self.pipeline.is_full() && self.mode == Mode::Sets {
            self.settle().await?;
        }
        // Settling may have sent or applied everything that was gathered.
        if !self.gathered.is_full() {
            return Ok(());
        }
        if self.gathered.has_whole() {
            return self.send_whole().await;
        }
        self.sliced = self.intake.finishes_at().unwrap_or(self.sliced);
        let events = self.gathered.take_all();
        self.send(events, Ends::Within).await
    }

    async fn send(&mut self, events: Vec<Event>, ends: Ends) -> Result<(), ApplyError> {
        let open = self.pipeline.open();
        let Ok(steps) = compact(&events) else { return self.not_sent(ApplyError::NotASet, events).await };
        let writes = !steps.is_empty() || open == Open::Yes;
        let tally = summarize(&events);
        let last = last_applied(&events);
        let end = match (ends, last) {
            (Ends::Whole, Some((lsn, applied))) if writes => Some(progress::Advance {
                from: self.recorded,
                to: lsn,
                commit_time_us: applied.commit_time_us,
                transactions: tally.transactions,
            }),
            _ => None,
        };
        let recorded = end.map_or(self.recorded, |end| end.to);
        let batch = Batch { steps, events, end, tally };
        match self.pipeline.send(batch).await {
            Ok(()) => {
                self.recorded = recorded;
                Ok(())
            }
            Err((error, batch)) => self.not_sent(error, batch.events).await,
        }
    }

    /// What could not be sent follows, row by row, what has been.
    async fn not_sent(&mut self, error: ApplyError, events: Vec<Event>) -> Result<(), ApplyError> {
        if matches!(error, ApplyError::Connection(_)) {
            return Err(error);
        }
        if self.pipeline.open() == Open::Yes {
            return Err(self.send_again());
        }
        if let Some(refused) = error.server_error() {
            tracing::warn!(
                error = refused.to_code(),
                "a set statement could not be prepared; rows go one by one"
            );
        }
        self.gathered.put_back(events);
        self.fall_back(error).await
    }

    fn report(&mut self, done: &crate::apply::batches::pipeline::Settled) {
        if done.slice && done.end.is_none() {
            // Durable, and told of, with the last slice.
            self.slices = Some(self.slices.take().unwrap_or_default().plus(done.tally));
        }
        let Some((lsn, last)) = last_applied(&done.events).or_else(|| {
            // Slices keep no events; the last one of a transaction has its end.
            done.end.map(|end| {
                let applied = Applied {
                    commit_lsn: end.to,
                    commit_time_us: end.commit_time_us,
                    changes: 0,
                    how: How::Committed,
                };
                (end.to, applied)
            })
        }) else {
            if let Some(idle) = done.events.iter().rev().find_map(Event::idle) {
                self.hold_idle(idle);
            }
            return;
        };
        self.hold_idle(done.events.iter().rev().find_map(Event::idle).unwrap_or(lsn).max(lsn));
        if done.end.is_some() {
            let tally = self.slices.take().unwrap_or_default().plus(done.tally);
            self.outcomes.push_back(Outcome::Batch { lsn, last, tally, took: done.took });
        }
    }
}

/// Whether a batch ends with a whole transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Whole,
    Within,
}
