//! Finds out for whom the publisher makes a new slot wait, so that nobody waits for hours without a reason.
//!
//! A new slot waits for every transaction that was open when its creation began, prepared ones included, in all
//! databases of the server (`SnapBuildWaitSnapshot` in `snapbuild.c`).

use std::pin::Pin;
use std::time::Duration;

use tracing::info;

use crate::error::Diagnosis;
use crate::net::PgClient;
use crate::pg::SlotName;
use crate::replication::{
    CommandError, CreatedSlot, ReplicationConnection, SlotLifetime, SlotSnapshot, SlotSpec,
};
use crate::schema::catalog;

use super::context::{Context, Phase};
use super::failure::Failure;
use super::publisher::Publisher;

/// How often it is looked for whom a creation waits. Most are done before the first look.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A slot that is being created. Dropping it ends the wait; its connection cannot be used any more then.
pub(super) struct SlotCreation<'a> {
    created: Pin<Box<dyn Future<Output = Result<CreatedSlot, CommandError>> + Send + 'a>>,
    /// A session besides the one that creates the slot.
    publisher: &'a PgClient,
    slot: &'a SlotName,
    /// For whom it has been found to wait.
    found: Option<Diagnosis>,
}

/// What happens to a slot that is being created.
pub(super) enum Progress {
    /// It waits for somebody, or for somebody else than before.
    Waits(Diagnosis),
    Ended(Result<CreatedSlot, CommandError>),
}

impl<'a> SlotCreation<'a> {
    pub(super) fn begin(
        replication: &'a mut ReplicationConnection,
        spec: &'a SlotSpec,
        publisher: &'a PgClient,
    ) -> Self {
        Self { created: Box::pin(replication.create_slot(spec)), publisher, slot: &spec.name, found: None }
    }

    /// Waits for the next event. It may not be called any more after the creation has ended.
    pub(super) async fn next(&mut self) -> Progress {
        let found = tokio::select! {
            biased;
            created = &mut self.created => return Progress::Ended(created),
            found = next_wait(self.publisher, self.slot, self.found.as_ref()) => found,
        };
        self.found = Some(found.clone());
        Progress::Waits(found)
    }

    /// Whether it has had to wait.
    pub(super) const fn has_waited(&self) -> bool {
        self.found.is_some()
    }
}

/// Waits until the creation of `slot` waits for somebody else than `told`. Cancel-safe.
async fn next_wait(publisher: &PgClient, slot: &SlotName, told: Option<&Diagnosis>) -> Diagnosis {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let asked = catalog::slot_waits_for(&**publisher, slot).await;
        // The creation's own connection reports a lost publisher.
        if let Some(found) = asked.ok().flatten().filter(|found| Some(found) != told) {
            return found;
        }
    }
}

/// Creates the subscription's slot. While the publisher makes it wait, the state says for whom.
pub(super) async fn create(
    context: &Context,
    publisher: &Publisher,
    replication: &mut ReplicationConnection,
) -> Result<CreatedSlot, Failure> {
    let spec = SlotSpec {
        name: context.subscription.slot.clone(),
        lifetime: SlotLifetime::Permanent,
        snapshot: SlotSnapshot::Export,
        two_phase: false,
        failover: false,
    };
    let mut creation = SlotCreation::begin(replication, &spec, &publisher.client);
    let slot = loop {
        match creation.next().await {
            Progress::Waits(diagnosis) => {
                context.attention(None, &diagnosis);
                context.tell(Phase::SlotWaits(diagnosis)).await;
            }
            Progress::Ended(created) => break created?,
        }
    };
    info!(
        subscription = context.name(), slot = %slot.name, lsn = %slot.consistent_point,
        "created replication slot \"{}\" on the publisher", slot.name
    );
    Ok(slot)
}
