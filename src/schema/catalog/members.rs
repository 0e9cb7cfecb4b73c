//! Reads what identifies tables of the subscription that are not found by what is published: tables of the
//! publisher that have left, and tables of the target by name and OID.

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use super::error::{CatalogError, Side};
use super::publisher::{Version, publisher_query, read_columns};
use crate::pg::QualifiedName;
use crate::schema::{PublishedColumn, PublishedRelation, ReplicaIdentity};

/// A table of the publisher that exists, whether or not it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExistingTable {
    pub oid: u32,
    /// The table with all its columns.
    pub relation: PublishedRelation,
}

/// Returns the publisher's tables with these OIDs or names, as far as they exist.
///
/// # Errors
///
/// A query failed.
pub async fn existing_tables<C: GenericClient + Sync>(
    client: &C,
    server_version_num: u32,
    oids: &[u32],
    names: &[QualifiedName],
) -> Result<Vec<ExistingTable>, CatalogError> {
    let sql = "SELECT c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text \
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p') AND (c.oid = ANY ($1) OR EXISTS (SELECT FROM \
        ROWS FROM (pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[])) AS w (s, t) \
        WHERE w.s = n.nspname AND w.t = c.relname))";
    let (schemas, tables) = parts(names);
    let rows = client
        .query_typed(
            sql,
            &[(&oids, Type::OID_ARRAY), (&schemas, Type::TEXT_ARRAY), (&tables, Type::TEXT_ARRAY)],
        )
        .await
        .map_err(publisher_query("tables that have left"))?;
    let found: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let mut columns = read_columns(client, Version(server_version_num), &found).await?;
    let table = |row: &tokio_postgres::Row| {
        let oid = row.get(0);
        let columns: Vec<PublishedColumn> =
            columns.remove(&oid).unwrap_or_default().into_iter().map(|(_, column)| column).collect();
        let name = QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        ExistingTable {
            oid,
            relation: PublishedRelation { name, identity: ReplicaIdentity::Default, columns },
        }
    };
    Ok(rows.iter().map(table).collect())
}

/// Returns the target's relations with these names or OIDs, as far as they exist, with their OIDs.
///
/// # Errors
///
/// A query failed.
pub async fn target_oids<C: GenericClient + Sync>(
    client: &C,
    names: &[QualifiedName],
    oids: &[u32],
) -> Result<Vec<(QualifiedName, u32)>, CatalogError> {
    let sql = "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.oid \
        FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) AS w (s, t) \
        JOIN pg_catalog.pg_namespace n ON n.nspname = w.s \
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.t \
        UNION SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.oid \
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($3)";
    let (schemas, tables) = parts(names);
    let rows = client
        .query_typed(
            sql,
            &[(&schemas, Type::TEXT_ARRAY), (&tables, Type::TEXT_ARRAY), (&oids, Type::OID_ARRAY)],
        )
        .await
        .map_err(|source| CatalogError::Query { side: Side::Target, what: "the target's tables", source })?;
    let name =
        |row: &tokio_postgres::Row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.iter().map(|row| (name(row), row.get(2))).collect())
}

fn parts(names: &[QualifiedName]) -> (Vec<&str>, Vec<&str>) {
    names.iter().map(|name| (name.schema.as_str(), name.name.as_str())).unzip()
}
