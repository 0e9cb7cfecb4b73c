//! A fingerprint of the publications, which is cheap to compare and shows that their content has
//! changed.

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use super::error::CatalogError;
use super::publisher::publisher_query;

/// A text that changes with the publications' definitions and tables: options, names and (15+) column
/// lists, row filters and schemas. Tables of another pgsluice's state are left out.
const FINGERPRINT: &str = "SELECT pg_catalog.md5(pg_catalog.concat( \
    (SELECT pg_catalog.string_agg(pg_catalog.row_to_json(p)::pg_catalog.text, ',' ORDER BY p.pubname) \
     FROM pg_catalog.pg_publication p WHERE p.pubname = ANY ($1)), \
    (SELECT pg_catalog.string_agg(pg_catalog.row_to_json(r)::pg_catalog.text, ',' ORDER BY p.pubname, r.prrelid) \
     FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
     WHERE p.pubname = ANY ($1)), \
    (SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I %I', t.pubname, t.schemaname, t.tablename), ',' \
        ORDER BY t.pubname, t.schemaname, t.tablename) \
     FROM pg_catalog.pg_publication_tables t WHERE t.pubname = ANY ($1) AND t.schemaname <> 'pgsluice')))";

/// Returns the fingerprint of these publications.
///
/// # Errors
///
/// A query failed.
pub async fn publications_fingerprint<C: GenericClient + Sync>(
    client: &C,
    publications: &[String],
) -> Result<String, CatalogError> {
    let row = client.query_typed_one(FINGERPRINT, &[(&publications, Type::NAME_ARRAY)]).await;
    row.and_then(|row| row.try_get(0)).map_err(publisher_query("what is published"))
}
