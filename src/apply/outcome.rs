//! Where apply begins, and what it tells of its way.

use std::time::Duration;

use crate::apply::table::ExactBecause;
use crate::conflict::ConflictReport;
use crate::pg::{Lsn, QualifiedName, Term};
use crate::pgoutput::{Format, Tally};

/// Microseconds between the Unix epoch and PostgreSQL's (2000-01-01).
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A publisher's time stamp (µs since 2000-01-01) as µs since the Unix epoch.
pub(crate) fn unix_time_us(postgres_time_us: i64) -> i64 {
    postgres_time_us.saturating_add(POSTGRES_EPOCH_US)
}

/// Where apply begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The owner's term, which the progress row has.
    pub term: Term,
    /// The progress row's position.
    pub recorded: Lsn,
    /// Pass over the transaction that finishes here.
    pub skip: Option<Lsn>,
    /// Apply row by row until the transaction that finishes here is through.
    pub exact_until: Option<Lsn>,
    /// How the publisher sends values.
    pub format: Format,
}

/// What became of the stream so far.
#[derive(Debug)]
pub enum Outcome {
    /// Everything up to `lsn` is recorded in the target as applied, or as needing nothing there.
    Durable {
        lsn: Lsn,
        /// A transaction that was passed over on an operator's word.
        skipped: Option<Applied>,
    },
    /// A target transaction is committed: a batch of sets, or one transaction applied row by row.
    Batch { lsn: Lsn, last: Applied, tally: Tally, took: Duration },
    /// How changes of a table will be applied: row by row for this reason, or in sets.
    Planned { source: QualifiedName, exact_because: Option<ExactBecause> },
    /// A batch could not be applied as sets and goes row by row.
    FellBack {
        /// Without the server's words, which may quote a row's values.
        cause: String,
    },
    /// A transaction was rolled back on a conflict.
    Conflict(Box<ConflictReport>),
}

/// A transaction (the last of several, for a batch) that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Where it finishes: its commit record.
    pub commit_lsn: Lsn,
    /// When it committed on the publisher, µs since the Unix epoch.
    pub commit_time_us: i64,
    /// Changes in it, those of other tables included.
    pub changes: u64,
    pub how: How,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its rows are in the target.
    Committed,
    /// Passed over on an operator's word.
    Skipped,
}
