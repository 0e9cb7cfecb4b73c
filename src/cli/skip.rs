//! `pgsluice skip NAME --lsn LSN`: passes over exactly the transaction that finishes there.

use serde_json::json;

use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::store::Verb;

use super::{SkipArgs, ask, context};

pub(super) async fn run(config: &Config, args: &SkipArgs) -> Result<Exit, Failure> {
    let store = context::open(config).await?;
    context::make_known(&store, config, &args.name).await?;
    let name = args.name.as_str();
    // Armed in the state first, so that it holds whether or not a service is there to hear of it.
    store.arm_skip(name, args.lsn).await?;
    let exit = ask::ask(&store, name, Verb::Skip, &json!({ "lsn": args.lsn })).await;
    store.close().await;
    exit
}
