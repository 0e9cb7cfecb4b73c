//! The target session that replicated rows are written in: how it is opened, what it may do, what it
//! holds.
//!
//! Apply, copy, `check` and the runtime all need such a session; what they write is their own affair.
//!
//! # Invariants
//! - The subscription's advisory lock lives on the connection that writes: a lost connection is a lost
//!   lock.
//! - Nothing here decides to retry or to pause.

mod error;
mod origin;
mod session;
mod settings;

pub use error::{OpenError, TargetError, too_old};
pub use origin::{COPY_ORIGINS_MAX, OriginLack, OriginUse, no_origin};
pub use session::{Lock, TargetSession, no_replica_role};
