//! How far the target has come, and what may be reported because of it.
//!
//! ```text
//! recorded ≤ sent        positions of the progress row: committed, and once everything sent is through
//! passed                 received up to here, and nothing of it is left to apply
//! ```
//! # Invariants
//! - The progress row moves from `sent` to a larger position, and only an answer moves `recorded`.
//! - Only `recorded` is ever reported. What needs nothing in the target is recorded there first, so that a
//!   slot whose confirmed position lies beyond the record proves that something is missing.

use std::time::Duration;

use super::Moment;
use crate::apply::end::End;
use crate::pg::Lsn;

/// A move of the progress row, made within the transaction that it vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    pub from: Lsn,
    pub to: Lsn,
    /// Commit time of the last transaction, µs since the Unix epoch; none if there is no transaction.
    pub commit_time_us: Option<i64>,
    pub transactions: u64,
}

#[derive(Debug)]
pub(crate) struct Positions {
    recorded: Lsn,
    sent: Lsn,
    passed: Lsn,
    /// The publisher waits to hear how far we are.
    asked: bool,
    /// When a position without a transaction was last recorded.
    idle_recorded_at: Option<Moment>,
    /// Time between two such records, at least.
    idle_interval: Duration,
}

impl Positions {
    pub(crate) fn new(recorded: Lsn) -> Self {
        Self {
            recorded,
            sent: recorded,
            passed: recorded,
            asked: false,
            idle_recorded_at: None,
            idle_interval: Duration::ZERO,
        }
    }

    pub(crate) fn set_idle_interval(&mut self, interval: Duration) {
        self.idle_interval = interval;
    }

    pub(crate) fn recorded(&self) -> Lsn {
        self.recorded
    }

    pub(crate) fn sent(&self) -> Lsn {
        self.sent
    }

    /// Everything received up to here needs nothing of the target but what has been gathered before it.
    pub(crate) fn pass(&mut self, lsn: Lsn) {
        self.passed = self.passed.max(lsn);
    }

    /// The publisher has asked for a report.
    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    pub(crate) fn passed(&self) -> Lsn {
        self.passed
    }

    /// The next move of the progress row.
    pub(crate) fn advance(
        &mut self,
        to: Lsn,
        commit_time_us: Option<i64>,
        transactions: u64,
    ) -> Result<Advance, End> {
        if to <= self.sent {
            return Err(End::Invariant("a COMMIT records a position at or below the last one"));
        }
        let from = std::mem::replace(&mut self.sent, to);
        Ok(Advance { from, to, commit_time_us, transactions })
    }

    /// The move is committed.
    pub(crate) fn commit(&mut self, advance: Advance) -> Result<Lsn, End> {
        if advance.from != self.recorded || advance.to > self.sent {
            return Err(End::Invariant("a COMMIT was answered out of order"));
        }
        self.recorded = advance.to;
        Ok(self.recorded)
    }

    /// Nothing is under way any more: what was sent beyond the recorded position has been rolled back.
    pub(crate) fn forget_sent(&mut self) {
        self.sent = self.recorded;
    }

    /// When what was passed is to be recorded, for a stream at rest; none if there is nothing to record.
    pub(crate) fn idle_due(&self) -> Option<Moment> {
        if self.passed <= self.sent {
            return None;
        }
        match self.idle_recorded_at {
            Some(at) if !self.asked => Some(at + self.idle_interval),
            Some(_) | None => Some(Moment::ZERO),
        }
    }

    /// Records what was passed, for a stream at rest.
    pub(crate) fn advance_idle(&mut self, now: Moment) -> Result<Advance, End> {
        self.asked = false;
        self.idle_recorded_at = Some(now);
        self.advance(self.passed, None, 0)
    }
}
