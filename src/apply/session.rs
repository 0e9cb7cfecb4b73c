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

use super::ApplyError;
use super::planned::Replica;
use crate::error::Diagnosis;
use crate::net::{self, ClientOptions, ConnectError, PgClient};
use crate::pg::conninfo::ConnInfo;
use crate::pg::{SubscriptionName, quote_ident};

/// Settings that every replicated write runs under. Keepalives make the target notice within half
/// a minute that a writer's host has died, so that its lock does not outlive it.
const SETTINGS: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    // Input functions ask these; each would change or refuse a value that the publisher had.
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("lc_monetary", "C"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("standard_conforming_strings", "on"),
    // Rows are found by their key's index, whatever a statement that was prepared while the table was
    // small would prefer; and nothing is planned, or compiled, for each batch anew.
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("jit", "off"),
    // The arrays' rows of a whole batch are sorted in memory.
    ("work_mem", "16MB"),
    ("plan_cache_mode", "force_generic_plan"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

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

/// PostgreSQL's error for a missing privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// And for an origin that another session has.
const OBJECT_IN_USE: &str = "55006";

/// How often, and how many times, an origin is asked for that a session which has just been let go
/// of still holds: a backend gives up its locks a moment before its origin.
const ORIGIN_POLL: Duration = Duration::from_millis(100);
const ORIGIN_ATTEMPTS_MAX: u32 = 50;

/// A connection that applies, with what its role was allowed to have.
#[derive(Debug)]
pub struct TargetSession {
    client: Arc<PgClient>,
    conninfo: ConnInfo,
    /// The way there and back; none if it has not been timed.
    round_trip: Option<Duration>,
    /// The server's process that serves this session.
    pid: i32,
    /// `session_replication_role` is `replica`: ordinary triggers and foreign keys do not act.
    replica: Replica,
    /// The applying role.
    role: String,
    /// What the role lacks and what that costs.
    warnings: Vec<Diagnosis>,
    /// The session's replication origin, if it has one.
    origin: Option<String>,
}

impl TargetSession {
    /// Connects and prepares the session, all but its origin: that can be active once only, so
    /// whoever shares it by turns takes its lock first.
    pub async fn open(conninfo: &ConnInfo, application_name: &str) -> Result<Self, OpenError> {
        let options = ClientOptions {
            application_name: Some(application_name.to_owned()),
            settings: SETTINGS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        };
        let client = net::client(conninfo, &options).await?;
        if let Some(diagnosis) = too_old(client.server_version_num()) {
            return Err(OpenError::TooOld(diagnosis));
        }
        // Values are bytes: a target without an encoding takes them as they are.
        if client.parameter("server_encoding") == Some("SQL_ASCII") {
            client.batch_execute("SET client_encoding = 'SQL_ASCII'").await.map_err(ApplyError::from)?;
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
        let role: String = row.try_get(0).map_err(ApplyError::from)?;
        let (replica, warnings) = match replica {
            Allowed::Yes => (Replica::Yes, Vec::new()),
            Allowed::No => (Replica::No, vec![no_replica_role(&role)]),
        };
        Ok(Self {
            client: Arc::new(client),
            conninfo: conninfo.clone(),
            round_trip: None,
            pid: row.try_get(1).map_err(ApplyError::from)?,
            replica,
            role,
            warnings,
            origin: None,
        })
    }

    pub fn client(&self) -> &Arc<PgClient> {
        &self.client
    }

    /// Times the way to the target and back, for whoever sends batches: the shortest of a few, since
    /// whoever is busy answers late, but nobody answers early.
    pub async fn time_round_trip(&mut self) -> Result<(), ApplyError> {
        for _ in 0..ROUND_TRIPS {
            let asked = Instant::now();
            self.client.batch_execute("").await?;
            let took = asked.elapsed();
            self.round_trip = Some(self.round_trip.map_or(took, |shortest| shortest.min(took)));
        }
        Ok(())
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    pub fn replica(&self) -> Replica {
        self.replica
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    /// What the applying role lacks, and what that means.
    pub fn warnings(&self) -> &[Diagnosis] {
        &self.warnings
    }

    /// Sets what the session's commits wait for.
    pub async fn set_synchronous_commit(&self, setting: &str) -> Result<(), ApplyError> {
        let sql = "SELECT pg_catalog.set_config('synchronous_commit', $1, false)";
        self.client.query_one(sql, &[&setting]).await?;
        Ok(())
    }

    /// Takes the subscription's advisory lock for as long as this connection lives.
    pub async fn try_lock(&self, key: i64) -> Result<Lock, ApplyError> {
        let sql = "SELECT pg_catalog.pg_try_advisory_lock($1)";
        let row = self.client.query_typed_one(sql, &[(&key, Type::INT8)]).await?;
        Ok(if row.try_get(0)? { Lock::Held } else { Lock::HeldElsewhere })
    }

    /// Ends whatever transaction an abandoned attempt left open. A statement that still runs, or
    /// waits for somebody else's lock, is cancelled: who asked for a pause or a stop gets it now.
    ///
    /// # Errors
    /// If the server does not answer in time even so: the session is then lost, and with it the lock.
    pub async fn reset(&self) -> Result<(), ApplyError> {
        let mut rollback = std::pin::pin!(self.client.batch_execute("ROLLBACK"));
        if let Ok(done) = tokio::time::timeout(RESET_PATIENCE, &mut rollback).await {
            return Ok(done?);
        }
        let unresponsive = |_| ApplyError::Unresponsive(RESET_TIMEOUT);
        let cancelled = async {
            let options =
                ClientOptions { application_name: Some("pgsluice cancel".to_owned()), settings: Vec::new() };
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

    /// Gives every transaction of the session a replication origin, so that a publication of the
    /// target with `origin = none` leaves them out (EDGE_CASES 31). A role that may not have one
    /// goes on without, with a warning.
    ///
    /// # Errors
    /// Also if another session keeps the origin for seconds (55006).
    pub async fn set_origin(&mut self, origin: &str) -> Result<(), ApplyError> {
        let create = "DO $do$ BEGIN \
            IF pg_catalog.pg_replication_origin_oid(NAME) IS NULL THEN \
                PERFORM pg_catalog.pg_replication_origin_create(NAME); END IF; \
            PERFORM pg_catalog.pg_replication_origin_session_setup(NAME); END $do$"
            .replace("NAME", &crate::pg::quote_literal(origin));
        let mut attempts = 1;
        let problem = loop {
            match refused(&self.client, &create).await? {
                None => {
                    self.origin = Some(origin.to_owned());
                    return Ok(());
                }
                // A session that has just been let go of still ends.
                Some(problem) if problem.code == OBJECT_IN_USE && attempts < ORIGIN_ATTEMPTS_MAX => {
                    attempts += 1;
                    tokio::time::sleep(ORIGIN_POLL).await;
                }
                Some(problem) if problem.code == OBJECT_IN_USE => {
                    return Err(ApplyError::Server(Box::new(problem)));
                }
                Some(problem) => break problem,
            }
        };
        let lacks =
            if problem.code == INSUFFICIENT_PRIVILEGE { OriginLack::Privilege } else { OriginLack::Room };
        let warning = no_origin(&self.role, lacks);
        let detail = warning.detail.clone().unwrap_or_default();
        self.warnings.push(warning.detail(format!("{}; {detail}", problem.message)));
        Ok(())
    }

    /// Gives the session's origin up and removes it: a target has room for few
    /// (`max_replication_slots`), and a copy needs its own only while it runs. One that the role may
    /// not remove stays for the next copy.
    pub async fn release_origin(&mut self) -> Result<(), ApplyError> {
        let Some(origin) = self.origin.take() else { return Ok(()) };
        let release = "SELECT pg_catalog.pg_replication_origin_session_reset(); \
            SELECT pg_catalog.pg_replication_origin_drop(NAME)"
            .replace("NAME", &crate::pg::quote_literal(&origin));
        if let Some(problem) = refused(&self.client, &release).await? {
            tracing::debug!(origin, error = %problem, "a replication origin is left behind");
        }
        Ok(())
    }

    /// Removes every origin of a subscription that is being dropped, however its sessions ended.
    ///
    /// # Errors
    /// Also without the privilege, or if a session keeps one of them for seconds.
    pub async fn drop_origins(&self, subscription: &SubscriptionName) -> Result<(), ApplyError> {
        let of_copies = (0..COPY_ORIGINS_MAX).map(|worker| copy_origin_name(subscription, worker));
        let names = [origin_name(subscription), sync_origin_name(subscription)];
        let names: Vec<String> = names.into_iter().chain(of_copies).collect();
        let sql = "SELECT pg_catalog.pg_replication_origin_drop(o.roname) \
            FROM pg_catalog.pg_replication_origin o WHERE o.roname = ANY ($1)";
        let mut attempts = 1;
        loop {
            let error = match self.client.execute(sql, &[&names]).await {
                Ok(_) => return Ok(()),
                Err(error) => ApplyError::from(error),
            };
            let in_use = error.server_error().is_some_and(|error| error.code == OBJECT_IN_USE);
            if !in_use || attempts >= ORIGIN_ATTEMPTS_MAX {
                return Err(error);
            }
            attempts += 1;
            tokio::time::sleep(ORIGIN_POLL).await;
        }
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

/// Why transactions cannot have an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginLack {
    /// The role may not execute the functions for it.
    Privilege,
    /// The server has no room for any.
    Room,
}

/// What it costs that transactions carry no origin.
#[must_use]
pub fn no_origin(role: &str, lacks: OriginLack) -> Diagnosis {
    let hint = match lacks {
        OriginLack::Privilege => format!(
            "on the target, as a superuser: GRANT EXECUTE ON FUNCTION \
             pg_catalog.pg_replication_origin_oid(text), pg_catalog.pg_replication_origin_create(text), \
             pg_catalog.pg_replication_origin_drop(text), \
             pg_catalog.pg_replication_origin_session_setup(text), \
             pg_catalog.pg_replication_origin_session_reset() TO {};",
            quote_ident(role)
        ),
        OriginLack::Room => {
            "set max_replication_slots (PostgreSQL 18: max_active_replication_origins) above 0 on the target"
                .to_owned()
        }
    };
    Diagnosis::new("replicated transactions carry no replication origin")
        .detail(
            "a subscriber of this target with origin = none would receive them, and a bidirectional set-up \
             would loop",
        )
        .hint(hint)
}

/// Whether the advisory lock is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Held,
    HeldElsewhere,
}

/// The session's role and its process.
async fn identify(client: &Client) -> Result<Row, ApplyError> {
    let sql = "SELECT current_user::pg_catalog.text, pg_catalog.pg_backend_pid()";
    Ok(client.query_typed_one(sql, &[]).await?)
}

enum Allowed {
    Yes,
    No,
}

async fn allowed(client: &Client, sql: &str) -> Result<Allowed, ApplyError> {
    match refused(client, sql).await? {
        None => Ok(Allowed::Yes),
        Some(error) if error.code == INSUFFICIENT_PRIVILEGE => Ok(Allowed::No),
        Some(error) => Err(ApplyError::Server(Box::new(error))),
    }
}

/// Runs `sql`; the server's error, if it has one, is an answer here.
async fn refused(client: &Client, sql: &str) -> Result<Option<crate::error::ServerError>, ApplyError> {
    match client.batch_execute(sql).await.map_err(ApplyError::from) {
        Ok(()) => Ok(None),
        Err(ApplyError::Server(error)) => Ok(Some(*error)),
        Err(other) => Err(other),
    }
}

/// The session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not connect to the target")]
    Connect(#[from] ConnectError),
    #[error("could not prepare the target session")]
    Prepare(#[from] ApplyError),
    /// The server lacks what this program asks of its catalog.
    #[error("{}", .0.primary)]
    TooOld(Diagnosis),
}

/// The oldest PostgreSQL that rows can be written to, as `server_version_num`.
const TARGET_VERSION_MIN: u32 = 120_000;

/// What to say of a target older than that; none if it is not.
#[must_use]
pub fn too_old(server_version_num: u32) -> Option<Diagnosis> {
    let major = |version| version / 10_000;
    (server_version_num < TARGET_VERSION_MIN).then(|| {
        let (found, needed) = (major(server_version_num), major(TARGET_VERSION_MIN));
        Diagnosis::new(format!("the target is PostgreSQL {found}, pgsluice needs {needed} or later"))
            .detail("Generated columns and collations are read from its catalog, which an older one lacks.")
            .hint(format!(
                "upgrade the target's server to {needed} or later, or name another one in [target] url"
            ))
    })
}

/// Copies that have an origin at the same time, at most: an origin is one session's.
pub const COPY_ORIGINS_MAX: usize = 2;

/// The name of the replication origin of a subscription's transactions.
#[must_use]
pub fn origin_name(subscription: &SubscriptionName) -> String {
    format!("pgsluice_{subscription}")
}

/// The origin of the rows that one of the initial copy's workers writes.
#[must_use]
pub fn copy_origin_name(subscription: &SubscriptionName, worker: usize) -> String {
    format!("{}_copy{worker}", origin_name(subscription))
}

/// The origin of a table that joins a running stream.
#[must_use]
pub fn sync_origin_name(subscription: &SubscriptionName) -> String {
    format!("{}_sync", origin_name(subscription))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_too_old_is_told_which_version_it_takes() {
        assert_eq!(too_old(120_000), None);
        assert_eq!(too_old(180_001), None);
        insta::assert_snapshot!(too_old(110_022).expect("too old"), @r"
        the target is PostgreSQL 11, pgsluice needs 12 or later
          detail: Generated columns and collations are read from its catalog, which an older one lacks.
          hint: upgrade the target's server to 12 or later, or name another one in [target] url
        ");
        assert!(too_old(90_624).is_some());
    }
}
