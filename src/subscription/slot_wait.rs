//! Finds out for whom the publisher makes a new slot wait, so that nobody waits for hours without a reason.
//!
//! A new slot waits for every transaction that was open when its creation began, prepared ones included, in all
//! databases of the server (`SnapBuildWaitSnapshot` in `snapbuild.c`).

use std::time::Duration;

use crate::error::Diagnosis;
use crate::net::PgClient;
use crate::pg::SlotName;
use crate::schema::catalog;

/// How often it is looked for whom a creation waits. Most are done before the first look.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// For whom the creation of a slot has been found to wait.
#[derive(Debug, Default)]
pub(super) struct SlotWait(Option<Diagnosis>);

impl SlotWait {
    /// Waits until the creation of `slot` waits for somebody, or for somebody else than before. `publisher` is a
    /// session besides the one that creates the slot. Cancel-safe.
    pub(super) async fn next(&mut self, publisher: &PgClient, slot: &SlotName) -> Diagnosis {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let asked = catalog::slot_waits_for(&**publisher, slot).await;
            // The creation's own connection reports a lost publisher.
            let Some(found) = asked.ok().flatten() else { continue };
            if self.0.as_ref() != Some(&found) {
                self.0 = Some(found.clone());
                return found;
            }
        }
    }

    /// Whether the creation had to wait.
    pub(super) const fn was_found(&self) -> bool {
        self.0.is_some()
    }
}
