//! Which subscriptions are applied by an instance now, as their advisory locks show.
//!
//! The target session that writes takes the lock (`target`), so that an instance that loses the lock cannot write any
//! more. Here it is only looked up.

use std::collections::HashSet;

use sqlx::PgConnection;

use super::{Store, StoreError, StoreErrorKind};
use crate::pg::lock_keys;

impl Store {
    /// Whether a session holds the subscription's advisory lock, that is, whether a service applies it.
    pub async fn is_owned(&self, name: &str) -> Result<bool, StoreError> {
        self.run("look for the subscription's service", async {
            Ok(Held::read(&mut *self.pool.acquire().await?).await?.has(name))
        })
        .await
    }
}

/// The keys of the one-argument advisory locks that are held in this database by roles that may write to schema
/// `pgsluice`.
pub(super) struct Held(HashSet<i64>);

impl Held {
    /// Reads them. `pg_locks` shows a key in two halves (PostgreSQL's `lockfuncs.c`: `classid` high, `objid` low,
    /// `objsubid` 1).
    pub(super) async fn read(session: &mut PgConnection) -> Result<Self, StoreErrorKind> {
        let keys: Vec<i64> = sqlx::query_scalar(
            "SELECT (l.classid::pg_catalog.int8 << 32) | l.objid::pg_catalog.int8 FROM pg_catalog.pg_locks l \
             JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
             WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.database = \
             (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
             AND pg_catalog.has_table_privilege(a.usesysid, 'pgsluice.owner', 'UPDATE')",
        )
        .fetch_all(session)
        .await?;
        Ok(Self(keys.into_iter().collect()))
    }

    pub(super) fn has(&self, subscription: &str) -> bool {
        lock_keys(subscription).iter().any(|key| self.0.contains(key))
    }
}
