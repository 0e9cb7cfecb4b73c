//! The core's steps and the answers to them.
//!
//! Pure data. The shell carries out steps in order. A step that is marked "Answered" gets exactly one answer,
//! and answers come in the order of their steps.

use std::sync::Arc;
use std::time::Duration;

use super::positions::Advance;
use crate::apply::change::RowChange;
use crate::apply::end::End;
pub use crate::apply::incoming::ahead::{Description, Reading};
use crate::apply::outcome::Outcome;
use crate::apply::rows::facts::ConflictFacts;
use crate::apply::sets::compact::SetStep;
use crate::apply::table::TableContext;
use crate::pg::{Lsn, QualifiedName};

/// A step that the shell carries out.
#[derive(Debug)]
pub enum Step {
    /// Read descriptions from the target's catalog: that of the first table, and those of the others as far as
    /// that waits for nothing. [`super::Core::described`] takes the result, which may come before or after other
    /// answers.
    Describe { tables: Vec<QualifiedName>, reading: Reading },
    /// Send a batch, without waiting for earlier ones. Answered.
    Apply(Batch),
    /// Roll back the open transaction, if any, and read the progress row: it must be at `expected`. Answered.
    Settle { expected: Lsn },
    /// Begin a target transaction for the rows of the publisher's that finishes at `finish`. Not answered.
    BeginRows { finish: Lsn },
    /// Apply one row in that transaction. Answered.
    Row { table: Arc<TableContext>, change: RowChange, index: u64 },
    /// Truncate tables in that transaction. Answered.
    TruncateRows { tables: Vec<Arc<TableContext>>, restart_seqs: bool, index: u64 },
    /// Record the progress and commit the rows. Answered.
    CommitRows(Advance),
    /// Drop the table's prepared statements, because its definition has changed. Not answered.
    Forget { table: u64 },
    /// Hand an outcome to the stream's loop. Not answered.
    Tell(Outcome),
    /// Nothing more can be applied. Not answered, and no step follows it.
    End(End),
}

/// Sets that are sent to the target together.
#[derive(Debug)]
pub struct Batch {
    pub sets: Vec<SetStep>,
    /// Whether the batch begins a target transaction. A slice after the first one continues it.
    pub begins: bool,
    /// The progress that the batch records before it commits. None for a slice: its transaction stays open.
    pub advance: Option<Advance>,
}

/// The result of a step.
#[derive(Debug)]
pub enum Answer {
    /// The step is done. A batch with progress, and rows with [`Step::CommitRows`], are committed.
    Done { took: Duration },
    /// The target has refused the batch, or its rows differ from what was planned. Neither the batch nor
    /// anything that was sent after it is committed.
    Failed { cause: String },
    /// The target has refused the batch, and the driver can no longer tell which answer belongs to which
    /// request. The session cannot be used any more.
    OutOfStep { cause: String },
    /// The batch could not be built or prepared. Nothing of it was sent.
    NotSent { cause: String },
    /// The target has refused a row, a TRUNCATE or the COMMIT of rows. Their transaction is rolled back.
    Refused(Box<ConflictFacts>),
    /// Nothing was done, because an earlier step of the transaction has been refused.
    PassedOver,
    /// The progress row is not where it was expected: another writer has moved it.
    Moved,
}
