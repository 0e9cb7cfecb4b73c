//! Where an applier begins, and what it tells of its way.

use std::time::Duration;

use crate::apply::ExactBecause;
use crate::conflict::ConflictReport;
use crate::pg::{Lsn, QualifiedName, Term};
use crate::pgoutput::Format;
use crate::telemetry::Tally;

/// Where an applier begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The progress row's position.
    pub recorded: Lsn,
    /// The owner's term, which the progress row has.
    pub term: Term,
    /// Pass over the transaction that finishes here.
    pub skip: Option<Lsn>,
    /// Apply exactly until the transaction that finishes here is through.
    pub exact_until: Option<Lsn>,
    /// How the publisher sends values.
    pub format: Format,
}

/// What became of the stream so far.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing durable yet.
    Pending,
    /// Everything up to `lsn` is durable in the target, or needs nothing there.
    Durable { lsn: Lsn, transaction: Option<Applied> },
    /// A target transaction is durable: a batch of sets, or one transaction applied exactly.
    Batch { lsn: Lsn, last: Applied, tally: Tally, took: Duration },
    /// How changes of a table will be applied: row by row for this reason, or in sets.
    Planned { source: QualifiedName, exact_because: Option<ExactBecause> },
    /// A batch could not be applied as sets and goes row by row.
    FellBack {
        /// Without the server's words, which may quote a row's values.
        cause: String,
    },
    /// A transaction was rolled back; this is why.
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
    /// None of its rows concern the target.
    Empty,
    /// Passed over on an operator's word.
    Skipped,
}
