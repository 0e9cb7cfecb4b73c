//! The advisory locks of a subscription: the instance that holds one of them applies the subscription.
//!
//! Any role that can connect can take an advisory lock, so a subscription has several: one that is held by somebody who
//! is no pgsluice is passed over. Advisory locks belong to one database, so two databases of a cluster may have
//! subscriptions of the same name.

use super::fnv1a;

/// How many locks a subscription has.
pub const LOCKS_OF_A_SUBSCRIPTION: usize = 4;

/// The lock that is held while schema `pgsluice` is upgraded. It is no subscription's key, because the text
/// of those has a `/`.
pub const MIGRATION_LOCK_KEY: i64 = fnv1a(b"pgsluice migrations").cast_signed();

/// The lock of a subscription that is taken first: 64-bit FNV-1a over `pgsluice/` and its name.
///
/// The key must not change: an old and a new version of pgsluice may run at the same time and must use the same
/// lock.
#[must_use]
pub fn lock_key(name: &str) -> i64 {
    fnv1a(format!("pgsluice/{name}").as_bytes()).cast_signed()
}

/// The locks of a subscription, in the order in which they are tried.
#[must_use]
pub fn lock_keys(name: &str) -> [i64; LOCKS_OF_A_SUBSCRIPTION] {
    // No name of a subscription has a `/`.
    std::array::from_fn(|number| match number {
        0 => lock_key(name),
        number => lock_key(&format!("{name}/{number}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_locks_of_its_own() {
        assert_ne!(lock_key("a"), lock_key("b"));
        assert_eq!(lock_key("a"), -3_705_229_039_962_736_779, "versions agree on it");
        let mut keys = [lock_keys("a"), lock_keys("b")].concat();
        keys.push(MIGRATION_LOCK_KEY);
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 2 * LOCKS_OF_A_SUBSCRIPTION + 1);
    }
}
