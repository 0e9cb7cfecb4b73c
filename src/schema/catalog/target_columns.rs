//! Reads the target's columns and the equality operators of their types.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use crate::pg::QualifiedName;
use crate::schema::binary::ColumnType;
use crate::schema::older_rows::MissingValue;
use crate::schema::{ArrayInput, ColumnDefault, InnerType, TargetColumn, TypeName};

use super::catalog_char;
use super::column_facts::missing_values_sql;
use super::error::CatalogError;
use super::inner_types::read_inner_types;
use super::target::{NAMED, failed, query_named};

/// Returns the types of these tables' columns in the names' order; nothing where there is no relation.
///
/// It is for callers that need only types, since [`target_tables`](super::target_tables) takes a new
/// session several times as long.
///
/// # Errors
///
/// A query failed.
pub async fn target_column_types<C: GenericClient + Sync>(
    client: &C,
    names: &[QualifiedName],
) -> Result<Vec<Vec<ColumnType>>, CatalogError> {
    let sql = format!(
        "WITH RECURSIVE col AS (
           SELECT q.ord, a.attname, a.atttypid, a.atttypmod
             FROM {NAMED}
             JOIN pg_catalog.pg_attribute a
               ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         ), below AS (
           SELECT DISTINCT c.atttypid AS type, c.atttypid AS base, -1 AS typmod FROM col c
           UNION ALL
           SELECT b.type, t.typbasetype, CASE WHEN b.typmod >= 0 THEN b.typmod ELSE t.typtypmod END
             FROM below b JOIN pg_catalog.pg_type t ON t.oid = b.base AND t.typtype = 'd'
         )
         SELECT c.ord, c.attname::pg_catalog.text AS name, bn.nspname::pg_catalog.text AS base_schema,
                bt.typname::pg_catalog.text AS base_name, {ARRAYS} AS arrays,
                CASE WHEN c.atttypmod >= 0 THEN c.atttypmod ELSE b.typmod END AS typmod
           FROM col c
           JOIN below b ON b.type = c.atttypid
           JOIN pg_catalog.pg_type bt ON bt.oid = b.base AND bt.typtype <> 'd'
           JOIN pg_catalog.pg_namespace bn ON bn.oid = bt.typnamespace"
    );
    let rows = query_named(client, &sql, names).await.map_err(failed("columns"))?;
    let mut types = vec![Vec::new(); names.len()];
    for row in &rows {
        let at = usize::try_from(row.get::<_, i64>("ord") - 1).ok();
        if let Some(of_table) = at.and_then(|at| types.get_mut(at)) {
            let base_type = TypeName { schema: row.get("base_schema"), name: row.get("base_name") };
            let (name, typmod) = (row.get("name"), row.get("typmod"));
            of_table.push(ColumnType { name, base_type, typmod, array_input: array_input(row) });
        }
    }
    Ok(types)
}

/// SQL condition for types `bt` whose arrays can be written as for [`ArrayInput::OfType`].
const ARRAYS: &str = "bt.typtype IN ('b', 'e', 'r', 'm') AND bt.typcategory <> 'A' AND bt.typarray <> 0 \
    AND bt.typdelim = ','";

fn array_input(row: &Row) -> ArrayInput {
    if row.get("arrays") { ArrayInput::OfType } else { ArrayInput::OfText }
}

/// Reads the columns of each table in attribute order, with two queries for any number of tables.
pub(super) async fn read_columns<C: GenericClient + Sync>(
    client: &C,
    tables: &[u32],
) -> Result<HashMap<u32, Vec<TargetColumn>>, CatalogError> {
    // `below` walks down a column type's domains and keeps the first typmod, NOT NULL and DEFAULT that
    // it meets. The outermost domain's default counts (`getTypeDefault` in rewriteHandler.c reads only
    // that one; each domain inherited it when it was created).
    let sql = format!(
        "WITH RECURSIVE below AS (
           SELECT DISTINCT a.atttypid AS type, a.atttypid AS base, -1 AS typmod,
                  NULL::pg_catalog.oid AS not_null
             FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
           UNION ALL
           SELECT b.type, t.typbasetype, CASE WHEN b.typmod >= 0 THEN b.typmod ELSE t.typtypmod END,
                  CASE WHEN b.not_null IS NULL AND t.typnotnull THEN t.oid ELSE b.not_null END
             FROM below b JOIN pg_catalog.pg_type t ON t.oid = b.base AND t.typtype = 'd'
         )
         SELECT a.attrelid, a.attnum, a.attname::pg_catalog.text AS name, a.atttypid,
                tn.nspname::pg_catalog.text AS type_schema, t.typname::pg_catalog.text AS type_name,
                b.base, bn.nspname::pg_catalog.text AS base_schema,
                bt.typname::pg_catalog.text AS base_name,
                CASE WHEN a.atttypmod >= 0 THEN a.atttypmod ELSE b.typmod END AS typmod,
                pg_catalog.format_type(a.atttypid, a.atttypmod) AS display,
                a.attnotnull OR b.not_null IS NOT NULL AS not_null,
                nn.nspname::pg_catalog.text AS domain_schema, nt.typname::pg_catalog.text AS domain_name,
                a.attidentity, a.attgenerated,
                {ARRAYS} AS arrays, COALESCE(l.collisdeterministic, true) AS deterministic,
                COALESCE(pg_catalog.pg_get_expr(d.adbin, d.adrelid), t.typdefault) AS default_sql,
                {missing} AS missing,
                a.xmin = s.xmin AND COALESCE(d.xmin = s.xmin, true) AS as_created
           FROM pg_catalog.pg_attribute a
           JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
           -- The row of the system column ctid stays as the table was created.
           JOIN pg_catalog.pg_attribute s ON s.attrelid = a.attrelid AND s.attnum = -1
           JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
           JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
           JOIN below b ON b.type = a.atttypid
           JOIN pg_catalog.pg_type bt ON bt.oid = b.base AND bt.typtype <> 'd'
           JOIN pg_catalog.pg_namespace bn ON bn.oid = bt.typnamespace
           LEFT JOIN pg_catalog.pg_type nt ON nt.oid = b.not_null
           LEFT JOIN pg_catalog.pg_namespace nn ON nn.oid = nt.typnamespace
           LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
           LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
          ORDER BY a.attrelid, a.attnum",
        missing = missing_values_sql(),
    );
    let rows = client.query_typed(&sql, &[(&tables, Type::OID_ARRAY)]).await;
    let rows = rows.map_err(failed("columns"))?;
    let mut types: Vec<u32> = rows.iter().map(|row| row.get("base")).collect();
    types.sort_unstable();
    types.dedup();
    let equality = read_equality(client, &types).await?;
    let inner = read_inner_types(client, types.iter().copied()).await.map_err(failed("types of columns"))?;
    let mut columns: HashMap<u32, Vec<TargetColumn>> = HashMap::new();
    for row in &rows {
        let base: u32 = row.get("base");
        let (equality, inner_types) = (equality.get(&base).cloned(), inner.get(&base).cloned());
        let column = column(row, equality, inner_types.unwrap_or_default());
        columns.entry(row.get("attrelid")).or_default().push(column);
    }
    Ok(columns)
}

fn column(row: &Row, equality: Option<TypeName>, inner_types: Vec<InnerType>) -> TargetColumn {
    let default_sql: Option<String> = row.get("default_sql");
    let generated = catalog_char(row, "attgenerated");
    let default = match (catalog_char(row, "attidentity"), generated, &default_sql) {
        ('a', _, _) => ColumnDefault::IdentityAlways,
        ('d', _, _) => ColumnDefault::IdentityByDefault,
        (_, 's' | 'v', _) => ColumnDefault::Generated,
        // `DEFAULT NULL` is the same as no default; the catalog keeps it only for a domain.
        (_, _, Some(sql)) if sql != "NULL" && !sql.starts_with("NULL::") => ColumnDefault::Expression,
        (_, _, _) => ColumnDefault::None,
    };
    TargetColumn {
        name: row.get("name"),
        attnum: row.get("attnum"),
        ty: TypeName { schema: row.get("type_schema"), name: row.get("type_name") },
        type_oid: row.get("atttypid"),
        typmod: row.get("typmod"),
        array_input: array_input(row),
        base_type: TypeName { schema: row.get("base_schema"), name: row.get("base_name") },
        display_type: row.get("display"),
        not_null: row.get("not_null"),
        not_null_domain: row
            .get::<_, Option<String>>("domain_schema")
            .zip(row.get::<_, Option<String>>("domain_name"))
            .map(|(schema, name)| TypeName { schema, name }),
        default,
        default_sql,
        missing: MissingValue::of(row.get("missing")),
        is_as_created: row.get("as_created"),
        is_virtual: generated == 'v',
        equality,
        deterministic: row.get("deterministic"),
        inner_types,
    }
}

/// Reads the equality operator of each type that has one.
///
/// It follows `lookup_type_cache` (`typcache.c`): strategy 3 of the default btree operator class, or
/// strategy 1 of the default hash class. The class is the type's own or, failing that, that of a type
/// to which it coerces without conversion, a preferred one first (`GetDefaultOpClass`, `indexcmds.c`).
/// A polymorphic class (arrays, records) counts only if all types inside have equality, too, so the
/// types below each one are walked and must all pass.
async fn read_equality<C: GenericClient + Sync>(
    client: &C,
    types: &[u32],
) -> Result<HashMap<u32, TypeName>, CatalogError> {
    let sql = "WITH RECURSIVE needs(root, type) AS (
           SELECT t, t FROM pg_catalog.unnest($1) t
           UNION
           SELECT n.root, inner_type.oid FROM needs n CROSS JOIN LATERAL (
             SELECT t.typelem FROM pg_catalog.pg_type t
              WHERE t.oid = n.type AND t.typelem <> 0 AND t.typlen = -1
             UNION ALL
             SELECT t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = n.type AND t.typtype = 'd'
             UNION ALL
             SELECT a.atttypid FROM pg_catalog.pg_type t
               JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid
              WHERE t.oid = n.type AND t.typtype = 'c' AND a.attnum > 0 AND NOT a.attisdropped
           ) inner_type(oid)
         ), inside AS (
           SELECT DISTINCT t.oid, t.typtype, t.typelem <> 0 AND t.typlen = -1 AS is_array, t.typcategory
             FROM needs n JOIN pg_catalog.pg_type t ON t.oid = n.type WHERE t.typtype <> 'd'
         ), operator AS (
           SELECT DISTINCT ON (i.oid) i.oid, o.oprname, o.oprnamespace
             FROM inside i
             JOIN pg_catalog.pg_opclass c ON c.opcdefault
             JOIN pg_catalog.pg_type k ON k.oid = c.opcintype
             JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname IN ('btree', 'hash')
             JOIN pg_catalog.pg_amop p
               ON p.amopfamily = c.opcfamily AND p.amoplefttype = c.opcintype
              AND p.amoprighttype = c.opcintype AND p.amoppurpose = 's'
              AND p.amopstrategy = CASE m.amname WHEN 'btree' THEN 3 ELSE 1 END
             JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr
            WHERE c.opcintype = i.oid
               OR (k.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
                   AND k.typname = CASE WHEN i.is_array THEN 'anyarray' ELSE
                         CASE i.typtype WHEN 'e' THEN 'anyenum' WHEN 'r' THEN 'anyrange'
                                        WHEN 'm' THEN 'anymultirange' WHEN 'c' THEN 'record' END END)
               OR EXISTS (SELECT FROM pg_catalog.pg_cast x
                           WHERE x.castsource = i.oid AND x.casttarget = c.opcintype
                             AND x.castmethod = 'b' AND x.castcontext = 'i')
            ORDER BY i.oid, m.amname, c.opcintype <> i.oid,
                     NOT (k.typispreferred AND k.typcategory = i.typcategory), c.opcintype
         )
         SELECT t AS type, n.nspname::pg_catalog.text AS schema, o.oprname::pg_catalog.text AS name
           FROM pg_catalog.unnest($1) t
           JOIN operator o ON o.oid = t
           JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
          WHERE NOT EXISTS (SELECT FROM needs d JOIN inside i ON i.oid = d.type
                             WHERE d.root = t AND NOT EXISTS (SELECT FROM operator p WHERE p.oid = i.oid))";
    let rows = client.query_typed(sql, &[(&types, Type::OID_ARRAY)]).await;
    let rows = rows.map_err(failed("equality operators"))?;
    let name = |row: &Row| TypeName { schema: row.get("schema"), name: row.get("name") };
    Ok(rows.iter().map(|row| (row.get("type"), name(row))).collect())
}
