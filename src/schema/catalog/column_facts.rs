//! What both sides' catalogs tell of a column besides its name, as parts of queries, and a look at the publisher's
//! columns after the stream has described a table.

use std::collections::{HashMap, HashSet};

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use crate::schema::older_rows::MissingValue;
use crate::schema::redefined::{LookedColumn, TableLook};
use crate::schema::{SeenColumn, TypeName};

use super::error::CatalogError;
use super::publisher_query;

/// The type `base` of the attribute `a` below all domains, where `t` is its own type: `schema`, `name`, and the `typmod`
/// that limits its values.
pub(super) const BASE_TYPE: &str = "LATERAL (
       SELECT n.nspname::pg_catalog.text AS schema, t.typname::pg_catalog.text AS name, a.atttypmod AS typmod
         FROM pg_catalog.pg_namespace n WHERE n.oid = t.typnamespace AND t.typtype <> 'd'
       UNION ALL (
       WITH RECURSIVE below (type, typmod) AS (
         SELECT a.atttypid, a.atttypmod WHERE t.typtype = 'd' UNION ALL
         SELECT u.typbasetype, CASE WHEN b.typmod >= 0 THEN b.typmod ELSE u.typtypmod END
           FROM below b JOIN pg_catalog.pg_type u ON u.oid = b.type AND u.typtype = 'd')
       SELECT n.nspname::pg_catalog.text, u.typname::pg_catalog.text, b.typmod
         FROM below b JOIN pg_catalog.pg_type u ON u.oid = b.type AND u.typtype <> 'd'
         JOIN pg_catalog.pg_namespace n ON n.oid = u.typnamespace)) base";

/// The relation `c` and the partitions below it, as `tree`.
const TREE: &str = "WITH RECURSIVE tree (oid) AS (
       SELECT c.oid UNION ALL
       SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
         JOIN pg_catalog.pg_class p ON p.oid = i.inhrelid AND p.relispartition)";

/// The files of `c` and its partitions that were written anew since the relations were created. A partitioned table
/// has no file of its own.
pub(super) fn rewritten_files_sql() -> String {
    format!(
        "CASE WHEN c.relkind = 'p' THEN
                ARRAY({TREE} SELECT f.relfilenode FROM tree JOIN pg_catalog.pg_class f ON f.oid = tree.oid
                       WHERE f.relfilenode <> 0 AND f.relfilenode <> f.oid)
              WHEN c.relfilenode <> c.oid THEN ARRAY[c.relfilenode]
              ELSE ARRAY[]::pg_catalog.oid[] END"
    )
}

/// An expression for a [`MissingValue`], where `a` is the attribute, `t` its type and `c` its relation. The values of a
/// partitioned table are those of its partitions.
///
/// The array has one element, whose text is read as that of an array of texts. A type with another delimiter than a comma
/// (`box`) has to be read otherwise.
pub(super) fn missing_values_sql() -> String {
    let value = |attribute: &str| {
        format!(
            "CASE WHEN t.typdelim = ',' OR t.typcategory = 'A'
                  THEN ({attribute}.attmissingval::pg_catalog.text::pg_catalog.text[])[1]
                  ELSE pg_catalog.btrim({attribute}.attmissingval::pg_catalog.text, '{{}}') END"
        )
    };
    format!(
        "CASE WHEN c.relkind = 'p' THEN ({TREE} SELECT pg_catalog.array_agg(DISTINCT {of_partition})
                FROM tree JOIN pg_catalog.pg_attribute l
                  ON l.attrelid = tree.oid AND l.attname = a.attname AND l.atthasmissing)
              WHEN a.atthasmissing THEN ARRAY[{own}] END",
        of_partition = value("l"),
        own = value("a"),
    )
}

/// As [`missing_values_sql`] for a publisher, which may be older.
pub(super) fn publishers_missing_values_sql(server_version_num: u32) -> String {
    if server_version_num >= 110_000 { missing_values_sql() } else { "NULL::pg_catalog.text[]".to_owned() }
}

/// Reads the columns of these tables of the publisher. A table is missing if it does not exist, or if another session
/// holds a lock with which its columns can be changed: a commit is sent before others can see it, but the lock is
/// released after that.
///
/// # Errors
///
/// A query failed.
pub async fn look_at_columns<C: GenericClient + Sync>(
    client: &C,
    server_version_num: u32,
    tables: &[u32],
) -> Result<ColumnsLook, CatalogError> {
    let locked = "SELECT DISTINCT l.relation FROM pg_catalog.pg_locks l
                   WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.granted
                     AND l.relation = ANY ($1)
                     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
                                        WHERE d.datname = pg_catalog.current_database())";
    let columns = format!(
        "SELECT a.attrelid, a.attnum, a.attname::pg_catalog.text AS column, c.relnatts,
                base.schema, base.name, base.typmod, {missing} AS missing, c.files,
                t.typtype = 'd' AS of_domain
           FROM (SELECT c.oid, c.relkind, c.relnatts, {files} AS files
                   FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1) OFFSET 0) c
           JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
          CROSS JOIN {BASE_TYPE}
          ORDER BY a.attrelid, a.attnum",
        missing = publishers_missing_values_sql(server_version_num),
        files = rewritten_files_sql(),
    );
    let failed = || publisher_query("columns");
    // The columns are read after the locks.
    let locked = client.query_typed(locked, &[(&tables, Type::OID_ARRAY)]).await.map_err(failed())?;
    let rows = client.query_typed(&columns, &[(&tables, Type::OID_ARRAY)]).await.map_err(failed())?;
    let mut look =
        ColumnsLook { locked: locked.iter().map(|row| row.get(0)).collect(), ..ColumnsLook::default() };
    for row in &rows {
        let table = look.tables.entry(row.get("attrelid")).or_insert_with(|| TableLook {
            columns: Vec::new(),
            last_number: row.get("relnatts"),
            files: row.get("files"),
        });
        let ty = TypeName { schema: row.get("schema"), name: row.get("name") };
        let (number, typmod) = (row.get("attnum"), row.get("typmod"));
        table.columns.push(LookedColumn {
            seen: SeenColumn::new(row.get("column"), ty, typmod).numbered(number),
            of_domain: row.get("of_domain"),
            missing: MissingValue::of(row.get("missing")),
        });
    }
    look.tables.retain(|oid, _| !look.locked.contains(oid));
    Ok(look)
}

/// The result of [`look_at_columns`].
#[derive(Debug, Default)]
pub struct ColumnsLook {
    pub tables: HashMap<u32, TableLook>,
    /// Tables whose columns may be about to change.
    pub locked: HashSet<u32>,
}
