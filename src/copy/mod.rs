//! The initial copy: copies the existing rows of tables under one snapshot of the publisher.
//!
//! ```text
//! slot + exported snapshot ──▶ COPY … TO STDOUT ──bytes──▶ COPY … FROM STDIN + table_sync: one target transaction
//! ```
//!
//! # Why values are not parsed
//! Both sessions use the same COPY format and the same encoding, so the bytes of one server are passed on to
//! the other. The format is binary if every column has the same built-in type on both sides, else text
//! (`command`).
//!
//! # Why a table has one session
//! The target limits the speed of a copy, and several sessions could share its work. But their transactions
//! would commit one after the other, and the first invariant would not hold. ARCHITECTURE.md has the details.
//!
//! # Invariants
//! - A table's rows and its `ready` mark, with the position of the snapshot, commit together. After a crash the
//!   table is either copied completely or not at all.
//! - The mark checks the attempt's number and the owner's term: of two copies of one table, one commits.
//! - Once the target has committed, the copy is done, even if the publisher's session fails or the answer to
//!   COMMIT is lost (`commit`).
//!
//! A table that is synchronised again has rows already. `existing` says what happens with them, in the same
//! transaction.
//!
//! `subscription` decides when a table is copied again.

mod command;
mod commit;
mod error;
mod existing;
mod initial;
mod transfer;

pub use command::CopyCommands;
pub use commit::{CommitOf, commit, finish_table};
pub use error::{CopyError, Side};
pub use existing::Existing;
pub(crate) use initial::run;
pub use initial::{CopyJob, CopyPlan, CopyResult, SeenSource};
pub use transfer::{copy_rows, settle_rows};
