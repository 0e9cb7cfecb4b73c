//! The preflight: checks every step that a subscription needs and gives a remedy for each failure.
//!
//! ```text
//! walk (connects, reads) ─facts─▶ verdict, sessions ─▶ Findings ─▶ Report (steps in order) ─▶ cli
//!                         └─tables─▶ tables (columns compared) ───┘
//! ```
//! The usual faults look alike, and each one hides later ones. So each step is judged by itself, as far
//! as the steps that it needs succeeded. The texts are those of the running service: they come from the
//! modules that report them there (`net`, `schema`, `subscription`, `apply`).
//!
//! # Invariants
//! - Nothing is changed on either server: no slot, no schema, no lock, no row.
//! - It can run while the service runs: what the service holds counts as the subscription's own.
//! - Every wait is bounded: connections by `connect_timeout`, queries by a time limit of their own.
//!
//! Only `walk` does I/O. `cli` renders the report; nothing here repairs a fault.

mod findings;
mod report;
mod sessions;
mod tables;
mod verdict;
mod walk;

pub use report::{ColumnReport, Document, Finding, Reach, Report, Status, Step, StepReport, TableReport};
pub use walk::check;
