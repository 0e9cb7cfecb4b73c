//! Removes a subscription: its slot on the publisher, and its state in the target. The target's rows stay.
//!
//! That it has begun is recorded first. If who removes it dies half-way, a service that has the subscription in its
//! configuration, or the next `drop`, goes on with it.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::boundary;
use crate::config::Subscription;
use crate::error::{Diagnosis, Disposition, PauseReason};
use crate::net::{self, PgClient};
use crate::store::Store;
use crate::target::TargetSession;

use super::failure::Failure;
use super::publisher::OBJECT_IN_USE;
use super::slot::end_abandoned_creations;

/// Maximum time of waiting for a walsender that still uses the slot.
const SLOT_TIMEOUT: Duration = Duration::from_secs(15);
const SLOT_POLL: Duration = Duration::from_millis(200);

/// Another database's slot, or one of another kind, is not the subscription's, which was refused it.
const DROP_SLOT: &str = "SELECT pg_catalog.pg_drop_replication_slot(s.slot_name) \
    FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::pg_catalog.text \
    AND s.plugin = 'pgoutput' AND s.database = pg_catalog.current_database()";

/// Removes the subscription. `session` holds its lock.
///
/// # Errors
/// One of the servers does not answer, or the slot cannot be dropped. In the latter case nothing has been removed.
pub(crate) async fn remove(
    store: &Store,
    subscription: &Subscription,
    publisher: &PgClient,
    session: &TargetSession,
) -> Result<(), Failure> {
    let name = &subscription.name;
    store.begin_removal(name.as_str()).await?;
    // A process that has lost the lock, but was stopped, does not end its copies itself.
    if let Err(error) = session.end_copies(name).await {
        warn!(subscription = %name, %error, "copies of former owners may still run on the target");
    }
    if let Err(failure) = drop_slot(publisher, subscription).await {
        if failure.disposition != Disposition::Retry {
            store.abandon_removal(name.as_str()).await?;
        }
        return Err(failure);
    }
    if let Err(error) = session.drop_origins(name).await {
        // Harmless but for the room that they take.
        warn!(subscription = %name, %error, "replication origins named pgsluice:…:{name} stay on the target");
    }
    Ok(store.remove_subscription(name.as_str()).await?)
}

/// Drops the replication slot; one that is not there is no error.
async fn drop_slot(client: &PgClient, subscription: &Subscription) -> Result<(), Failure> {
    end_abandoned_creations(client, &subscription.slot).await?;
    let slot = subscription.slot.as_str();
    let deadline = Instant::now() + SLOT_TIMEOUT;
    loop {
        // The walsender may need a moment to notice that its subscriber has gone.
        let dropped = boundary::deed!(
            "drop::slot",
            client.execute(DROP_SLOT, &[&slot]).await,
            Err(client.lose().await)
        );
        let Err(error) = dropped else { return Ok(()) };
        let Some(server) = net::server_error(&error) else {
            return Err(Failure::retry(Diagnosis::new(error.to_string())));
        };
        if server.code == OBJECT_IN_USE && Instant::now() < deadline {
            tokio::time::sleep(SLOT_POLL).await;
            continue;
        }
        return Err(Failure::pause(PauseReason::PublisherError, server.diagnosis()));
    }
}
