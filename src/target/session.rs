//! The target session that replicated writes run in.
//!
//! One connection holds the subscription's advisory lock *and* writes, so a lost lock is a lost
//! writer. Its settings make a replicated write mean what it means to PostgreSQL's own apply
//! worker: a replica role where that is allowed, an empty `search_path`, an origin on every
//! transaction, no time-outs of the database's own. What the role may not have is said, not hidden.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::error::{OpenError, TargetError, too_old};
use super::settings::SETTINGS;
use crate::error::Diagnosis;
use crate::net::{self, ClientOptions, PgClient};
use crate::pg::conninfo::ConnInfo;
use crate::pg::{SubscriptionName, TimeLimits, quote_ident};
use crate::schema::ReplicationRole;

/// How many round trips are timed.
const ROUND_TRIPS: u32 = 3;

/// How long an abandoned statement may go on before the server is asked to cancel it.
const RESET_PATIENCE: Duration = Duration::from_millis(200);
/// How long an abandoned statement may keep a session from being used again.
const RESET_TIMEOUT: Duration = Duration::from_secs(3);

/// Lets a backend that waits for a lock notice that its client has died: it would otherwise keep
/// the subscription's lock for as long as it waits. Not every platform has it.
const NOTICE_A_DEAD_CLIENT: &str = "SET client_connection_check_interval = '2s'";

/// Cancels what the backend `$1` does, unless that is a COMMIT waiting for a synchronous standby:
/// cancelled, it would count as done before it is as durable as it has to be.
const CANCEL: &str = "SELECT pg_catalog.pg_cancel_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
    WHERE a.pid = $1 AND a.state <> 'idle' AND a.wait_event IS DISTINCT FROM 'SyncRep'";

/// Ends this role's sessions of these names, which the server has shortened to a name's length. A role that
/// works as another one (`ALTER ROLE … SET role`) may not be allowed to.
const END_COPIES: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
    WHERE a.datname = pg_catalog.current_database() AND a.usename = session_user \
    AND pg_catalog.pg_has_role(a.usesysid, 'USAGE') AND a.application_name \
    IN ($1::pg_catalog.text::pg_catalog.name::pg_catalog.text, $2::pg_catalog.text::pg_catalog.name::pg_catalog.text) \
    AND a.wait_event IS DISTINCT FROM 'SyncRep'";

/// PostgreSQL's error for a missing privilege.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// A connection that applies, with what its role was allowed to have.
#[derive(Debug)]
pub struct TargetSession {
    client: Arc<PgClient>,
    conninfo: ConnInfo,
    /// The way there and back; none if it has not been timed.
    round_trip: Option<Duration>,
    /// The server's process that serves this session.
    pid: i32,
    /// The database's OID.
    pub(super) database: u32,
    /// The session's `session_replication_role`.
    replication_role: ReplicationRole,
    /// The applying role.
    pub(super) role: String,
    /// What the role lacks and what that costs.
    pub(super) warnings: Vec<Diagnosis>,
    /// The session's replication origin, if it has one.
    pub(super) origin: Option<String>,
}

impl TargetSession {
    /// Connects and prepares the session, all but its origin: that can be active once only, so
    /// whoever shares it by turns takes its lock first.
    pub async fn open(conninfo: &ConnInfo, application_name: &str) -> Result<Self, OpenError> {
        let options = ClientOptions {
            application_name: Some(application_name.to_owned()),
            settings: SETTINGS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            limits: TimeLimits::NONE,
        };
        let client = net::client(conninfo, &options).await?;
        if let Some(diagnosis) = too_old(client.server_version_num()) {
            return Err(OpenError::TooOld(diagnosis));
        }
        // Values are bytes: a target without an encoding takes them as they are.
        if client.parameter("server_encoding") == Some("SQL_ASCII") {
            client.batch_execute("SET client_encoding = 'SQL_ASCII'").await.map_err(TargetError::from)?;
        }
        let (unnoticed, row, replica) = tokio::try_join!(
            refused(&client, NOTICE_A_DEAD_CLIENT),
            identify(&client),
            allowed(&client, "SET session_replication_role = replica"),
        )?;
        // Not every platform can tell; there, TCP keepalives have to do.
        if let Some(error) = unnoticed {
            tracing::debug!(%error, "the target does not look for lost clients");
        }
        let role: String = row.try_get(0).map_err(TargetError::from)?;
        let (replication_role, warnings) = match replica {
            Allowed::Yes => (ReplicationRole::Replica, Vec::new()),
            Allowed::No => (ReplicationRole::Origin, vec![no_replica_role(&role)]),
        };
        Ok(Self {
            client: Arc::new(client),
            conninfo: conninfo.clone(),
            round_trip: None,
            pid: row.try_get(1).map_err(TargetError::from)?,
            database: row.try_get(2).map_err(TargetError::from)?,
            replication_role,
            role,
            warnings,
            origin: None,
        })
    }

    /// A session of its own for questions to the catalog, which must not wait behind rows.
    pub async fn open_catalog_session(&self) -> Result<PgClient, OpenError> {
        let options = ClientOptions {
            application_name: Some("pgsluice catalog".to_owned()),
            ..ClientOptions::default()
        };
        Ok(net::client(&self.conninfo, &options).await?)
    }

    pub fn client(&self) -> &Arc<PgClient> {
        &self.client
    }

    /// Times the way to the target and back, for whoever sends batches: the shortest of a few, since
    /// whoever is busy answers late, but nobody answers early.
    pub async fn time_round_trip(&mut self) -> Result<(), TargetError> {
        for _ in 0..ROUND_TRIPS {
            let asked = Instant::now();
            self.client.batch_execute("").await?;
            let took = asked.elapsed();
            self.round_trip = Some(self.round_trip.map_or(took, |shortest| shortest.min(took)));
        }
        Ok(())
    }

    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    pub fn replication_role(&self) -> ReplicationRole {
        self.replication_role
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    /// What the applying role lacks, and what that means.
    pub fn warnings(&self) -> &[Diagnosis] {
        &self.warnings
    }

    /// Sets what the session's commits wait for.
    pub async fn set_synchronous_commit(&self, setting: &str) -> Result<(), TargetError> {
        let sql = "SELECT pg_catalog.set_config('synchronous_commit', $1, false)";
        self.client.query_one(sql, &[&setting]).await?;
        Ok(())
    }

    /// Takes the subscription's advisory lock for as long as this connection lives.
    pub async fn try_lock(&self, key: i64) -> Result<Lock, TargetError> {
        let sql = "SELECT pg_catalog.pg_try_advisory_lock($1)";
        let row = self.client.query_typed_one(sql, &[(&key, Type::INT8)]).await?;
        Ok(if row.try_get(0)? { Lock::Held } else { Lock::HeldElsewhere })
    }

    /// Ends the sessions that former owners of the subscription copy tables in: who has just got the lock needs
    /// the locks and the origins that they have, and a process that was stopped would keep them. None of them
    /// could commit any more. Returns how many there were.
    ///
    /// One whose COMMIT waits for a synchronous standby is left to it (`CANCEL`).
    pub async fn end_copies(&self, subscription: &SubscriptionName) -> Result<u64, TargetError> {
        let [copy, sync] = ["copy", "sync"].map(|work| format!("{subscription} {work}"));
        Ok(self.client.execute(END_COPIES, &[&copy, &sync]).await?)
    }

    /// Ends whatever transaction an abandoned attempt left open. A statement that still runs, or
    /// waits for somebody else's lock, is cancelled: who asked for a pause or a stop gets it now.
    ///
    /// # Errors
    /// If the server does not answer in time even so: the session is then lost, and with it the lock.
    pub async fn reset(&self) -> Result<(), TargetError> {
        let mut rollback = std::pin::pin!(self.client.batch_execute("ROLLBACK"));
        if let Ok(done) = tokio::time::timeout(RESET_PATIENCE, &mut rollback).await {
            return Ok(done?);
        }
        let unresponsive = |_| TargetError::Unresponsive(RESET_TIMEOUT);
        let cancelled = async {
            let options = ClientOptions {
                application_name: Some("pgsluice cancel".to_owned()),
                ..ClientOptions::default()
            };
            // Without it, what remains is to wait.
            let canceller = net::client(&self.conninfo, &options).await.ok();
            loop {
                if let Some(client) = &canceller {
                    // What it was about to say next may be waiting for the same lock.
                    let asked = client.execute(CANCEL, &[&self.pid]).await;
                    tracing::debug!(pid = self.pid, ?asked, "cancels what the target session is doing");
                }
                if let Ok(done) = tokio::time::timeout(RESET_PATIENCE, &mut rollback).await {
                    return done;
                }
            }
        };
        Ok(tokio::time::timeout(RESET_TIMEOUT, cancelled).await.map_err(unresponsive)??)
    }
}

/// What it costs that `role` may not set `session_replication_role`.
#[must_use]
pub fn no_replica_role(role: &str) -> Diagnosis {
    Diagnosis::new("the target role may not set session_replication_role")
        .detail("ordinary triggers fire and foreign keys are checked for replicated rows, too")
        .hint(format!(
            "on the target, as a superuser (PostgreSQL 15 or later): \
             GRANT SET ON PARAMETER session_replication_role TO {};",
            quote_ident(role)
        ))
}

/// Whether the advisory lock is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Held,
    HeldElsewhere,
}

/// The session's role, its process and its database.
async fn identify(client: &Client) -> Result<Row, TargetError> {
    let sql = "SELECT current_user::pg_catalog.text, pg_catalog.pg_backend_pid(), d.oid \
        FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";
    Ok(client.query_typed_one(sql, &[]).await?)
}

enum Allowed {
    Yes,
    No,
}

async fn allowed(client: &Client, sql: &str) -> Result<Allowed, TargetError> {
    match refused(client, sql).await? {
        None => Ok(Allowed::Yes),
        Some(error) if error.code == INSUFFICIENT_PRIVILEGE => Ok(Allowed::No),
        Some(error) => Err(TargetError::Server(Box::new(error))),
    }
}

/// Runs `sql`; the server's error, if it has one, is an answer here.
pub(super) async fn refused(
    client: &Client,
    sql: &str,
) -> Result<Option<crate::error::ServerError>, TargetError> {
    match client.batch_execute(sql).await.map_err(TargetError::from) {
        Ok(()) => Ok(None),
        Err(TargetError::Server(error)) => Ok(Some(*error)),
        Err(other) => Err(other),
    }
}
