//! What the core asks for, and what it hears in answer.
//!
//! Pure data. The shell carries steps out in the order in which they come; each step that says so is
//! answered exactly once, and answers come in the order of their steps.

use std::sync::Arc;
use std::time::Duration;

use super::positions::Advance;
use crate::apply::change::RowChange;
use crate::apply::end::End;
use crate::apply::outcome::Outcome;
use crate::apply::rows::facts::ConflictFacts;
use crate::apply::sets::compact::SetStep;
use crate::apply::table::TableContext;
use crate::pg::{Lsn, QualifiedName};
use crate::schema::TargetTable;

/// What the shell has to do.
#[derive(Debug)]
pub enum Step {
    /// Read a table's description from the target's catalog. Answered by [`super::Core::described`], apart
    /// from the other answers.
    Describe(QualifiedName),
    /// Send a batch, without waiting for those before it. Answered.
    Apply(Batch),
    /// Roll back what is open, and read the progress row: it must be at `expected`. Answered.
    Settle { expected: Lsn },
    /// Begin a target transaction for rows. Not answered.
    BeginRows,
    /// Apply one row of it. Answered.
    Row { table: Arc<TableContext>, change: RowChange, index: u64 },
    /// Truncate tables within it. Answered.
    TruncateRows { tables: Vec<Arc<TableContext>>, restart_seqs: bool, index: u64 },
    /// Record the progress and commit the rows. Answered.
    CommitRows(Advance),
    /// The table's prepared statements are of no more use: its definition has changed. Not answered.
    Forget { table: u64 },
    /// Tell what has happened. Not answered.
    Tell(Outcome),
    /// Nothing more can be applied. Not answered, and no step follows it.
    End(End),
}

/// Sets that go to the target together.
#[derive(Debug)]
pub struct Batch {
    pub sets: Vec<SetStep>,
    /// Whether it begins the target's transaction. A slice that is not the first continues one.
    pub begins: bool,
    /// The progress that it records before it commits. None for a slice: its transaction stays open.
    pub advance: Option<Advance>,
}

/// What became of a step.
#[derive(Debug)]
pub enum Answer {
    /// It is done. A batch with progress, and rows that were to be committed, are committed.
    Done { took: Duration },
    /// The target has refused the batch, or its rows were other ones than planned. Nothing of it, and
    /// nothing that was sent behind it, has been applied.
    Failed { cause: String },
    /// The same, and the session is of no more use.
    OutOfStep { cause: String },
    /// The batch could not be built or prepared. Nothing of it was sent.
    NotSent { cause: String },
    /// The target has refused a row, a TRUNCATE or the COMMIT of rows. Their transaction is rolled back.
    Refused(Box<ConflictFacts>),
    /// Nothing was done, because something before it in the transaction has been refused.
    PassedOver,
    /// The progress row is not where it was expected: there is another writer.
    Moved,
}

/// The answer to [`Step::Describe`]: none if the target has no such table.
pub type Description = Option<TargetTable>;
