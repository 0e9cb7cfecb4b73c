//! Compares two configurations for a reload (SIGHUP). Pure.

use super::{Config, Subscription};

/// The difference between the running configuration and a new one. Subscriptions are matched by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes<'a> {
    pub added: Vec<&'a Subscription>,
    pub removed: Vec<&'a Subscription>,
    /// The old and the new subscription, where anything differs.
    pub changed: Vec<(&'a Subscription, &'a Subscription)>,
    /// Whether the target's connection differs, which affects every subscription.
    pub target: bool,
    /// Whether `[service]` differs.
    pub service: bool,
}

impl Changes<'_> {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Config {
    /// Returns what `new` changes. The order of subscriptions and the warnings are ignored.
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
