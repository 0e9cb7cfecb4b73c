//! What several commands need: the configuration, the store, and the name of the person who asks.

use std::os::unix::fs::MetadataExt as _;
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

/// Returns the name for the audit: `user@host`. Services and containers often have no `USER`, so the process's
/// user is looked up, and named by its number if it has no name.
pub(super) fn who() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("USER").or_else(|| variable("LOGNAME")).or_else(process_user);
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = variable("HOSTNAME").or_else(|| kernel().map(|name| name.trim().to_owned()));
    let unknown = || "unknown".to_owned();
    format!("{}@{}", user.unwrap_or_else(unknown), host.unwrap_or_else(unknown))
}

/// The user that this process runs as; none if /proc is missing.
fn process_user() -> Option<String> {
    let uid = std::fs::metadata("/proc/self").ok()?.uid();
    let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(user_name(&known, uid).unwrap_or_else(|| format!("uid {uid}")))
}

/// The name of the user with this number in a text like /etc/passwd.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\npgsluice:x:10001:10001::/:/sbin/nologin\n";
        assert_eq!(user_name(passwd, 10_001).as_deref(), Some("pgsluice"));
        assert_eq!(user_name(passwd, 1), None);
        assert!(process_user().is_some_and(|user| !user.is_empty()));
    }
}
