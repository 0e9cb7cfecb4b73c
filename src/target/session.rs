//! The target session that replicated writes run in.
//!
//! One connection holds the subscription's advisory lock *and* writes, so an instance that loses the lock
//! cannot write. Its settings give a replicated write the same meaning as in PostgreSQL's own apply worker:
//! `session_replication_role = replica` if the role may set it, an empty `search_path`, an origin on every
//! transaction, no time-outs of the role or the database. What the role may not set becomes a warning.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::error::{OpenError, TargetError, too_old};
use super::settings::SETTINGS;
use crate::error::Diagnosis;
use crate::net::{self, ClientOptions, PgClient};
use crate::pg::conninfo::ConnInfo;
use crate::pg::{SubscriptionName, TimeLimits, quote_ident};
use crate::schema::ReplicationRole;

/// How many round trips are timed.
const ROUND_TRIPS: u32 = 3;

/// Time after which the server is asked to cancel the statement of an attempt that has ended.
const RESET_PATIENCE: Duration = Duration::from_millis(200);
/// Time after which a session is given up whose statement has not ended.
const RESET_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes a backend that waits for a lock notice that its client is gone. Otherwise it would hold the
/// subscription's lock for as long as it waits. Some platforms do not support it.
const NOTICE_A_DEAD_CLIENT: &str = "SET client_connection_check_interval = '2s'";

/// Cancels the statement of backend `$1`, unless it is a COMMIT that waits for a synchronous standby: a
/// cancelled COMMIT returns success before the standby has confirmed it.
const CANCEL: &str = "SELECT pg_catalog.pg_cancel_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
    WHERE a.pid = $1 AND a.state <> 'idle' AND a.wait_event IS DISTINCT FROM 'SyncRep'";

/// Terminates those of this role's sessions for which the condition holds, and returns their process IDs. A role that works as another one (`ALTER ROLE …
/// SET role`) may not be allowed to.
macro_rules! end_own_sessions {
    ($($condition:tt)+) => {
        concat!(
            "SELECT a.pid, pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
             WHERE a.datname = pg_catalog.current_database() AND a.usename = session_user \
             AND pg_catalog.pg_has_role(a.usesysid, 'USAGE') AND a.wait_event IS DISTINCT FROM 'SyncRep' AND ",
            $($condition)+
        )
    };
}

pub(super) use end_own_sessions;

/// Those with one of these application names, which the server shortens to 63 bytes.
const END_COPIES: &str = end_own_sessions!(
    "a.application_name IN ($1::pg_catalog.text::pg_catalog.name::pg_catalog.text, \
                            $2::pg_catalog.text::pg_catalog.name::pg_catalog.text)"
);

/// The one with this process ID, if it has the application name of the session that asks.
const END_FORMER: &str =
    end_own_sessions!("a.pid = $1 AND a.application_name = pg_catalog.current_setting('application_name')");

/// Whether a transaction is open. Within a block, a later statement's time is not the transaction's; a statement
/// that is a transaction by itself has the same. That holds for the simple protocol, where a statement is one message.
const IN_TRANSACTION: &str =
    "SELECT pg_catalog.now() OPERATOR(pg_catalog.<>) pg_catalog.statement_timestamp()";

/// PostgreSQL's error for a missing privilege.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// A connection that writes replicated rows, with the settings that its role may have.
#[derive(Debug)]
pub struct TargetSession {
    client: Arc<PgClient>,
    conninfo: ConnInfo,
    /// The time of a round trip; none if it has not been measured.
    round_trip: Option<Duration>,
    /// The backend's process ID.
    pid: i32,
    /// The database's OID.
    pub(super) database: u32,
    /// The session's `session_replication_role`.
    replication_role: ReplicationRole,
    /// The applying role.
    pub(super) role: String,
    /// The privileges that the role lacks, with their consequences.
    pub(super) warnings: Vec<Diagnosis>,
    /// The session's replication origin, if it has one.
    pub(super) origin: Option<String>,
}

impl TargetSession {
    /// Connects and prepares the session without its origin. Only one session can use an origin, so it is set
    /// up after the subscription's lock has been taken.
    pub async fn open(conninfo: &ConnInfo, application_name: &str) -> Result<Self, OpenError> {
        let options = ClientOptions {
            application_name: Some(application_name.to_owned()),
            settings: SETTINGS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            limits: TimeLimits::NONE,
            ..ClientOptions::default()
        };
        let client = net::client(conninfo, &options).await?;
        if let Some(diagnosis) = too_old(client.server_version_num()) {
            return Err(OpenError::TooOld(diagnosis));
        }
        // A target with the encoding SQL_ASCII stores any bytes, so values must not be converted.
        if client.parameter("server_encoding") == Some("SQL_ASCII") {
            client.batch_execute("SET client_encoding = 'SQL_ASCII'").await.map_err(TargetError::from)?;
        }
        let (unnoticed, row, replica) = tokio::try_join!(
            refused(&client, NOTICE_A_DEAD_CLIENT),
            identify(&client),
            allowed(&client, "SET session_replication_role = replica"),
        )?;
        // On a platform without this setting, TCP keepalives detect a lost client.
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

    /// Opens another session for catalog queries, which must not queue behind statements for rows.
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

    pub(super) const fn conninfo(&self) -> &ConnInfo {
        &self.conninfo
    }

    /// The backend's process ID.
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Measures the time of a round trip, which decides whether batches use COPY. The shortest of a few
    /// counts, because a busy server answers late.
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

    /// The privileges that the applying role lacks, with their consequences.
    pub fn warnings(&self) -> &[Diagnosis] {
        &self.warnings
    }

    /// Sets `synchronous_commit`.
    pub async fn set_synchronous_commit(&self, setting: &str) -> Result<(), TargetError> {
        let sql = "SELECT pg_catalog.set_config('synchronous_commit', $1, false)";
        self.client.query_one(sql, &[&setting]).await?;
        Ok(())
    }

    /// Terminates the sessions in which former owners of the subscription copy tables. The new owner needs
    /// their locks and origins, which a stopped process would keep, and none of them could commit any more.
    /// Returns their number.
    ///
    /// A session whose COMMIT waits for a synchronous standby is not terminated, for the reason given at
    /// `CANCEL`.
    pub async fn end_copies(&self, subscription: &SubscriptionName) -> Result<u64, TargetError> {
        let [copy, sync] = ["copy", "sync"].map(|work| format!("{subscription} {work}"));
        Ok(self.client.execute(END_COPIES, &[&copy, &sync]).await?)
    }

    /// Terminates a former session of the same name, which was given up without a word from its server: it may still hold
    /// the subscription's lock.
    pub async fn end_former(&self, pid: i32) -> Result<u64, TargetError> {
        Ok(self.client.execute(END_FORMER, &[&pid]).await?)
    }

    /// Rolls back the transaction that an ended attempt left open. A statement that still runs, or waits for
    /// a lock, is cancelled, so that a pause or a stop takes effect at once.
    ///
    /// # Errors
    /// The server does not answer in time: the session is then lost, and with it the lock.
    pub async fn reset(&self) -> Result<(), TargetError> {
        let mut rollback = std::pin::pin!(self.roll_back());
        if let Ok(done) = tokio::time::timeout(RESET_PATIENCE, &mut rollback).await {
            return done;
        }
        let unresponsive = |_| TargetError::Unresponsive(RESET_TIMEOUT);
        let cancelled = async {
            let options = ClientOptions {
                application_name: Some("pgsluice cancel".to_owned()),
                ..ClientOptions::default()
            };
            // Without a session for cancelling, the statement is only waited for.
            let _place = net::places::moment().await;
            let canceller = net::client(&self.conninfo, &options).await.ok();
            loop {
                if let Some(client) = &canceller {
                    // It is repeated, because the session's next statement may wait for the same lock.
                    let asked = client.execute(CANCEL, &[&self.pid]).await;
                    tracing::debug!(pid = self.pid, ?asked, "cancels what the target session is doing");
                }
                if let Ok(done) = tokio::time::timeout(RESET_PATIENCE, &mut rollback).await {
                    return done;
                }
            }
        };
        tokio::time::timeout(RESET_TIMEOUT, cancelled).await.map_err(unresponsive)?
    }

    /// Rolls back the open transaction, if there is one. A ROLLBACK outside a transaction would write a warning
    /// to the server's log each time.
    async fn roll_back(&self) -> Result<(), TargetError> {
        let asked = self.client.simple_query(IN_TRANSACTION).await;
        let in_transaction = match asked.map_err(TargetError::from) {
            Ok(answer) => answer
                .iter()
                .any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))),
            // The transaction has failed, or the question was cancelled instead of an earlier statement.
            Err(TargetError::Server(_)) => true,
            Err(lost) => return Err(lost),
        };
        if in_transaction {
            self.client.batch_execute("ROLLBACK").await?;
        }
        Ok(())
    }

    /// Checks that the session still works; nothing is written to the server's log.
    ///
    /// # Errors
    /// The session is lost, or the server does not answer in time.
    pub async fn answers(&self) -> Result<(), TargetError> {
        let asked = tokio::time::timeout(RESET_TIMEOUT, self.client.batch_execute("")).await;
        Ok(asked.map_err(|_| TargetError::Unresponsive(RESET_TIMEOUT))??)
    }
}

/// Describes the consequences if `role` may not set `session_replication_role`.
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

/// Returns the session's role, backend and database.
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

/// Runs `sql`, and returns the server's error, if any, as a value.
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
