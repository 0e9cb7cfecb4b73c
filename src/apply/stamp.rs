//! Whether target tables are still what their plans were made for.
//!
//! DDL on the target sends no message (EDGE_CASES 13). Much of it makes a statement fail, and a
//! failure has the table looked at again. But a prepared statement outlives a change of its column's
//! type by an assignment cast: a `numeric(12,2)` that has become a `numeric(12,0)` would round, and
//! say nothing. So every transaction asks, before its COMMIT, whether the catalog rows behind its
//! tables are those that the plans were made from. By then it holds a lock on each table that no
//! such DDL gets past, so the answer is exact.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::apply::{ApplyError, TableContext};
use crate::pg::QualifiedName;
use crate::schema::catalog::table_stamp_sql;

/// Tables and their stamps, by the plan's id.
#[derive(Debug, Default)]
pub(crate) struct Stamps(BTreeMap<u64, (u32, i64, QualifiedName)>);

impl Stamps {
    pub(crate) fn add(&mut self, table: &TableContext) {
        let plan = &table.plan;
        self.0.entry(table.id).or_insert_with(|| (plan.target_oid, plan.target_stamp, plan.target.clone()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// OIDs and stamps, as [`changed_sql`] and [`guard_sql`] take them.
    pub(crate) fn parameters(&self) -> (Vec<u32>, Vec<i64>) {
        self.0.values().map(|(oid, stamp, _)| (*oid, *stamp)).unzip()
    }

    /// Fails if a table has changed since it was planned.
    pub(crate) async fn check(&self, client: &Client) -> Result<(), ApplyError> {
        if self.is_empty() {
            return Ok(());
        }
        let (oids, stamps) = self.parameters();
        let changed = client.query_opt(&changed_sql(), &[&oids, &stamps]).await?;
        let Some(row) = changed else { return Ok(()) };
        let oid: u32 = row.try_get(0)?;
        let name = self.0.values().find(|(known, _, _)| *known == oid).map(|(_, _, name)| name.clone());
        Err(ApplyError::TargetChanged(name.unwrap_or_else(|| QualifiedName::new("", ""))))
    }
}

fn changed_sql() -> String {
    format!("SELECT t.oid {} LIMIT 1", changed(1))
}

/// The same, failing by itself (a division by zero), so that COMMIT can be sent behind it unseen.
pub(crate) fn guard_sql() -> String {
    format!("SELECT {}", guard(1))
}

/// The expression that fails: OIDs are parameter `first`, stamps the one after.
pub(crate) fn guard(first: usize) -> String {
    format!("1 / (CASE WHEN EXISTS (SELECT {}) THEN 0 ELSE 1 END)", changed(first))
}

fn changed(first: usize) -> String {
    format!(
        "FROM ROWS FROM (pg_catalog.unnest(${first}::pg_catalog.oid[]), \
         pg_catalog.unnest(${}::pg_catalog.int8[])) AS t (oid, stamp) WHERE t.stamp IS DISTINCT FROM {}",
        first + 1,
        table_stamp_sql("t.oid")
    )
}
