//! The one integration test binary: a file per capability, on real PostgreSQL servers.

mod replication;
//! One integration binary: a file per capability.

mod store;
//! The integration tests: one binary, a file per capability.

#[cfg(test)]
mod tidy;
