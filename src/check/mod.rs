//! The preflight: every step from here to a running subscription, each with its remedy.
//!
//! ```text
//! walk (connects, reads) ─facts─▶ verdict ─▶ Findings ─▶ Report (steps in order) ─▶ cli
//!                         └─tables─▶ tables (columns compared) ──┘
//! ```
//! From afar the usual faults look alike, and each hides those behind it. So each step is judged on
//! its own, as far as what it needs was reached, and says the words that the running service would
//! say: texts come from where the service has them (`net`, `schema`, `subscription`, `apply`).
//!
//! # Invariants
//! - Nothing is changed on either server: no slot, no schema, no lock, no row.
//! - It can run beside the service: what the service holds counts as its own.
//! - Every wait is bounded: connections by `connect_timeout`, questions by a time limit of their own.
//!
//! Only `walk` does I/O. Not here: how it looks (`cli`), and what follows from it: nothing is cured.

mod findings;
mod report;
mod tables;
mod verdict;
mod walk;

pub use report::{ColumnReport, Document, Finding, Reach, Report, Status, Step, StepReport, TableReport};
pub use walk::check;
