//! Which subscriptions are applied by an instance now, as their advisory locks show.
//!
//! The target session that writes takes the lock (`target`), so that an instance that loses the lock cannot write any
//! more. Here it is only looked up.

use std::collections::HashSet;

use sqlx::PgConnection;

use super::{Store, StoreError, StoreErrorKind};
use crate::pg::{lock_holders, lock_keys};

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
    pub(super) async fn read(session: &mut PgConnection) -> Result<Self, StoreErrorKind> {
        const OURS: &str = concat!("SELECT h.key FROM (", lock_holders!(), ") h WHERE h.is_ours");
        let keys: Vec<i64> = sqlx::query_scalar(OURS).fetch_all(session).await?;
        Ok(Self(keys.into_iter().collect()))
    }

    pub(super) fn has(&self, subscription: &str) -> bool {
        lock_keys(subscription).iter().any(|key| self.0.contains(key))
    }
}
