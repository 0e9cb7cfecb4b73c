//! Applies publisher transactions to the target: all of one, exactly once, or none.
//!
//! ```text
//! Message ─▶ set statements, or row by row ─▶ one target transaction: rows + progress row
//! ```
//!
//! # Invariants
//! - Rows and progress commit together (`progress`).
//! - A position is handed back as applied only after its COMMIT returned.
//! - Nothing here retries or pauses: failures go up to `subscription`, which decides.
//! - This module never sees wire bytes (`pgoutput`). A clock only decides when what has gathered is
//!   sent, never what is applied.

mod applier;
mod batches;
#[doc(hidden)]
pub mod bench;
mod bind;
pub mod change;
pub mod core;
mod dispatch;
pub mod end;
mod error;
pub mod incoming;
pub mod outcome;
mod performer;
pub mod progress;
pub mod rows;
pub mod sets;
mod stamp;
pub mod statement;
pub mod table;

pub use applier::Applier;
pub use error::{ApplyError, FailedChange};
pub use incoming::tables::{Member, Membership};
pub use outcome::{Applied, How, Outcome, Start};
pub use rows::catch_up::CatchUp;
pub use sets::suitability::exact_because;
pub use table::{ExactBecause, TableContext};
