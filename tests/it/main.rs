//! The integration tests: one binary, one file for each capability.
//!
//! They use real servers and no mocks. They need PostgreSQL's server programs, which scripts/test
//! installs; `support` holds what they share.

#[cfg(test)]
mod arrivals;
mod batches;
#[cfg(test)]
mod boundaries;
#[cfg(test)]
mod check;
#[cfg(test)]
mod cluster;
mod coercion;
mod columns;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod conflicts;
#[cfg(test)]
mod containers;
#[cfg(test)]
mod copy;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod faults_network;
#[cfg(test)]
mod feedback;
#[cfg(test)]
mod fence;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod gaps;
#[cfg(test)]
mod hand_over;
#[cfg(test)]
mod hints;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod http;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod in_progress;
#[cfg(test)]
mod instances;
#[cfg(test)]
mod large_values;
#[cfg(test)]
mod liveness;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod many_tables;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod open_transaction;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod operations_page;
#[cfg(test)]
mod other_targets;
#[cfg(test)]
mod poolers;
#[cfg(test)]
mod privileges;
#[cfg(test)]
mod publications;
mod published_histories;
#[cfg(test)]
mod replication;
#[cfg(test)]
mod resync;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod shared_rows;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod stalls;
#[cfg(test)]
mod state_locks;
#[cfg(test)]
mod store;
#[cfg(test)]
#[expect(dead_code, reason = "made for the capabilities' tests, which arrive one after the other")]
mod support;
#[cfg(test)]
mod take_over;
#[cfg(test)]
mod target_ddl;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod time_limits;
#[cfg(test)]
mod triggers;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod trust_restarts;
#[cfg(test)]
mod values;
#[cfg(test)]
mod verdicts;
#[cfg(test)]
mod walkthrough;
