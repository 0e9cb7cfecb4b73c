//! Reports the positions of many subscriptions by one statement, because each of them has some every second.

use serde_json::{Value, json};
use sqlx::types::Json;

use crate::pg::SubscriptionName;

use super::columns::saturate;
use super::{Ownership, Positions, Store, StoreError};

/// Writes the reports `$1` of the owners among them, and returns whose were written.
///
/// A row that somebody has locked is left out until the next report, so that nobody's lock holds up the others. The commit
/// does not wait for the disk: a report that is lost in a crash would have been replaced a second later.
const REPORT: &str = "WITH quick AS (SELECT pg_catalog.set_config('synchronous_commit', 'off', true)), \
    report AS (SELECT r.* FROM pg_catalog.jsonb_to_recordset($1) AS r (name text, term bigint, \
        received_lsn pg_lsn, flushed_lsn pg_lsn, publisher_lsn pg_lsn, lag_bytes bigint, lag_seconds double precision, \
        wal_status text, retained_bytes bigint, publications_seen_lsn pg_lsn)), \
    owner AS (SELECT o.subscription AS name FROM pgsluice.owner o JOIN report r ON r.name = o.subscription \
        WHERE o.term = r.term AND o.server_started_at = pg_catalog.pg_postmaster_start_time() \
        ORDER BY o.subscription FOR SHARE OF o SKIP LOCKED), \
    free AS (SELECT s.name FROM pgsluice.subscription s JOIN owner ON owner.name = s.name \
        ORDER BY s.name FOR NO KEY UPDATE OF s SKIP LOCKED) \
    UPDATE pgsluice.subscription s SET received_lsn = r.received_lsn, flushed_lsn = r.flushed_lsn, \
        publisher_lsn = r.publisher_lsn, lag_bytes = r.lag_bytes, lag_seconds = r.lag_seconds, \
        wal_status = r.wal_status, retained_bytes = r.retained_bytes, \
        publications_seen_lsn = greatest(s.publications_seen_lsn, r.publications_seen_lsn), reported_at = pg_catalog.clock_timestamp() \
    FROM quick, free JOIN report r ON r.name = free.name WHERE s.name = free.name RETURNING s.name";

/// Those of the reports `$1` whose subscription another instance has taken over.
const REFUSED: &str = "SELECT r.name FROM pg_catalog.jsonb_to_recordset($1) AS r (name text, term bigint) \
    WHERE NOT EXISTS (SELECT FROM pgsluice.owner o WHERE o.subscription = r.name AND o.term = r.term \
        AND o.server_started_at = pg_catalog.pg_postmaster_start_time())";

/// What became of reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reported {
    pub written: Vec<SubscriptionName>,
    /// Another instance has taken these subscriptions over.
    pub refused: Vec<SubscriptionName>,
}

impl Store {
    /// Writes the positions of subscriptions. Those whose rows are locked are neither written nor refused. It is meant to
    /// be called about every second.
    pub async fn report_positions(
        &self,
        reports: &[(&Ownership, &Positions)],
    ) -> Result<Reported, StoreError> {
        self.run("report the subscriptions' positions", async {
            let documents: Vec<Value> =
                reports.iter().map(|(owner, positions)| document(owner, positions)).collect();
            let mut session = self.pool.acquire().await?;
            let written: Vec<String> =
                sqlx::query_scalar(REPORT).bind(Json(&documents)).fetch_all(&mut *session).await?;
            let refused: Vec<String> = if written.len() < reports.len() {
                sqlx::query_scalar(REFUSED).bind(Json(&documents)).fetch_all(&mut *session).await?
            } else {
                Vec::new()
            };
            let of = |names: &[String]| {
                let known = reports.iter().map(|(owner, _)| owner.subscription());
                known.filter(|known| names.iter().any(|name| name == known.as_str())).cloned().collect()
            };
            Ok(Reported { written: of(&written), refused: of(&refused) })
        })
        .await
    }
}

fn document(owner: &Ownership, positions: &Positions) -> Value {
    json!({
        "name": owner.name(),
        "term": owner.term().as_i64(),
        "received_lsn": positions.received_lsn,
        "flushed_lsn": positions.flushed_lsn,
        "publisher_lsn": positions.publisher_lsn,
        "lag_bytes": positions.lag_bytes.map(saturate),
        "lag_seconds": positions.lag_seconds,
        "wal_status": positions.wal_status,
        "retained_bytes": positions.retained_bytes.map(saturate),
        "publications_seen_lsn": positions.publications_seen,
    })
}
