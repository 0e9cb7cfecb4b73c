//! Reads what is inside composite types, ranges and arrays of domains: types with limits, and in an order, that the outer
//! type's name does not show.

use std::collections::HashMap;

use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use crate::schema::{InnerType, TypeName};

use super::publisher::FIRST_NORMAL_OID;

/// Returns the built-in types inside those of `types` that users have created, in order, by the type's OID.
pub(super) async fn read_inner_types<C: GenericClient + Sync>(
    client: &C,
    types: impl Iterator<Item = u32>,
) -> Result<HashMap<u32, Vec<InnerType>>, tokio_postgres::Error> {
    let mut types: Vec<u32> = types.filter(|&oid| oid >= FIRST_NORMAL_OID).collect();
    types.sort_unstable();
    types.dedup();
    if types.is_empty() {
        return Ok(HashMap::new());
    }
    // A type cannot contain itself (`CheckAttributeType` in PostgreSQL's `heap.c`). Servers before 14 have no
    // multiranges, and no column that names them.
    let sql = format!(
        "WITH RECURSIVE inside AS (
           SELECT q.type AS root, q.type, -1 AS typmod, ARRAY[]::pg_catalog.int8[] AS place,
                  ARRAY[]::pg_catalog.text[] AS path
             FROM pg_catalog.unnest($1) q(type)
           UNION ALL
           SELECT i.root, b.type, b.typmod, i.place || b.at, i.path || b.name
             FROM inside i JOIN pg_catalog.pg_type t ON t.oid = i.type
            CROSS JOIN LATERAL (
              SELECT t.typelem, i.typmod, 0::pg_catalog.int8, ARRAY[]::pg_catalog.text[] WHERE t.typcategory = 'A' AND t.typelem <> 0
              UNION ALL
              SELECT t.typbasetype, CASE WHEN i.typmod >= 0 THEN i.typmod ELSE t.typtypmod END,
                     0, ARRAY[]::pg_catalog.text[]
               WHERE t.typtype = 'd'
              UNION ALL
              SELECT r.rngsubtype, -1, 0, ARRAY[]::pg_catalog.text[]
                FROM pg_catalog.pg_range r WHERE t.oid >= {FIRST_NORMAL_OID}
                 AND t.oid IN (r.rngtypid, (pg_catalog.to_jsonb(r) OPERATOR(pg_catalog.->>) 'rngmultitypid')
                                             ::pg_catalog.oid)
              UNION ALL
              SELECT a.atttypid, a.atttypmod, a.attnum, ARRAY[a.attname::pg_catalog.text COLLATE pg_catalog.\"default\"]
                FROM pg_catalog.pg_attribute a
               WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            ) b(type, typmod, at, name)
         )
         SELECT i.root, n.nspname::pg_catalog.text AS schema, t.typname::pg_catalog.text AS name, i.typmod, i.path
           FROM inside i
           JOIN pg_catalog.pg_type t ON t.oid = i.type
           JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
          WHERE t.typtype NOT IN ('c', 'd') AND t.typcategory <> 'A' AND i.type <> i.root
            AND NOT (t.typtype IN ('r', 'm') AND t.oid >= {FIRST_NORMAL_OID})
          ORDER BY i.root, i.place"
    );
    let mut inside: HashMap<u32, Vec<InnerType>> = HashMap::new();
    for row in client.query_typed(&sql, &[(&types, Type::OID_ARRAY)]).await? {
        let ty = TypeName { schema: row.get("schema"), name: row.get("name") };
        inside.entry(row.get("root")).or_default().push(InnerType {
            path: row.get("path"),
            ty,
            typmod: row.get("typmod"),
        });
    }
    Ok(inside)
}
