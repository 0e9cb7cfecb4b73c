//! Reads the publisher's position and a replication slot together.

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use crate::pg::{Lsn, SlotName};

use super::error::{CatalogError, Side};
use super::fingerprint::next_xid as next_xid_of_age;

/// One statement, so that all of it belongs together: the statement's snapshot is older than the
/// insert position, so every transaction that had completed by then has its record below that
/// position. Versions differ in the columns of `pg_replication_slots`: the row comes as JSON.
const VIEW: &str = "SELECT r, (CASE WHEN r THEN pg_catalog.pg_last_wal_replay_lsn() \
        ELSE pg_catalog.pg_current_wal_flush_lsn() END)::pg_catalog.text, \
    (CASE WHEN r THEN NULL ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text, \
    CASE WHEN r THEN NULL ELSE \
        pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) END, \
    pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot()), \
    (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) * 1000000)::pg_catalog.int8, \
    (SELECT pg_catalog.row_to_json(s)::pg_catalog.text FROM pg_catalog.pg_replication_slots s \
        WHERE s.slot_name = $1::pg_catalog.text), \
    pg_catalog.age('3'::pg_catalog.xid), \
    (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
    FROM pg_catalog.pg_is_in_recovery() r";

const LAST_CHECKPOINT: &str =
    "SELECT checkpoint_lsn::pg_catalog.text FROM pg_catalog.pg_control_checkpoint()";
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// The publisher's position, and the slot as JSON if it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRow {
    pub in_recovery: bool,
    /// The end of the WAL that is flushed; on a standby, that is replayed.
    pub position: Lsn,
    /// Where the next record goes; none on a standby.
    pub inserted: Option<Lsn>,
    /// None on a standby.
    pub timeline: Option<u32>,
    /// The first transaction identifier that had not been used by a completed transaction.
    pub next_xid: u64,
    /// The next transaction identifier to be given out, with its epoch.
    pub unused_xid: u64,
    /// When the postmaster started, µs since the Unix epoch.
    pub started_us: i64,
    /// The OID of the database.
    pub database: u32,
    pub slot: Option<String>,
}

/// The process that uses a slot, and when it was started, µs since the Unix epoch.
const USER: &str = "SELECT a.pid, \
        pg_catalog.round(pg_catalog.date_part('epoch', a.backend_start) * 1000000)::pg_catalog.int8 \
    FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
    WHERE s.slot_name = $1::pg_catalog.text AND a.backend_start IS NOT NULL";

/// Reads which process uses the slot, and when it was started, µs since the Unix epoch; none also if that is another
/// role's.
///
/// # Errors
/// A failed query.
pub async fn slot_user<C: GenericClient + Sync>(
    client: &C,
    slot: &SlotName,
) -> Result<Option<(i32, i64)>, CatalogError> {
    let rows = client.query_typed(USER, &[(&slot.as_str(), Type::TEXT)]).await.map_err(failed)?;
    let decode = |row: &Row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?));
    rows.first().map(decode).transpose().map_err(failed)
}

/// Reads the publisher's position, and the slot as JSON if it exists.
///
/// # Errors
/// A failed query.
pub async fn slot_row<C: GenericClient + Sync>(client: &C, slot: &SlotName) -> Result<SlotRow, CatalogError> {
    let row = client.query_typed_one(VIEW, &[(&slot.as_str(), Type::TEXT)]).await.map_err(failed)?;
    decode(&row).map_err(failed)
}

fn decode(row: &Row) -> Result<SlotRow, tokio_postgres::Error> {
    let lsn = |text: Option<String>| text.and_then(|text| text.parse::<Lsn>().ok());
    let timeline: Option<String> = row.try_get(3)?;
    let next_xid = row.try_get::<_, i64>(4)?.cast_unsigned();
    let unused = next_xid_of_age(row.try_get(7)?);
    #[expect(clippy::cast_possible_truncation, reason = "without its epoch")]
    let begun = unused.wrapping_sub(next_xid as u32);
    Ok(SlotRow {
        in_recovery: row.try_get(0)?,
        position: lsn(row.try_get(1)?).unwrap_or_default(),
        inserted: lsn(row.try_get(2)?),
        timeline: timeline.and_then(|text| u32::from_str_radix(&text, 16).ok()),
        next_xid,
        // Transactions may have begun between the snapshot and the later look.
        unused_xid: next_xid + u64::from(begun),
        started_us: row.try_get(5)?,
        database: row.try_get(8)?,
        slot: row.try_get(6)?,
    })
}

/// Where the publisher's last checkpoint is recorded; none if the role may not ask.
///
/// # Errors
/// A failed query.
pub async fn last_checkpoint<C: GenericClient + Sync>(client: &C) -> Result<Option<Lsn>, CatalogError> {
    match client.query_typed_one(LAST_CHECKPOINT, &[]).await {
        Ok(row) => Ok(row.try_get::<_, String>(0).map_err(failed)?.parse().ok()),
        Err(error) if error.code().is_some_and(|code| code.code() == INSUFFICIENT_PRIVILEGE) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn failed(source: tokio_postgres::Error) -> CatalogError {
    CatalogError::Query { side: Side::Publisher, what: "the replication slot", source }
}
