//! What the service says of itself while it runs: logs on stderr.
//!
//! Fields have fixed names (`subscription`, `lsn`, `relation`, `error`); values of rows and secrets
//! never get here, because nothing hands them over.

mod logging;

pub use logging::start;
