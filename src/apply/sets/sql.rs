//! SQL text of set statements: many rows of one table by arrays and `unnest`.
//!
//! Pure. Each column of a set is one array parameter. The target type's input or receive function reads its
//! elements as the publisher sent them. A statement checks its row count itself: if it changes another number
//! of rows than it was given, it fails by a division by zero. So COMMIT can be sent before its answer has
//! been read.

use std::fmt::Write as _;

use crate::apply::sets::compact::SetKind;
use crate::apply::sets::full_row;
use crate::apply::sets::row_search::RowSearch;
use crate::apply::statement::{ColumnSet, identity_columns, scan_target};
use crate::pg::quote_ident;
use crate::pgoutput::Format;
use crate::schema::ReplicationRole;
use crate::schema::binary::array_box;
use crate::schema::{ArrayInput, BinaryForm, ColumnPlan, RowIdentity, TablePlan, TypeName};

/// Why a table's changes are applied row by row, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExactBecause {
    NoColumns,
    TriggersFire,
    TriggersAct,
    ForeignKeysAct,
    /// Only its updates and deletes are: the table has no key, and its rows cannot be found in sets by all
    /// their columns. Inserts are applied as sets.
    NoKey,
}

impl ExactBecause {
    /// The reason as `status` and `check` show it, after "exact apply because".
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoColumns => "it has no published columns",
            Self::TriggersFire => "triggers fire on its replicated rows",
            Self::TriggersAct => "its triggers cannot be suppressed",
            Self::ForeignKeysAct => "its foreign keys cannot be suppressed",
            Self::NoKey => {
                "it has no key, and its rows cannot be found in sets by all they hold (inserts go in sets)"
            }
        }
    }
}

/// Returns why a table's changes are applied row by row in a session with this replication role; none if they
/// can be applied as sets.
#[must_use]
pub fn exact_because(table: &TablePlan, role: ReplicationRole) -> Option<ExactBecause> {
    let acts = role == ReplicationRole::Origin;
    if table.columns.is_empty() {
        Some(ExactBecause::NoColumns)
    } else if table.fires.any {
        Some(ExactBecause::TriggersFire)
    } else if acts && table.has_ordinary_triggers {
        Some(ExactBecause::TriggersAct)
    } else if acts && table.has_foreign_keys {
        Some(ExactBecause::ForeignKeysAct)
    } else if matches!(table.row_identity, RowIdentity::FullRow) && !full_row::suits(table) {
        Some(ExactBecause::NoKey)
    } else {
        None
    }
}

/// Returns the columns whose arrays are the statement's parameters, in order: those of the new row, then
/// those of the old identity.
pub(crate) fn parameters(table: &TablePlan, kind: &SetKind) -> (Vec<usize>, Vec<usize>) {
    match kind {
        SetKind::Insert => ((0..table.columns.len()).collect(), Vec::new()),
        SetKind::Update(set) => (set.iter().collect(), identity_columns(table)),
        SetKind::Delete | SetKind::Absent => (Vec::new(), identity_columns(table)),
        SetKind::UpdateFullRow { set, null } => (set.iter().collect(), not_null(table, null)),
        SetKind::DeleteFullRow { null } => (Vec::new(), not_null(table, null)),
    }
}

/// Returns the columns that are not in `null`.
pub(crate) fn not_null(table: &TablePlan, null: &ColumnSet) -> Vec<usize> {
    (0..table.columns.len()).filter(|&i| !null.contains(i)).collect()
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

/// Returns a statement that runs `change` and fails unless it changes exactly `$count` rows. `with` are the
/// queries that the change uses.
pub(crate) fn guarded(with: &str, change: &str, count: usize) -> String {
    let comma = if with.is_empty() { "" } else { ", " };
    let guard = count_guard("pg_catalog.count(*)", count);
    format!("WITH {with}{comma}changed AS ({change}) SELECT {guard} FROM changed")
}

/// Returns the expression that fails unless `found` is `$count`.
fn count_guard(found: &str, count: usize) -> String {
    format!("1 / (CASE WHEN {found} OPERATOR(pg_catalog.=) ${count}::pg_catalog.int8 THEN 1 ELSE 0 END)")
}

pub(crate) fn assignments(table: &TablePlan, set: &ColumnSet, values: &[String]) -> String {
    let mut text = String::new();
    for (column, value) in set.iter().filter_map(|i| table.columns.get(i)).zip(values) {
        if !text.is_empty() {
            text.push_str(", ");
        }
        let _ = write!(text, "{} = {value}", quote_ident(&column.target));
    }
    text
}

/// `(SELECT unnest($1::…[]) AS c1, unnest($2::…[]) AS c2) AS s`, and how its columns are read.
///
/// In a SELECT list the functions run in lockstep and return rows one by one (`nodeProjectSet.c`). In `ROWS
/// FROM` each would first fill a tuplestore, which takes a fifth of the time of an INSERT.
pub(crate) struct Source {
    pub(crate) from: String,
    pub(crate) values: Vec<String>,
    pub(crate) identity: Vec<String>,
    pub(crate) parameters: usize,
}

impl Source {
    pub(crate) fn new(table: &TablePlan, values: &[usize], identity: &[usize], format: Format) -> Self {
        let mut arrays = Vec::new();
        let mut read = |&i: &usize| -> Option<String> {
            let column = table.columns.get(i)?;
            let n = arrays.len() + 1;
            let element = Element::of(column, format);
            arrays.push(format!("pg_catalog.unnest(${n}::{}[]) AS c{n}", element.type_sql(column)));
            Some(match element {
                Element::Value => format!("s.c{n}"),
                Element::Text => format!("s.c{n}::{}", quoted(&column.ty)),
                Element::Boxed(_) => format!("(s.c{n}).value"),
            })
        };
        let values: Vec<String> = values.iter().filter_map(&mut read).collect();
        let identity: Vec<String> = identity.iter().filter_map(&mut read).collect();
        let from = if arrays.is_empty() {
            "(SELECT) AS s".to_owned()
        } else {
            format!("(SELECT {}) AS s", arrays.join(", "))
        };
        Self { from, values, identity, parameters: arrays.len() }
    }

    fn select(&self) -> String {
        self.values.join(", ")
    }

    /// Returns the condition for the target's rows. If the order of changes matters, it is `= ANY`: rows are
    /// then looked up in the index in the arrays' order, and the planner cannot choose a merge join that
    /// reads the table in the index's order, which it prefers for a small table.
    fn identity_condition(&self, table: &TablePlan, identity: &[usize]) -> String {
        let conditions: Vec<String> = identity
            .iter()
            .filter_map(|&i| table.columns.get(i))
            .zip(&self.identity)
            .map(|(column, value)| {
                let (schema, operator) = column
                    .equality
                    .as_ref()
                    .map_or(("pg_catalog", "="), |op| (op.schema.as_str(), op.name.as_str()));
                let name = quote_ident(&column.target);
                let value = match (table.order_free, column.array_input) {
                    (false, ArrayInput::OfType) => format!("ANY (ARRAY[{value}])"),
                    (true, _) | (false, ArrayInput::OfText) => value.clone(),
                };
                format!("t.{name} OPERATOR({}.{operator}) {value}", quote_ident(schema))
            })
            .collect();
        if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") }
    }
}

/// The elements of an array parameter.
enum Element {
    /// The values. Those of a domain have its base type, so that the domain's constraints are checked on
    /// assignment.
    Value,
    /// The values' text, for types whose arrays `unnest` cannot split into values.
    Text,
    /// Composites with one field, for binary values of such types.
    Boxed(TypeName),
}

impl Element {
    fn of(column: &ColumnPlan, format: Format) -> Self {
        match (column.array_input, column.binary, format) {
            (ArrayInput::OfType, _, _) => Self::Value,
            (ArrayInput::OfText, BinaryForm::Native, Format::Binary) => {
                array_box(&column.base_type).map_or(Self::Text, Self::Boxed)
            }
            (ArrayInput::OfText, _, _) => Self::Text,
        }
    }

    fn type_sql(&self, column: &ColumnPlan) -> String {
        match self {
            Self::Value => quoted(&column.base_type),
            Self::Text => "pg_catalog.text".to_owned(),
            Self::Boxed(ty) => quoted(ty),
        }
    }
}

fn quoted(ty: &TypeName) -> String {
    format!("{}.{}", quote_ident(&ty.schema), quote_ident(&ty.name))
}
