//! Finds out how many sessions the connected role may still open.

use tokio_postgres::{GenericClient, Row};

use super::error::{CatalogError, Side};
use super::unsigned;

/// Limits and their use, without the sessions of this session's application. A session's database, role and
/// application can be read by everybody.
const LIMITS: &str = "WITH own AS (SELECT r.oid, r.rolsuper, r.rolconnlimit FROM pg_catalog.pg_roles r \
        WHERE r.rolname = current_user), \
    here AS (SELECT d.oid, d.datconnlimit FROM pg_catalog.pg_database d \
        WHERE d.datname = pg_catalog.current_database()), \
    others AS (SELECT a.usesysid, a.datid FROM pg_catalog.pg_stat_activity a WHERE a.usesysid IS NOT NULL \
        AND a.application_name IS DISTINCT FROM pg_catalog.current_setting('application_name')) \
    SELECT own.rolsuper, own.rolconnlimit::pg_catalog.int8 AS role_allowed, \
        here.datconnlimit::pg_catalog.int8 AS database_allowed, \
        pg_catalog.current_setting('max_connections')::pg_catalog.int8 AS server_allowed, \
        pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8 \
            OPERATOR(pg_catalog.+) COALESCE(pg_catalog.current_setting('reserved_connections', true)::pg_catalog.int8, 0) \
            AS reserved, \
        (SELECT pg_catalog.count(*) FROM others WHERE usesysid OPERATOR(pg_catalog.=) own.oid) AS role_used, \
        (SELECT pg_catalog.count(*) FROM others WHERE datid OPERATOR(pg_catalog.=) here.oid) AS database_used, \
        (SELECT pg_catalog.count(*) FROM others) AS server_used \
    FROM own, here";

/// What limits the number of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedBy {
    /// `ALTER ROLE … CONNECTION LIMIT`.
    Role,
    /// `ALTER DATABASE … CONNECTION LIMIT`.
    Database,
    /// `max_connections`, without the connections that are reserved for superusers.
    Server,
}

/// The limit on the connected role's sessions that leaves the fewest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimit {
    pub by: LimitedBy,
    pub allowed: u32,
    /// Sessions of others, and of other applications of the role.
    pub used: u32,
}

impl SessionLimit {
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.allowed.saturating_sub(self.used)
    }
}

/// Returns the tightest limit on the sessions of the role that is connected to `side`.
///
/// # Errors
///
/// A query failed.
pub async fn session_limit<C: GenericClient + Sync>(
    client: &C,
    side: Side,
) -> Result<SessionLimit, CatalogError> {
    let row = client.query_typed_one(LIMITS, &[]).await;
    let row = row.map_err(|source| CatalogError::Query { side, what: "connection limits", source })?;
    Ok(tightest(&row))
}

/// The limits of role and database do not hold for a superuser, and -1 is none (`InitPostgres`).
fn tightest(row: &Row) -> SessionLimit {
    let superuser: bool = row.get("rolsuper");
    let used = |column| unsigned(row, column);
    let own = |by, allowed: &str, in_use| {
        let allowed = u32::try_from(row.get::<_, i64>(allowed)).ok().filter(|_| !superuser)?;
        Some(SessionLimit { by, allowed, used: used(in_use) })
    };
    let reserved = if superuser { 0 } else { unsigned(row, "reserved") };
    let server = SessionLimit {
        by: LimitedBy::Server,
        allowed: unsigned(row, "server_allowed").saturating_sub(reserved),
        used: used("server_used"),
    };
    [
        own(LimitedBy::Role, "role_allowed", "role_used"),
        own(LimitedBy::Database, "database_allowed", "database_used"),
    ]
    .into_iter()
    .flatten()
    .fold(server, |least, limit| if limit.free() < least.free() { limit } else { least })
}
