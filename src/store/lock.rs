//! The advisory lock of a subscription: the instance that holds it applies the subscription.
//!
//! The target session that writes takes the lock, so that an instance that loses the lock cannot write any
//! more. Here the lock is only named and looked up. Advisory locks belong to one database, so two databases
//! of a cluster may have subscriptions of the same name.

use std::collections::HashSet;

use sqlx::PgConnection;

use super::{Store, StoreError, StoreErrorKind};
use crate::pg::fnv1a;

/// The lock that is held while schema `pgsluice` is upgraded. It is no subscription's key, because the text
/// of those has a `/`.
pub(super) const MIGRATION_LOCK_KEY: i64 = fnv1a(b"pgsluice migrations").cast_signed();

/// The advisory lock of a subscription: 64-bit FNV-1a over `pgsluice/` and its name.
///
/// The key must not change: an old and a new version of pgsluice may run at the same time and must use the same
/// lock.
#[must_use]
pub fn lock_key(name: &str) -> i64 {
    fnv1a(format!("pgsluice/{name}").as_bytes()).cast_signed()
}

impl Store {
    /// Whether a session holds the subscription's advisory lock, that is, whether a service applies it.
    pub async fn is_owned(&self, name: &str) -> Result<bool, StoreError> {
        let key = lock_key(name);
        self.run("look for the subscription's service", async {
            Ok(held(&mut *self.pool.acquire().await?).await?.contains(&key))
        })
        .await
    }
}

/// Returns the keys of all one-argument advisory locks that are held in this database. `pg_locks` shows a key
/// in two halves (PostgreSQL's `lockfuncs.c`: `classid` high, `objid` low, `objsubid` 1).
pub(super) async fn held(session: &mut PgConnection) -> Result<HashSet<i64>, StoreErrorKind> {
    let keys: Vec<i64> = sqlx::query_scalar(
        "SELECT (l.classid::pg_catalog.int8 << 32) | l.objid::pg_catalog.int8 FROM pg_catalog.pg_locks l \
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.database = \
         (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())",
    )
    .fetch_all(session)
    .await?;
    Ok(keys.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_a_lock_of_its_own() {
        assert_ne!(lock_key("a"), lock_key("b"));
        assert_eq!(lock_key("a"), -3_705_229_039_962_736_779, "versions agree on it");
    }
}
