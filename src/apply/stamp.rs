//! Checks whether target tables have changed since they were planned.
//!
//! A session gets no message about DDL of other sessions. Much DDL makes a later statement fail, and after a
//! failure the table is described again. But a prepared statement keeps working if a column's type has
//! changed and the value can be assigned by a cast: a `numeric(12,2)` column that was altered to
//! `numeric(12,0)` would round without an error. So every transaction checks, before its COMMIT, whether the
//! tables' catalog rows are those from which the plans were made. By then it holds a lock on each table that
//! conflicts with such DDL, so the answer is exact.

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

    /// OIDs and stamps, the parameters of [`changed_sql`] and [`guard_sql`].
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

/// A query that fails by itself (a division by zero) if a table has changed, so that COMMIT can be sent
/// before its answer.
pub(crate) fn guard_sql() -> String {
    format!("SELECT {}", guard(1))
}

/// The expression that fails if a table has changed. OIDs are parameter `first`, stamps the next one.
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
