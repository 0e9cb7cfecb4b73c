//! Plans the statement of one replicated row change: its shape and its parameters.
//!
//! Pure. Which columns of a message are used follows PostgreSQL's rules for old rows. A key that did not
//! change is not sent. Columns of an old key that are not part of it are sent as NULL and are ignored. An
//! unchanged TOAST value is not sent, so its column is left out of SET.
//!
//! The server refuses SET for GENERATED ALWAYS AS IDENTITY columns. One whose old value was sent is named only if
//! the value changes; of any other, the row must already have the new value.

use crate::apply::change::{Param, RowChange};
use crate::apply::statement::{ColumnSet, Shape, identity_columns};
use crate::pgoutput::{Tuple, Value};
use crate::schema::TablePlan;

/// A statement to be run for one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowStatement {
    pub shape: Shape,
    pub params: Vec<Param>,
}

/// A change that does not fit its Relation message, or that has nothing to find its row by. A publisher does
/// not send such a change, so nothing of it is applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("a row of {table} has {found} columns, its Relation message announced {expected}")]
    ColumnCount { table: String, expected: usize, found: usize },
    #[error("an INSERT into {table} leaves out column \"{column}\" as unchanged")]
    UnchangedInInsert { table: String, column: String },
    #[error("{operation} on {table} carries no old row and no key to find the row by")]
    NoIdentity { table: String, operation: &'static str },
    #[error("the value of key column \"{column}\" of {table} was not sent")]
    KeyNotSent { table: String, column: String },
}

/// Plans the statement that applies `change`.
pub fn plan_row(table: &TablePlan, change: &RowChange) -> Result<RowStatement, PlanError> {
    match change {
        RowChange::Insert { new } => plan_insert(table, new),
        RowChange::Update { new, .. } => plan_update(table, change, new),
        RowChange::Delete { .. } => {
            let (null, params) = identity(table, change)?;
            Ok(RowStatement { shape: Shape::Delete { null }, params })
        }
    }
}

/// Plans the query whether the row that `change` updates or deletes exists.
pub fn plan_exists(table: &TablePlan, change: &RowChange) -> Result<RowStatement, PlanError> {
    let (null, params) = identity(table, change)?;
    Ok(RowStatement { shape: Shape::Exists { kept: ColumnSet::default(), null }, params })
}

/// Plans the query whether the row exists and `change` can be applied to it: as [`plan_exists`], but the row has
/// the values that an update may not change.
pub fn plan_suits(table: &TablePlan, change: &RowChange) -> Result<RowStatement, PlanError> {
    let (null, mut params) = identity(table, change)?;
    let kept = match change {
        RowChange::Update { new, .. } => kept(table, new, &mut params),
        RowChange::Insert { .. } | RowChange::Delete { .. } => ColumnSet::default(),
    };
    Ok(RowStatement { shape: Shape::Exists { kept, null }, params })
}

fn plan_insert(table: &TablePlan, new: &Tuple) -> Result<RowStatement, PlanError> {
    check_width(table, new)?;
    let mut params = Vec::with_capacity(table.columns.len());
    for (column, value) in table.columns.iter().zip(new) {
        let param = Param::of(new, value).ok_or_else(|| PlanError::UnchangedInInsert {
            table: table.source.to_string(),
            column: column.source.clone(),
        })?;
        params.push(param);
    }
    Ok(RowStatement { shape: Shape::Insert((0..params.len()).collect()), params })
}

fn plan_update(table: &TablePlan, change: &RowChange, new: &Tuple) -> Result<RowStatement, PlanError> {
    check_width(table, new)?;
    let (null, identity_params) = identity(table, change)?;
    let identity_row = change.identity_row();
    let mut kept_params = Vec::new();
    let kept = kept(table, new, &mut kept_params);
    let mut set = ColumnSet::default();
    let mut params = Vec::with_capacity(table.columns.len() + identity_params.len());
    for (i, (column, value)) in table.columns.iter().zip(new).enumerate() {
        let unchanged = || identity_row.is_some_and(|old| old.get(i) == Some(value));
        if column.identity_always && (kept.contains(i) || unchanged()) {
            continue;
        }
        if let Some(value) = Param::of(new, value) {
            set.insert(i);
            params.push(value);
        }
    }
    if set.iter().next().is_none() {
        // No column is set, but the row must exist.
        let params = [identity_params, kept_params].concat();
        return Ok(RowStatement { shape: Shape::Exists { kept, null }, params });
    }
    params.extend(identity_params);
    params.extend(kept_params);
    Ok(RowStatement { shape: Shape::Update { set, kept, null }, params })
}

/// Returns the columns that the row must have the new values of, and appends these.
fn kept(table: &TablePlan, new: &Tuple, params: &mut Vec<Param>) -> ColumnSet {
    let mut kept = ColumnSet::default();
    for column in table.kept_columns() {
        if let Some(value) = new.get(column).and_then(|value| Param::of(new, value)) {
            kept.insert(column);
            params.push(value);
        }
    }
    kept
}

/// Returns the identity columns that are NULL, and the values of the others in parameter order.
fn identity(table: &TablePlan, change: &RowChange) -> Result<(ColumnSet, Vec<Param>), PlanError> {
    let columns = identity_columns(table);
    let no_identity =
        || PlanError::NoIdentity { table: table.source.to_string(), operation: change.operation() };
    let row = change.identity_row().ok_or_else(no_identity)?;
    check_width(table, row)?;
    if columns.is_empty() && !table.columns.is_empty() {
        return Err(no_identity());
    }
    let mut null = ColumnSet::default();
    let mut params = Vec::with_capacity(columns.len());
    let values: Vec<Value<'_>> = row.iter().collect();
    for i in columns {
        match values.get(i).and_then(|&value| Param::of(row, value)) {
            Some(Param::Null) => null.insert(i),
            Some(value) => params.push(value),
            None => {
                return Err(PlanError::KeyNotSent {
                    table: table.source.to_string(),
                    column: table.columns.get(i).map(|c| c.source.clone()).unwrap_or_default(),
                });
            }
        }
    }
    Ok((null, params))
}

fn check_width(table: &TablePlan, row: &Tuple) -> Result<(), PlanError> {
    if row.len() == table.columns.len() {
        return Ok(());
    }
    Err(PlanError::ColumnCount {
        table: table.source.to_string(),
        expected: table.columns.len(),
        found: row.len(),
    })
}
