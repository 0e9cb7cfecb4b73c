//! Reads what is inside composite types and arrays of domains: types with limits that the outer type's name does
//! not show.

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
    // A type cannot contain itself (`CheckAttributeType` in PostgreSQL's `heap.c`).
    let sql = "WITH RECURSIVE inside AS (
           SELECT q.type AS root, q.type, -1 AS typmod, ARRAY[]::pg_catalog.int8[] AS path
             FROM pg_catalog.unnest($1) q(type)
           UNION ALL
           SELECT i.root, b.type, b.typmod, i.path || b.at
             FROM inside i JOIN pg_catalog.pg_type t ON t.oid = i.type
            CROSS JOIN LATERAL (
              SELECT t.typelem, i.typmod, 0::pg_catalog.int8 WHERE t.typcategory = 'A' AND t.typelem <> 0
              UNION ALL
              SELECT t.typbasetype, CASE WHEN i.typmod >= 0 THEN i.typmod ELSE t.typtypmod END,
                     0::pg_catalog.int8
               WHERE t.typtype = 'd'
              UNION ALL
              SELECT a.atttypid, a.atttypmod, a.attnum::pg_catalog.int8
                FROM pg_catalog.pg_attribute a
               WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            ) b(type, typmod, at)
         )
         SELECT i.root, n.nspname::pg_catalog.text AS schema, t.typname::pg_catalog.text AS name, i.typmod
           FROM inside i
           JOIN pg_catalog.pg_type t ON t.oid = i.type
           JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
          WHERE t.typtype NOT IN ('c', 'd') AND t.typcategory <> 'A' AND i.type <> i.root
          ORDER BY i.root, i.path";
    let mut inside: HashMap<u32, Vec<InnerType>> = HashMap::new();
    for row in client.query_typed(sql, &[(&types, Type::OID_ARRAY)]).await? {
        let ty = TypeName { schema: row.get("schema"), name: row.get("name") };
        inside.entry(row.get("root")).or_default().push(InnerType { ty, typmod: row.get("typmod") });
    }
    Ok(inside)
}
