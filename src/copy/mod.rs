//! The initial copy: the rows that are already there, under one snapshot of the publisher.
//!
//! ```text
//! slot + exported snapshot ──▶ COPY … TO STDOUT ──bytes──▶ COPY … FROM STDIN + table_sync: one target transaction
//! ```
//!
//! # Why bytes pass through
//! Both sessions speak the same COPY format in the same encoding, so values are never parsed here:
//! what one server's output function wrote, the other's input function reads. Where every column has
//! the same built-in type on both sides the format is binary, else text (`command`).
//!
//! # Why a table has one session
//! The target's work bounds the copy, and more sessions could share it. But their transactions would
//! commit one after the other, and the first invariant below be lost (ARCHITECTURE.md weighs it).
//!
//! # Invariants
//! - A table's rows and its `ready` mark, with the position of the snapshot, commit together. A
//!   crash before that leaves nothing behind; after it, nothing to do.
//! - The mark is fenced by the attempt's number and the owner's term: of two copies of one table, one commits.
//! - Once the target's COMMIT has landed the copy is done, whatever becomes of the publisher's session or of
//!   the answer (`commit`).
//! - Not here: deciding when to copy again, and streaming.

mod command;
mod commit;
mod error;
mod initial;
mod transfer;

pub use command::CopyCommands;
pub use commit::{CommitOf, commit, finish_table};
pub use error::{CopyError, Side};
pub use initial::{CopyJob, CopyPlan, CopyResult, run};
pub use transfer::transfer;
