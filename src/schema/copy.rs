//! The COPY commands: `COPY … TO STDOUT` reads a table's rows on the publisher, and by `COPY … FROM STDIN` the initial
//! copy and large sets of new rows enter a table of the target. Pure.

use std::fmt;

use super::{PublishedTable, TableKind, TablePlan};
use crate::pg::quote_ident;

/// The format of the values in a COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyFormat {
    Text,
    /// The types' binary format. It saves the target a third of its work for a row of numbers and
    /// times, and never takes more than text (measured for the types of
    /// [`same_in_binary`](super::binary::same_in_binary)).
    Binary,
}

impl CopyFormat {
    /// Returns the option at the end of the command.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::Binary => " WITH (FORMAT binary)",
        }
    }
}

impl fmt::Display for CopyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Binary => "binary",
        })
    }
}

/// Returns the command that copies `columns` of a table's rows from the publisher in text format.
///
/// It follows `copy_table` in PostgreSQL's `tablesync.c`: an ordinary table is read without its
/// inheritance children, which are published under their own names; a partitioned table is read with
/// its partitions. `COPY table (…)` is cheaper, but can neither filter rows nor read generated columns.
/// A table without columns yields an empty line for each row.
#[must_use]
pub fn copy_query(table: &PublishedTable, columns: &[&str]) -> String {
    let name = table.relation.name.quoted();
    let list = columns.iter().map(|column| quote_ident(column)).collect::<Vec<_>>().join(",");
    let ordinary = table.kind == TableKind::Table;
    if ordinary && table.row_filters.is_empty() && !table.has_generated && !columns.is_empty() {
        return format!("COPY {name} ({list}) TO STDOUT");
    }
    let list = if list.is_empty() { list } else { format!("{list} ") };
    let filter = filter(table).map_or_else(String::new, |filter| format!(" WHERE {filter}"));
    format!("COPY (SELECT {list}FROM {}{filter}) TO STDOUT", rows(table))
}

/// Returns the query whether a column has a value in one of the rows that are copied.
#[must_use]
pub fn has_value_query(table: &PublishedTable, column: &str) -> String {
    let filter = filter(table).map_or_else(String::new, |filter| format!("({filter}) AND "));
    format!("SELECT EXISTS (SELECT FROM {} WHERE {filter}{} IS NOT NULL)", rows(table), quote_ident(column))
}

/// The rows that belong to the published table.
fn rows(table: &PublishedTable) -> String {
    let only = if table.kind == TableKind::Table { "ONLY " } else { "" };
    format!("{only}{}", table.relation.name.quoted())
}

/// The condition of the rows that are published; none if all are.
fn filter(table: &PublishedTable) -> Option<String> {
    let filters: Vec<String> = table.row_filters.iter().map(|filter| format!("({filter})")).collect();
    (!filters.is_empty()).then(|| filters.join(" OR "))
}

/// Returns `COPY … FROM STDIN` for the target's published columns, in the plan's order. COPY accepts
/// values for identity columns, GENERATED ALWAYS included.
#[must_use]
pub fn copy_in_sql(plan: &TablePlan, format: CopyFormat) -> String {
    let names: Vec<String> = plan.columns.iter().map(|column| quote_ident(&column.target)).collect();
    let columns = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    format!("COPY {}{columns} FROM STDIN{}", plan.target.quoted(), format.option())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::QualifiedName;
    use crate::schema::{Marks, Operations, PublishedRelation, ReplicaIdentity};

    #[test]
    fn the_copy_reads_what_the_stream_will_name() {
        let check = |kind, filters: &[&str], has_generated, columns: &[&str], expected: &str| {
            let table = PublishedTable {
                oid: 1,
                kind,
                relation: PublishedRelation {
                    name: QualifiedName::new("s", "tab'le"),
                    identity: ReplicaIdentity::Default,
                    columns: Vec::new(),
                },
                actions: Operations::ALL,
                publications: Vec::new(),
                marks: Marks::default(),
                row_filters: filters.iter().map(|&filter| filter.to_owned()).collect(),
                all_columns: Vec::new(),
                has_generated,
                rows_estimated: None,
            };
            assert_eq!(copy_query(&table, columns), expected);
        };
        use TableKind::{Partitioned, Table};
        check(Table, &[], false, &["a", "B"], r#"COPY "s"."tab'le" ("a","B") TO STDOUT"#);
        check(Table, &[], true, &["a"], r#"COPY (SELECT "a" FROM ONLY "s"."tab'le") TO STDOUT"#);
        check(
            Table,
            &["(a > 1)", "b"],
            false,
            &["a", "b"],
            r#"COPY (SELECT "a","b" FROM ONLY "s"."tab'le" WHERE ((a > 1)) OR (b)) TO STDOUT"#,
        );
        check(Partitioned, &[], false, &["a"], r#"COPY (SELECT "a" FROM "s"."tab'le") TO STDOUT"#);
        check(Table, &[], false, &[], r#"COPY (SELECT FROM ONLY "s"."tab'le") TO STDOUT"#);
    }
}
