//! What several commands need: the configuration, the store, and the name of the person who asks.

use std::path::Path;

use crate::config::{Config, process_environment};
use crate::error::{Diagnosis, Exit, Failure};
use crate::pg::SubscriptionName;
use crate::runtime::unknown;
use crate::store::{Registration, Store};

/// Reads the configuration. If anything is wrong with it, the command ends with exit code 2.
pub(super) fn load(path: Option<&Path>) -> Result<Config, Failure> {
    Config::load(path, process_environment())
        .map_err(|errors| Failure::new(Exit::Usage, Diagnosis::new(errors.to_string())))
}

/// Connects to the target and checks that schema `pgsluice` has the version of this binary.
pub(super) async fn open(config: &Config) -> Result<Store, Failure> {
    let store = Store::connect(&config.target.conninfo).await?;
    store.require_schema().await?;
    Ok(store)
}

/// Makes sure that the database has a row for the subscription, so that a command can be recorded for
/// one that is configured but has never run.
pub(super) async fn make_known(
    store: &Store,
    config: &Config,
    name: &SubscriptionName,
) -> Result<(), Failure> {
    if store.subscription(name.as_str()).await?.is_some() {
        return Ok(());
    }
    let configured = config.subscriptions.iter().find(|subscription| subscription.name == *name);
    let subscription = configured.ok_or_else(|| unknown(name))?;
    let registration =
        Registration { name, slot: &subscription.slot, publications: &subscription.publications };
    Ok(store.register_subscription(registration).await?)
}

/// Returns the name for the audit: `user@host`, as far as the environment tells.
pub(super) fn who() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("USER").or_else(|| variable("LOGNAME"));
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = variable("HOSTNAME").or_else(|| kernel().map(|name| name.trim().to_owned()));
    let unknown = || "unknown".to_owned();
    format!("{}@{}", user.unwrap_or_else(unknown), host.unwrap_or_else(unknown))
}
