//! The positions of all subscriptions of this process, and the task that reports them to the target together.
//!
//! ```text
//! monitors ──positions──▶ Reports ──one statement a second──▶ target
//!          ◀──what became of them──┘
//! ```
//! Hundreds of subscriptions that each wrote every second would need many sessions, and as many commits. A report also shows
//! that the subscription's owner lives, so there is none for a worker that hangs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::debug;

use crate::pg::SubscriptionName;
use crate::store::{Ownership, Positions, Store};
use crate::target::WORKER_PATIENCE;

/// How often positions are reported.
const INTERVAL: Duration = Duration::from_secs(1);

/// What became of the last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Told {
    #[default]
    NotYet,
    Written,
    /// The target has not taken it.
    Failed,
    /// Another instance owns the subscription.
    NotOwner,
}

/// The positions that are reported next. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports(Arc<Mutex<BTreeMap<SubscriptionName, Entry>>>);

#[derive(Debug)]
struct Entry {
    owner: Ownership,
    /// None until the monitor has looked for the first time; what is recorded stays until then.
    positions: Option<Positions>,
    /// When the subscription's worker last got to run.
    worker: watch::Receiver<Instant>,
    told: watch::Sender<Told>,
}

impl Reports {
    /// Reports until dropped.
    pub(crate) async fn run(&self, store: &Store) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let due = self.due();
            if due.is_empty() {
                continue;
            }
            let reports: Vec<_> = due.iter().map(|(owner, positions)| (owner, positions)).collect();
            let reported = store.report_positions(&reports).await;
            if let Err(error) = &reported {
                // The workers notice a lost target by their own connections and report that.
                debug!(%error, "positions not reported");
            }
            for (owner, _) in &due {
                let name = owner.subscription();
                let told = match &reported {
                    Ok(reported) if reported.refused.contains(name) => Told::NotOwner,
                    Ok(reported) if reported.written.contains(name) => Told::Written,
                    // Somebody has locked the row.
                    Ok(_) => continue,
                    Err(_) => Told::Failed,
                };
                self.tell(owner, told);
            }
        }
    }

    /// Begins to report for this owner.
    pub(super) fn enter(&self, owner: Ownership, worker: watch::Receiver<Instant>) -> Reporter {
        let told = watch::Sender::new(Told::NotYet);
        let receiver = told.subscribe();
        let entry = Entry { owner: owner.clone(), positions: None, worker, told };
        self.entries().insert(owner.subscription().clone(), entry);
        Reporter { reports: self.clone(), owner, told: receiver }
    }

    fn due(&self) -> Vec<(Ownership, Positions)> {
        let lives = |entry: &&Entry| entry.worker.borrow().elapsed() < WORKER_PATIENCE;
        let entries = self.entries();
        let report = |entry: &Entry| Some((entry.owner.clone(), entry.positions.clone()?));
        entries.values().filter(lives).filter_map(report).collect()
    }

    fn tell(&self, owner: &Ownership, told: Told) {
        if let Some(entry) = self.entries().get(owner.subscription()).filter(|entry| entry.owner == *owner) {
            entry.told.send_replace(told);
        }
    }

    /// What another task left half-done by a panic is replaced by its next report.
    fn entries(&self) -> MutexGuard<'_, BTreeMap<SubscriptionName, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports for one owner until dropped.
#[derive(Debug)]
pub(super) struct Reporter {
    reports: Reports,
    owner: Ownership,
    told: watch::Receiver<Told>,
}

impl Reporter {
    /// Replaces what is reported.
    pub(super) fn put(&self, positions: Positions) {
        if let Some(entry) = self.reports.entries().get_mut(self.owner.subscription())
            && entry.owner == self.owner
        {
            entry.positions = Some(positions);
        }
    }

    /// Waits until something has become of a report. Cancel-safe.
    pub(super) async fn told(&mut self) -> Told {
        if self.told.changed().await.is_err() {
            // Another owner of this process reports now, and this one is about to end.
            return std::future::pending().await;
        }
        *self.told.borrow_and_update()
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let mut entries = self.reports.entries();
        if entries.get(self.owner.subscription()).is_some_and(|entry| entry.owner == self.owner) {
            entries.remove(self.owner.subscription());
        }
    }
}
