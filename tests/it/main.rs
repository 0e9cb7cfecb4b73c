//! The integration tests: one binary, a file for each capability.

mod schema;
