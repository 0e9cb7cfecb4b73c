//! `pgsluice drop NAME` removes slot and state; the target's rows stay.
//!
//! `runtime` does the work, since the publisher has to be reached first. It is passed in as a function.

use crate::error::{Exit, Failure};
use crate::pg::SubscriptionName;

use super::output;

pub(super) async fn run(
    name: &SubscriptionName,
    remove: impl AsyncFnOnce(&SubscriptionName) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    remove(name).await?;
    output::print(&format!("{name}: dropped with its slot and its state; the target's rows stay\n"))?;
    Ok(Exit::Fine)
}
