//! Finds the published tables that the connected role may not read completely. `unreadable` says what to do about it.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use crate::pg::QualifiedName;
use crate::schema::PublishedTable;

use super::error::CatalogError;
use super::publisher::publisher_query;

/// A table that the initial copy may not read completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnselectableTable {
    pub name: QualifiedName,
    pub reason: UnselectableReason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnselectableReason {
    /// The role lacks USAGE on the table's schema.
    Schema,
    /// The role lacks SELECT on these columns (all published ones if it lacks SELECT on the table).
    Columns(Vec<String>),
    /// Row-level security would hide rows from the copy.
    RowSecurity,
}

/// Returns the tables that the connected role may not read completely, each with the first reason.
///
/// Only published columns count: SELECT on exactly those is enough for the copy.
///
/// # Errors
///
/// A query failed.
pub async fn unselectable_tables<C: GenericClient + Sync>(
    client: &C,
    tables: &[PublishedTable],
) -> Result<Vec<UnselectableTable>, CatalogError> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let sql = "SELECT c.oid, pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE') AS schema,
                      pg_catalog.has_table_privilege(c.oid, 'SELECT') AS whole,
                      pg_catalog.row_security_active(c.oid) AS row_security,
                      ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
                             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                               AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')) AS granted
                 FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)";
    let rows = client.query_typed(sql, &[(&oids, Type::OID_ARRAY)]).await;
    let rows = rows.map_err(publisher_query("privileges"))?;
    let facts: HashMap<u32, &Row> = rows.iter().map(|row| (row.get("oid"), row)).collect();
    let judge = |table: &PublishedTable| {
        // The table was dropped in between, which is not a missing privilege.
        let row = facts.get(&table.oid)?;
        let granted: Vec<String> = row.get("granted");
        let denied = || -> Vec<String> {
            let names = table.relation.columns.iter().map(|column| column.name.clone());
            names.filter(|name| !granted.contains(name)).collect()
        };
        // Reading a table without published columns needs SELECT on at least one column.
        let (whole, none) = (row.get::<_, bool>("whole"), table.relation.columns.is_empty());
        let reason = if !row.get::<_, bool>("schema") {
            UnselectableReason::Schema
        } else if !whole && (!denied().is_empty() || (none && granted.is_empty())) {
            UnselectableReason::Columns(denied())
        } else if row.get("row_security") {
            UnselectableReason::RowSecurity
        } else {
            return None;
        };
        Some(UnselectableTable { name: table.relation.name.clone(), reason })
    };
    Ok(tables.iter().filter_map(judge).collect())
}
