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
//! - This module never sees wire bytes (`pgoutput`) and never reads the clock.

mod applier;
mod bind;
mod catch_up;
mod error;
mod evidence;
mod executor;
pub mod plan;
pub mod progress;
mod session;
pub mod statement;
mod tables;

pub use applier::{Applied, Applier, How, Outcome};
pub use catch_up::CatchUp;
pub use error::{ApplyError, FailedChange};
pub use session::{Lock, OpenError, Replica, TargetSession, origin_name};
pub use tables::{Member, Membership, TableContext};
