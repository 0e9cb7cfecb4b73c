//! Descriptions of target tables that are kept, with the fingerprints by which they are found to hold still.
//!
//! Nine queries describe any number of tables, but take tens of milliseconds, and most of that is planning. One
//! query tells for many tables whether their catalog rows are still those that were described.
//!
//! # Invariants
//! - A kept description is used only after its fingerprint has been compared ([`look_at`]).
//! - What keeps a change from being applied is never decided by a kept description: callers pass none then.
//! - A fingerprint is read before the description that is kept with it. If DDL comes between the two, the next
//!   comparison finds a difference.
//! - A table is kept only if its fingerprint covers everything that its description depends on. Partitioned
//!   tables, and tables with columns of composite types, of user ranges, of arrays of user types or of domains over
//!   user types are described anew each time.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::{GenericClient, Row};

use crate::pg::QualifiedName;
use crate::schema::TargetTable;

use super::error::CatalogError;
use super::target::{NAMED, failed, query_named, table_stamp_sql, target_tables};

/// Descriptions of a target's tables, by the tables' names.
#[derive(Debug, Clone, Default)]
pub struct KnownTables {
    /// What descriptions of all tables depend on: the run of the server, the role, and types.
    common: String,
    tables: HashMap<QualifiedName, KnownTable>,
}

#[derive(Debug, Clone)]
struct KnownTable {
    fingerprint: String,
    table: Arc<TargetTable>,
}

impl KnownTables {
    /// What is known of these tables.
    #[must_use]
    pub fn of(&self, names: &[QualifiedName]) -> Self {
        let find = |name: &QualifiedName| Some((name.clone(), self.tables.get(name)?.clone()));
        Self { common: self.common.clone(), tables: names.iter().filter_map(find).collect() }
    }

    /// Adds what a look at some tables has found. If what all depend on has changed, all others are forgotten.
    pub fn learn(&mut self, found: Self) {
        if self.common == found.common {
            self.tables.extend(found.tables);
        } else {
            *self = found;
        }
    }

    /// Forgets a table that has been found to be different.
    pub fn forget(&mut self, name: &QualifiedName) {
        self.tables.remove(name);
    }

    /// Forgets all tables but these.
    pub fn retain<'a>(&mut self, names: impl IntoIterator<Item = &'a QualifiedName>) {
        let mut former = std::mem::take(&mut self.tables);
        self.tables = names.into_iter().filter_map(|name| former.remove_entry(name)).collect();
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.tables.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

/// The result of [`look_at`].
#[derive(Debug)]
pub struct Look {
    /// The tables in the order of their names; none where the target has no such table. Tables after the first
    /// one are missing if another session has locked them.
    pub tables: Vec<(QualifiedName, Option<Arc<TargetTable>>)>,
    /// What can be kept of them.
    pub known: KnownTables,
}

/// Describes the first of these tables, and the others as far as that waits for no lock.
///
/// It takes one query if `known` has them as they are, and ten otherwise.
///
/// # Errors
///
/// A query failed.
pub async fn look_at<C: GenericClient + Sync>(
    client: &C,
    names: &[QualifiedName],
    known: KnownTables,
) -> Result<Look, CatalogError> {
    let rows = query_named(client, &fingerprint_sql(), names).await.map_err(failed("fingerprints"))?;
    let mut fingerprints = Fingerprints::of(&rows, names);
    let mut look = Look {
        tables: Vec::with_capacity(names.len()),
        known: KnownTables { common: std::mem::take(&mut fingerprints.common), tables: HashMap::new() },
    };
    let kept = if known.common == look.known.common { known.tables } else { HashMap::new() };
    let mut missing = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let now = fingerprints.tables.get(name);
        let unchanged = |known: &&KnownTable| Some(&known.fingerprint) == now;
        if let Some(known) = kept.get(name).filter(unchanged) {
            look.tables.push((name.clone(), Some(Arc::clone(&known.table))));
            look.known.tables.insert(name.clone(), known.clone());
        } else if at == 0 || !fingerprints.locked.contains(name) {
            missing.push(name.clone());
        }
    }
    for (name, table) in missing.iter().zip(target_tables(client, &missing).await?) {
        let table = table.map(Arc::new);
        if let (Some(table), Some(fingerprint)) = (&table, fingerprints.tables.remove(name)) {
            look.known.tables.insert(name.clone(), KnownTable { fingerprint, table: Arc::clone(table) });
        }
        look.tables.push((name.clone(), table));
    }
    Ok(look)
}

#[derive(Default)]
struct Fingerprints {
    common: String,
    /// The tables that can be kept.
    tables: HashMap<QualifiedName, String>,
    /// The tables that another session has locked against everybody.
    locked: Vec<QualifiedName>,
}

impl Fingerprints {
    fn of(rows: &[Row], names: &[QualifiedName]) -> Self {
        let mut found = Self::default();
        for row in rows {
            let at = usize::try_from(row.get::<_, i64>("ord") - 1).ok();
            let Some(name) = at.and_then(|at| names.get(at)) else { continue };
            if found.common.is_empty() {
                found.common = row.get("common");
            }
            if let Some(fingerprint) = row.get("fingerprint") {
                found.tables.insert(name.clone(), fingerprint);
            }
            if row.get("locked") {
                found.locked.push(name.clone());
            }
        }
        found
    }
}

/// The query for fingerprints. Those of a table are the transactions that wrote its catalog rows; TRUNCATE
/// changes them, too. They are NULL for tables that cannot be kept.
///
/// Some of the functions that describe a table wait for its locks (`pg_get_expr`), this query does not.
fn fingerprint_sql() -> String {
    format!(
        "SELECT q.ord, ({COMMON}) AS common,
                CASE WHEN c.relkind = 'r' AND NOT EXISTS (
                       SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
                        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                          AND a.atttypid >= {USER_OIDS}
                          AND NOT (t.typtype = 'e' OR t.typtype = 'b' AND t.typcategory <> 'A'
                                   OR t.typtype = 'd' AND t.typbasetype < {USER_OIDS}))
                THEN pg_catalog.concat_ws(' ', c.oid, c.xmin, {stamp},
                       (SELECT pg_catalog.sum(k.xmin::pg_catalog.text::pg_catalog.int8)
                          FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid), '/',
                       (SELECT pg_catalog.sum(x.xmin::pg_catalog.text::pg_catalog.int8)
                          FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
                         WHERE i.indrelid = c.oid)) END AS fingerprint,
                c.oid IN (SELECT l.relation FROM pg_catalog.pg_locks l
                           WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
                             AND l.pid <> pg_catalog.pg_backend_pid()
                             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d
                                                WHERE d.datname = pg_catalog.current_database())) AS locked
           FROM {NAMED}",
        stamp = table_stamp_sql("c.oid"),
    )
}

/// The first OID that is not PostgreSQL's own (`FirstNormalObjectId` in transam.h).
const USER_OIDS: u32 = 16_384;

/// What descriptions of all tables depend on. The start of the server stands for its history: a server that
/// was restored from a backup may give transaction identifiers again.
const COMMON: &str = "SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_postmaster_start_time(),
           pg_catalog.current_database(), r.oid, r.rolsuper, r.rolinherit, r.rolbypassrls,
           (SELECT pg_catalog.concat(pg_catalog.count(*), '/',
                     pg_catalog.sum(m.xmin::pg_catalog.text::pg_catalog.int8)) FROM pg_catalog.pg_auth_members m),
           (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(u.xid)) FROM (
             SELECT n.xmin::pg_catalog.text::pg_catalog.int8 AS xid FROM pg_catalog.pg_namespace n
              WHERE n.nspname::pg_catalog.text !~ '^pg_(toast_)?temp_'
             UNION ALL
             SELECT t.xmin::pg_catalog.text::pg_catalog.int8 FROM pg_catalog.pg_type t
              WHERE t.oid >= 16384 AND (t.typtype IN ('d', 'e', 'r', 'm')
                                        OR t.typtype = 'b' AND t.typcategory <> 'A')
             UNION ALL
             SELECT x.xmin::pg_catalog.text::pg_catalog.int8 FROM pg_catalog.pg_cast x WHERE x.oid >= 16384
             UNION ALL
             SELECT o.xmin::pg_catalog.text::pg_catalog.int8 FROM pg_catalog.pg_opclass o WHERE o.oid >= 16384
             UNION ALL
             SELECT p.xmin::pg_catalog.text::pg_catalog.int8 FROM pg_catalog.pg_amop p WHERE p.oid >= 16384
             UNION ALL
             SELECT o.xmin::pg_catalog.text::pg_catalog.int8 FROM pg_catalog.pg_operator o
              WHERE o.oid >= 16384) u))
      FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
