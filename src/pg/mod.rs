//! PostgreSQL's small vocabulary as types: positions, names, secrets, connection strings, time-outs.
//!
//! Pure: no socket, clock, environment or driver. Values are validated once, when they are made. This
//! is the only module that quotes an identifier.

mod advisory;
pub mod conninfo;
mod hash;
mod ident;
mod lsn;
mod name;
mod nearest;
mod secret;
mod term;
mod time_limits;
mod timeline;

pub use advisory::{LOCKS_OF_A_SUBSCRIPTION, MIGRATION_LOCK_KEY, lock_key, lock_keys};
pub use ident::{quote_ident, quote_literal};
pub use lsn::{Lsn, ParseLsnError};
pub use name::{ParseNameError, QualifiedName, SlotName, SubscriptionName};
pub use secret::Secret;
pub use term::Term;
pub use time_limits::{ImposedLimit, TimeLimits, imposed_limits};
pub use timeline::{HISTORY_BYTES_MAX, Switch, TimelineError, TimelineHistory};

pub(crate) use advisory::lock_holders;
pub(crate) use hash::fnv1a;
pub(crate) use nearest::{nearest, one_of};
pub(crate) use term::as_owner;
