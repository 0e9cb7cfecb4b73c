//! One subscription's life: who owns it, what state it is in, and the attempts that do the work.
//!
//! ```text
//! worker (owner of the state) ── attempt ── publisher, slot, copy, stream ◀── reader (socket)
//!    ▲      ▲                                   └── table_sync (tables that join later)
//!    │      └── monitor (publisher's position, slot, publications)
//!    └── commands (store)
//! ```
//! # Invariants
//! - `state::step` alone decides what follows what; it is pure.
//! - An attempt can be dropped anywhere; the target's record tells where to begin again.
//! - Nothing is streamed before publisher, slot and target are found to belong together (`trust`).
//! - The publisher hears from the reader whatever the target does.
//!
//! SQL on user tables is not here (`apply`, `copy`), nor is what an operator sees (`store`, `cli`).

mod attempt;
mod because;
mod commands;
mod failure;
pub(crate) mod findings;
mod first_rows;
mod flushes;
mod format;
mod monitor;
mod positions;
mod publications;
mod publisher;
mod reader;
mod schema_watch;
pub(crate) mod slot;
mod snapshot;
mod state;
mod stream;
mod table_sync;
pub mod trust;
pub(crate) mod verify;
mod witnesses;
mod worker;

pub(crate) use failure::schema_failure;
pub use failure::{Cause, Failure, TargetLink};
pub use positions::{LagClock, StreamPositions};
pub(crate) use slot::end_abandoned_creations;
pub use snapshot::{Board, Link, Snapshot, View, target_unavailable};
pub use state::{Action, Event, Illegal, State, step};
pub(crate) use worker::{Wish, Worker};
