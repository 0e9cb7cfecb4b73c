//! SQL text of set statements: many rows of one table by arrays and `unnest`.
//!
//! Pure. Each column of a set is one array parameter. The target type's input or receive function reads its
//! elements as the publisher sent them. A statement checks its row count itself: if it changes another number
//! of rows than it was given, it fails by a division by zero. So COMMIT can be sent before its answer has
//! been read.

use std::fmt::Write as _;

use crate::apply::sets::compact::SetKind;
use crate::apply::sets::fragments::{Source, assignments, count_guard, equality, guarded, not_null};
use crate::apply::sets::full_row;
use crate::apply::sets::row_search::RowSearch;
use crate::apply::statement::{Shape, identity_columns, row_parameters, row_sql, scan_target};
use crate::pg::quote_ident;
use crate::pgoutput::Format;
use crate::schema::TablePlan;

/// Returns the columns whose arrays are the statement's parameters, in order: those of the new row, then
/// those of the old identity.
pub(crate) fn parameters(table: &TablePlan, kind: &SetKind) -> (Vec<usize>, Vec<usize>) {
    match kind {
        SetKind::Insert => ((0..table.columns.len()).collect(), Vec::new()),
        SetKind::Update(set) => (set.iter().chain(table.kept_columns()).collect(), identity_columns(table)),
        SetKind::Delete | SetKind::Absent => (Vec::new(), identity_columns(table)),
        SetKind::UpdateFullRow { set, null } => (set.iter().collect(), not_null(table, null)),
        SetKind::DeleteFullRow { null } => (Vec::new(), not_null(table, null)),
    }
}

/// Where the number of rows that a set has changed is compared with the number that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Count {
    /// In the statement itself, so that all later statements of the transaction fail with it. Counting the
    /// rows takes a tenth of the time of an UPDATE.
    ByStatement,
    /// In the sender, by the server's answer, before COMMIT is sent.
    ByAnswer,
}

/// Whether the server's answer has the number of rows that the statement changed.
pub(crate) fn answers_count(kind: &SetKind) -> bool {
    matches!(kind, SetKind::Update(_) | SetKind::Delete)
}

/// Whether the statement's last parameter is the number of rows, an int8.
pub(crate) fn takes_count(kind: &SetKind, counted: Count) -> bool {
    match kind {
        SetKind::Insert => false,
        SetKind::Update(_) | SetKind::Delete => counted == Count::ByStatement,
        SetKind::UpdateFullRow { .. } | SetKind::DeleteFullRow { .. } | SetKind::Absent => true,
    }
}

/// Whether the set is one plain statement, so that [`with_progress_sql`] suits it.
pub(crate) fn is_plain(kind: &SetKind) -> bool {
    matches!(kind, SetKind::Insert | SetKind::Update(_) | SetKind::Delete)
}

/// Returns the set's statement. Parameters: arrays ([`parameters`]); the first and last key (each an int8) if
/// rows are found in a range; the number of rows if [`takes_count`].
pub(crate) fn set_sql(
    table: &TablePlan,
    kind: &SetKind,
    search: RowSearch,
    counted: Count,
    format: Format,
) -> String {
    match kind {
        SetKind::Insert => insert_sql(table, format).0,
        SetKind::Update(_) | SetKind::Delete => {
            let (change, parameters) = change_sql(table, kind, search, format);
            match counted {
                Count::ByStatement => guarded("", &format!("{change} RETURNING 1"), parameters + 1),
                Count::ByAnswer => change,
            }
        }
        SetKind::UpdateFullRow { set, null } => full_row::sql(table, Some(set), null, format),
        SetKind::DeleteFullRow { null } => full_row::sql(table, None, null, format),
        SetKind::Absent => absent_sql(table, format),
    }
}

/// Returns the statement for one row that does what a set of it would do. Parameters: as of [`row_sql`]; the number of
/// rows if [`takes_count`].
pub(crate) fn one_row_sql(table: &TablePlan, shape: &Shape, counted: Count) -> String {
    let change = row_sql(table, shape);
    match (shape, counted) {
        (Shape::Insert(_) | Shape::Exists { .. }, _) | (_, Count::ByAnswer) => change,
        (Shape::Update { .. } | Shape::Delete { .. }, Count::ByStatement) => {
            guarded("", &format!("{change} RETURNING 1"), row_parameters(table, shape) + 1)
        }
    }
}

/// Returns one statement for a plain set that checks its row count and moves the progress row. It needs no
/// BEGIN and COMMIT. Parameters: as of [`set_sql`], then those of the progress row. `advance` gets the number
/// of its first parameter, and returns the WITH query and the selected expression that move the row.
pub(crate) fn with_progress_sql(
    table: &TablePlan,
    kind: &SetKind,
    format: Format,
    advance: impl FnOnce(usize) -> (String, String),
) -> String {
    if *kind == SetKind::Insert {
        let (insert, parameters) = insert_sql(table, format);
        let (moved, select) = advance(parameters + 1);
        return format!("WITH changed AS ({insert}), {moved} SELECT {select}");
    }
    let (change, parameters) = change_sql(table, kind, RowSearch::ByKey, format);
    let guard = count_guard("(SELECT pg_catalog.count(*) FROM changed)", parameters + 1);
    let (moved, select) = advance(parameters + 2);
    format!("WITH changed AS ({change} RETURNING 1), {moved} SELECT {guard}, {select}")
}

/// Returns an INSERT and the number of its parameters.
fn insert_sql(table: &TablePlan, format: Format) -> (String, usize) {
    let (values, identity) = parameters(table, &SetKind::Insert);
    let source = Source::new(table, &values, &identity, format);
    let names: Vec<String> = table.columns.iter().map(|c| quote_ident(&c.target)).collect();
    let overriding = if table.identity_always { " OVERRIDING SYSTEM VALUE" } else { "" };
    let sql = format!(
        "INSERT INTO {} ({}){overriding} SELECT {} FROM {}",
        table.target.quoted(),
        names.join(", "),
        source.select(),
        source.from
    );
    (sql, source.parameters)
}

/// Returns an UPDATE or DELETE of rows found by their key, and the number of its parameters.
fn change_sql(table: &TablePlan, kind: &SetKind, search: RowSearch, format: Format) -> (String, usize) {
    let (values, identity) = parameters(table, kind);
    let source = Source::new(table, &values, &identity, format);
    let target = scan_target(table);
    let mut same = source.identity_condition(table, &identity);
    let mut parameters = source.parameters;
    if let (RowSearch::InRange, Some(key)) = (search, identity.first().and_then(|&i| table.columns.get(i))) {
        let key = quote_ident(&key.target);
        for bound in [">=", "<="] {
            parameters += 1;
            let _ = write!(same, " AND t.{key} OPERATOR(pg_catalog.{bound}) ${parameters}::pg_catalog.int8");
        }
    }
    let from = &source.from;
    let sql = match kind {
        SetKind::Update(set) => {
            let assignments = assignments(table, set, &source.values);
            let kept = source.values.iter().skip(set.iter().count());
            for (column, value) in table.kept_columns().filter_map(|i| table.columns.get(i)).zip(kept) {
                let _ = write!(same, " AND t.{} {} {value}", quote_ident(&column.target), equality(column));
            }
            format!("UPDATE {target} AS t SET {assignments} FROM {from} WHERE {same}")
        }
        _ => format!("DELETE FROM {target} AS t USING {from} WHERE {same}"),
    };
    (sql, parameters)
}

fn absent_sql(table: &TablePlan, format: Format) -> String {
    let (values, identity) = parameters(table, &SetKind::Absent);
    let source = Source::new(table, &values, &identity, format);
    format!(
        "SELECT 1 / (CASE WHEN EXISTS (SELECT FROM {} AS t, {} WHERE {}) THEN 0 ELSE 1 END) \
         WHERE ${}::pg_catalog.int8 > 0",
        scan_target(table),
        source.from,
        source.identity_condition(table, &identity),
        source.parameters + 1
    )
}
