//! Applies publisher transactions to the target: each one completely and exactly once, or not at all.
//!
//! ```text
//! Message ─▶ incoming ─Event─▶ core ─Step─▶ performer ─▶ batches, or rows ─▶ one target transaction:
//!                                ▲              │                             rows + progress row
//!                                └────Answer────┘
//! ```
//! `core` decides and is pure; `performer` carries out its steps on the target session.
//!
//! # Invariants
//! - Rows and progress commit together (`progress`).
//! - A position is reported as applied only after its COMMIT has been answered.
//! - Nothing here retries or pauses: errors are returned to `subscription`, which decides.
//! - This module never sees wire bytes (`pgoutput`). The time decides only when gathered transactions are sent,
//!   never what is applied.

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
mod recent;
pub mod rows;
pub mod sets;
mod stamp;
pub mod statement;
pub mod table;

pub use applier::{Applier, Next};
pub use error::{ApplyError, FailedChange};
pub use incoming::tables::{Applies, Member, Membership};
pub use outcome::{Applied, How, Outcome, Start};
pub use rows::catch_up::CatchUp;
pub use sets::suitability::exact_because;
pub use table::{ExactBecause, TableContext};
