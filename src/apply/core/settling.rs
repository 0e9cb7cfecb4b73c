//! Phase `Settling`: a batch failed, or an event cannot be part of a set. All unanswered batches are answered
//! before anything else is sent.
//!
//! Batches that were sent before a failed one still commit, so their changes must not be applied again. Batches
//! that were sent after it cannot commit: they expect the progress row where the failed one would have left it.

use std::collections::VecDeque;

use super::rows::Rows;
use super::sets::{Kept, Sent};
use super::step::{Answer, Step};
use super::{Core, Phase};
use crate::apply::end::End;
use crate::apply::incoming::event::Event;
use crate::apply::outcome::Outcome;
use crate::mutation::{self, Mutation};

#[derive(Debug)]
pub(super) struct Settling {
    under_way: VecDeque<Sent>,
    outcome: SoFar,
    /// Events in publisher order that are applied row by row once all batches have been answered.
    replay: Vec<Event>,
}

/// What the answers so far have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SoFar {
    /// Every answered batch is committed.
    Committed,
    /// A batch has failed. The first `events` of `replay` come from failed batches.
    Failed { events: usize },
    /// Every batch has been answered, and the progress row is being read.
    Verifying,
}

impl Settling {
    /// `replay` holds the events that follow the unanswered batches.
    pub(super) fn new(under_way: VecDeque<Sent>, replay: Vec<Event>) -> Self {
        Self { under_way, outcome: SoFar::Committed, replay }
    }

    /// Appends an event.
    pub(super) fn push(&mut self, event: Event) {
        self.replay.push(event);
    }

    /// Puts the events of a failed batch behind those of earlier failed ones and before all others.
    fn put_back(&mut self, events: Vec<Event>) {
        let at = match self.outcome {
            SoFar::Failed { events } => events,
            SoFar::Committed | SoFar::Verifying => 0,
        };
        let at = if mutation::is(Mutation::ReplayReversed) { 0 } else { at };
        self.outcome = SoFar::Failed { events: at + events.len() };
        self.replay.splice(at..at, events);
    }
}

impl Core {
    /// Applies a batch that failed, or could not be sent, and everything after it row by row.
    pub(super) fn failed(&mut self, mut settling: Settling, kept: Kept, cause: String) -> Result<Phase, End> {
        if self.is_in_progress() {
            return Err(End::SendWhole);
        }
        match kept {
            Kept::Events(_) if mutation::is(Mutation::DropFailed) => settling.put_back(Vec::new()),
            Kept::Events(events) => settling.put_back(events),
            Kept::AtPublisher { finish } => {
                return Err(End::SendAgain { until: finish.max(self.positions.sent()) });
            }
        }
        self.tell(Outcome::FellBack { cause });
        self.settle(settling)
    }

    /// Waits for the next answer. If there is none to come, replays the events, after a failure only once the
    /// progress row has been read.
    pub(super) fn settle(&mut self, mut settling: Settling) -> Result<Phase, End> {
        if self.is_in_progress() {
            return Err(End::SendWhole);
        }
        if !settling.under_way.is_empty() {
            return Ok(Phase::Settling(settling));
        }
        match settling.outcome {
            SoFar::Committed => self.replay_rows(settling.replay),
            SoFar::Failed { .. } => {
                settling.outcome = SoFar::Verifying;
                self.steps.push_back(Step::Settle { expected: self.positions.recorded() });
                Ok(Phase::Settling(settling))
            }
            SoFar::Verifying => Ok(Phase::Settling(settling)),
        }
    }

    pub(super) fn answered_in_settling(
        &mut self,
        mut settling: Settling,
        answer: Answer,
    ) -> Result<Phase, End> {
        let another_writer = End::AnotherWriter { expected: self.positions.recorded() };
        let Some(sent) = settling.under_way.pop_front() else {
            return match (settling.outcome, answer) {
                (SoFar::Verifying, Answer::Done { .. }) => self.replay_rows(settling.replay),
                (SoFar::Verifying, Answer::Moved) if mutation::is(Mutation::AdoptRecord) => {
                    self.replay_rows(settling.replay)
                }
                (SoFar::Verifying, _) => Err(another_writer),
                _ => Err(End::Invariant("an answer came that nothing was waiting for")),
            };
        };
        match (answer, settling.outcome) {
            (Answer::Done { took }, SoFar::Committed) => {
                self.committed(&sent, took)?;
                self.settle(settling)
            }
            // This batch was sent after a failed one and expects the progress row where that would have left
            // it. It can only have committed because another writer has moved the row there.
            (Answer::Done { .. }, SoFar::Failed { .. } | SoFar::Verifying) => Err(another_writer),
            (Answer::Failed { cause } | Answer::NotSent { cause }, SoFar::Committed) => {
                self.failed(settling, sent.kept, cause)
            }
            (Answer::Failed { .. } | Answer::NotSent { .. }, _) => match sent.kept {
                Kept::Events(events) => {
                    settling.put_back(events);
                    self.settle(settling)
                }
                Kept::AtPublisher { .. } => Err(self.send_again()),
            },
            (Answer::OutOfStep { .. }, _) => Err(self.send_again()),
            (Answer::Refused(_) | Answer::PassedOver | Answer::Moved, _) => {
                Err(End::Invariant("a batch was answered as if it were a row"))
            }
        }
    }

    fn replay_rows(&mut self, replay: Vec<Event>) -> Result<Phase, End> {
        self.positions.forget_sent();
        self.pump(Rows::replaying(replay))
    }
}
