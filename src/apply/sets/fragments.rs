//! Pieces of SQL that set statements share: the arrays that they read, and the guard of their row count.
//!
//! Pure.

use std::fmt::Write as _;

use crate::apply::statement::ColumnSet;
use crate::pg::quote_ident;
use crate::pgoutput::Format;
use crate::schema::binary::array_box;
use crate::schema::{ArrayInput, BinaryForm, ColumnPlan, TablePlan, TypeName};

/// Returns the columns that are not in `null`.
pub(crate) fn not_null(table: &TablePlan, null: &ColumnSet) -> Vec<usize> {
    (0..table.columns.len()).filter(|&i| !null.contains(i)).collect()
}

/// Returns the operator by which values of the column are equal.
pub(crate) fn equality(column: &ColumnPlan) -> String {
    let (schema, operator) =
        column.equality.as_ref().map_or(("pg_catalog", "="), |op| (op.schema.as_str(), op.name.as_str()));
    format!("OPERATOR({}.{operator})", quote_ident(schema))
}

/// Returns a statement that runs `change` and fails unless it changes exactly `$count` rows. `with` are the
/// queries that the change uses.
pub(crate) fn guarded(with: &str, change: &str, count: usize) -> String {
    let comma = if with.is_empty() { "" } else { ", " };
    let guard = count_guard("pg_catalog.count(*)", count);
    format!("WITH {with}{comma}changed AS ({change}) SELECT {guard} FROM changed")
}

/// Returns the expression that fails unless `found` is `$count`.
pub(crate) fn count_guard(found: &str, count: usize) -> String {
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
                // An explicit cast to a domain would cut elements to the domain's length. The assignment
                // to the column refuses them instead.
                Element::Text => format!("s.c{n}::{}", quoted(&column.base_type)),
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

    pub(crate) fn select(&self) -> String {
        self.values.join(", ")
    }

    /// Returns the condition for the target's rows. If the order of changes matters, it is `= ANY`: rows are
    /// then looked up in the index in the arrays' order, and the planner cannot choose a merge join that
    /// reads the table in the index's order, which it prefers for a small table.
    pub(crate) fn identity_condition(&self, table: &TablePlan, identity: &[usize]) -> String {
        let conditions: Vec<String> = identity
            .iter()
            .filter_map(|&i| table.columns.get(i))
            .zip(&self.identity)
            .map(|(column, value)| {
                let name = quote_ident(&column.target);
                let value = match (table.order_free, column.array_input) {
                    (false, ArrayInput::OfType) => format!("ANY (ARRAY[{value}])"),
                    (true, _) | (false, ArrayInput::OfText) => value.clone(),
                };
                format!("t.{name} {} {value}", equality(column))
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
