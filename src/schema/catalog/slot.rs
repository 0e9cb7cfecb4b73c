//! Reads the publisher's position and a replication slot together.

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use crate::pg::{Lsn, SlotName};

use super::error::{CatalogError, Side};

/// The slot's row comes as JSON, because the columns of `pg_replication_slots` differ between versions.
const VIEW: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
        ELSE pg_catalog.pg_current_wal_flush_lsn() END)::pg_catalog.text, \
    (SELECT pg_catalog.row_to_json(s)::pg_catalog.text FROM pg_catalog.pg_replication_slots s \
        WHERE s.slot_name = $1::pg_catalog.text)";

/// Reads the publisher's position, and the slot as JSON if it exists.
///
/// # Errors
///
/// A query failed.
pub async fn slot_row<C: GenericClient + Sync>(
    client: &C,
    slot: &SlotName,
) -> Result<(Lsn, Option<String>), CatalogError> {
    let failed = |source| CatalogError::Query { side: Side::Publisher, what: "the replication slot", source };
    let row = client.query_typed_one(VIEW, &[(&slot.as_str(), Type::TEXT)]).await.map_err(failed)?;
    let position: String = row.try_get(0).map_err(failed)?;
    Ok((position.parse().unwrap_or_default(), row.try_get(1).map_err(failed)?))
}
