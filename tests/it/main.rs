//! The one integration test binary: a file per capability, on real PostgreSQL servers.

mod replication;
//! One integration binary: a file per capability.

mod store;
//! The integration tests: one binary, a file per capability.

#[cfg(test)]
mod tidy;
//! The integration tests: one binary, a file per capability.
//!
//! Real servers, nothing mocked. They need PostgreSQL's server programs (scripts/test sees to
//! that); what they share is in `support`.

#[cfg(test)]
mod cluster;
#[cfg(test)]
#[expect(dead_code, reason = "made for the capabilities' tests, which arrive one after the other")]
mod support;
