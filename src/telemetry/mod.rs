//! Logs on stderr, metrics and progress bars.
//!
//! ```text
//! event::emit ─┬─▶ log line (logging, limit)
//!              └─▶ counter, histogram ─┐
//! snapshots ─▶ Gauges ─────────────────┴▶ metrics::render
//! ```
//! # Invariants
//! - Names of metrics and labels are constants in `names`, where each is described once.
//! - Log fields have fixed names: `subscription`, `relation`, `lsn`, `xid`, `conflict`, `reason`, and a
//!   diagnosis' `error`, `detail` and `hint`; `repeated` counts identical messages that were held back.
//! - Whatever a name or a message holds, an event is one line, without control characters of its own (`fields` for
//!   text, `limit` for JSON).
//! - Row values and secrets are never passed to this module. A diagnosis that may quote values has
//!   another text for the log (`error::Diagnosis::logged_as`).
//!
//! This module decides nothing and serves nothing; `http` answers `/metrics`.

mod event;
mod fields;
mod limit;
mod logging;
mod metrics;
pub mod names;
mod progress;

pub use event::{
    AttemptFailed, Attention, BatchApplied, ConflictFound, Encounter, FellBack, GapFound, Received,
};
pub use logging::start;
pub use metrics::{CopyGauges, Gauges, TABLES_MAX, register, render, start as start_metrics, upkeep};
pub use progress::Bars;
