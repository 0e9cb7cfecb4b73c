//! Runs one subscription: its ownership, its state, and the attempts that copy and stream.
//!
//! ```text
//! worker (owner of the state) ── attempt ── publisher, slot, copy, stream ◀── reader (socket)
//!    ▲      ▲                                   └── table_sync (tables that join later)
//!    │      └── monitor (publisher's position, slot, publications)
//!    └── commands (store)
//! ```
//! # Invariants
//! - Only `state::step` changes the state; it is pure.
//! - An attempt can be dropped at any await; the next one begins from the target's record.
//! - Nothing is streamed before publisher, slot and target are found to belong together (`trust`).
//! - The reader sends status updates to the publisher also while the target does not answer.
//!
//! `apply` and `copy` write to user tables; `store` and `cli` show the state to operators.

mod announced;
mod attempt;
pub mod balance;
mod because;
mod commands;
mod context;
mod failure;
pub(crate) mod findings;
mod first_rows;
mod flushes;
pub mod followed;
mod format;
mod gaps;
mod instances;
pub mod membership;
pub(crate) mod misfits;
mod monitor;
mod positions;
pub mod publication_record;
pub mod publications;
mod publisher;
mod reader;
mod removal;
mod reports;
mod schema_watch;
pub(crate) mod sharing;
pub(crate) mod slot;
mod slot_wait;
mod snapshot;
mod state;
mod stream;
mod table_sync;
mod take_up;
pub mod trust;
mod turns;
pub(crate) mod verify;
mod witnesses;
mod worker;

pub(crate) use failure::schema_failure;
pub use failure::{Cause, Failure, TargetLink};
pub(crate) use instances::Instances;
pub use positions::{LagClock, StreamPositions};
pub(crate) use publisher::value_settings;
pub(crate) use removal::remove;
pub(crate) use reports::Reports;
pub use snapshot::{Board, Link, Snapshot, View, target_unavailable};
pub use state::{Action, Event, Illegal, State, step};
pub(crate) use turns::Turns;
pub(crate) use worker::{Shared, Wish, Worker};
