//! Phase `Slices`: one transaction, larger than a batch, is sent in parts within one open target transaction.
//!
//! It may be a transaction in progress, which the publisher may still roll back. Slices are not kept: if one
//! fails, the publisher sends the transaction again, to be applied row by row.

use std::collections::VecDeque;

use super::gathered::{Bounds, Gathered, applied, summarize};
use super::sets::{Kept, Sent, Sets};
use super::step::{Answer, Batch, Step};
use super::{Core, Phase};
use crate::apply::end::End;
use crate::apply::incoming::event::Event;
use crate::apply::outcome::How;
use crate::apply::sets::compact::compact;
use crate::mutation::{self, Mutation};
use crate::pg::Lsn;
use crate::pgoutput::{Commit, Tally};

/// Maximum number of unanswered slices and batches.
const UNDER_WAY_MAX: usize = 3;

#[derive(Debug)]
pub(super) struct Slices {
    /// Where the transaction finishes; none for a transaction in progress.
    finish: Option<Lsn>,
    under_way: VecDeque<InFlight>,
    gathered: Gathered,
    /// The changes of the slices so far.
    tally: Tally,
    ending: Ending,
}

/// A batch or slice that has been sent and is not answered.
#[derive(Debug)]
pub(super) enum InFlight {
    /// A batch of earlier transactions.
    Batch(Sent),
    Slice,
}

#[derive(Debug)]
enum Ending {
    NotYet,
    /// The last slice, with COMMIT, is sent once all others have been answered.
    Commits {
        commit: Commit,
        changes: u64,
    },
    /// The publisher has rolled the transaction back. ROLLBACK is sent once all slices have been answered.
    RollsBack,
    /// ROLLBACK has been sent.
    RollingBack,
}

impl Slices {
    pub(super) fn new(finish: Option<Lsn>, under_way: VecDeque<InFlight>, gathered: Gathered) -> Self {
        Self { finish, under_way, gathered, tally: Tally::default(), ending: Ending::NotYet }
    }

    pub(super) fn has_room(&self, bounds: Bounds) -> bool {
        matches!(self.ending, Ending::NotYet) && !self.gathered.is_full(bounds)
    }

    pub(super) fn awaits_answers(&self) -> bool {
        !self.under_way.is_empty() || matches!(self.ending, Ending::RollingBack)
    }

    fn has_begun(&self) -> bool {
        self.tally != Tally::default()
    }
}

impl Core {
    /// Sends the gathered events as a slice. The target transaction stays open.
    pub(super) fn send_slice(&mut self, mut slices: Slices) -> Result<Phase, End> {
        let events = slices.gathered.take_all();
        let Ok(sets) = compact(&events) else { return Err(self.send_sliced_again(slices.finish)) };
        let begins = !slices.has_begun();
        slices.tally = slices.tally.plus(summarize(&events));
        slices.under_way.push_back(InFlight::Slice);
        self.steps.push_back(Step::Apply(Batch { sets, begins, advance: None }));
        Ok(Phase::Slices(slices))
    }

    pub(super) fn admit_to_slices(&mut self, mut slices: Slices, event: Event) -> Result<Phase, End> {
        if !event.suits_sets() {
            return Err(self.send_sliced_again(slices.finish));
        }
        if let Event::Commit { commit, changes } = event {
            slices.ending = Ending::Commits { commit, changes };
            return self.end_slices(slices);
        }
        slices.gathered.push(event, self.now);
        self.flush_slices(slices)
    }

    /// Sends a slice if enough has been gathered and not too many are unanswered.
    pub(super) fn flush_slices(&mut self, slices: Slices) -> Result<Phase, End> {
        let goes_on = matches!(slices.ending, Ending::NotYet);
        if goes_on && slices.gathered.is_full(self.bounds) && slices.under_way.len() < UNDER_WAY_MAX {
            return self.send_slice(slices);
        }
        Ok(Phase::Slices(slices))
    }

    pub(super) fn roll_back_slices(&mut self, mut slices: Slices) -> Result<Phase, End> {
        slices.ending = Ending::RollsBack;
        slices.gathered.take_all();
        self.end_slices(slices)
    }

    /// Ends the target transaction once all its slices have been answered. COMMIT is not sent before: the
    /// server cannot check the row counts of a slice, which are compared when its answer comes.
    fn end_slices(&mut self, mut slices: Slices) -> Result<Phase, End> {
        let early = mutation::is(Mutation::LastSliceEarly);
        if !slices.under_way.is_empty() && !early {
            return Ok(Phase::Slices(slices));
        }
        match slices.ending {
            Ending::NotYet | Ending::RollingBack => Ok(Phase::Slices(slices)),
            Ending::RollsBack => {
                slices.ending = Ending::RollingBack;
                self.steps.push_back(Step::Settle { expected: self.positions.recorded() });
                Ok(Phase::Slices(slices))
            }
            Ending::Commits { commit, changes } => self.commit_slices(slices, commit, changes),
        }
    }

    fn commit_slices(&mut self, mut slices: Slices, commit: Commit, changes: u64) -> Result<Phase, End> {
        let events = slices.gathered.take_all();
        let finish = Some(commit.commit_lsn);
        let Ok(sets) = compact(&events) else { return Err(self.send_sliced_again(finish)) };
        let last = applied(&commit, changes, How::Committed);
        let tally = Tally { transactions: 1, ..slices.tally.plus(summarize(&events)) };
        let advance = self.positions.advance(commit.end_lsn, Some(last.commit_time_us), 1)?;
        let kept = Kept::AtPublisher { finish: commit.commit_lsn };
        let sent = Sent { kept, advance, tally, last: Some(last) };
        self.steps.push_back(Step::Apply(Batch { sets, begins: false, advance: Some(advance) }));
        Ok(Phase::Sets(Sets::new(VecDeque::from([sent]), Gathered::default())))
    }

    pub(super) fn answered_in_slices(&mut self, mut slices: Slices, answer: Answer) -> Result<Phase, End> {
        match (slices.under_way.pop_front(), answer) {
            (Some(InFlight::Batch(sent)), Answer::Done { took }) => {
                self.committed(&sent, took)?;
                self.end_slices(slices)
            }
            (Some(InFlight::Slice), Answer::Done { .. }) => self.end_slices(slices),
            (Some(_), Answer::Failed { .. } | Answer::NotSent { .. } | Answer::OutOfStep { .. }) => {
                Err(self.send_sliced_again(slices.finish))
            }
            (None, Answer::Done { .. }) if matches!(slices.ending, Ending::RollingBack) => {
                Ok(Phase::Sets(Sets::default()))
            }
            (None, _) if matches!(slices.ending, Ending::RollingBack) => {
                Err(End::AnotherWriter { expected: self.positions.recorded() })
            }
            (None, _) => Err(End::Invariant("an answer came that nothing was waiting for")),
            (Some(_), Answer::Refused(_) | Answer::PassedOver | Answer::Moved) => {
                Err(End::Invariant("a slice was answered as if it were a row"))
            }
        }
    }

    /// As [`Self::send_again`]; row by row goes at least the transaction that finishes at `finish`.
    fn send_sliced_again(&self, finish: Option<Lsn>) -> End {
        match (self.send_again(), finish) {
            (End::SendAgain { until }, Some(finish)) => End::SendAgain { until: until.max(finish) },
            (end, _) => end,
        }
    }
}
