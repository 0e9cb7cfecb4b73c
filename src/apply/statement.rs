//! SQL text for one replicated row, from a table's plan and the shape of a change.
//!
//! Pure. Names are always quoted and schema-qualified, values are always parameters, operators are always
//! named with their schema. The session's `search_path` is empty, so a function or operator that somebody
//! created in `public` cannot be called.
//!
//! A shape says which columns have values and which identity columns are NULL. NULLs are compared with `IS
//! NULL` in the text and not by `IS NOT DISTINCT FROM` with a parameter, because only the former can use an
//! index, and because other values must be compared by the type's own equality operator.

use std::fmt::Write as _;

use crate::conflict::{START_CHARS, VALUE_BYTES_MAX};
use crate::pg::{quote_ident, quote_literal};
use crate::schema::{ColumnPlan, RowIdentity, TableKind, TablePlan};

/// A set of columns, by position in the publisher's tuple. Every update has one, so memory is allocated only
/// for a table with more than 64 columns.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ColumnSet {
    /// A bit for each of the first 64 columns.
    first: u64,
    /// A bit for each later column; as short as the last column in the set allows, so that equal sets compare
    /// equal.
    more: Option<Box<[u64]>>,
}

impl ColumnSet {
    pub fn insert(&mut self, column: usize) {
        let bit = 1 << (column % 64);
        let Some(word) = (column / 64).checked_sub(1) else {
            self.first |= bit;
            return;
        };
        let mut more = self.more.take().map_or_else(Vec::new, Vec::from);
        if more.len() <= word {
            more.resize(word + 1, 0);
        }
        if let Some(bits) = more.get_mut(word) {
            *bits |= bit;
        }
        self.more = Some(more.into());
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first == 0 && self.more.is_none()
    }

    #[must_use]
    pub fn contains(&self, column: usize) -> bool {
        self.words().nth(column / 64).is_some_and(|bits| bits & (1 << (column % 64)) != 0)
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words().enumerate().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word * 64 + bit)
        })
    }

    fn words(&self) -> impl Iterator<Item = u64> + '_ {
        std::iter::once(self.first).chain(self.more.iter().flatten().copied())
    }
}

impl FromIterator<usize> for ColumnSet {
    fn from_iter<I: IntoIterator<Item = usize>>(columns: I) -> Self {
        let mut set = Self::default();
        columns.into_iter().for_each(|column| set.insert(column));
        set
    }
}

/// Everything that the text of a row's statement depends on, except the table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Shape {
    /// The columns that get values.
    Insert(ColumnSet),
    /// The columns that are set, the columns that the row must have these values of
    /// ([`TablePlan::kept_columns`]), and the identity columns that are NULL.
    Update { set: ColumnSet, kept: ColumnSet, null: ColumnSet },
    /// The identity columns that are NULL.
    Delete { null: ColumnSet },
    /// Whether the row exists; `kept` and `null` as for an update.
    Exists { kept: ColumnSet, null: ColumnSet },
}

/// Returns the statement for one row of this shape. Parameters: the columns that get values in tuple order,
/// then the identity columns that are not NULL, then the kept columns.
#[must_use]
pub fn row_sql(table: &TablePlan, shape: &Shape) -> String {
    match shape {
        Shape::Insert(columns) => insert_sql(table, columns),
        Shape::Update { set, kept, null } => update_sql(table, set, kept, null),
        Shape::Delete { null } => {
            format!("DELETE FROM {} WHERE {}", scan_target(table), row_condition(table, null, 1))
        }
        Shape::Exists { kept, null } => {
            let condition = row_condition(table, null, 1) + &kept_condition(table, kept, null, 1);
            format!("SELECT 1 FROM {} WHERE {condition} LIMIT 1", scan_target(table))
        }
    }
}

/// Returns the number of parameters of the row's statement.
#[must_use]
pub(crate) fn row_parameters(table: &TablePlan, shape: &Shape) -> usize {
    let identity = |null: &ColumnSet| identity_columns(table).iter().filter(|&&i| !null.contains(i)).count();
    match shape {
        Shape::Insert(columns) => columns.iter().count(),
        Shape::Update { set, kept, null } => set.iter().count() + identity(null) + kept.iter().count(),
        Shape::Delete { null } => identity(null),
        Shape::Exists { kept, null } => identity(null) + kept.iter().count(),
    }
}

/// Returns the identity columns, in parameter order.
#[must_use]
pub fn identity_columns(table: &TablePlan) -> Vec<usize> {
    match &table.row_identity {
        RowIdentity::Key { columns, .. } => columns.clone(),
        RowIdentity::FullRow => (0..table.columns.len()).collect(),
        RowIdentity::None => Vec::new(),
    }
}

fn insert_sql(table: &TablePlan, columns: &ColumnSet) -> String {
    let names: Vec<String> =
        columns.iter().filter_map(|i| table.columns.get(i)).map(|c| quote_ident(&c.target)).collect();
    if names.is_empty() {
        return format!("INSERT INTO {} DEFAULT VALUES", table.target.quoted());
    }
    let values: Vec<String> = (1..=names.len()).map(|n| format!("${n}")).collect();
    let overriding = if table.identity_always { " OVERRIDING SYSTEM VALUE" } else { "" };
    format!(
        "INSERT INTO {} ({}){overriding} VALUES ({})",
        table.target.quoted(),
        names.join(", "),
        values.join(", ")
    )
}

fn update_sql(table: &TablePlan, set: &ColumnSet, kept: &ColumnSet, null: &ColumnSet) -> String {
    let mut assignments = String::new();
    let mut parameter = 1;
    for column in set.iter().filter_map(|i| table.columns.get(i)) {
        if parameter > 1 {
            assignments.push_str(", ");
        }
        let _ = write!(assignments, "{} = ${parameter}", quote_ident(&column.target));
        parameter += 1;
    }
    let condition = row_condition(table, null, parameter) + &kept_condition(table, kept, null, parameter);
    format!("UPDATE {} SET {assignments} WHERE {condition}", scan_target(table))
}

/// The further condition that the row has the values of the kept columns. `first_parameter` is that of the identity.
fn kept_condition(table: &TablePlan, kept: &ColumnSet, null: &ColumnSet, first_parameter: usize) -> String {
    let identity = identity_columns(table).into_iter().filter(|&column| !null.contains(column));
    let columns = kept.iter().filter_map(|i| table.columns.get(i));
    let mut conditions = String::new();
    for (parameter, column) in (first_parameter + identity.count()..).zip(columns) {
        let _ = write!(conditions, " AND {}", equals_parameter(column, parameter));
    }
    conditions
}

/// The table in FROM: a partitioned table with its partitions, any other with ONLY, because the publisher
/// sends the changes of inheritance children as those of other tables.
pub(crate) fn scan_target(table: &TablePlan) -> String {
    match table.kind {
        TableKind::Partitioned => table.target.quoted(),
        TableKind::Table | TableKind::Other(_) => format!("ONLY {}", table.target.quoted()),
    }
}

/// The condition for exactly one row: its key, or, without a key, the `ctid` of one of the rows that equal the
/// whole old row. So only one of several duplicates is changed, and one that is the same goes before one that is equal.
fn row_condition(table: &TablePlan, null: &ColumnSet, first_parameter: usize) -> String {
    let mut parameter = first_parameter;
    let mut conditions = Vec::new();
    let mut same = String::new();
    for (i, column) in identity_columns(table).into_iter().filter_map(|i| Some((i, table.columns.get(i)?))) {
        if null.contains(i) {
            conditions.push(format!("{} IS NULL", quote_ident(&column.target)));
        } else {
            conditions.push(equals_parameter(column, parameter));
            if column.equal_may_differ {
                let (own, sent) = (quote_ident(&column.target), typed_parameter(column, parameter));
                let _ = write!(same, " AND {} OPERATOR(pg_catalog.=) {}", as_bytes(&own), as_bytes(&sent));
            }
            parameter += 1;
        }
    }
    let condition = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    let (row, place) = match (&table.row_identity, table.kind) {
        (RowIdentity::Key { .. } | RowIdentity::None, _) => return condition,
        (RowIdentity::FullRow, TableKind::Partitioned) => ("(tableoid, ctid)", "tableoid, ctid"),
        (RowIdentity::FullRow, _) => ("ctid", "ctid"),
    };
    let first = format!("SELECT {place} FROM {} WHERE {condition}", scan_target(table));
    let found = if same.is_empty() {
        format!("{first} LIMIT 1")
    } else {
        format!("({first}{same} LIMIT 1) UNION ALL ({first} LIMIT 1) LIMIT 1")
    };
    format!("{row} = ({found})")
}

/// A value as text that is compared by its bytes, whatever the column's collation.
pub(crate) fn as_bytes(value: &str) -> String {
    format!("{value}::pg_catalog.text COLLATE pg_catalog.\"C\"")
}

/// Returns `"column" OPERATOR("pg_catalog".=) $n::"schema"."type"`, with the equality operator of the
/// column's type. A column of a type without one is never part of an identity (`schema::diff`). The type is the
/// one below domains: a domain's length would cut blanks off the value that is looked for.
fn equals_parameter(column: &ColumnPlan, parameter: usize) -> String {
    let (schema, operator) =
        column.equality.as_ref().map_or(("pg_catalog", "="), |op| (op.schema.as_str(), op.name.as_str()));
    format!(
        "{} OPERATOR({}.{operator}) {}",
        quote_ident(&column.target),
        quote_ident(schema),
        typed_parameter(column, parameter)
    )
}

fn typed_parameter(column: &ColumnPlan, parameter: usize) -> String {
    let ty = &column.base_type;
    format!("${parameter}::{}.{}", quote_ident(&ty.schema), quote_ident(&ty.name))
}

/// Makes the session write as `role` until its transaction ends, or, with none, as the role that it is otherwise.
#[must_use]
pub fn run_as_sql(role: Option<&str>) -> String {
    role.map_or_else(|| "RESET ROLE".to_owned(), |role| format!("SET LOCAL ROLE {}", quote_ident(role)))
}

/// The role as which these tables are truncated together: that of all of them, or else the session's own.
#[must_use]
pub fn common_role<'a>(tables: impl IntoIterator<Item = &'a TablePlan>) -> Option<&'a str> {
    let mut roles = tables.into_iter().map(|table| table.run_as.as_deref());
    let first = roles.next().flatten();
    first.filter(|_| roles.all(|role| role == first))
}

/// Returns one TRUNCATE for all tables of a message, so that foreign keys between them are no obstacle.
/// CASCADE is left out: the message lists every table that the publisher has truncated.
#[must_use]
pub fn truncate_sql<'a>(tables: impl IntoIterator<Item = &'a TablePlan>, identity: Sequences) -> String {
    let names: Vec<String> = tables.into_iter().map(scan_target).collect();
    let restart = match identity {
        Sequences::Restart => " RESTART IDENTITY",
        Sequences::Continue => "",
    };
    format!("TRUNCATE {}{restart}", names.join(", "))
}

/// Whether a TRUNCATE restarts the sequences that the tables own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequences {
    Restart,
    Continue,
}

/// Reads the rows that hold a unique key's values: names and values (as text) of all columns, and sizes of values
/// of which only the beginning is read.
#[must_use]
pub fn local_rows_by_key_sql(table: &TablePlan, key: &[usize]) -> String {
    let conditions: Vec<String> = key
        .iter()
        .filter_map(|&i| table.columns.get(i))
        .enumerate()
        .map(|(n, column)| equals_parameter(column, n + 1))
        .collect();
    format!("{} WHERE {}", local_rows_sql(table), conditions.join(" AND "))
}

/// Reads the row that an update or delete changes, by the shape of its [`Shape::Exists`].
#[must_use]
pub fn local_rows_by_identity_sql(table: &TablePlan, exists: &Shape) -> String {
    let null = match exists {
        Shape::Exists { null, .. } | Shape::Delete { null } | Shape::Update { null, .. } => null,
        Shape::Insert(columns) => columns,
    };
    format!("{} WHERE {}", local_rows_sql(table), row_condition(table, null, 1))
}

/// Of long values only the beginning is read: the server does not send, and this process does not keep, what
/// nobody would look at.
fn local_rows_sql(table: &TablePlan) -> String {
    let list = |each: &dyn Fn(&str) -> String| {
        table.target_columns.iter().map(|name| each(name)).collect::<Vec<_>>().join(", ")
    };
    // By the type's output function, as the publisher sends values: a cast to text has other forms of some types, such as
    // boolean, char(n) and inet.
    let text = |name: &str| {
        let name = quote_ident(name);
        format!(
            "CASE WHEN pg_catalog.num_nulls({name}) OPERATOR(pg_catalog.=) 0 THEN pg_catalog.concat({name}) END"
        )
    };
    let size = |name: &str| format!("pg_catalog.octet_length(pg_catalog.concat({}))", quote_ident(name));
    let is_long = |name: &str| format!("{} OPERATOR(pg_catalog.>) {VALUE_BYTES_MAX}", size(name));
    format!(
        "SELECT ARRAY[{}]::pg_catalog.text[], ARRAY[{}]::pg_catalog.text[], ARRAY[{}]::pg_catalog.int4[] FROM {}",
        list(&quote_literal),
        list(&|name| {
            let (is_long, text) = (is_long(name), text(name));
            format!("CASE WHEN {is_long} THEN pg_catalog.left({text}, {START_CHARS}) ELSE {text} END")
        }),
        list(&|name| format!("CASE WHEN {} THEN {} END", is_long(name), size(name))),
        scan_target(table)
    )
}
