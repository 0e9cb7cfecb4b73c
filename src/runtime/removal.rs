//! The command `drop`: takes a subscription over from the service that runs it, and removes it.

use std::time::Duration;

use tracing::warn;

use crate::config::Config;
use crate::error::{Diagnosis, Disposition, Exit, Failure};
use crate::net::{self, ClientOptions};
use crate::pg::SubscriptionName;
use crate::store::{Store, Verb};
use crate::subscription::findings::obstructed;
use crate::subscription::{self, remove};
use crate::target::{Lock, TargetSession, drop_application_name};

/// Longest time that `drop` waits for a running service to release the subscription.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(15);
const LET_GO_POLL: Duration = Duration::from_millis(200);
/// Longest wait for one instance's answer that it releases the subscription.
const LET_GO_ANSWER: Duration = Duration::from_secs(3);

/// Removes a subscription: its slot on the publisher and its state in the target. The target's rows
/// stay. A running service is asked to release it only after the publisher has been reached, so that a
/// drop that cannot be finished changes nothing.
pub async fn drop_subscription(config: &Config, name: &SubscriptionName) -> Result<(), Failure> {
    let store = Store::connect(&config.target.conninfo).await?;
    store.require_schema().await?;
    let configured = config.subscriptions.iter().find(|known| known.name == *name);
    let known = store.subscription(name.as_str()).await?.is_some();
    let subscription = match (configured, known) {
        (Some(subscription), true) => subscription,
        (Some(_), false) => {
            return Err(Failure::new(
                Exit::No,
                Diagnosis::new(format!("subscription \"{name}\" has never run: there is nothing to drop")),
            ));
        }
        (None, true) => {
            return Err(Failure::new(
                Exit::Usage,
                Diagnosis::new(format!("subscription \"{name}\" is not in the configuration"))
                    .detail("its slot can only be removed with the publisher's address")
                    .hint(format!(
                        "put it back into the configuration (enabled = false), then \"pgsluice drop {name}\""
                    )),
            ));
        }
        (None, false) => return Err(unknown(name)),
    };
    let publisher = net::client(&subscription.publisher, &ClientOptions::default())
        .await
        .map_err(|error| Failure::new(Exit::Unreachable, error.diagnosis()))?;
    let session = take_over(&store, config, name).await?;
    remove(&store, subscription, &publisher, &session).await.map_err(failed)?;
    drop(session);
    store.close().await;
    Ok(())
}

/// The error for a name that neither the configuration nor the target knows.
pub(crate) fn unknown(name: &SubscriptionName) -> Failure {
    let diagnosis = Diagnosis::new(format!("there is no subscription \"{name}\""))
        .detail("neither the configuration nor the target's state knows it")
        .hint("\"pgsluice status\" lists them");
    Failure::new(Exit::Usage, diagnosis)
}

/// Takes the subscription's lock after asking its holder to release it. The first holder is the
/// instance that applies. A standby instance may take the lock before this process, and is then asked
/// as well.
async fn take_over(
    store: &Store,
    config: &Config,
    name: &SubscriptionName,
) -> Result<TargetSession, Failure> {
    let session = TargetSession::open(&config.target.conninfo, &drop_application_name(name))
        .await
        .map_err(|error| failed(error.into()))?;
    let deadline = tokio::time::Instant::now() + LET_GO_TIMEOUT;
    loop {
        match session.try_lock(name).await {
            Ok(Lock::Held) => return Ok(session),
            Ok(Lock::HeldElsewhere) if tokio::time::Instant::now() < deadline => {
                if let Some(pid) =
                    session.end_silent_owner(name).await.map_err(|error| failed(error.into()))?
                {
                    warn!(subscription = %name, pid, "the owner has shown no sign of life, so its session on the target has been ended");
                    continue;
                }
                let id = store.submit(name.as_str(), Verb::Drop, &serde_json::json!({}), "drop").await?;
                store.wait_answer(id, LET_GO_ANSWER).await?;
                tokio::time::sleep(LET_GO_POLL).await;
            }
            Ok(Lock::HeldElsewhere) => {
                // It must not be let go of later, when nobody drops it any more.
                store.withdraw_drops(name.as_str()).await?;
                return Err(Failure::new(
                    Exit::No,
                    Diagnosis::new(format!(
                        "another instance of pgsluice runs \"{name}\" and does not let go of it"
                    ))
                    .hint("stop that service, then drop the subscription"),
                ));
            }
            Ok(Lock::Obstructed(outsider)) => {
                store.withdraw_drops(name.as_str()).await?;
                return Err(Failure::new(Exit::No, obstructed(&outsider)));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn failed(failure: subscription::Failure) -> Failure {
    let exit = match failure.disposition {
        Disposition::Retry => Exit::Unreachable,
        Disposition::Pause(_) => Exit::No,
    };
    Failure::new(exit, failure.diagnosis)
}
