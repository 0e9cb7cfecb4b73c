//! Reads what identifies tables of the subscription that are not found by what is published: tables of the
//! publisher that have left, and tables of the target by name and OID.

use std::collections::HashMap;

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use super::error::{CatalogError, Side};
use super::publisher::{Version, publisher_query, read_columns};
use crate::pg::QualifiedName;
use crate::schema::sharing::Place;
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
    let places = target_places(client, names, oids).await?;
    Ok(places.into_iter().map(|place| (place.name, place.oid)).collect())
}

/// As [`target_oids`], with the partitioned tables that they are partitions of.
///
/// # Errors
///
/// A query failed.
pub async fn target_places<C: GenericClient + Sync>(
    client: &C,
    names: &[QualifiedName],
    oids: &[u32],
) -> Result<Vec<Place>, CatalogError> {
    let sql = "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, c.oid, \
            CASE WHEN c.relispartition THEN ARRAY( \
                SELECT a.relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors(c.oid) \
                WITH ORDINALITY AS a (relid, nr) WHERE a.relid <> c.oid ORDER BY a.nr) \
            ELSE '{}'::pg_catalog.oid[] END \
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.oid IN ( \
            SELECT w.oid FROM pg_catalog.unnest($3::pg_catalog.oid[]) AS w (oid) UNION ALL \
            SELECT k.oid FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), \
                pg_catalog.unnest($2::pg_catalog.text[])) AS w (s, t) \
            JOIN pg_catalog.pg_namespace m ON m.nspname = w.s \
            JOIN pg_catalog.pg_class k ON k.relnamespace = m.oid AND k.relname = w.t)";
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
    Ok(rows.iter().map(|row| Place { name: name(row), oid: row.get(2), ancestors: row.get(3) }).collect())
}

/// Where these relations of the target are, in their order; none where there is none. One whose OID is on record may
/// have another name by now.
///
/// # Errors
///
/// A query failed.
pub async fn places_of<C: GenericClient + Sync>(
    client: &C,
    targets: &[(&QualifiedName, Option<u32>)],
) -> Result<Vec<Option<Place>>, CatalogError> {
    let names: Vec<QualifiedName> = targets.iter().map(|(name, _)| (*name).clone()).collect();
    let oids: Vec<u32> = targets.iter().filter_map(|(_, oid)| *oid).collect();
    let found = target_places(client, &names, &oids).await?;
    let by_oid: HashMap<u32, &Place> = found.iter().map(|place| (place.oid, place)).collect();
    let by_name: HashMap<&QualifiedName, &Place> = found.iter().map(|place| (&place.name, place)).collect();
    let place = |(name, oid): &(&QualifiedName, Option<u32>)| {
        let known = oid.and_then(|oid| by_oid.get(&oid));
        known.or_else(|| by_name.get(*name)).map(|place| (*place).clone())
    };
    Ok(targets.iter().map(place).collect())
}

fn parts(names: &[QualifiedName]) -> (Vec<&str>, Vec<&str>) {
    names.iter().map(|name| (name.schema.as_str(), name.name.as_str())).unzip()
}
