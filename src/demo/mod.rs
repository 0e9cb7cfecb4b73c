//! Throw-away clusters, and the narrated walk-through on them.

mod account;
pub mod binaries;
pub mod cluster;
mod cluster_error;
pub mod process;
mod session;
mod template;

pub use account::Account;
pub use session::{Session, TextRow, TextTable};
