//! Phase `Slices`: one transaction, larger than a batch, flows into an open target transaction.
//!
//! The publisher may have sent all of it, or may still be sending it without knowing how it ends. Its slices
//! are not kept: if one fails, the publisher sends the transaction again, to be applied row by row.

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

/// Slices and batches under way, at most.
const UNDER_WAY_MAX: usize = 3;

#[derive(Debug)]
pub(super) struct Slices {
    /// Where the transaction finishes; none while that is not known.
    finish: Option<Lsn>,
    under_way: VecDeque<InFlight>,
    gathered: Gathered,
    /// What the slices so far hold.
    tally: Tally,
    ending: Ending,
}

/// What has been sent and is not answered.
#[derive(Debug)]
pub(super) enum InFlight {
    /// A batch of transactions before this one.
    Batch(Sent),
    Slice,
}

#[derive(Debug)]
enum Ending {
    NotYet,
    /// The last slice, with COMMIT, waits for the answers to all others.
    Commits {
        commit: Commit,
        changes: u64,
    },
    /// The publisher has rolled it back; ROLLBACK waits for the answers.
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
    /// Sends what has gathered as a slice. Leaves the target's transaction open.
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

    /// Sends a slice if one is full and there is room for it.
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

    /// Ends the target's transaction once everything else of it has been answered: the COMMIT of a slice
    /// that failed would commit the others.
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

    /// As [`Self::send_again`], for a transaction whose slices are not kept.
    fn send_sliced_again(&self, finish: Option<Lsn>) -> End {
        match (self.send_again(), finish) {
            (End::SendAgain { until }, Some(finish)) => End::SendAgain { until: until.max(finish) },
            (end, _) => end,
        }
    }
}
