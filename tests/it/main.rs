//! The one integration test binary: a file per capability, on real PostgreSQL servers.

mod replication;
