//! How several instances share their subscriptions: which one hands which subscription over, and when. Pure.
//!
//! The lock says who owns a subscription. So the first instance owns everything, and one that is gone is replaced at once,
//! without this. Here is only what follows: an owner of many lets go of one that another instance stands by for.
//!
//! ```text
//! nothing ──it owns at least two more than who stands by, all is calm──▶ announced ──everybody has read it──▶ asked
//!    ▲                                                                                                        │
//!    └── the other owns it, or took too long ◀── left to the other ◀── the worker has let go, between two transactions
//! ```
//!
//! # Why it comes to rest
//! A hand-over makes the sum of the squares of what each instance owns smaller, because the one that gets it owns at least
//! two less. All instances read the same rows, and only the one that all of them find may begin. So nothing goes back
//! and forth. No weights are needed, and no more subscriptions move than have to, which a hash of instance and
//! subscription would not give: it is even only on average.
//!
//! # Invariants
//! - One hand-over at a time for each instance, and only while the same instances have been there for some time.
//! - Only a subscription that streams is handed over, to an instance that has asked for its lock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::pg::SubscriptionName;

/// How long an announcement stands before the subscription is let go of: every instance reads once a second.
const ANNOUNCED: Duration = Duration::from_millis(2500);
/// For how long the worker is asked to let go. It does so between two transactions, once it has caught up.
const ASKED: Duration = Duration::from_secs(5);
/// For how long the lock is left to the other instance.
const LEFT: Duration = Duration::from_secs(5);
/// For how long owners must have stayed the same before the next hand-over.
const SETTLED: Duration = Duration::from_secs(3);
/// For how long a subscription stays after a hand-over that did not succeed.
const STAYS: Duration = Duration::from_mins(1);

/// An instance, as it has described itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    pub id: i64,
    pub roles: Roles,
    pub hands_over: Option<HandOver>,
}

/// What an instance is to its subscriptions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roles {
    pub owns: BTreeSet<SubscriptionName>,
    /// Those that it owns and may hand over.
    pub streams: BTreeSet<SubscriptionName>,
    /// Those whose lock it waits for.
    pub stands_by: BTreeSet<SubscriptionName>,
}

/// A subscription that is left to another instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    pub subscription: SubscriptionName,
    pub to: i64,
}

/// Who may take a subscription's lock now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The first instance that asks.
    Nobody,
    ToUs,
    ToAnother,
}

/// The hand-over of this instance, and what it has seen of the others.
#[derive(Debug)]
pub struct Balance {
    /// For how long the same instances must have been there.
    after: Duration,
    members: BTreeSet<i64>,
    members_since: Duration,
    owners: BTreeMap<SubscriptionName, i64>,
    owners_since: Duration,
    /// Subscriptions that could not be handed over, and until when they stay.
    stay: BTreeMap<SubscriptionName, Duration>,
    hand_over: Option<(HandOver, Stage)>,
}

/// How far a hand-over is, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Announced(Duration),
    Asked(Duration),
    Left(Duration),
}

impl Balance {
    /// `after` is how long the same instances must have been there before a subscription is handed over.
    #[must_use]
    pub fn new(after: Duration) -> Self {
        Self {
            after,
            members: BTreeSet::new(),
            members_since: Duration::ZERO,
            owners: BTreeMap::new(),
            owners_since: Duration::ZERO,
            stay: BTreeMap::new(),
            hand_over: None,
        }
    }

    /// The hand-over that the others are told of.
    #[must_use]
    pub fn announced(&self) -> Option<&HandOver> {
        self.hand_over.as_ref().map(|(hand_over, _)| hand_over)
    }

    /// The subscription whose worker is to let go of it now.
    #[must_use]
    pub fn asked(&self) -> Option<&SubscriptionName> {
        match &self.hand_over {
            Some((hand_over, Stage::Asked(_))) => Some(&hand_over.subscription),
            _ => None,
        }
    }

    /// Leaves out of what this instance may hand over what it could not. Otherwise the same one would be tried again and
    /// again.
    pub fn withhold(&self, roles: &mut Roles) {
        roles.streams.retain(|name| !self.stay.contains_key(name));
    }

    /// Takes in the instances that live at the time `now`, of which this one is `us`.
    pub fn take(&mut self, now: Duration, us: i64, members: &[Member]) {
        self.stay.retain(|_, until| *until > now);
        let ids = members.iter().map(|member| member.id).collect();
        if std::mem::replace(&mut self.members, ids) != self.members {
            self.members_since = now;
        }
        let owned = |member: &Member| {
            let id = member.id;
            member.roles.owns.clone().into_iter().map(move |name| (name, id))
        };
        let owners = members.iter().flat_map(owned).collect();
        if std::mem::replace(&mut self.owners, owners) != self.owners {
            self.owners_since = now;
        }
        self.hand_over = match self.hand_over.take() {
            None if self.is_calm(now) => next(members)
                .filter(|(from, _)| *from == us)
                .map(|(_, hand_over)| (hand_over, Stage::Announced(now))),
            None => None,
            Some((hand_over, stage)) => {
                self.go_on(now, us, members, &hand_over, stage).map(|s| (hand_over, s))
            }
        };
    }

    /// What was seen cannot be relied on, because this instance could not renew its row.
    pub fn lose_sight(&mut self, now: Duration) {
        (self.members_since, self.hand_over) = (now, None);
    }

    fn is_calm(&self, now: Duration) -> bool {
        now.saturating_sub(self.members_since) >= self.after
            && now.saturating_sub(self.owners_since) >= SETTLED.min(self.after)
    }

    /// The next stage of a hand-over; none at its end.
    fn go_on(
        &mut self,
        now: Duration,
        us: i64,
        members: &[Member],
        hand_over: &HandOver,
        stage: Stage,
    ) -> Option<Stage> {
        let HandOver { subscription, to } = hand_over;
        let roles = |id: i64| members.iter().find(|member| member.id == id).map(|member| &member.roles);
        let ours = roles(us).is_some_and(|roles| roles.owns.contains(subscription));
        let streams = roles(us).is_some_and(|roles| roles.streams.contains(subscription));
        let waits = roles(*to).is_some_and(|roles| roles.stands_by.contains(subscription));
        let theirs = self.owners.get(subscription).is_some_and(|owner| *owner != us);
        let passed = |since: Duration| now.saturating_sub(since);
        match stage {
            Stage::Announced(_) if self.members_since == now || !streams || !waits => None,
            Stage::Announced(since) if passed(since) >= ANNOUNCED => Some(Stage::Asked(now)),
            Stage::Asked(_) if !ours => Some(Stage::Left(now)),
            Stage::Asked(since) if passed(since) >= ASKED => {
                self.stay.insert(subscription.clone(), now + STAYS);
                None
            }
            Stage::Left(_) if theirs => None,
            Stage::Left(since) if passed(since) >= LEFT => {
                self.stay.insert(subscription.clone(), now + STAYS);
                None
            }
            stage => Some(stage),
        }
    }
}

/// To whom the subscription is promised, as `us` sees it.
#[must_use]
pub fn promise(members: &[Member], us: i64, subscription: &SubscriptionName) -> Promise {
    let promised = members.iter().filter_map(|member| member.hands_over.as_ref());
    match promised.filter(|hand_over| hand_over.subscription == *subscription).map(|found| found.to).max() {
        Some(to) if to == us => Promise::ToUs,
        // One that is gone does not take it.
        Some(to) if members.iter().any(|member| member.id == to) => Promise::ToAnother,
        _ => Promise::Nobody,
    }
}

/// The hand-over that makes the most even at once, and whose it is. All instances find the same one.
fn next(members: &[Member]) -> Option<(i64, HandOver)> {
    let pairs = members.iter().flat_map(|from| members.iter().map(move |to| (from, to)));
    let gains = pairs.filter_map(|(from, to)| {
        let gain = from.roles.owns.len().checked_sub(to.roles.owns.len()).filter(|gain| *gain >= 2)?;
        let subscription = from.roles.streams.intersection(&to.roles.stands_by).next()?.clone();
        Some((gain, from.id, HandOver { subscription, to: to.id }))
    });
    let best = gains.max_by_key(|(gain, from, hand_over)| (*gain, *from, hand_over.to));
    best.map(|(_, from, hand_over)| (from, hand_over))
}

#[cfg(test)]
mod tests;
