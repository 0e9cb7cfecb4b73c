//! SQL text of set statements for tables without a key, whose rows are found by all their columns.
//!
//! Pure. Each change applies to one of several equal rows. So equal rows are numbered on both sides and are
//! joined by their number, too:
//!
//! ```text
//! wanted: the changes' old rows ─ row_number() among equals ─┐
//! found:  the table's equal rows ─ row_number() among equals ┴─▶ ctid ─▶ DELETE | UPDATE
//! ```
//! Rows that are equal but not the same (`0` and `-0`) are told apart by their texts. A change whose row is only equal to
//! what is there meets none, so that its transaction is applied row by row.
//!
//! A hash join needs `=`, and NULL is not equal to NULL. So a set has rows with NULLs in the same columns,
//! and these columns are compared by IS NULL.
//!
//! The table is read once for each set, not once for each row.

use std::fmt::Write as _;

use crate::apply::sets::fragments::{Source, assignments, guarded, not_null};
use crate::apply::statement::{ColumnSet, as_bytes, scan_target};
use crate::pg::quote_ident;
use crate::pgoutput::Format;
use crate::schema::{TableKind, TablePlan, TypeName};

/// Types without an order of their values, which numbering equal rows needs.
const UNORDERED: &[&str] = &["xid", "cid", "aclitem"];

/// Whether rows of the table can be found in sets by all their columns. They are joined in no particular
/// order, so nothing may relate one row to another.
pub(crate) fn suits(table: &TablePlan) -> bool {
    let ordered = |ty: &TypeName| ty.schema == "pg_catalog" && !UNORDERED.contains(&ty.name.as_str());
    table.kind == TableKind::Table
        && !table.judges_rows
        && !table.has_unique_index
        && table.columns.iter().all(|column| ordered(&column.base_type))
}

/// Returns the statement that updates rows, or deletes them without `set`. Their columns in `null` are NULL.
/// Parameters: the new values' arrays, the old rows' arrays, the number of rows.
pub(crate) fn sql(table: &TablePlan, set: Option<&ColumnSet>, null: &ColumnSet, format: Format) -> String {
    let values: Vec<usize> = set.map(|set| set.iter().collect()).unwrap_or_default();
    let identity = not_null(table, null);
    let source = Source::new(table, &values, &identity, format);
    let full_row = FullRowSql { table, identity, source };
    let target = scan_target(table);
    let met = format!(
        "found f JOIN wanted w ON f.n OPERATOR(pg_catalog.=) w.n{}{}",
        full_row.equals_wanted(|n| format!("f.h{n}")),
        full_row.same_as_wanted(|n| format!("f.h{n}"))
    );
    let change = match set {
        Some(set) => {
            let values: Vec<String> = (0..values.len()).map(|n| format!("w.v{n}")).collect();
            let assignments = assignments(table, set, &values);
            format!(
                "UPDATE {target} AS t SET {assignments} FROM {met} \
                 WHERE t.ctid OPERATOR(pg_catalog.=) f.at RETURNING 1"
            )
        }
        None => format!(
            "DELETE FROM {target} AS t USING {met} WHERE t.ctid OPERATOR(pg_catalog.=) f.at RETURNING 1"
        ),
    };
    let with = format!(
        "wanted AS MATERIALIZED ({}), found AS MATERIALIZED ({})",
        full_row.wanted(),
        full_row.found(&target, null)
    );
    guarded(&with, &change, full_row.source.parameters + 1)
}

struct FullRowSql<'a> {
    table: &'a TablePlan,
    /// The columns of old rows that are not NULL.
    identity: Vec<usize>,
    source: Source,
}

impl FullRowSql<'_> {
    /// Selects the arrays' rows: their number `n`, old values `o0`…, new values `v0`….
    fn wanted(&self) -> String {
        let mut sql = format!("SELECT {} AS n", self.numbered(&self.source.identity));
        for (n, value) in self.source.identity.iter().enumerate() {
            let _ = write!(sql, ", {value} AS o{n}");
        }
        for (n, value) in self.source.values.iter().enumerate() {
            let _ = write!(sql, ", {value} AS v{n}");
        }
        let _ = write!(sql, " FROM {}", self.source.from);
        sql
    }

    /// Selects the table's rows that equal one of them: their `ctid` as `at`, their number `n`, values `h0`….
    fn found(&self, target: &str, null: &ColumnSet) -> String {
        let own: Vec<String> = self.identity.iter().map(|&i| self.column(i)).collect();
        let mut sql = format!("SELECT t.ctid AS at, {} AS n", self.numbered(&own));
        for (n, own) in own.iter().enumerate() {
            let _ = write!(sql, ", {own} AS h{n}");
        }
        let equal = self.equals_wanted(|n| own.get(n).cloned().unwrap_or_default());
        let _ = write!(sql, " FROM {target} AS t WHERE EXISTS (SELECT FROM wanted w WHERE true{equal})");
        for i in null.iter() {
            let _ = write!(sql, " AND {} IS NULL", self.column(i));
        }
        sql
    }

    fn column(&self, i: usize) -> String {
        self.table
            .columns
            .get(i)
            .map(|column| format!("t.{}", quote_ident(&column.target)))
            .unwrap_or_default()
    }

    /// Returns ` AND left = w.o0…` with each column's equality operator.
    fn equals_wanted(&self, left: impl Fn(usize) -> String) -> String {
        let mut sql = String::new();
        for (n, &i) in self.identity.iter().enumerate() {
            let equality = self.table.columns.get(i).and_then(|column| column.equality.as_ref());
            let (schema, name) =
                equality.map_or(("pg_catalog", "="), |op| (op.schema.as_str(), op.name.as_str()));
            let _ = write!(sql, " AND {} OPERATOR({}.{name}) w.o{n}", left(n), quote_ident(schema));
        }
        sql
    }

    /// Returns ` AND left::text = w.o0::text…` for the columns whose equal values may differ.
    fn same_as_wanted(&self, left: impl Fn(usize) -> String) -> String {
        let mut sql = String::new();
        for n in self.ambiguous() {
            let (left, wanted) = (as_bytes(&left(n)), as_bytes(&format!("w.o{n}")));
            let _ = write!(sql, " AND {left} OPERATOR(pg_catalog.=) {wanted}");
        }
        sql
    }

    /// The number of each row among those that are the same.
    fn numbered(&self, values: &[String]) -> String {
        let texts = self.ambiguous().filter_map(|n| values.get(n)).map(|value| as_bytes(value));
        let among: Vec<String> = values.iter().cloned().chain(texts).collect();
        match among.as_slice() {
            [] => "pg_catalog.row_number() OVER ()".to_owned(),
            _ => format!("pg_catalog.row_number() OVER (PARTITION BY {})", among.join(", ")),
        }
    }

    /// Those of the compared columns whose equal values may differ.
    fn ambiguous(&self) -> impl Iterator<Item = usize> + '_ {
        let may_differ = |i: &usize| self.table.columns.get(*i).is_some_and(|column| column.equal_may_differ);
        (0..self.identity.len()).filter(move |&n| self.identity.get(n).is_some_and(may_differ))
    }
}
