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

/// A query of who holds one-argument advisory locks in this database: `key`, `pid`, `who`, and `is_ours`, whether that is a
/// session whose role may write to schema `pgsluice`. A prepared transaction has no `pid`; it is `who` by its name, and never
/// a service's. A session that has ended since counts as ours.
///
/// `pg_locks` shows a key in two halves (PostgreSQL's `lockfuncs.c`: `classid` high, `objid` low, `objsubid` 1). Only the
/// lock on its own identifier tells which prepared transaction holds one.
macro_rules! lock_holders {
    () => {
        "SELECT (l.classid::pg_catalog.int8 << 32) | l.objid::pg_catalog.int8 AS key, l.pid, \
             coalesce(CASE WHEN l.pid IS NOT NULL THEN a.usename::pg_catalog.text ELSE \
                 (SELECT x.gid FROM pg_catalog.pg_locks t JOIN pg_catalog.pg_prepared_xacts x \
                      ON x.transaction = t.transactionid \
                  WHERE t.pid IS NULL AND t.virtualtransaction = l.virtualtransaction LIMIT 1) END, '') AS who, \
             l.pid IS NOT NULL \
                 AND coalesce(pg_catalog.has_table_privilege(a.usesysid, 'pgsluice.owner', 'UPDATE'), true) AS is_ours \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.database = \
             (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())"
    };
}

pub(crate) use lock_holders;

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
