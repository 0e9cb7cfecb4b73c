//! `pgsluice skip NAME --lsn LSN` passes over exactly the transaction that finishes at the LSN.

use serde_json::json;

use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::store::Verb;

use super::{SkipArgs, ask, context};

pub(super) async fn run(config: &Config, args: &SkipArgs) -> Result<Exit, Failure> {
    let store = context::open(config).await?;
    context::make_known(&store, config, &args.name).await?;
    let name = args.name.as_str();
    // The skip is stored before the service is told, so that it also holds if no service is running.
    store.arm_skip(name, args.lsn).await?;
    let exit = ask::ask(&store, name, Verb::Skip, &json!({ "lsn": args.lsn })).await;
    store.close().await;
    exit
}
