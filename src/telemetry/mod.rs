//! What the service says of itself while it runs: logs on stderr, metrics, progress bars.
//!
//! ```text
//! things that happen ─▶ event::emit ─┬─▶ log line (logging, limit)
//!                                    └─▶ counter, histogram ─┐
//! snapshots ─▶ Gauges ───────────────────────────────────────┴▶ metrics::render
//! ```
//! # Invariants
//! - Names of metrics and labels are constants in `names`, each described there, once.
//! - Log fields have fixed names: `subscription`, `relation`, `lsn`, `xid`, `conflict`, `reason`,
//!   and a diagnosis' `error`, `detail` and `hint`; `repeated` counts what was held back.
//! - Values of rows and secrets never get here: nothing hands them over, and a diagnosis that may
//!   quote some says what logs are told instead (`error::Diagnosis::logged_as`).
//!
//! It decides nothing, and serves nothing: `/metrics` is `http`'s.

mod event;
mod limit;
mod logging;
mod metrics;
pub mod names;
mod progress;

pub use event::{AttemptFailed, Attention, BatchApplied, ConflictFound, Encounter, FellBack, Received};
pub use logging::start;
pub use metrics::{CopyGauges, Gauges, TABLES_MAX, register, render, start as start_metrics, upkeep};
pub use progress::Bars;
