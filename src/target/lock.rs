//! The subscription's advisory lock, and what ends the session of an owner that has stopped.
//!
//! The lock goes with its session, and the server ends that soon after its client's process has. It does not end that of a
//! process that hangs, or whose host is gone without a word. So an owner has to show that it lives: it asks its session
//! something every second, and reports its positions as often. If it has done neither for the time of a lease, an instance
//! that waits for the lock ends its session.

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};

use super::error::TargetError;
use super::session::{TargetSession, end_own_sessions};
use crate::pg::{SubscriptionName, lock_holders, lock_keys};

/// For how long an owner may show no sign of life before its session is ended. Owners show one every second.
pub const LEASE: Duration = Duration::from_secs(3);
/// The same for a `drop`, which shows none while it waits for the publisher.
const DROP_LEASE: Duration = Duration::from_secs(20);

/// The result of trying to take the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    Held,
    /// Another session of pgsluice has it.
    HeldElsewhere,
    /// All of the subscription's locks are held by sessions that are not pgsluice's.
    Obstructed(Outsider),
}

/// Who holds a lock of the subscription, and is no service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outsider {
    /// A session whose role may not write to schema `pgsluice`.
    Session {
        role: String,
        pid: i32,
    },
    Prepared {
        transaction: String,
    },
}

/// Who holds locks with these keys, except for this session.
const HOLDERS: &str = concat!(
    "SELECT h.key, h.pid, h.who, h.is_ours FROM (",
    lock_holders!(),
    ") h WHERE h.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() AND h.key = ANY($1)"
);

/// The sessions of this role that hold locks with the keys `$1`, wait for their client, and have been quiet for as long as
/// the application name `$2` or `$4` may be, `$3` or `$5` seconds, as have the reports of the subscription `$6` for `$3`. A
/// session that works or waits for a lock is not quiet, however long it does.
macro_rules! silent {
    () => {
        concat!(
            "a.pid IN (SELECT h.pid FROM (",
            lock_holders!(),
            ") h WHERE h.is_ours AND h.key = ANY($1)) AND a.wait_event_type = 'Client' \
             AND a.state_change < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => CASE a.application_name \
                 WHEN $2::pg_catalog.text::pg_catalog.name::pg_catalog.text THEN $3::pg_catalog.float8 \
                 WHEN $4::pg_catalog.text::pg_catalog.name::pg_catalog.text THEN $5::pg_catalog.float8 END) \
             AND NOT EXISTS (SELECT FROM pgsluice.subscription s WHERE s.name = $6::pg_catalog.text \
                 AND s.reported_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $3))"
        )
    };
}

/// Whether there is a silent session. It changes nothing, because standbys ask it every second.
const HAS_SILENT: &str =
    concat!("SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE ", silent!(), ")");

/// Ends the silent sessions, unless somebody has locked a row that a report writes: then it could not come.
const END_SILENT: &str = end_own_sessions!(concat!(
    silent!(),
    " AND (SELECT count(*) FROM pgsluice.owner o WHERE o.subscription = $6) = (SELECT count(*) FROM \
         (SELECT FROM pgsluice.owner o WHERE o.subscription = $6 FOR SHARE SKIP LOCKED) free) \
     AND (SELECT count(*) FROM pgsluice.subscription s WHERE s.name = $6) = (SELECT count(*) FROM \
         (SELECT FROM pgsluice.subscription s WHERE s.name = $6 FOR NO KEY UPDATE SKIP LOCKED) free)"
));

/// Who holds one of a subscription's locks; an outsider if it is no service.
struct Holder {
    key: i64,
    outsider: Option<Outsider>,
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
        match (taken, holders.pop().and_then(|holder| holder.outsider)) {
            (Some(_), _) if !ours => Ok(Lock::Held),
            (Some(key), _) => {
                self.client().query_typed_one(UNLOCK, &[(&key, Type::INT8)]).await?;
                Ok(Lock::HeldElsewhere)
            }
            (None, Some(outsider)) if !ours => Ok(Lock::Obstructed(outsider)),
            (None, _) => Ok(Lock::HeldElsewhere),
        }
    }

    /// Ends the session of an owner that has shown no sign of life for [`LEASE`], or of a `drop` for longer. Returns its
    /// process ID, if there was one.
    pub async fn end_silent_owner(&self, name: &SubscriptionName) -> Result<Option<i32>, TargetError> {
        let keys = lock_keys(name.as_str()).to_vec();
        let (service, drop) = (application_name(name), drop_application_name(name));
        let (lease, drop_lease) = (LEASE.as_secs_f64(), DROP_LEASE.as_secs_f64());
        let name = name.as_str();
        let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
            (&keys, Type::INT8_ARRAY),
            (&service, Type::TEXT),
            (&lease, Type::FLOAT8),
            (&drop, Type::TEXT),
            (&drop_lease, Type::FLOAT8),
            (&name, Type::TEXT),
        ];
        if !self.client().query_typed_one(HAS_SILENT, &parameters).await?.try_get::<_, bool>(0)? {
            return Ok(None);
        }
        let ended = self.client().query_typed(END_SILENT, &parameters).await?;
        Ok(ended.first().map(|row| row.try_get(0)).transpose()?)
    }

    async fn try_key(&self, key: i64) -> Result<bool, TargetError> {
        let row = self.client().query_typed_one(TRY_LOCK, &[(&key, Type::INT8)]).await?;
        Ok(row.try_get(0)?)
    }

    async fn holders(&self, name: &SubscriptionName) -> Result<Vec<Holder>, TargetError> {
        let keys = lock_keys(name.as_str()).to_vec();
        let rows = self.client().query_typed(HOLDERS, &[(&keys, Type::INT8_ARRAY)]).await?;
        let decoded = rows.iter().map(|row| {
            let (pid, who) = (row.try_get::<_, Option<i32>>(1)?, row.try_get(2)?);
            let outsider = || match pid {
                Some(pid) => Outsider::Session { role: who, pid },
                None => Outsider::Prepared { transaction: who },
            };
            Ok(Holder { key: row.try_get(0)?, outsider: (!row.try_get::<_, bool>(3)?).then(outsider) })
        });
        Ok(decoded.collect::<Result<_, tokio_postgres::Error>>()?)
    }
}

impl Holder {
    fn is_outside(&self) -> bool {
        self.outsider.is_some()
    }
}

/// The `application_name` of the session by which a service holds the subscription's lock, and applies.
#[must_use]
pub fn application_name(subscription: &SubscriptionName) -> String {
    format!("pgsluice {}", subscription.in_ascii())
}

/// The `application_name` of the session in which `drop` holds the subscription's lock.
#[must_use]
pub fn drop_application_name(subscription: &SubscriptionName) -> String {
    format!("pgsluice drop {}", subscription.in_ascii())
}

const TRY_LOCK: &str = "SELECT pg_catalog.pg_try_advisory_lock($1)";
const UNLOCK: &str = "SELECT pg_catalog.pg_advisory_unlock($1)";
