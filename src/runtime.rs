//! (being built)

use crate::config::Config;
use crate::error::{Diagnosis, Exit, Failure};
use crate::pg::SubscriptionName;

/// Runs every subscription of the configuration until it is told to stop.
#[expect(clippy::unused_async, reason = "being built")]
pub async fn run(config: Config) -> Result<(), Failure> {
    drop(config);
    Err(Failure::new(Exit::No, Diagnosis::new("the service is being built")))
}

/// Removes the subscription's slot from the publisher and its state from the target.
#[expect(clippy::unused_async, reason = "being built")]
pub async fn drop_subscription(_config: &Config, name: &SubscriptionName) -> Result<(), Failure> {
    Err(Failure::new(Exit::No, Diagnosis::new(format!("dropping \"{name}\" is being built"))))
}
