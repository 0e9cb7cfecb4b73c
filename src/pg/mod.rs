//! PostgreSQL's basic terms as types: positions, names, secrets, connection strings.
//!
//! Pure: no socket, clock, environment or driver. Values are validated once, when they are made. This
//! is the only module that quotes an identifier.

pub mod conninfo;
mod ident;
mod lsn;
mod name;
mod nearest;
mod secret;

pub use ident::{quote_ident, quote_literal};
pub use lsn::{Lsn, ParseLsnError};
pub use name::{ParseNameError, QualifiedName, SlotName, SubscriptionName};
pub use secret::Secret;

pub(crate) use nearest::{nearest, one_of};
