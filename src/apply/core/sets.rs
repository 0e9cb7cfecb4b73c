//! Phase `Sets`: whole transactions are gathered while the target works on batches of earlier ones.

use std::collections::VecDeque;
use std::time::Duration;

use super::gathered::{Bounds, Gathered, applied, last_commit, summarize};
use super::positions::Advance;
use super::settling::Settling;
use super::slices::{InFlight, Slices};
use super::step::{Answer, Batch, Step};
use super::{Core, Moment, Phase};
use crate::apply::end::End;
use crate::apply::incoming::event::Event;
use crate::apply::outcome::{Applied, How, Outcome};
use crate::apply::sets::compact::compact;
use crate::mutation::{self, Mutation};
use crate::pg::Lsn;
use crate::pgoutput::Tally;

/// Maximum number of unanswered batches: one that the target works on, and two whose messages are in transit.
const BATCHES_MAX: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Sets {
    under_way: VecDeque<Sent>,
    pub(super) gathered: Gathered,
}

/// A batch whose COMMIT has not been answered yet.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) kept: Kept,
    pub(super) advance: Advance,
    /// Its transactions and changes, those of earlier slices included.
    pub(super) tally: Tally,
    /// Its last transaction; none if the batch only records a position.
    pub(super) last: Option<Applied>,
}

/// Where the events of a batch come from if it fails and has to be applied again.
#[derive(Debug)]
pub(super) enum Kept {
    Events(Vec<Event>),
    /// The batch is the end of a transaction whose slices were not kept: the publisher has to send it again.
    AtPublisher {
        /// Where the transaction finishes.
        finish: Lsn,
    },
}

/// Unanswered batches that are replayed although they may commit; there are none without a mutation.
fn again(under_way: &VecDeque<Sent>) -> Vec<Event> {
    if !mutation::is(Mutation::ReplayUnderWay) {
        return Vec::new();
    }
    let events = under_way.iter().flat_map(|sent| match &sent.kept {
        Kept::Events(events) => events.as_slice(),
        Kept::AtPublisher { .. } => &[],
    });
    events.cloned().collect()
}

impl Sets {
    pub(super) fn new(under_way: VecDeque<Sent>, gathered: Gathered) -> Self {
        Self { under_way, gathered }
    }

    pub(super) fn has_room(&self, bounds: Bounds) -> bool {
        !self.gathered.is_full(bounds)
    }

    pub(super) fn awaits_answers(&self) -> bool {
        !self.under_way.is_empty()
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.under_way.is_empty() && self.gathered.is_empty()
    }

    /// The time from which gathered transactions are sent although the target is busy.
    pub(super) fn is_old_at(&self) -> Option<Moment> {
        self.gathered.is_old_at().filter(|_| self.under_way.len() < BATCHES_MAX)
    }

    /// Notes that the record of a position has been sent.
    pub(super) fn note_record(&mut self, advance: Advance) {
        self.under_way.push_back(Sent {
            kept: Kept::Events(Vec::new()),
            advance,
            tally: Tally::default(),
            last: None,
        });
    }
}

impl Core {
    /// Sends whole transactions if the target is idle, or if they have waited for
    /// [`BATCH_AGE_MAX`](super::gathered::BATCH_AGE_MAX).
    pub(super) fn flush_sets(&mut self, sets: Sets) -> Result<Phase, End> {
        let idle = sets.under_way.is_empty() && sets.gathered.has_whole();
        let old = sets.is_old_at().is_some_and(|at| self.now >= at);
        if idle || old {
            return self.send_whole(sets);
        }
        if sets.gathered.is_full(self.bounds) {
            return self.send_full(sets);
        }
        Ok(Phase::Sets(sets))
    }

    /// Sends whole transactions, or a slice of one, because the gathered events have reached their bound.
    pub(super) fn send_full(&mut self, sets: Sets) -> Result<Phase, End> {
        if sets.under_way.len() >= BATCHES_MAX {
            return Ok(Phase::Sets(sets));
        }
        if sets.gathered.has_whole() {
            return self.send_whole(sets);
        }
        let Sets { under_way, gathered } = sets;
        let under_way = under_way.into_iter().map(InFlight::Batch).collect();
        self.send_slice(Slices::new(self.intake.finishes_at(), under_way, gathered))
    }

    /// Sends all whole transactions.
    fn send_whole(&mut self, mut sets: Sets) -> Result<Phase, End> {
        let events = sets.gathered.take_whole(self.now);
        let Some((commit, changes)) = last_commit(&events) else { return Ok(Phase::Sets(sets)) };
        let Ok(steps) = compact(&events) else { return self.replay(sets, events) };
        if steps.is_empty() {
            // No change is left to apply.
            self.positions.pass(commit.end_lsn);
            return Ok(Phase::Sets(sets));
        }
        let tally = summarize(&events);
        let last = applied(&commit, changes, How::Committed);
        let to = commit.end_lsn.max(self.positions.passed());
        let advance = self.positions.advance(to, Some(last.commit_time_us), tally.transactions)?;
        sets.under_way.push_back(Sent { kept: Kept::Events(events), advance, tally, last: Some(last) });
        if mutation::is(Mutation::ReportBeforeAnswer) {
            self.tell(Outcome::Durable { lsn: advance.to, skipped: None });
        }
        self.steps.push_back(Step::Apply(Batch { sets: steps, begins: true, advance: Some(advance) }));
        Ok(Phase::Sets(sets))
    }

    /// Applies events row by row, after all unanswered batches, because no sets can be built from them.
    fn replay(&mut self, sets: Sets, mut events: Vec<Event>) -> Result<Phase, End> {
        let Sets { under_way, mut gathered } = sets;
        events.splice(0..0, again(&under_way));
        events.extend(gathered.take_all());
        self.settle(Settling::new(under_way, events))
    }

    /// Applies the event's transaction row by row, after all earlier ones, because the event cannot be part of
    /// a set.
    pub(super) fn leave_sets(&mut self, mut sets: Sets, event: Event) -> Result<Phase, End> {
        if self.is_in_progress() {
            return Err(End::SendWhole);
        }
        if sets.gathered.has_whole() {
            sets = match self.send_whole(sets)? {
                Phase::Sets(sets) => sets,
                Phase::Settling(mut settling) => {
                    settling.push(event);
                    return Ok(Phase::Settling(settling));
                }
                Phase::Rows(rows) => return self.admit_to_rows(rows, event),
                phase @ (Phase::Slices(_) | Phase::Stopped) => return Ok(phase),
            };
        }
        let Sets { under_way, mut gathered } = sets;
        let mut replay = again(&under_way);
        replay.extend(gathered.take_all());
        replay.push(event);
        self.settle(Settling::new(under_way, replay))
    }

    pub(super) fn answered_in_sets(&mut self, mut sets: Sets, answer: Answer) -> Result<Phase, End> {
        let Some(sent) = sets.under_way.pop_front() else {
            return Err(End::Invariant("an answer came that nothing was waiting for"));
        };
        match answer {
            Answer::Done { took } => {
                self.committed(&sent, took)?;
                Ok(Phase::Sets(sets))
            }
            // Batches sent after one that was not sent fail, too: the progress row is not where they expect it.
            Answer::Failed { cause } | Answer::NotSent { cause } => {
                let Sets { under_way, mut gathered } = sets;
                let settling = Settling::new(under_way, gathered.take_all());
                self.failed(settling, sent.kept, cause)
            }
            Answer::OutOfStep { .. } => Err(self.send_again()),
            Answer::Refused(_) | Answer::PassedOver | Answer::Moved => {
                Err(End::Invariant("a batch was answered as if it were a row"))
            }
        }
    }

    /// Notes that a batch is committed, and tells it.
    pub(super) fn committed(&mut self, sent: &Sent, took: Duration) -> Result<(), End> {
        let lsn = self.positions.commit(sent.advance)?;
        self.tell(match sent.last {
            Some(last) => Outcome::Batch { lsn, last, tally: sent.tally, took },
            None => Outcome::Durable { lsn, skipped: None },
        });
        Ok(())
    }
}
