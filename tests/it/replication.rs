//! Connecting and the replication connection, against real servers.

mod cluster;
mod connecting;
mod pki;
mod streaming;
