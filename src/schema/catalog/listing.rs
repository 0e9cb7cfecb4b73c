//! Lists the tables of a database, published or not, to point out those that were forgotten.

use std::collections::BTreeSet;

use tokio_postgres::GenericClient;

use crate::pg::QualifiedName;

use super::error::{CatalogError, Side};

/// Largest number of tables listed. With more, pointing out forgotten ones is of no use.
const TABLES_MAX: i64 = 10_000;

/// Lists up to `TABLES_MAX` permanent tables outside the system's schemas and pgsluice's own, without
/// partitions.
///
/// # Errors
///
/// A query failed.
pub async fn user_tables<C: GenericClient + Sync>(
    client: &C,
    side: Side,
) -> Result<BTreeSet<QualifiedName>, CatalogError> {
    let sql = format!(
        "SELECT n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
            AND n.nspname NOT IN ('information_schema', 'pgsluice') AND n.nspname !~ '^pg_'
          ORDER BY 1, 2 LIMIT {TABLES_MAX}"
    );
    let rows = client.query_typed(&sql, &[]).await;
    let rows = rows.map_err(|source| CatalogError::Query { side, what: "tables", source })?;
    Ok(rows
        .iter()
        .map(|row| QualifiedName::new(row.get::<_, String>("schema"), row.get::<_, String>("name")))
        .collect())
}
