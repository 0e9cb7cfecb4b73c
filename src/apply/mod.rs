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
mod error;
mod incoming;
mod outcome;
pub mod progress;
pub mod rows;
mod sets;
mod stamp;
pub mod statement;
mod table;

pub use applier::{Applier, Work};
pub use error::{ApplyError, FailedChange};
pub use incoming::tables::{Member, Membership};
pub use outcome::{Applied, How, Outcome, Start};
pub use rows::catch_up::CatchUp;
pub use sets::sql::{ExactBecause, exact_because};
pub use table::TableContext;

/// Microseconds between the Unix epoch and PostgreSQL's (2000-01-01).
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A publisher's time stamp (µs since 2000-01-01) as µs since the Unix epoch.
fn unix_time_us(postgres_time_us: i64) -> i64 {
    postgres_time_us.saturating_add(POSTGRES_EPOCH_US)
}
