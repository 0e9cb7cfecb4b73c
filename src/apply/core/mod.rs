//! Decides how the stream is applied. Messages, answers and the time go in; steps come out.
//!
//! ```text
//!            ┌───────────────────────────── all answered, the record agrees ──────────────────────────────┐
//!            │                                                                                            ▼
//! Sets ──────┼── a set fails, cannot be built, or does not suit ──▶ Settling ── all answered ──▶ Rows ── through ──▶ Sets
//!   │  ▲     │
//!   │  └── last slice sent, or rolled back by the publisher ──┐
//!   └────── a transaction is larger than a batch ──▶ Slices ──┘
//!
//! any ── conflict, contradiction, another writer, to be sent again ──▶ Stopped
//! ```
//! - `Sets`: whole transactions are gathered and sent as batches of set statements. Several batches may be
//!   unanswered at a time.
//! - `Slices`: one transaction, larger than a batch, is sent in parts within one open target transaction.
//! - `Settling`: a batch failed, or an event cannot be part of a set. All unanswered batches are answered
//!   before anything else is sent.
//! - `Rows`: one publisher transaction is one target transaction, row by row, in order.
//! - `Stopped`: this core applies nothing more.
//!
//! Set statements are an optimisation. If one fails, its batch is rolled back and applied row by row, which
//! commits everything before the transaction in conflict and names the change.
//!
//! # Invariants
//! They are checked here, also in release builds. If one does not hold, the stream ends:
//! - No COMMIT records a position at or below the last one (`positions`).
//! - No position is reported that is not recorded (`positions`).
//! - No change of a table is applied that commits before the table's position (`incoming`).
//! - Nothing is applied again that may still commit: events are replayed only after every batch has been
//!   answered and the progress row has been found where the answers say.
//!
//! # What it does not do
//! It uses no socket, clock or driver. `apply::performer` carries out its steps on the target session; the
//! simulator (`tests/sim`) carries them out on a model of the target.

mod gathered;
mod positions;
mod rows;
mod sets;
mod settling;
mod slices;
mod step;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

pub use self::gathered::Bounds;
pub(crate) use self::gathered::Gathered;
pub use self::positions::Advance;
use self::positions::Positions;
use self::rows::Rows;
use self::sets::Sets;
use self::settling::Settling;
use self::slices::Slices;
pub use self::step::{Answer, Batch, Description, Reading, Step};
use super::end::End;
use super::incoming::event::Event;
use super::incoming::intake::{Intake, Taken};
use super::incoming::tables::{Announced, Described, Membership, PlannedTable, Tables};
use super::outcome::{Outcome, Start};
use crate::mutation::{self, Mutation};
use crate::pg::{Lsn, QualifiedName, SubscriptionName};
use crate::pgoutput::{Format, LargeMessage, Message};
use crate::schema::Surroundings;

/// Time since the stream began.
pub type Moment = Duration;

/// How long no message may come while a transaction in progress is being applied: until it ends, it holds
/// locks on rows of the target.
const IN_PROGRESS_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Applies one subscription's stream.
#[derive(Debug)]
pub struct Core {
    subscription: SubscriptionName,
    intake: Intake,
    positions: Positions,
    bounds: Bounds,
    phase: Phase,
    now: Moment,
    /// When the last message came.
    heard: Moment,
    /// Why the stream ends once everything before the change in hand has been applied.
    ending: Option<End>,
    steps: VecDeque<Step>,
}

/// How events are applied. Every transition consumes the phase.
#[derive(Debug)]
enum Phase {
    Sets(Sets),
    Slices(Slices),
    Settling(Settling),
    Rows(Rows),
    Stopped,
}

impl Core {
    pub fn new(
        subscription: SubscriptionName,
        members: Membership,
        surroundings: Surroundings,
        start: Start,
        bounds: Bounds,
    ) -> Self {
        let phase = match start.exact_until {
            Some(until) => Phase::Rows(Rows::until(until)),
            None => Phase::Sets(Sets::default()),
        };
        Self {
            subscription,
            intake: Intake::new(Tables::new(members, surroundings), start.format, start.recorded, start.skip),
            positions: Positions::new(start.recorded),
            bounds,
            phase,
            now: Moment::ZERO,
            heard: Moment::ZERO,
            ending: None,
            steps: VecDeque::new(),
        }
    }

    // --- questions of the shell -----------------------------------------------------------

    /// The next step to be carried out.
    pub fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Whether the stream's next message can be taken. If not, an answer or a description is outstanding.
    pub fn takes_messages(&self) -> bool {
        let holds = self.intake.tables.awaits_description() || self.intake.holds_change();
        !holds && self.ending.is_none() && self.has_room()
    }

    fn has_room(&self) -> bool {
        match &self.phase {
            Phase::Sets(sets) => sets.has_room(self.bounds),
            Phase::Slices(slices) => slices.has_room(self.bounds),
            Phase::Settling(_) | Phase::Stopped => false,
            Phase::Rows(rows) => rows.has_room(),
        }
    }

    /// The position up to which the stream has been received; none within a transaction. For every change
    /// before it, it has been decided whether the change applies to its table.
    pub fn received(&self) -> Option<Lsn> {
        self.intake.received()
    }

    /// Where the latest changes commit that were passed over because gaps hold their tables.
    pub const fn passed_over(&self) -> &HashMap<QualifiedName, Lsn> {
        self.intake.tables.passed_over()
    }

    /// Whether a transaction is being applied that the publisher may yet roll back.
    pub fn is_in_progress(&self) -> bool {
        self.intake.is_in_progress()
    }

    /// Whether steps have been given out whose answers have not come.
    pub fn awaits_answers(&self) -> bool {
        match &self.phase {
            Phase::Sets(sets) => sets.awaits_answers(),
            Phase::Slices(slices) => slices.awaits_answers(),
            Phase::Settling(_) => true,
            Phase::Rows(rows) => rows.awaits_answers(),
            Phase::Stopped => false,
        }
    }

    /// When [`Self::tick`] should be called next; none if nothing depends on time.
    pub fn due(&self) -> Option<Moment> {
        let stale = self.is_in_progress().then(|| self.heard + IN_PROGRESS_SILENCE_MAX);
        let idle = if self.is_at_rest() { self.positions.idle_due() } else { None };
        let old = match &self.phase {
            Phase::Sets(sets) => sets.is_old_at(),
            Phase::Slices(_) | Phase::Settling(_) | Phase::Rows(_) | Phase::Stopped => None,
        };
        [stale, idle, old].into_iter().flatten().min()
    }

    // --- events from the shell ------------------------------------------------------------

    /// The table is synchronised: changes that commit at or beyond the position apply. May only be called
    /// between two transactions.
    pub fn set_position(&mut self, source: &QualifiedName, position: Lsn) {
        self.intake.tables.set_position(source, position);
    }

    /// Sets the minimum time between two records of a position that has no transaction.
    pub fn set_idle_record_interval(&mut self, interval: Duration) {
        self.positions.set_idle_interval(interval);
    }

    /// Takes the stream's next message. May only be called if [`Self::takes_messages`].
    pub fn take(&mut self, message: Message, now: Moment) {
        (self.now, self.heard) = (now, now);
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        let taken = self.intake.take(message, now);
        let done = self.handle(taken);
        self.end_on_error(done);
    }

    /// The publisher has sent everything up to `wal_end`. With `wants_report` it requests a status update.
    pub fn keepalive(&mut self, wal_end: Lsn, wants_report: bool, now: Moment) {
        self.now = now;
        if wants_report {
            self.positions.ask();
        }
        if self.received().is_some() {
            self.intake.note_idle(wal_end);
            self.positions.pass(wal_end);
            if mutation::is(Mutation::IdleBeforeRecord) && self.is_at_rest() {
                self.tell(Outcome::Durable { lsn: wal_end, skipped: None });
            }
        }
    }

    /// The stream's next message is a row that is too large. The stream ends there, after everything before its
    /// transaction has been applied.
    pub fn refuse(&mut self, message: LargeMessage, now: Moment) {
        self.now = now;
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        let done = if self.is_in_progress() {
            // It may be rolled back, and others may commit before it.
            Err(End::SendWhole)
        } else {
            self.end_after_all_before(End::TooLarge(self.intake.tables.large_row(message)))
        };
        self.end_on_error(done);
    }

    /// No message is waiting: if the target is idle, what has been gathered is sent.
    pub fn quiet(&mut self, now: Moment) {
        self.now = now;
        let done = self.go_on();
        self.end_on_error(done);
    }

    /// Everything that the publisher has sent has been taken.
    pub fn caught_up(&mut self, now: Moment) {
        if self.received().is_some() {
            self.intake.tables.caught_up(now);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        self.now = now;
        if self.is_in_progress() && now >= self.heard + IN_PROGRESS_SILENCE_MAX {
            return self.end(End::SendWhole);
        }
        self.quiet(now);
    }

    /// Takes the answer to the oldest unanswered step.
    pub fn answered(&mut self, answer: Answer, now: Moment) {
        self.now = now;
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped);
        let next = match phase {
            Phase::Sets(sets) => self.answered_in_sets(sets, answer),
            Phase::Slices(slices) => self.answered_in_slices(slices, answer),
            Phase::Settling(settling) => self.answered_in_settling(settling, answer),
            Phase::Rows(rows) => self.answered_in_rows(rows, answer),
            Phase::Stopped => Ok(Phase::Stopped),
        };
        match next {
            Ok(phase) => {
                self.phase = phase;
                let done = self.go_on();
                self.end_on_error(done);
            }
            Err(end) => self.end(end),
        }
    }

    /// The answer to [`Step::Describe`].
    pub fn described(&mut self, description: Description, now: Moment) {
        self.now = now;
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        let done = match self.intake.tables.describe(description, now) {
            Some(described) => self.planned(described).and_then(|()| self.go_on()),
            None => Err(End::Invariant("a table was described that nobody asked about")),
        };
        self.end_on_error(done);
    }

    // --- between the phases ---------------------------------------------------------------

    fn handle(&mut self, taken: Result<Taken, End>) -> Result<(), End> {
        match taken {
            Ok(Taken::Nothing | Taken::Announced(Announced::Nothing)) => Ok(()),
            Ok(Taken::Passed(lsn)) => {
                self.positions.pass(lsn);
                Ok(())
            }
            Ok(Taken::Event(event)) => self.admit(event),
            Ok(Taken::Announced(Announced::Again(name))) => {
                self.tell(Outcome::Again(name));
                Ok(())
            }
            Ok(Taken::Announced(Announced::Stranger(name))) => {
                self.tell(Outcome::Stranger(name));
                Ok(())
            }
            Ok(Taken::Announced(Announced::Planned(described))) => self.planned(described),
            Ok(Taken::Announced(Announced::Describe { tables, reading })) => {
                self.steps.push_back(Step::Describe { tables, reading });
                Ok(())
            }
            Ok(Taken::Ended(begin, commit)) => {
                if let Phase::Sets(sets) = &mut self.phase {
                    sets.gathered.begin_last(begin);
                }
                self.admit(commit)
            }
            Ok(Taken::RolledBack) => self.roll_back(),
            Err(end @ End::Unfit(_)) => self.end_after_all_before(end),
            Err(end) => Err(end),
        }
    }

    /// Does what has become possible: sends gathered events, takes a change that was held, records a position, and
    /// ends the stream if it was only waiting for earlier transactions.
    fn go_on(&mut self) -> Result<(), End> {
        self.flush()?;
        while self.intake.holds_change() && !self.intake.tables.awaits_description() && self.has_room() {
            let Some(taken) = self.intake.take_held() else { break };
            self.handle(taken)?;
        }
        self.record_if_due()?;
        match self.ending.take_if(|_| all_before_is_applied(&self.phase)) {
            Some(end) => Err(end),
            None => Ok(()),
        }
    }

    /// Ends the stream because of a change in the transaction that is being received. Everything before that
    /// transaction is applied first, and what has been sent of the transaction is rolled back.
    fn end_after_all_before(&mut self, end: End) -> Result<(), End> {
        self.ending = Some(end);
        self.drop_unfinished()?;
        self.go_on()
    }

    fn planned(&mut self, described: Described) -> Result<(), End> {
        let Described { replaced, planned } = described;
        self.steps.extend(replaced.map(|table| Step::Forget { table }));
        let Some(planned) = planned else { return Ok(()) };
        let PlannedTable { source, exact_because, takes_binary, description, warnings } = planned;
        if self.intake.format() == Format::Binary && !takes_binary {
            // The stream was started in binary because the catalogs allowed it then.
            return Err(self.send_again());
        }
        self.tell(Outcome::Planned { source, exact_because, description, warnings });
        Ok(())
    }

    fn admit(&mut self, event: Event) -> Result<(), End> {
        if let Phase::Sets(sets) = &mut self.phase
            && !matches!(&event, Event::Begin(begin) if self.intake.passes_over(begin.final_lsn))
            && event.suits_sets()
        {
            let ends = matches!(event, Event::Commit { .. });
            sets.gathered.push(event, self.now);
            if ends {
                sets.gathered.close();
            }
            return if sets.gathered.is_full(self.bounds) { self.make_room() } else { Ok(()) };
        }
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped);
        self.phase = match phase {
            Phase::Sets(sets) => self.leave_sets(sets, event)?,
            Phase::Slices(slices) => self.admit_to_slices(slices, event)?,
            Phase::Rows(rows) => self.admit_to_rows(rows, event)?,
            Phase::Settling(_) => {
                return Err(End::Invariant("a message was taken before everything was settled"));
            }
            Phase::Stopped => Phase::Stopped,
        };
        Ok(())
    }

    /// The publisher has rolled back the transaction in progress: what has been applied of it is rolled back.
    fn roll_back(&mut self) -> Result<(), End> {
        match self.phase {
            Phase::Rows(_) | Phase::Settling(_) => Err(self.send_again()),
            Phase::Sets(_) | Phase::Slices(_) | Phase::Stopped => self.drop_unfinished(),
        }
    }

    /// Drops the transaction that is being received from what is to be sent as sets. If slices of it have been sent,
    /// they are rolled back.
    fn drop_unfinished(&mut self) -> Result<(), End> {
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped);
        self.phase = match phase {
            Phase::Sets(mut sets) => {
                sets.gathered.drop_unfinished();
                Phase::Sets(sets)
            }
            Phase::Slices(slices) => self.roll_back_slices(slices)?,
            phase @ (Phase::Rows(_) | Phase::Settling(_) | Phase::Stopped) => phase,
        };
        Ok(())
    }

    /// Sends gathered events because their bound has been reached.
    fn make_room(&mut self) -> Result<(), End> {
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped);
        self.phase = match phase {
            Phase::Sets(sets) => self.send_full(sets)?,
            phase => phase,
        };
        Ok(())
    }

    fn flush(&mut self) -> Result<(), End> {
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped);
        self.phase = match phase {
            Phase::Sets(sets) => self.flush_sets(sets)?,
            Phase::Slices(slices) => self.flush_slices(slices)?,
            phase => phase,
        };
        Ok(())
    }

    /// Whether everything received is applied, and the stream is between two transactions.
    fn is_at_rest(&self) -> bool {
        let rests = match &self.phase {
            Phase::Sets(sets) => sets.is_at_rest(),
            Phase::Rows(rows) => rows.is_at_rest(),
            Phase::Slices(_) | Phase::Settling(_) | Phase::Stopped => false,
        };
        rests && self.received().is_some()
    }

    /// Records the position of an idle stream, so that it can be reported.
    fn record_if_due(&mut self) -> Result<(), End> {
        if !self.is_at_rest() || self.positions.idle_due().is_none_or(|due| due > self.now) {
            return Ok(());
        }
        let advance = self.positions.advance_idle(self.now)?;
        match &mut self.phase {
            Phase::Sets(sets) => sets.note_record(advance),
            Phase::Rows(rows) => rows.note_record(advance),
            Phase::Slices(_) | Phase::Settling(_) | Phase::Stopped => {}
        }
        self.steps.push_back(Step::Apply(Batch { sets: Vec::new(), begins: true, advance: Some(advance) }));
        Ok(())
    }

    /// The end by which the publisher sends everything again. Row by row go all transactions up to the one that
    /// is being received, or up to the last one that was sent to the target.
    fn send_again(&self) -> End {
        if self.is_in_progress() {
            return End::SendWhole;
        }
        let sent = self.positions.sent();
        End::SendAgain { until: self.intake.finishes_at().map_or(sent, |lsn| lsn.max(sent)) }
    }

    fn tell(&mut self, outcome: Outcome) {
        self.steps.push_back(Step::Tell(outcome));
    }

    fn end_on_error(&mut self, done: Result<(), End>) {
        if let Err(end) = done {
            self.end(end);
        }
    }

    fn end(&mut self, end: End) {
        self.phase = Phase::Stopped;
        self.steps.push_back(Step::End(end));
    }
}

/// Whether every transaction before the one that is being received has been applied.
fn all_before_is_applied(phase: &Phase) -> bool {
    match phase {
        Phase::Sets(sets) => sets.is_at_rest(),
        Phase::Rows(rows) => rows.has_applied_all_before(),
        Phase::Slices(_) | Phase::Settling(_) | Phase::Stopped => false,
    }
}
