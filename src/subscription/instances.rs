//! Shares the subscriptions with the other instances: tells the target what this one owns, and workers when to let go.
//!
//! ```text
//! workers ──roles──▶ Instances ──one row a second──▶ target ──rows of all──▶ balance
//!         ◀──let go, leave the lock to another──┘◀────────────────────────────┘
//! ```
//! Nothing else waits for it: while the row cannot be renewed, nothing is handed over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info};

use super::balance::{Balance, Member, Promise, Roles, promise};
use crate::pg::SubscriptionName;
use crate::store::Store;

/// How often the row is renewed.
const INTERVAL: Duration = Duration::from_secs(1);
/// What was read longer ago binds nobody.
const SEEN: Duration = Duration::from_secs(5);

/// What a worker is to its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Role {
    /// It is about to become something else.
    #[default]
    None,
    Owns,
    /// It owns the subscription, and streams without trouble.
    Streams,
    /// It waits for the lock.
    StandsBy,
}

/// What a worker is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Asked {
    #[default]
    Stay,
    /// To let go of the subscription between two transactions, once it has caught up.
    LetGo,
}

/// The workers' roles, and the instances as they were last seen. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Instances(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    seats: BTreeMap<SubscriptionName, (Role, watch::Sender<Asked>)>,
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    us: i64,
    members: Vec<Member>,
}

impl Instances {
    /// Renews the row of the instance `name` until dropped. Subscriptions are handed over if the same instances have been
    /// there for the time `after`. Without it, this instance describes itself as one that has nothing to share, and leaves
    /// locks to others all the same.
    pub(crate) async fn run(&self, store: &Store, name: &str, after: Option<Duration>) {
        let began = Instant::now();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut balance = Balance::new(after.unwrap_or(Duration::MAX));
        loop {
            ticks.tick().await;
            let (us, mut roles) = self.roles();
            if after.is_none() {
                roles = Roles::default();
            }
            balance.withhold(&mut roles);
            let (now, announced) = (began.elapsed(), balance.announced().cloned());
            match store.renew_instance(us, name, &roles, announced.as_ref()).await {
                Ok((us, members)) => {
                    balance.take(now, us, &members);
                    self.lock().seen = Some(Seen { at: Instant::now(), us, members });
                }
                Err(error) => {
                    debug!(%error, "the row of this instance is not renewed");
                    balance.lose_sight(now);
                }
            }
            if balance.announced().is_some() && announced.is_none() {
                info!(hand_over = ?balance.announced(), "another instance owns less, and stands by");
            }
            self.ask(balance.asked());
        }
    }

    /// Removes the row, so that the others do not wait for this instance.
    pub(crate) async fn withdraw(&self, store: &Store) {
        let us = self.lock().seen.as_ref().map(|seen| seen.us);
        if let Some(us) = us
            && let Err(error) = store.withdraw_instance(us).await
        {
            debug!(%error, "the row of this instance is left to be ignored");
        }
    }

    /// Takes part for a worker's subscription.
    pub(super) fn enter(&self, subscription: SubscriptionName) -> Seat {
        let sender = watch::Sender::new(Asked::Stay);
        let asked = sender.subscribe();
        self.lock().seats.insert(subscription.clone(), (Role::None, sender));
        Seat { instances: self.clone(), subscription, asked }
    }

    fn roles(&self) -> (Option<i64>, Roles) {
        let inner = self.lock();
        let mut roles = Roles::default();
        for (name, (role, _)) in &inner.seats {
            let sets: &mut [_] = match role {
                Role::None => &mut [],
                Role::Owns => &mut [&mut roles.owns],
                Role::Streams => &mut [&mut roles.owns, &mut roles.streams],
                Role::StandsBy => &mut [&mut roles.stands_by],
            };
            for set in sets {
                set.insert(name.clone());
            }
        }
        (inner.seen.as_ref().map(|seen| seen.us), roles)
    }

    fn ask(&self, asked: Option<&SubscriptionName>) {
        for (name, (_, sender)) in &self.lock().seats {
            let now = if asked == Some(name) { Asked::LetGo } else { Asked::Stay };
            sender.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    }

    /// What another task left half-done by a panic is replaced by its next change.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's part in it, until dropped.
#[derive(Debug)]
pub(super) struct Seat {
    instances: Instances,
    subscription: SubscriptionName,
    asked: watch::Receiver<Asked>,
}

impl Seat {
    pub(super) fn set(&self, role: Role) {
        if let Some((known, _)) = self.instances.lock().seats.get_mut(&self.subscription) {
            *known = role;
        }
    }

    pub(super) fn asked(&self) -> watch::Receiver<Asked> {
        self.asked.clone()
    }

    /// Who may take the subscription's lock now.
    pub(super) fn promise(&self) -> Promise {
        let inner = self.instances.lock();
        let seen = inner.seen.as_ref().filter(|seen| seen.at.elapsed() < SEEN);
        seen.map_or(Promise::Nobody, |seen| promise(&seen.members, seen.us, &self.subscription))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.instances.lock();
        let ours = |(_, sender): &(Role, watch::Sender<Asked>)| sender.subscribe().same_channel(&self.asked);
        if inner.seats.get(&self.subscription).is_some_and(ours) {
            inner.seats.remove(&self.subscription);
        }
    }
}
