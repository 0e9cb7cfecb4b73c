//! Reads the publisher's settings, how far its limits are used, and its role's attributes.

use tokio_postgres::GenericClient;

use super::error::CatalogError;
use super::publisher::publisher_query;
use super::unsigned;

/// What a preflight reads from the publisher besides its tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherFacts {
    pub server_version_num: u32,
    pub wal_level: String,
    pub server_encoding: String,
    pub max_replication_slots: u32,
    pub replication_slots_used: u32,
    pub max_wal_senders: u32,
    pub wal_senders_used: u32,
    /// The connected role (`current_user`).
    pub role: String,
    pub role_has_replication: bool,
    pub role_is_superuser: bool,
}

/// The publisher's settings that every attempt needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherSettings {
    pub wal_level: String,
    /// Time-out in milliseconds; 0 means none.
    pub wal_sender_timeout_ms: u32,
}

/// Reads only settings, since counting their use takes a new session many times as long.
///
/// A setting's unit is parsed as an interval's, which PostgreSQL writes in the same way. `pg_settings`
/// would return the number alone, but only after listing all settings.
///
/// # Errors
///
/// A query failed.
pub async fn publisher_settings<C: GenericClient + Sync>(
    client: &C,
) -> Result<PublisherSettings, CatalogError> {
    let sql = "SELECT pg_catalog.current_setting('wal_level') AS wal_level,
                      (1000 * EXTRACT(epoch FROM pg_catalog.current_setting('wal_sender_timeout')
                        ::pg_catalog.interval))::pg_catalog.int8 AS timeout";
    let row = client.query_typed_one(sql, &[]).await.map_err(publisher_query("settings"))?;
    Ok(PublisherSettings {
        wal_level: row.get("wal_level"),
        wal_sender_timeout_ms: unsigned(&row, "timeout"),
    })
}

/// Whether commits of the publisher may wait for standbys, and so for subscribers.
///
/// # Errors
/// A failed query.
pub async fn has_synchronous_standbys<C: GenericClient + Sync>(client: &C) -> Result<bool, CatalogError> {
    let sql = "SELECT pg_catalog.current_setting('synchronous_standby_names') OPERATOR(pg_catalog.<>) '' AS synchronous";
    let row = client.query_typed_one(sql, &[]).await.map_err(publisher_query("settings"))?;
    Ok(row.get("synchronous"))
}

/// Settings, their use, and the role's attributes.
///
/// # Errors
///
/// A query failed.
pub async fn publisher_facts<C: GenericClient + Sync>(client: &C) -> Result<PublisherFacts, CatalogError> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int8 AS version,
                      pg_catalog.current_setting('wal_level') AS wal_level,
                      pg_catalog.current_setting('server_encoding') AS encoding,
                      pg_catalog.current_setting('max_replication_slots')::pg_catalog.int8 AS slots,
                      (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots) AS slots_used,
                      pg_catalog.current_setting('max_wal_senders')::pg_catalog.int8 AS senders,
                      (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication) AS senders_used,
                      r.rolname::pg_catalog.text AS role, r.rolreplication, r.rolsuper
                 FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = client.query_typed_one(sql, &[]).await.map_err(publisher_query("settings"))?;
    Ok(PublisherFacts {
        server_version_num: unsigned(&row, "version"),
        wal_level: row.get("wal_level"),
        server_encoding: row.get("encoding"),
        max_replication_slots: unsigned(&row, "slots"),
        replication_slots_used: unsigned(&row, "slots_used"),
        max_wal_senders: unsigned(&row, "senders"),
        wal_senders_used: unsigned(&row, "senders_used"),
        role: row.get("role"),
        role_has_replication: row.get("rolreplication"),
        role_is_superuser: row.get("rolsuper"),
    })
}
