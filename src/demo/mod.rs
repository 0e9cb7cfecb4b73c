//! (being built)

use crate::error::{Diagnosis, Exit, Failure};

/// What becomes of the demonstration's servers at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Stopped and removed.
    Remove,
    /// Left running until interrupted.
    Keep,
}

/// Walks through replication on two throw-away servers.
#[expect(clippy::unused_async, reason = "being built")]
pub async fn run(_ending: Ending) -> Result<(), Failure> {
    Err(Failure::new(Exit::No, Diagnosis::new("the demonstration is being built")))
}
