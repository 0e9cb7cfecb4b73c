//! Connecting and the replication connection, against real servers.

mod cluster;
mod connecting;
mod middle;
mod pki;
mod streaming;
mod trust;
