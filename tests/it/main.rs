//! The integration tests: one binary, a file per capability.

#[cfg(test)]
mod tidy;
