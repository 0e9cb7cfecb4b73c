//! Applies publisher transactions to the target: all of one, exactly once, or none.
//!
//! ```text
//! Message ─plan─▶ RowStatement ─executor─▶ one target transaction: rows + progress row
//! ```
//!
//! # Invariants
//! - Rows and progress commit together (`progress`).
//! - A position is handed back as applied only after its COMMIT returned.
//! - Nothing here retries or pauses: failures go up to `subscription`, which decides.
//! - This module never sees wire bytes (`pgoutput`). A clock only decides when what has gathered is
//!   sent, never what is applied.

mod alone;
mod applier;
mod array;
#[doc(hidden)]
pub mod bench;
mod bind;
mod catch_up;
mod compact;
mod copied;
mod copying;
mod error;
mod event;
mod evidence;
mod exact;
mod executor;
mod finding;
mod gathered;
mod intake;
mod outcome;
mod pipeline;
pub mod plan;
mod planned;
mod prepared;
pub mod progress;
mod session;
mod sets;
mod stamp;
pub mod statement;
mod tables;
mod whole;

pub use applier::{Applier, Work};
pub use catch_up::CatchUp;
pub use error::{ApplyError, FailedChange};
pub use outcome::{Applied, How, Outcome, Start};
/// Microseconds between the Unix epoch and PostgreSQL's (2000-01-01).
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A publisher's time stamp (µs since 2000-01-01) as µs since the Unix epoch.
fn unix_time_us(postgres_time_us: i64) -> i64 {
    postgres_time_us.saturating_add(POSTGRES_EPOCH_US)
}

pub use planned::{Replica, TableContext};
pub use session::{
    COPY_ORIGINS_MAX, Lock, OpenError, OriginLack, TargetSession, copy_origin_name, no_origin,
    no_replica_role, origin_name, sync_origin_name, too_old,
};
pub use sets::{ExactBecause, exact_because};
pub use tables::{Member, Membership};
