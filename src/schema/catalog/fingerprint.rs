//! A fingerprint of the publications, which is cheap to compare and shows that they have changed, also if they
//! have changed back.

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use super::error::CatalogError;
use super::publisher::publisher_query;
use crate::pg::Lsn;

/// A text that changes with the history of the publications and their tables: a row that was written again or
/// replaced by another one has another `xmin` or OID, whatever it holds. Tables of another pgsluice's state are
/// left out. The tables are looked up one by one (`LIMIT 1`): hundreds of subscriptions ask for the few of theirs among
/// thousands, for which the planner would read all of `pg_class`.
///
/// The position and the next transaction identifier are read in this order, and after the snapshot was taken.
fn sql(server_version_num: u32) -> String {
    let schemas = if server_version_num >= 150_000 {
        "(SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', n.oid, n.pnpubid, n.pnnspid), ',' ORDER BY n.oid) \
          FROM pg_catalog.pg_publication_namespace n JOIN pg_catalog.pg_publication p ON p.oid = n.pnpubid \
          WHERE p.pubname = ANY ($1)), \
         (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', d.objid, d.xmin::pg_catalog.text), ',' ORDER BY d.objid) \
          FROM pg_catalog.pg_publication_namespace n JOIN pg_catalog.pg_publication p ON p.oid = n.pnpubid \
          JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
               AND d.refobjid = n.pnnspid AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
          JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind IN ('r', 'p') \
          WHERE p.pubname = ANY ($1)), "
    } else {
        ""
    };
    format!(
        "SELECT pg_catalog.md5(pg_catalog.concat( \
         (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', p.oid, p.xmin::pg_catalog.text, p.pubname), ',' \
            ORDER BY p.pubname) FROM pg_catalog.pg_publication p WHERE p.pubname = ANY ($1)), \
         (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', r.oid, r.prpubid, r.prrelid), ',' ORDER BY r.oid) \
          FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
          WHERE p.pubname = ANY ($1)), {schemas}\
         (SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I %I %s %s', t.pubname, t.schemaname, t.tablename, t.oid, \
              t.partitioned), ',' ORDER BY t.pubname, t.schemaname, t.tablename) \
          FROM (SELECT p.pubname, c.schemaname, c.tablename, c.oid, c.partitioned FROM pg_catalog.pg_publication p, \
                  LATERAL pg_catalog.pg_get_publication_tables(p.pubname::pg_catalog.text) g, \
                  LATERAL (SELECT n.nspname AS schemaname, c.relname AS tablename, c.oid, CASE WHEN c.relispartition \
                          THEN (SELECT pg_catalog.string_agg(i.xmin::pg_catalog.text, ' ' ORDER BY i.inhparent) \
                              FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid) END AS partitioned \
                      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                      WHERE c.oid = g.relid LIMIT 1) c \
              WHERE p.pubname = ANY ($1)) t WHERE t.schemaname <> 'pgsluice'))), \
         (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
            ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text, \
         pg_catalog.age('3'::pg_catalog.xid), \
         pg_catalog.txid_snapshot_xmin(pg_catalog.txid_current_snapshot())"
    )
}

/// One look at the publications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationsLook {
    pub fingerprint: String,
    /// The end of WAL at the look.
    pub position: Lsn,
    /// The next transaction identifier; younger transactions have no WAL before `position`.
    pub next_xid: u32,
    /// All older transactions had ended, and their changes could be seen.
    pub oldest_xid: u32,
}

/// Looks at these publications.
///
/// # Errors
///
/// A query failed.
pub async fn look_at_publications<C: GenericClient + Sync>(
    client: &C,
    server_version_num: u32,
    publications: &[String],
) -> Result<PublicationsLook, CatalogError> {
    let failed = publisher_query("what is published");
    let read = async {
        let sql = sql(server_version_num);
        let row = client.query_typed_one(&sql, &[(&publications, Type::NAME_ARRAY)]).await?;
        let position: Option<String> = row.try_get(1)?;
        let (age, oldest): (i32, i64) = (row.try_get(2)?, row.try_get(3)?);
        Ok(PublicationsLook {
            fingerprint: row.try_get(0)?,
            position: position.and_then(|text| text.parse().ok()).unwrap_or_default(),
            next_xid: next_xid(age),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "without its epoch")]
            oldest_xid: oldest as u32,
        })
    };
    read.await.map_err(failed)
}

/// The next transaction identifier, from the age of the identifier 3 (`xid_age` in `xid.c`).
pub(super) const fn next_xid(age: i32) -> u32 {
    age.cast_unsigned().wrapping_add(3)
}
