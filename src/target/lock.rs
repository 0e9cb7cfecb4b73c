//! The subscription's advisory lock, and what ends the session of an owner that has stopped.
//!
//! The lock goes with its session, and the server ends that soon after its client's process has. It does not end that of a
//! process that hangs, or whose host is gone without a word. So an owner has to show that it lives: it asks its session
//! something every second, and reports its positions as often. If it has done neither for the time of a lease, an instance
//! that waits for the lock ends its session.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::error::TargetError;
use super::session::{TargetSession, end_own_sessions};
use crate::pg::{SubscriptionName, lock_keys};

/// For how long an owner may show no sign of life before its session is ended. Owners show one every second.
pub const LEASE: Duration = Duration::from_secs(3);

/// The result of trying to take the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    Held,
    /// Another session of pgsluice has it.
    HeldElsewhere,
    /// All of the subscription's locks are held by sessions that are not pgsluice's.
    Obstructed(Outsider),
}

/// A session that holds a lock of the subscription although its role may not write to schema `pgsluice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outsider {
    pub role: String,
    pub pid: i32,
}

/// Who holds locks with these keys, except for this session. The session may have ended since.
const HOLDERS: &str = "SELECT (l.classid::pg_catalog.int8 << 32) | l.objid::pg_catalog.int8, l.pid, \
        coalesce(a.usename::pg_catalog.text, ''), \
        coalesce(pg_catalog.has_table_privilege(a.usesysid, 'pgsluice.owner', 'UPDATE'), true) \
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> pg_catalog.pg_backend_pid() \
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
        AND (l.classid::pg_catalog.int8 << 32) | l.objid::pg_catalog.int8 = ANY($1)";

/// Ends this session, if it is a service's of this role, waits for its client, and has been quiet for `$2` seconds, as have
/// the reports of its subscription `$3`. A session that works or waits for a lock is not quiet, however long it does. A
/// `drop` holds the lock without reports, in a session of another name.
const END_SILENT: &str = end_own_sessions!(
    "a.pid = $1 AND a.wait_event_type = 'Client' \
     AND a.application_name = $4::pg_catalog.text::pg_catalog.name::pg_catalog.text \
     AND a.state_change < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2) \
     AND NOT EXISTS (SELECT FROM pgsluice.subscription s WHERE s.name = $3::pg_catalog.text \
         AND s.reported_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2))"
);

/// A session that holds one of a subscription's locks.
struct Holder {
    key: i64,
    pid: i32,
    role: String,
    side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// It may write to schema `pgsluice`.
    Ours,
    Outside,
}

impl TargetSession {
    /// Takes the subscription's lock for as long as this connection lives.
    ///
    /// Another instance may find another lock of the same subscription free, because an outsider has let go of it. So
    /// an instance that has got one looks for the holders of the others, and gives its own back if there is one.
    pub async fn try_lock(&self, name: &SubscriptionName) -> Result<Lock, TargetError> {
        let [first, others @ ..] = lock_keys(name.as_str());
        // The server takes the lock before it looks.
        let (taken, mut holders) = tokio::try_join!(self.try_key(first), self.holders(name))?;
        let mut taken = taken.then_some(first);
        if taken.is_none() && !holders.is_empty() && holders.iter().all(Holder::is_outside) {
            for key in others {
                if holders.iter().all(|holder| holder.key != key) && self.try_key(key).await? {
                    taken = Some(key);
                    break;
                }
            }
            holders = self.holders(name).await?;
        }
        let ours = holders.iter().any(|holder| !holder.is_outside());
        match (taken, holders.pop()) {
            (Some(_), _) if !ours => Ok(Lock::Held),
            (Some(key), _) => {
                self.client().query_typed_one(UNLOCK, &[(&key, Type::INT8)]).await?;
                Ok(Lock::HeldElsewhere)
            }
            (None, Some(holder)) if !ours => {
                Ok(Lock::Obstructed(Outsider { role: holder.role, pid: holder.pid }))
            }
            (None, _) => Ok(Lock::HeldElsewhere),
        }
    }

    /// Ends the session of an owner that has shown no sign of life for [`LEASE`]. Returns its process ID, if there was one.
    pub async fn end_silent_owner(&self, name: &SubscriptionName) -> Result<Option<i32>, TargetError> {
        for holder in self.holders(name).await?.iter().filter(|holder| !holder.is_outside()) {
            let (lease, session) = (LEASE.as_secs_f64(), application_name(name));
            let ended =
                self.client().execute(END_SILENT, &[&holder.pid, &lease, &name.as_str(), &session]).await?;
            if ended > 0 {
                return Ok(Some(holder.pid));
            }
        }
        Ok(None)
    }

    async fn try_key(&self, key: i64) -> Result<bool, TargetError> {
        let row = self.client().query_typed_one(TRY_LOCK, &[(&key, Type::INT8)]).await?;
        Ok(row.try_get(0)?)
    }

    async fn holders(&self, name: &SubscriptionName) -> Result<Vec<Holder>, TargetError> {
        let keys = lock_keys(name.as_str()).to_vec();
        let rows = self.client().query_typed(HOLDERS, &[(&keys, Type::INT8_ARRAY)]).await?;
        let decoded = rows.iter().map(|row| {
            Ok(Holder {
                key: row.try_get(0)?,
                pid: row.try_get(1)?,
                role: row.try_get(2)?,
                side: if row.try_get(3)? { Side::Ours } else { Side::Outside },
            })
        });
        Ok(decoded.collect::<Result<_, tokio_postgres::Error>>()?)
    }
}

impl Holder {
    fn is_outside(&self) -> bool {
        self.side == Side::Outside
    }
}

/// The `application_name` of the session by which a service holds the subscription's lock, and applies.
#[must_use]
pub fn application_name(subscription: &SubscriptionName) -> String {
    format!("pgsluice {subscription}")
}

const TRY_LOCK: &str = "SELECT pg_catalog.pg_try_advisory_lock($1)";
const UNLOCK: &str = "SELECT pg_catalog.pg_advisory_unlock($1)";
