//! Who applies a subscription: an advisory lock of the target, by the subscription's name.
//!
//! `apply` takes the lock on the connection that writes, so that a lost lock is a lost writer.
//! Here it is only named and looked at. Advisory locks belong to one database each, so two databases of
//! a cluster may have subscriptions of the same name.

use std::collections::HashSet;

use sqlx::PgConnection;

use super::{Store, StoreError, StoreErrorKind};
use crate::pg::fnv1a;

/// Held while schema `pgsluice` is upgraded. No subscription's key: those hash a `/`.
pub(super) const MIGRATION_LOCK_KEY: i64 = fnv1a(b"pgsluice migrations").cast_signed();

/// The advisory lock of a subscription: 64-bit FNV-1a over `pgsluice/` and its name.
///
/// Part of the contract between versions: while one runs an old and one a new pgsluice, both
/// must mean the same lock.
#[must_use]
pub fn lock_key(name: &str) -> i64 {
    fnv1a(format!("pgsluice/{name}").as_bytes()).cast_signed()
}

impl Store {
    /// Whether a session holds the subscription's advisory lock: a service that applies it.
    pub async fn is_owned(&self, name: &str) -> Result<bool, StoreError> {
        let key = lock_key(name);
        self.run("look for the subscription's service", async {
            Ok(held(&mut *self.pool.acquire().await?).await?.contains(&key))
        })
        .await
    }
}

/// The keys of every one-argument advisory lock that is held in this database. `pg_locks` shows
/// the key in two halves (PostgreSQL's `lockfuncs.c`: `classid` high, `objid` low, `objsubid` 1).
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
