//! What a reload (SIGHUP) changes: pure comparison of two configurations.

use super::{Config, Subscription};

/// The difference between the running configuration and a new one. Subscriptions go by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes<'a> {
    pub added: Vec<&'a Subscription>,
    pub removed: Vec<&'a Subscription>,
    /// Old and new, where anything differs.
    pub changed: Vec<(&'a Subscription, &'a Subscription)>,
    /// The target's connection differs: every subscription is affected.
    pub target: bool,
    /// `[service]` differs.
    pub service: bool,
}

impl Changes<'_> {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Config {
    /// What `new` changes. Order and warnings make no difference.
    #[must_use]
    pub fn changes<'a>(&'a self, new: &'a Self) -> Changes<'a> {
        let missing_in = |config: &'a Self| {
            move |subscription: &&Subscription| config.subscription(&subscription.name).is_none()
        };
        let pairs = self.subscriptions.iter().filter_map(|old| Some((old, new.subscription(&old.name)?)));
        Changes {
            added: new.subscriptions.iter().filter(missing_in(self)).collect(),
            removed: self.subscriptions.iter().filter(missing_in(new)).collect(),
            changed: pairs.filter(|(old, new)| old != new).collect(),
            target: self.target != new.target,
            service: self.service != new.service,
        }
    }
}
