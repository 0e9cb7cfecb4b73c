//! Phase `Rows`: one publisher transaction is one target transaction, row by row in order.
//!
//! Each event is sent when it comes, so a transaction of any size needs bounded memory. When a row is refused,
//! the target transaction is rolled back at once. The rest of the publisher's transaction is only counted,
//! because the conflict's report says how many changes it has.

use std::collections::VecDeque;
use std::time::Duration;

use super::gathered::{Gathered, applied};
use super::positions::Advance;
use super::sets::Sets;
use super::step::{Answer, Batch, Step};
use super::{Core, Phase};
use crate::apply::change::RowChange;
use crate::apply::end::End;
use crate::apply::incoming::event::Event;
use crate::apply::outcome::{How, Outcome};
use crate::apply::rows::facts::ConflictFacts;
use crate::pg::Lsn;
use crate::pgoutput::{Begin, Commit, Format, Tally};

/// Maximum number of rows that have been sent and not answered.
const ROWS_MAX: usize = 256;
/// Maximum bytes of the values in unanswered rows. A larger row is sent when no other is unanswered.
const BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Default)]
pub(super) struct Rows {
    /// The phase lasts until the transaction that finishes here has been applied; if none, until `replay` has
    /// been applied.
    until: Option<Lsn>,
    /// Where the last applied transaction finished.
    finished: Lsn,
    /// Events that were received before this phase. While there are any, no message is taken.
    replay: VecDeque<Event>,
    transaction: Option<Transaction>,
    /// Sizes of the rows that have not been answered, in bytes.
    under_way: VecDeque<usize>,
    under_way_bytes: usize,
    /// A COMMIT, or the record of a position, that has not been answered.
    committing: Option<Committing>,
}

/// The publisher transaction that is being applied.
#[derive(Debug)]
struct Transaction {
    begin: Begin,
    /// The changes that have been sent.
    tally: Tally,
    stage: Stage,
    /// Its Commit message and number of changes, kept until its rows have been answered.
    end: Option<(Commit, u64)>,
}

#[derive(Debug)]
enum Stage {
    /// It has had no change for the target so far.
    Empty,
    /// The target transaction is open.
    Open,
    /// An operator has asked to skip it.
    Skipped,
    /// The target transaction was rolled back on a conflict, which is reported at the end of the publisher's
    /// transaction: its size is known then.
    Failed(Box<ConflictFacts>),
}

/// Whether the stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoesOn,
    /// A conflict was found: nothing after it may be applied.
    Stops,
}

#[derive(Debug)]
struct Committing {
    advance: Advance,
    outcome: Committed,
}

#[derive(Debug)]
enum Committed {
    /// A position without a transaction.
    Position,
    Transaction {
        begin: Begin,
        commit: Commit,
        changes: u64,
        how: How,
        tally: Tally,
    },
}

impl Rows {
    pub(super) fn until(lsn: Lsn) -> Self {
        Self { until: Some(lsn), ..Self::default() }
    }

    pub(super) fn replaying(events: Vec<Event>) -> Self {
        Self { replay: events.into(), ..Self::default() }
    }

    fn has_window(&self) -> bool {
        self.committing.is_none()
            && self.under_way.len() < ROWS_MAX
            && (self.under_way_bytes < BYTES_MAX || self.under_way.is_empty())
            && self.transaction.as_ref().is_none_or(|transaction| transaction.end.is_none())
    }

    pub(super) fn has_room(&self) -> bool {
        self.replay.is_empty() && self.has_window()
    }

    pub(super) fn awaits_answers(&self) -> bool {
        self.committing.is_some() || !self.under_way.is_empty()
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.replay.is_empty() && self.transaction.is_none() && !self.awaits_answers()
    }

    /// Whether every transaction before the one that is being received has been applied.
    pub(super) fn has_applied_all_before(&self) -> bool {
        let is_ending = self.transaction.as_ref().is_some_and(|transaction| transaction.end.is_some());
        self.replay.is_empty() && self.committing.is_none() && !is_ending
    }

    fn is_through(&self) -> bool {
        self.is_at_rest() && self.until.is_none_or(|until| self.finished >= until)
    }

    /// Notes that the record of a position has been sent.
    pub(super) fn note_record(&mut self, advance: Advance) {
        self.committing = Some(Committing { advance, outcome: Committed::Position });
    }
}

impl Core {
    /// Sends events of `replay` while there is room, and ends the phase when everything has been applied.
    pub(super) fn pump(&mut self, mut rows: Rows) -> Result<Phase, End> {
        while rows.has_window()
            && let Some(event) = rows.replay.pop_front()
        {
            if self.send_row(&mut rows, event)? == Flow::Stops {
                return Ok(Phase::Stopped);
            }
        }
        Ok(if rows.is_through() {
            Phase::Sets(Sets::new(VecDeque::new(), Gathered::default()))
        } else {
            Phase::Rows(rows)
        })
    }

    pub(super) fn admit_to_rows(&mut self, mut rows: Rows, event: Event) -> Result<Phase, End> {
        if self.is_in_progress() {
            return Err(End::SendWhole);
        }
        rows.replay.push_back(event);
        self.pump(rows)
    }

    fn send_row(&mut self, rows: &mut Rows, event: Event) -> Result<Flow, End> {
        match (event, &mut rows.transaction) {
            (Event::Begin(begin), None) => {
                let skipped = self.intake.passes_over(begin.final_lsn);
                let stage = if skipped { Stage::Skipped } else { Stage::Empty };
                rows.transaction = Some(Transaction { begin, tally: Tally::default(), stage, end: None });
                Ok(Flow::GoesOn)
            }
            (Event::Begin(_), Some(_)) => Err(End::OutOfOrder("BEGIN within a transaction".to_owned())),
            (_, None) => Err(End::OutOfOrder("a change outside a transaction".to_owned())),
            (Event::Change { table, change, index }, Some(transaction)) => {
                if transaction.open(&mut self.steps) {
                    transaction.count(&change);
                    rows.under_way.push_back(change.size_bytes());
                    rows.under_way_bytes += change.size_bytes();
                    self.steps.push_back(Step::Row { table, change, index });
                }
                Ok(Flow::GoesOn)
            }
            (Event::Truncate { tables, restart_seqs, index }, Some(transaction)) => {
                if transaction.open(&mut self.steps) {
                    transaction.tally.truncates += tables.len() as u64;
                    rows.under_way.push_back(0);
                    self.steps.push_back(Step::TruncateRows { tables, restart_seqs, index });
                }
                Ok(Flow::GoesOn)
            }
            (Event::Commit { commit, changes }, Some(transaction)) => {
                transaction.end = Some((commit, changes));
                self.end_transaction(rows)
            }
        }
    }

    /// Ends the transaction once its rows have been answered.
    fn end_transaction(&mut self, rows: &mut Rows) -> Result<Flow, End> {
        if !rows.under_way.is_empty() {
            return Ok(Flow::GoesOn);
        }
        let Some(Transaction { begin, tally, stage, end: Some((commit, changes)) }) =
            rows.transaction.take_if(|transaction| transaction.end.is_some())
        else {
            return Ok(Flow::GoesOn);
        };
        let how = match stage {
            Stage::Failed(facts) => return self.conflict(*facts, &begin, &commit, changes),
            Stage::Empty => {
                rows.finished = commit.commit_lsn;
                self.positions.pass(commit.end_lsn);
                return Ok(Flow::GoesOn);
            }
            Stage::Skipped => How::Skipped,
            Stage::Open => How::Committed,
        };
        let time = applied(&commit, changes, how).commit_time_us;
        let advance = self.positions.advance(commit.end_lsn, Some(time), 1)?;
        let outcome = Committed::Transaction { begin, commit, changes, how, tally };
        rows.committing = Some(Committing { advance, outcome });
        self.steps.push_back(match how {
            How::Committed => Step::CommitRows(advance),
            How::Skipped => Step::Apply(Batch { sets: Vec::new(), begins: true, advance: Some(advance) }),
        });
        Ok(Flow::GoesOn)
    }

    pub(super) fn answered_in_rows(&mut self, mut rows: Rows, answer: Answer) -> Result<Phase, End> {
        if let Some(bytes) = rows.under_way.pop_front() {
            rows.under_way_bytes -= bytes;
            match (answer, &mut rows.transaction) {
                (Answer::Done { .. } | Answer::PassedOver, Some(_)) => {}
                (Answer::Refused(facts), Some(transaction)) => transaction.stage = Stage::Failed(facts),
                _ => return Err(End::Invariant("a row was answered as if it were a batch")),
            }
            return match self.end_transaction(&mut rows)? {
                Flow::GoesOn => self.pump(rows),
                Flow::Stops => Ok(Phase::Stopped),
            };
        }
        let Some(committing) = rows.committing.take() else {
            return Err(End::Invariant("an answer came that nothing was waiting for"));
        };
        match answer {
            Answer::Done { took } => self.committed_rows(&mut rows, &committing, took)?,
            Answer::Refused(facts) => {
                self.refused_commit(*facts, &committing)?;
                return Ok(Phase::Stopped);
            }
            // The record of a position, or of a skipped transaction, holds no rows that could fail, so the
            // progress row was not where this core left it.
            Answer::Moved | Answer::Failed { .. } => {
                return Err(End::AnotherWriter { expected: self.positions.recorded() });
            }
            // A position without a transaction is recorded later.
            Answer::NotSent { .. } if matches!(committing.outcome, Committed::Position) => {
                self.positions.forget_sent();
            }
            Answer::NotSent { .. } | Answer::OutOfStep { .. } => return Err(self.send_again()),
            Answer::PassedOver => {
                return Err(End::Invariant("a COMMIT was answered as if it were a set"));
            }
        }
        self.pump(rows)
    }

    fn committed_rows(&mut self, rows: &mut Rows, done: &Committing, took: Duration) -> Result<(), End> {
        let lsn = self.positions.commit(done.advance)?;
        let Committed::Transaction { commit, changes, how, tally, .. } = &done.outcome else {
            self.tell(Outcome::Durable { lsn, skipped: None });
            return Ok(());
        };
        rows.finished = commit.commit_lsn;
        let last = applied(commit, *changes, *how);
        self.tell(match how {
            How::Committed => Outcome::Batch { lsn, last, tally: Tally { transactions: 1, ..*tally }, took },
            How::Skipped => Outcome::Durable { lsn, skipped: Some(last) },
        });
        Ok(())
    }

    /// Reports a refused COMMIT, for example by a deferred constraint.
    fn refused_commit(&mut self, mut facts: ConflictFacts, done: &Committing) -> Result<(), End> {
        self.positions.forget_sent();
        let Committed::Transaction { begin, commit, changes, .. } = &done.outcome else {
            return Err(End::Invariant("a COMMIT without rows was refused as if it had some"));
        };
        facts.of_commit(self.intake.tables.source_of(facts.target()), *changes);
        self.conflict(facts, begin, commit, *changes)?;
        Ok(())
    }

    /// Reports a conflict, after which nothing may be applied.
    fn conflict(
        &mut self,
        facts: ConflictFacts,
        begin: &Begin,
        commit: &Commit,
        changes: u64,
    ) -> Result<Flow, End> {
        if self.intake.format() == Format::Binary {
            // The report shows values as text, so the publisher sends the transaction again in text format.
            return Err(End::SendAgain { until: commit.commit_lsn });
        }
        let report = facts.into_report(&self.subscription, begin, changes);
        self.tell(Outcome::Conflict(Box::new(report)));
        Ok(Flow::Stops)
    }
}

impl Transaction {
    /// Opens the target transaction at the first change. Returns whether changes are still applied.
    fn open(&mut self, steps: &mut VecDeque<Step>) -> bool {
        match self.stage {
            Stage::Empty => {
                steps.push_back(Step::BeginRows { finish: self.begin.final_lsn });
                self.stage = Stage::Open;
                true
            }
            Stage::Open => true,
            Stage::Skipped | Stage::Failed(_) => false,
        }
    }

    fn count(&mut self, change: &RowChange) {
        match change {
            RowChange::Insert { .. } => self.tally.inserts += 1,
            RowChange::Update { .. } => self.tally.updates += 1,
            RowChange::Delete { .. } => self.tally.deletes += 1,
        }
    }
}
