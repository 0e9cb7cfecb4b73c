//! Where apply begins, and the outcomes that it reports.

use std::time::Duration;

use crate::apply::table::ExactBecause;
use crate::conflict::ConflictReport;
use crate::pg::{Lsn, QualifiedName, Term};
use crate::pgoutput::{Format, Tally};
use crate::schema::{Description, Warning};

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
    /// The transaction that is skipped, by the position of its commit record.
    pub skip: Option<Lsn>,
    /// Apply row by row until the transaction that finishes here has been applied.
    pub exact_until: Option<Lsn>,
    /// How the publisher sends values.
    pub format: Format,
}

/// An outcome of the stream.
#[derive(Debug)]
pub enum Outcome {
    /// The target has recorded `lsn`: everything up to it has been applied, or has no change for the target.
    Durable {
        lsn: Lsn,
        /// The transaction that was skipped because an operator asked for it.
        skipped: Option<Applied>,
    },
    /// A target transaction is committed: a batch of sets, or one transaction applied row by row.
    Batch { lsn: Lsn, last: Applied, tally: Tally, took: Duration },
    /// A table has been planned: its changes are applied row by row for this reason, or in sets.
    Planned {
        source: QualifiedName,
        exact_because: Option<ExactBecause>,
        /// The table as the stream describes it.
        description: Description,
        /// What may go wrong with its values.
        warnings: Vec<Warning>,
    },
    /// The publisher describes a table once more, as before: something of it has changed.
    Again(QualifiedName),
    /// The publisher sends changes of a table that is not in the subscription.
    Stranger(QualifiedName),
    /// A batch could not be applied as sets and goes row by row.
    FellBack {
        /// Does not hold the server's message, which may quote a row's values.
        cause: String,
    },
    /// A transaction was rolled back on a conflict.
    Conflict(Box<ConflictReport>),
}

/// A transaction that has been applied or skipped; for a batch, its last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Position of its commit record.
    pub commit_lsn: Lsn,
    /// When it committed on the publisher, µs since the Unix epoch.
    pub commit_time_us: i64,
    /// Number of its changes, those of other tables included.
    pub changes: u64,
    pub how: How,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The target has committed it.
    Committed,
    /// It was skipped because an operator asked for it.
    Skipped,
}
