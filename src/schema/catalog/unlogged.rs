//! Target tables whose rows do not survive a crash of the server.

use tokio_postgres::GenericClient;

use super::error::CatalogError;
use super::target::{NAMED, failed, query_named};
use crate::error::Diagnosis;
use crate::pg::QualifiedName;
use crate::schema::render::table_sql;

/// Largest number of tables named in a text; the others are only counted.
const NAMED_MAX: usize = 10;

/// Returns the unlogged tables among these and their partitions. (Temporary tables are in schemas of their own,
/// which no mapping may name, and cannot be partitions of a permanent table.)
///
/// # Errors
///
/// A query failed.
pub async fn unlogged_tables<C: GenericClient + Sync>(
    client: &C,
    targets: &[QualifiedName],
) -> Result<Vec<QualifiedName>, CatalogError> {
    let sql = format!(
        "WITH RECURSIVE tree (oid) AS (
           SELECT c.oid FROM {NAMED}
           UNION
           SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
             JOIN pg_catalog.pg_class p ON p.oid = i.inhrelid AND p.relispartition)
         SELECT n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name
           FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relpersistence = 'u' AND c.relkind = 'r' ORDER BY 1, 2"
    );
    let rows = query_named(client, &sql, targets).await.map_err(failed("persistence"))?;
    let name = |row: &tokio_postgres::Row| {
        QualifiedName::new(row.get::<_, String>("schema"), row.get::<_, String>("name"))
    };
    Ok(rows.iter().map(name).collect())
}

/// Describes what a crash does to these tables, with the statements that prevent it; none if there are none.
#[must_use]
pub fn unlogged(tables: &[QualifiedName]) -> Option<Diagnosis> {
    let primary = match tables {
        [] => return None,
        [table] => format!("target table {table} is unlogged: a crash of the target empties it"),
        tables => format!("{} target tables are unlogged: a crash of the target empties them", tables.len()),
    };
    let mut statements: Vec<String> = tables
        .iter()
        .take(NAMED_MAX)
        .map(|table| format!("ALTER TABLE {} SET LOGGED;", table_sql(table)))
        .collect();
    if tables.len() > NAMED_MAX {
        statements.push(format!("and the same for {} more", tables.len() - NAMED_MAX));
    }
    Some(
        Diagnosis::new(primary)
            .detail("their rows have been reported as flushed, so the publisher does not send them again")
            .hint(format!("run on the target: {}", statements.join(" "))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unlogged_table_has_its_statement() {
        assert_eq!(unlogged(&[]), None);
        let table = |name: &str| QualifiedName::new("public", name);
        insta::assert_snapshot!(unlogged(&[table("t")]).expect("one"), @"
        target table public.t is unlogged: a crash of the target empties it
          detail: their rows have been reported as flushed, so the publisher does not send them again
          hint: run on the target: ALTER TABLE public.t SET LOGGED;
        ");
        let many: Vec<_> = (0..12).map(|n| table(&format!("t{n}"))).collect();
        let text = unlogged(&many).expect("many").to_string();
        assert!(text.contains("12 target tables") && text.ends_with("and the same for 2 more"), "{text}");
    }
}
