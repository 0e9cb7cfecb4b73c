//! The target session that writes replicated rows: its settings, its advisory lock, its replication origin.
//!
//! `apply`, `copy`, `check` and the runtime use such sessions. What they write is not decided here.
//!
//! # Invariants
//! - The session that writes holds the subscription's advisory lock: if the connection is lost, so is the lock.
//! - Nothing here decides to retry or to pause.

mod alive;
mod error;
mod lock;
mod origin;
mod session;
mod settings;

pub use alive::{WORKER_PATIENCE, no_answer};
pub use error::{OpenError, TargetError, too_old};
pub use lock::{LEASE, Lock, Outsider, application_name, drop_application_name};
pub use origin::{COPY_ORIGINS_MAX, OriginLack, OriginUse, no_origin};
pub use session::{TargetSession, no_replica_role};
