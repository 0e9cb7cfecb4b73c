//! Reads the target's catalog, version 12 and later: tables, keys, triggers, privileges.
//!
//! Columns and their types are read in `target_columns`.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row};

use crate::pg::QualifiedName;
use crate::schema::{
    CheckConstraint, FiringTriggers, Indexes, KeyEquality, LengthUnit, Partitioning, TableKind, TargetTable,
    UniqueKey,
};

use super::error::{CatalogError, Side};
use super::target_owners::{privileges, read_not_enforced, read_owners};
use super::unsigned;
use super::{catalog_char, target_columns};

pub(super) fn failed(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> CatalogError {
    move |source| CatalogError::Query { side: Side::Target, what, source }
}

/// Describes the tables of these names in their order; `None` where there is no relation.
///
/// It runs eleven queries for any number of names; those that do not depend on each other run
/// concurrently. Privileges are those of `current_user`.
///
/// # Errors
///
/// A query failed.
pub async fn target_tables<C: GenericClient + Sync>(
    client: &C,
    names: &[QualifiedName],
) -> Result<Vec<Option<TargetTable>>, CatalogError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let found = read_tables(client, names).await?;
    let mut oids: Vec<u32> = found.values().map(|table| table.oid).collect();
    // A name that was given twice is found twice.
    oids.sort_unstable();
    oids.dedup();
    let (trees, columns, checks, owners, not_enforced) = tokio::try_join!(
        read_trees(client, &oids),
        target_columns::read_columns(client, &oids),
        read_checks(client, &oids),
        read_owners(client, &oids),
        read_not_enforced(client, &oids),
    )?;
    let (keys, acts, foreign_keys) = tokio::try_join!(
        read_unique_keys(client, &trees),
        read_triggers(client, &trees),
        read_foreign_keys(client, &trees),
    )?;
    let partitioning = read_partitioning(client, &trees, &keys).await?;
    let describe = |mut table: TargetTable| {
        table.owner = owners.get(&table.oid).cloned();
        table.not_enforced = not_enforced.get(&table.oid).cloned().unwrap_or_default();
        let acts = acts.get(&table.oid).copied().unwrap_or_default();
        table.columns = columns.get(&table.oid).cloned().unwrap_or_default();
        table.unique_keys = keys.get(&table.oid).cloned().unwrap_or_default();
        table.checks = checks.get(&table.oid).cloned().unwrap_or_default();
        table.fires = acts.fires;
        table.has_ordinary_triggers = acts.ordinary;
        table.ordinary_before_row = acts.ordinary_before_row;
        table.has_foreign_keys = foreign_keys.contains(&table.oid);
        table.partitioning = partitioning.get(&table.oid).cloned();
        table
    };
    let mut described: HashMap<usize, TargetTable> =
        found.into_iter().map(|(at, table)| (at, describe(table))).collect();
    Ok((0..names.len()).map(|at| described.remove(&at)).collect())
}

/// Returns an expression for the [`TargetTable::stamp`] of the table whose OID is `oid`; it is NULL if
/// the table does not exist.
///
/// The expression sums up the transactions that wrote the catalog's rows of columns, indexes, triggers
/// and rules: DDL replaces such rows with younger ones. TRUNCATE, ANALYZE, VACUUM and new partitions
/// leave them alone. The name belongs to it, because statements find the table by that, and the owner, whose role they
/// may be run as.
#[must_use]
pub fn table_stamp_sql(oid: &str) -> String {
    let sum = |catalog: &str, key: &str| {
        format!(
            "(SELECT pg_catalog.sum(s.xmin::pg_catalog.text::pg_catalog.int8) FROM pg_catalog.{catalog} s \
             WHERE s.{key} OPERATOR(pg_catalog.=) {oid})"
        )
    };
    format!(
        "({} OPERATOR(pg_catalog.+) COALESCE({}, 0) OPERATOR(pg_catalog.+) COALESCE({}, 0) \
         OPERATOR(pg_catalog.+) COALESCE({}, 0) OPERATOR(pg_catalog.+) \
         (SELECT pg_catalog.hashtext(s.relname::pg_catalog.text)::pg_catalog.int8 \
             OPERATOR(pg_catalog.+) s.relnamespace::pg_catalog.int8 OPERATOR(pg_catalog.+) s.relowner::pg_catalog.int8 \
          FROM pg_catalog.pg_class s WHERE s.oid OPERATOR(pg_catalog.=) {oid}))::pg_catalog.int8",
        sum("pg_attribute", "attrelid"),
        sum("pg_index", "indrelid"),
        sum("pg_trigger", "tgrelid"),
        sum("pg_rewrite", "ev_class")
    )
}

/// The relations `c` in schemas `n` with the names `q` that [`query_named`] asks for. A cast to `name`
/// truncates: it lets the index be used, and the comparison as text excludes a truncated match.
pub(super) const NAMED: &str = "ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2))
                WITH ORDINALITY AS q(schema, name, ord)
           JOIN pg_catalog.pg_namespace n
             ON n.nspname = q.schema::pg_catalog.name AND n.nspname::pg_catalog.text = q.schema
           JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
            AND c.relname = q.name::pg_catalog.name AND c.relname::pg_catalog.text = q.name";

/// Runs a query about [`NAMED`] relations.
pub(super) async fn query_named<C: GenericClient + Sync>(
    client: &C,
    sql: &str,
    names: &[QualifiedName],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    client.query_typed(sql, &[(&schemas, Type::TEXT_ARRAY), (&tables, Type::TEXT_ARRAY)]).await
}

/// Reads relations by the position of their name, with the facts of their `pg_class` row.
async fn read_tables<C: GenericClient + Sync>(
    client: &C,
    names: &[QualifiedName],
) -> Result<HashMap<usize, TargetTable>, CatalogError> {
    let privilege = |kind: &str| {
        format!(
            "COALESCE(pg_catalog.has_table_privilege(c.oid, '{kind}') OR (
               SELECT pg_catalog.bool_and(pg_catalog.has_column_privilege(c.oid, a.attnum, '{kind}'))
                 FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), false)"
        )
    };
    let sql = format!(
        "SELECT q.ord, c.oid, c.relkind, {stamp} AS stamp,
                COALESCE(r.oid, c.oid) AS family, r.relname::pg_catalog.text AS root_name,
                (SELECT s.nspname::pg_catalog.text FROM pg_catalog.pg_namespace s
                  WHERE s.oid = r.relnamespace) AS root_schema,
                pg_catalog.current_setting('server_encoding') AS encoding,
                pg_catalog.row_security_active(c.oid) AS row_security,
                pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS schema_usage,
                {select} AS can_select, {insert} AS can_insert, {update} AS can_update,
                pg_catalog.has_table_privilege(c.oid, 'DELETE') AS can_delete,
                pg_catalog.has_table_privilege(c.oid, 'TRUNCATE') AS can_truncate,
                x.indexes, x.unique_indexes, x.computing
           FROM {NAMED}
           LEFT JOIN pg_catalog.pg_class r ON r.oid = pg_catalog.pg_partition_root(c.oid)
          CROSS JOIN LATERAL (
            SELECT pg_catalog.count(*) AS indexes,
                   pg_catalog.count(*) FILTER (WHERE i.indisunique OR i.indisexclusion) AS unique_indexes,
                   COALESCE(pg_catalog.bool_or(i.indexprs IS NOT NULL OR i.indpred IS NOT NULL), false)
                     AS computing
              FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid) x",
        stamp = table_stamp_sql("c.oid"),
        select = privilege("SELECT"),
        insert = privilege("INSERT"),
        update = privilege("UPDATE"),
    );
    let rows = query_named(client, &sql, names).await.map_err(failed("tables"))?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let at = usize::try_from(row.get::<_, i64>("ord") - 1).ok()?;
            Some((at, bare_table(names.get(at)?, row)))
        })
        .collect())
}

fn bare_table(name: &QualifiedName, row: &Row) -> TargetTable {
    let count = |column| u32::try_from(row.get::<_, i64>(column)).unwrap_or(u32::MAX);
    let encoding: String = row.get("encoding");
    TargetTable {
        oid: row.get("oid"),
        stamp: row.get::<_, Option<i64>>("stamp").unwrap_or_default(),
        name: name.clone(),
        kind: match catalog_char(row, "relkind") {
            'r' => TableKind::Table,
            'p' => TableKind::Partitioned,
            other => TableKind::Other(other),
        },
        family_oid: row.get("family"),
        root: row
            .get::<_, Option<String>>("root_schema")
            .zip(row.get::<_, Option<String>>("root_name"))
            .map(|(schema, name)| QualifiedName { schema, name })
            .filter(|root| root != name),
        columns: Vec::new(),
        unique_keys: Vec::new(),
        fires: FiringTriggers::default(),
        has_foreign_keys: false,
        has_ordinary_triggers: false,
        ordinary_before_row: false,
        row_security: row.get("row_security"),
        privileges: privileges(row),
        owner: None,
        not_enforced: Vec::new(),
        checks: Vec::new(),
        indexes: Indexes {
            unique: count("unique_indexes"),
            all: count("indexes"),
            computing: row.get("computing"),
        },
        utf8: encoding == "UTF8",
        length_unit: if encoding == "SQL_ASCII" { LengthUnit::Bytes } else { LengthUnit::Characters },
        partitioning: None,
    }
}

/// Each requested table with itself and all partitions below it.
#[derive(Default)]
struct Trees {
    roots: Vec<u32>,
    members: Vec<u32>,
    /// By root, the names of the relations that hold rows: those that are not partitioned.
    leaves: HashMap<u32, Vec<(u32, QualifiedName)>>,
}

async fn read_trees<C: GenericClient + Sync>(client: &C, tables: &[u32]) -> Result<Trees, CatalogError> {
    let sql = "WITH RECURSIVE tree(root, member) AS (
                 SELECT t, t FROM pg_catalog.unnest($1) t
                 UNION
                 SELECT t.root, i.inhrelid FROM tree t
                   JOIN pg_catalog.pg_inherits i ON i.inhparent = t.member
                   JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
               )
               SELECT t.root, t.member, c.relkind,
                      n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name
                 FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.member
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                ORDER BY 4, 5";
    let rows = client.query_typed(sql, &[(&tables, Type::OID_ARRAY)]).await;
    let mut trees = Trees::default();
    for row in rows.map_err(failed("partitions"))? {
        let (root, member) = (row.get("root"), row.get("member"));
        trees.roots.push(root);
        trees.members.push(member);
        if catalog_char(&row, "relkind") != 'p' && root != member {
            let name = QualifiedName::new(row.get::<_, String>("schema"), row.get::<_, String>("name"));
            trees.leaves.entry(root).or_default().push((member, name));
        }
    }
    Ok(trees)
}

/// Reads the unique keys of every table and partition: indexes that are enforced for all rows at the
/// end of each statement.
///
/// An index compares values as its columns' operators do if its operator class is the type's default or
/// a built-in one of a built-in type (`text_pattern_ops` has the equality of `text`), and if its
/// collation is the column's or both are deterministic. For domains, the type below is used.
async fn read_unique_keys<C: GenericClient + Sync>(
    client: &C,
    trees: &Trees,
) -> Result<HashMap<u32, Vec<UniqueKey>>, CatalogError> {
    let sql = "SELECT i.indrelid, c.relname::pg_catalog.text AS name, i.indisprimary,
                      ARRAY(SELECT a.attname::pg_catalog.text
                              FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) k
                              JOIN pg_catalog.pg_attribute a
                                ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k]
                             ORDER BY k) AS columns,
                      e.own_operators, e.own_collation, e.deterministic
                 FROM pg_catalog.pg_index i
                CROSS JOIN LATERAL (
                  SELECT pg_catalog.bool_and(o.opcdefault AND (o.opcintype = b.oid OR p.typtype = 'p')
                           OR b.typnamespace = 'pg_catalog'::pg_catalog.regnamespace
                              AND o.opcnamespace = b.typnamespace) AS own_operators,
                         pg_catalog.bool_and(a.attcollation = i.indcollation[k]
                           OR (COALESCE(ac.collisdeterministic, true)
                               AND COALESCE(ic.collisdeterministic, true))) AS own_collation,
                         pg_catalog.bool_and(COALESCE(ic.collisdeterministic, true)) AS deterministic
                    FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) k
                    JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[k]
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k]
                    JOIN pg_catalog.pg_type p ON p.oid = o.opcintype
                    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                    JOIN pg_catalog.pg_type b
                      ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
                    LEFT JOIN pg_catalog.pg_collation ac ON ac.oid = a.attcollation
                    LEFT JOIN pg_catalog.pg_collation ic ON ic.oid = i.indcollation[k]) e
                 JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
                WHERE i.indrelid = ANY ($1) AND i.indisunique AND i.indisvalid AND i.indisready
                  AND i.indislive AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
                ORDER BY i.indrelid, i.indisprimary DESC, c.relname";
    let rows = client.query_typed(sql, &[(&trees.members, Type::OID_ARRAY)]).await;
    let mut keys: HashMap<u32, Vec<UniqueKey>> = HashMap::new();
    for row in rows.map_err(failed("unique keys"))? {
        keys.entry(row.get("indrelid")).or_default().push(UniqueKey {
            name: row.get("name"),
            primary: row.get("indisprimary"),
            columns: row.get("columns"),
            equality: match (row.get("own_operators"), row.get("own_collation"), row.get("deterministic")) {
                (true, true, true) => KeyEquality::Deterministic,
                (true, true, false) => KeyEquality::Nondeterministic,
                _ => KeyEquality::Other,
            },
        });
    }
    Ok(keys)
}

async fn read_checks<C: GenericClient + Sync>(
    client: &C,
    tables: &[u32],
) -> Result<HashMap<u32, Vec<CheckConstraint>>, CatalogError> {
    let sql = "SELECT k.conrelid, k.conname::pg_catalog.text AS name,
                      pg_catalog.pg_get_constraintdef(k.oid) AS definition,
                      ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
                             WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)
                             ORDER BY a.attnum) AS columns
                 FROM pg_catalog.pg_constraint k
                WHERE k.conrelid = ANY ($1) AND k.contype IN ('c', 'x') ORDER BY k.conname";
    let rows = client.query_typed(sql, &[(&tables, Type::OID_ARRAY)]).await;
    let mut checks: HashMap<u32, Vec<CheckConstraint>> = HashMap::new();
    for row in rows.map_err(failed("check constraints"))? {
        checks.entry(row.get("conrelid")).or_default().push(CheckConstraint {
            name: row.get("name"),
            columns: row.get("columns"),
            definition: row.get("definition"),
        });
    }
    Ok(checks)
}

/// What acts on a table's rows without being asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Acts {
    fires: FiringTriggers,
    ordinary: bool,
    ordinary_before_row: bool,
}

/// Reads triggers and rules of the tables and all their partitions.
///
/// Internal triggers are included: a foreign key's trigger that is set to ENABLE ALWAYS acts in a
/// replica session, and version 12 marks the clones on partitions as internal. Bits of `tgtype` are
/// PostgreSQL's `TRIGGER_TYPE_ROW` (1), `_BEFORE` (2) and `_INSTEAD` (64).
async fn read_triggers<C: GenericClient + Sync>(
    client: &C,
    trees: &Trees,
) -> Result<HashMap<u32, Acts>, CatalogError> {
    let sql = "SELECT m.root,
                      pg_catalog.bool_or(x.enabled IN ('R', 'A')) AS fires,
                      pg_catalog.bool_or(x.enabled IN ('R', 'A') AND x.intercepts) AS before_row,
                      pg_catalog.bool_or(x.enabled = 'O') AS ordinary,
                      pg_catalog.bool_or(x.enabled = 'O' AND x.intercepts) AS ordinary_before_row
                 FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS m(root, member)
                 JOIN (SELECT t.tgrelid AS relation, t.tgenabled AS enabled,
                              (t.tgtype & 1) <> 0 AND (t.tgtype & 66) <> 0 AS intercepts
                         FROM pg_catalog.pg_trigger t
                       UNION ALL
                       SELECT r.ev_class, r.ev_enabled, r.is_instead
                         FROM pg_catalog.pg_rewrite r WHERE r.ev_type <> '1') x ON x.relation = m.member
                GROUP BY m.root";
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&trees.roots, Type::OID_ARRAY), (&trees.members, Type::OID_ARRAY)];
    let rows = client.query_typed(sql, &parameters).await.map_err(failed("triggers"))?;
    let acts = |row: &Row| Acts {
        fires: FiringTriggers { any: row.get("fires"), before_row: row.get("before_row") },
        ordinary: row.get("ordinary"),
        ordinary_before_row: row.get("ordinary_before_row"),
    };
    Ok(rows.iter().map(|row| (row.get("root"), acts(row))).collect())
}

/// Returns the tables with a foreign key from or to them or one of their partitions.
async fn read_foreign_keys<C: GenericClient + Sync>(
    client: &C,
    trees: &Trees,
) -> Result<BTreeSet<u32>, CatalogError> {
    let sql = "SELECT DISTINCT m.root
                 FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS m(root, member)
                 JOIN pg_catalog.pg_constraint k
                   ON k.contype = 'f' AND (k.conrelid = m.member OR k.confrelid = m.member)";
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&trees.roots, Type::OID_ARRAY), (&trees.members, Type::OID_ARRAY)];
    let rows = client.query_typed(sql, &parameters).await.map_err(failed("foreign keys"))?;
    Ok(rows.iter().map(|row| row.get("root")).collect())
}

async fn read_partitioning<C: GenericClient + Sync>(
    client: &C,
    trees: &Trees,
    keys: &HashMap<u32, Vec<UniqueKey>>,
) -> Result<HashMap<u32, Partitioning>, CatalogError> {
    let sql = "SELECT p.partrelid,
                      CASE WHEN p.partexprs IS NULL THEN
                        ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
                               WHERE a.attrelid = p.partrelid
                                 AND a.attnum = ANY (p.partattrs::pg_catalog.int2[])
                               ORDER BY a.attnum) END AS columns
                 FROM pg_catalog.pg_partitioned_table p WHERE p.partrelid = ANY ($1)";
    let rows = client.query_typed(sql, &[(&trees.roots, Type::OID_ARRAY)]).await;
    let describe = |row: &Row| {
        let root: u32 = row.get("partrelid");
        let leaves = trees.leaves.get(&root).map(Vec::as_slice).unwrap_or_default();
        let partitioning = Partitioning {
            key: row.get("columns"),
            leaves: leaves.iter().map(|(_, name)| name.clone()).collect(),
            leaf_keys: common_keys(leaves, keys),
        };
        (root, partitioning)
    };
    Ok(rows.map_err(failed("partition keys"))?.iter().map(describe).collect())
}

/// Returns the keys of the first leaf for which every other leaf has one on the same columns, in any
/// order.
fn common_keys(leaves: &[(u32, QualifiedName)], keys: &HashMap<u32, Vec<UniqueKey>>) -> Vec<UniqueKey> {
    let of = |leaf: &(u32, QualifiedName)| keys.get(&leaf.0).map(Vec::as_slice).unwrap_or_default();
    let set = |key: &UniqueKey| key.columns.iter().cloned().collect::<BTreeSet<String>>();
    let Some((first, others)) = leaves.split_first() else { return Vec::new() };
    let everywhere = |key: &&UniqueKey| {
        let columns = set(key);
        others.iter().all(|leaf| of(leaf).iter().any(|other| set(other) == columns))
    };
    of(first).iter().filter(everywhere).cloned().collect()
}

/// What the applying role and the server allow, independent of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFacts {
    pub server_version_num: u32,
    pub server_encoding: String,
    /// The applying role (`current_user`).
    pub role: String,
    pub role_is_superuser: bool,
    /// Whether the role may set `session_replication_role = replica`, so that ordinary triggers and
    /// foreign keys do not act.
    pub may_be_replica: bool,
    /// Whether applied transactions can have a replication origin.
    pub may_use_origins: bool,
    /// Largest number of origins that the server allows.
    pub origins_max: u32,
    /// Whether the role may create schemas in the database; schema `pgsluice` needs that once.
    pub may_create_schema: bool,
    /// Whether the server is a standby, which accepts no writes.
    pub in_recovery: bool,
}

/// Functions that a session needs for marking its transactions with an origin.
const ORIGIN_FUNCTIONS: &[&str] =
    &["pg_replication_origin_create", "pg_replication_origin_oid", "pg_replication_origin_session_setup"];

/// Reads facts about the target's server and role.
///
/// Whether the role may set `session_replication_role` is found by trying, because some providers allow
/// it by hooks that no catalog shows. The trial has an implicit transaction of its own, so the
/// connection must not be inside a transaction: a refusal would abort that.
///
/// # Errors
///
/// A query failed, except for the refusal that this finds out.
pub async fn target_facts(client: &tokio_postgres::Client) -> Result<TargetFacts, CatalogError> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int8 AS version,
                      pg_catalog.current_setting('server_encoding') AS encoding,
                      r.rolname::pg_catalog.text AS role, r.rolsuper,
                      pg_catalog.pg_is_in_recovery() AS in_recovery,
                      pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
                        AS may_create,
                      COALESCE(pg_catalog.current_setting('max_active_replication_origins', true),
                               pg_catalog.current_setting('max_replication_slots'))::pg_catalog.int8
                        AS origins,
                      (SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE'))
                         FROM pg_catalog.pg_proc p
                        WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
                          AND p.proname::pg_catalog.text = ANY ($1)) AS origin_functions
                 FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = client.query_typed_one(sql, &[(&ORIGIN_FUNCTIONS, Type::TEXT_ARRAY)]).await;
    let row = row.map_err(failed("settings"))?;
    let (version, superuser) = (unsigned(&row, "version"), row.get("rolsuper"));
    // Before 14 the functions themselves refuse every role but a superuser.
    let executable = superuser || (version >= 140_000 && row.get("origin_functions"));
    Ok(TargetFacts {
        server_version_num: version,
        server_encoding: row.get("encoding"),
        role: row.get("role"),
        role_is_superuser: superuser,
        may_be_replica: may_be_replica(client).await?,
        may_use_origins: executable && unsigned(&row, "origins") > 0,
        origins_max: unsigned(&row, "origins"),
        may_create_schema: row.get("may_create"),
        in_recovery: row.get("in_recovery"),
    })
}

async fn may_be_replica(client: &tokio_postgres::Client) -> Result<bool, CatalogError> {
    let sql = "SELECT pg_catalog.set_config('session_replication_role', 'replica', true)";
    match client.query_typed_one(sql, &[]).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(error) => Err(failed("session_replication_role")(error)),
    }
}
