//! `pgsluice resync NAME TABLE…`, `accept NAME --gap ID` and `refresh NAME`: commands about the tables of a
//! subscription, which the service carries out.

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::pg::SubscriptionName;
use crate::store::{Resync, Store, Verb};

use super::{AcceptArgs, RefreshArgs, ResyncArgs, ask, context};

pub(super) async fn run(config: &Config, args: &ResyncArgs) -> Result<Exit, Failure> {
    let how = match (args.truncate, args.merge) {
        (true, _) => Resync::Truncate,
        (false, true) => Resync::Merge,
        (false, false) => Resync::Replace,
    };
    let tables: Vec<[&str; 2]> =
        args.tables.iter().map(|table| [table.schema.as_str(), table.name.as_str()]).collect();
    request(config, &args.name, Verb::Resync, &json!({ "tables": tables, "how": how })).await
}

pub(super) async fn accept(config: &Config, args: &AcceptArgs) -> Result<Exit, Failure> {
    let (name, gap) = (&args.name, args.gap);
    with_store(config, name, async |store| {
        // What is committed from now on is not accepted.
        let up_to = store.gap_shown_up_to(name.as_str(), gap).await?;
        ask::ask(store, name.as_str(), Verb::Accept, &json!({ "gap_id": gap, "up_to": up_to })).await
    })
    .await
}

pub(super) async fn refresh(config: &Config, args: &RefreshArgs) -> Result<Exit, Failure> {
    request(config, &args.name, Verb::Refresh, &json!({ "copy": !args.no_copy })).await
}

async fn request(
    config: &Config,
    name: &SubscriptionName,
    verb: Verb,
    args: &Value,
) -> Result<Exit, Failure> {
    with_store(config, name, async |store| ask::ask(store, name.as_str(), verb, args).await).await
}

/// Opens the store, makes the subscription known, and closes the store after what is to be done.
async fn with_store(
    config: &Config,
    name: &SubscriptionName,
    ask: impl AsyncFnOnce(&Store) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let store = context::open(config).await?;
    context::make_known(&store, config, name).await?;
    let exit = ask(&store).await;
    store.close().await;
    exit
}
