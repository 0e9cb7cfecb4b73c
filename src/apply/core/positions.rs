//! The positions of the stream: what the target has recorded, and therefore may be reported.
//!
//! ```text
//! recorded   the progress row's position by the last answered COMMIT
//! sent       the progress row's position once everything that was sent has been committed; recorded ≤ sent
//! passed     the stream has been received up to here, and nothing but gathered events is left to apply
//! ```
//! # Invariants
//! - The progress row moves from `sent` to a larger position, and only an answer moves `recorded`.
//! - Only `recorded` is ever reported. A position without changes for the target is recorded there, too,
//!   before it is reported. So a slot whose confirmed position lies beyond the record proves that something
//!   is missing.

use std::time::Duration;

use super::Moment;
use crate::apply::end::End;
use crate::pg::Lsn;

/// A move of the progress row, made within the target transaction that applies the changes up to it.
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
    /// The publisher has requested a status update.
    asked: bool,
    /// When a position without a transaction was last recorded.
    idle_recorded_at: Option<Moment>,
    /// Minimum time between two such records.
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

    /// Notes that nothing up to here is left to apply, except events that have been gathered or sent.
    pub(crate) fn pass(&mut self, lsn: Lsn) {
        self.passed = self.passed.max(lsn);
    }

    /// Notes that the publisher has requested a status update.
    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    pub(crate) fn passed(&self) -> Lsn {
        self.passed
    }

    /// Returns the next move of the progress row: from `sent` to `to`.
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

    /// Notes that the move is committed, and returns the recorded position.
    pub(crate) fn commit(&mut self, advance: Advance) -> Result<Lsn, End> {
        if advance.from != self.recorded || advance.to > self.sent {
            return Err(End::Invariant("a COMMIT was answered out of order"));
        }
        self.recorded = advance.to;
        Ok(self.recorded)
    }

    /// Notes that everything sent beyond the recorded position has been rolled back, and that nothing is
    /// unanswered.
    pub(crate) fn forget_sent(&mut self) {
        self.sent = self.recorded;
    }

    /// The time from which `passed` is recorded while the stream is at rest; none if there is nothing to
    /// record.
    pub(crate) fn idle_due(&self) -> Option<Moment> {
        if self.passed <= self.sent {
            return None;
        }
        match self.idle_recorded_at {
            Some(at) if !self.asked => Some(at + self.idle_interval),
            Some(_) | None => Some(Moment::ZERO),
        }
    }

    /// Returns the move that records `passed`. The stream must be at rest.
    pub(crate) fn advance_idle(&mut self, now: Moment) -> Result<Advance, End> {
        self.asked = false;
        self.idle_recorded_at = Some(now);
        self.advance(self.passed, None, 0)
    }
}
