//! `pgsluice pause NAME` and `pgsluice resume NAME` record whether the subscription should run.

use serde_json::json;

use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::pg::SubscriptionName;
use crate::store::Verb;

use super::{ask, context};

pub(super) async fn pause(config: &Config, name: &SubscriptionName) -> Result<Exit, Failure> {
    wish(config, name, Verb::Pause).await
}

/// Resumes a subscription. After a conflict, the service tries the transaction again.
pub(super) async fn resume(config: &Config, name: &SubscriptionName) -> Result<Exit, Failure> {
    wish(config, name, Verb::Resume).await
}

async fn wish(config: &Config, name: &SubscriptionName, verb: Verb) -> Result<Exit, Failure> {
    let store = context::open(config).await?;
    context::make_known(&store, config, name).await?;
    let exit = ask::ask(&store, name.as_str(), verb, &json!({})).await;
    store.close().await;
    exit
}
