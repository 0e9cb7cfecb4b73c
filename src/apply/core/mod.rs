//! Decides how the stream is applied. Does nothing itself: messages, answers and time in, steps out.
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
//! - `Sets`: whole transactions gather and go as batches of set statements, several under way.
//! - `Slices`: one transaction flows into an open target transaction.
//! - `Settling`: something did not work; whatever is under way is answered before anything else is sent.
//! - `Rows`: one publisher transaction is one target transaction, row by row, in order.
//! - `Stopped`: nothing more is applied by this core.
//!
//! Sets are an optimisation: whatever goes wrong with one is rolled back and applied row by row, which commits
//! everything before the offending transaction and names the change.
//!
//! # Invariants
//! They are checked here, in release builds too, and stop the stream where they do not hold:
//! - No COMMIT records a position at or below the last one (`positions`).
//! - No position is reported that is not recorded (`positions`).
//! - No change of a table is applied that commits before the table's position (`incoming`).
//! - Nothing is applied again that may still commit: a replay waits until everything under way has been
//!   answered, and until the progress row is where the answers say.
//!
//! # What it does not do
//! It knows no socket, clock or driver. `apply::performer` carries its steps out on the target session; the
//! simulator (`tests/sim`) does so on a model.

mod gathered;
mod positions;
mod rows;
mod sets;
mod settling;
mod slices;
mod step;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub(crate) use self::gathered::Gathered;
pub use self::positions::Advance;
use self::positions::Positions;
use self::rows::Rows;
use self::sets::Sets;
use self::settling::Settling;
use self::slices::Slices;
pub use self::step::{Answer, Batch, Description, End, Step};
use super::incoming::event::Event;
use super::incoming::intake::{Intake, Taken};
use super::incoming::tables::{Described, Membership, Surroundings, Tables};
use super::outcome::{Outcome, Start};
use crate::pg::{Lsn, QualifiedName, SubscriptionName};
use crate::pgoutput::{Format, Message};

/// Time since the stream began.
pub type Moment = Duration;

/// A transaction in progress may be silent for this long: until its end, rows of the target are locked.
const IN_PROGRESS_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Applies one subscription's stream.
#[derive(Debug)]
pub struct Core {
    subscription: SubscriptionName,
    intake: Intake,
    positions: Positions,
    /// Pass over exactly the transaction that finishes here.
    skip: Option<Lsn>,
    phase: Phase,
    now: Moment,
    /// When the last message came.
    heard: Moment,
    steps: VecDeque<Step>,
}

/// How events are applied as they come. Consumed by every transition.
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
    ) -> Self {
        let phase = match start.exact_until {
            Some(until) => Phase::Rows(Rows::until(until)),
            None => Phase::Sets(Sets::default()),
        };
        Self {
            subscription,
            intake: Intake::new(Tables::new(members, surroundings), start.format, start.recorded),
            positions: Positions::new(start.recorded),
            skip: start.skip,
            phase,
            now: Moment::ZERO,
            heard: Moment::ZERO,
            steps: VecDeque::new(),
        }
    }

    // --- what the shell asks --------------------------------------------------------------

    /// The next step to be carried out.
    pub fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Whether the stream's next message can be taken. If not, an answer has to come first.
    pub fn takes_messages(&self) -> bool {
        if self.intake.tables.awaits_description() {
            return false;
        }
        match &self.phase {
            Phase::Sets(sets) => sets.has_room(),
            Phase::Slices(slices) => slices.has_room(),
            Phase::Settling(_) | Phase::Stopped => false,
            Phase::Rows(rows) => rows.has_room(),
        }
    }

    /// The position up to which the stream has been received, between two transactions; none within one.
    /// Which changes belong to which table has been decided up to here.
    pub fn received(&self) -> Option<Lsn> {
        self.intake.received()
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

    // --- what the shell tells -------------------------------------------------------------

    /// The table is synchronised: changes that commit at or beyond the position apply. Only between two
    /// transactions.
    pub fn set_position(&mut self, source: &QualifiedName, position: Lsn) {
        self.intake.tables.set_position(source, position);
    }

    /// Time between two records of the position of a stream that brings nothing for the target, at least.
    pub fn set_idle_record_interval(&mut self, interval: Duration) {
        self.positions.set_idle_interval(interval);
    }

    /// Takes the stream's next message; only if [`Self::takes_messages`].
    pub fn take(&mut self, message: Message, now: Moment) {
        (self.now, self.heard) = (now, now);
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        let taken = self.intake.take(message);
        let done = match taken {
            Ok(Taken::Nothing) => Ok(()),
            Ok(Taken::Passed(lsn)) => {
                self.positions.pass(lsn);
                Ok(())
            }
            Ok(Taken::Event(event)) => self.admit(event),
            Ok(Taken::Announced(target)) => {
                self.steps.extend(target.map(Step::Describe));
                Ok(())
            }
            Ok(Taken::Ended(begin, commit)) => {
                if let Phase::Sets(sets) = &mut self.phase {
                    sets.gathered.begin_last(begin);
                }
                self.admit(commit)
            }
            Ok(Taken::RolledBack) => self.roll_back(),
            Err(end) => Err(end),
        };
        self.end_on_error(done);
    }

    /// The publisher has nothing to send up to here. `wants_report`: it asks how far we are.
    pub fn keepalive(&mut self, wal_end: Lsn, wants_report: bool, now: Moment) {
        self.now = now;
        if wants_report {
            self.positions.ask();
        }
        if self.received().is_some() {
            self.intake.note_idle(wal_end);
            self.positions.pass(wal_end);
        }
    }

    /// Nothing more has come for now: an idle target gets what there is.
    pub fn quiet(&mut self, now: Moment) {
        self.now = now;
        let done = self.flush().and_then(|()| self.record_if_due());
        self.end_on_error(done);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        self.now = now;
        if self.is_in_progress() && now >= self.heard + IN_PROGRESS_SILENCE_MAX {
            return self.end(End::SendWhole);
        }
        self.quiet(now);
    }

    /// The oldest step that is to be answered has been answered.
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
                let done = self.flush().and_then(|()| self.record_if_due());
                self.end_on_error(done);
            }
            Err(end) => self.end(end),
        }
    }

    /// The answer to [`Step::Describe`].
    pub fn described(&mut self, description: &Description, now: Moment) {
        self.now = now;
        if matches!(self.phase, Phase::Stopped) {
            return;
        }
        let done = match self.intake.tables.describe(description.as_ref()) {
            Ok(Some(described)) => self.planned(described),
            Ok(None) => Err(End::Invariant("a table was described that nobody asked about")),
            // Whether it matters is not known before the transaction's end.
            Err(_) if self.is_in_progress() => Err(End::SendWhole),
            Err(misfits) => Err(End::Unfit(misfits)),
        };
        self.end_on_error(done);
    }

    // --- between the phases ---------------------------------------------------------------

    fn planned(&mut self, described: Described) -> Result<(), End> {
        let Described { replaced, source, exact_because, takes_binary } = described;
        self.steps.extend(replaced.map(|table| Step::Forget { table }));
        if self.intake.format() == Format::Binary && !takes_binary {
            // The catalogs said otherwise when the stream was started.
            return Err(self.send_again());
        }
        self.tell(Outcome::Planned { source, exact_because });
        Ok(())
    }

    fn admit(&mut self, event: Event) -> Result<(), End> {
        if let Phase::Sets(sets) = &mut self.phase
            && !matches!(&event, Event::Begin(begin) if self.skip == Some(begin.final_lsn))
            && event.suits_sets()
        {
            let ends = matches!(event, Event::Commit { .. });
            sets.gathered.push(event, self.now);
            if ends {
                sets.gathered.close();
            }
            return if sets.gathered.is_full() { self.make_room() } else { Ok(()) };
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

    /// A transaction in progress was rolled back: so is what has been applied of it.
    fn roll_back(&mut self) -> Result<(), End> {
        let phase = std::mem::replace(&mut self.phase, Phase::Stopped);
        self.phase = match phase {
            Phase::Sets(mut sets) => {
                sets.gathered.drop_unfinished();
                Phase::Sets(sets)
            }
            Phase::Slices(slices) => self.roll_back_slices(slices)?,
            Phase::Rows(_) | Phase::Settling(_) => return Err(self.send_again()),
            Phase::Stopped => Phase::Stopped,
        };
        Ok(())
    }

    /// As much has been gathered as may be.
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

    /// Records how far an idle stream has come, so that it can be reported.
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

    /// Up to the transaction that is being received, or the last one that has been sent to the target.
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
