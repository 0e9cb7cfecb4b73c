//! Dialling and the replication connection, against real servers.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cluster;
mod connecting;
mod pki;
mod streaming;
