//! Collects the evidence of a conflict: the target's rows that a refused change met, read after the rollback.
//!
//! Values are rendered by the target's output functions, as text, so that the evidence of both sides can be
//! compared. An error that is no conflict is returned unchanged.

use crate::apply::TableContext;
use crate::apply::change::{Param, RowChange};
use crate::apply::end::{End, Unfit};
use crate::apply::error::{ApplyError, FailedChange};
use crate::apply::incoming::tables::{compare, is_still_planned_so};
use crate::apply::rows::facts::ConflictFacts;
use crate::apply::rows::plan::plan_exists;
use crate::apply::statement::{local_rows_by_identity_sql, local_rows_by_key_sql, run_as_sql};
use crate::conflict::{
    ConflictKind, ConflictReport, FieldValue, LocalRow, Operation, RowImage, classify_error, classify_row,
};
use crate::error::ServerError;
use crate::pg::QualifiedName;
use crate::pgoutput::{OldRow, Tuple, Value};
use crate::schema::{MisfitKind, ReplicationRole, TablePlan, catalog};
use crate::target::TargetSession;

/// SQLSTATE `generated_always`: a value was given for a column that only takes generated ones.
const GENERATED_ALWAYS: &str = "428C9";
/// Maximum number of local rows shown for each unique key. One is usual; more are a sign of a damaged index.
const LOCAL_ROWS_MAX: usize = 8;

/// Gathers the evidence for a failed change. The session's transaction has been rolled back.
///
/// # Errors
/// The failure itself, if it is not a conflict; [`ApplyError::TargetChanged`] if the table has changed since
/// the change was planned; or the failure of a query for the evidence.
pub(crate) async fn collect(error: ApplyError, session: &TargetSession) -> Result<ConflictFacts, ApplyError> {
    if let ApplyError::RowCount { change, .. } | ApplyError::Refused { change, .. } = &error {
        check_current(&change.table, session).await?;
    }
    if let Some(unfit) = changed_identity(&error, session).await? {
        return Err(End::Unfit(unfit).into());
    }
    match error {
        ApplyError::RowCount { found, change } => missing_row(found, *change, session.replication_role()),
        ApplyError::Refused { error, change } => refused(*error, *change, session).await,
        ApplyError::Server(error) => of_no_row(*error),
        other => Err(other),
    }
}

/// Fails if the table would get another plan now, or none: the outdated plan may be the cause of the failure,
/// so the changes are applied again with a new one. The session must not be within a transaction.
pub(crate) async fn check_current(table: &TableContext, session: &TargetSession) -> Result<(), ApplyError> {
    let name = &table.plan.target;
    let target = catalog::target_tables(&***session.client(), std::slice::from_ref(name)).await?;
    let target = target.first().and_then(Option::as_ref);
    let now = compare(&session.surroundings(), &table.described, name, target, &table.rules);
    if is_still_planned_so(table, &now) { Ok(()) } else { Err(ApplyError::TargetChanged(name.clone())) }
}

/// Returns the misfit if an update failed because it changes a GENERATED ALWAYS AS IDENTITY column. If the old value
/// was sent, the server has refused the new one; otherwise the row exists, with another value.
pub(crate) async fn changed_identity(
    error: &ApplyError,
    session: &TargetSession,
) -> Result<Option<Unfit>, ApplyError> {
    let (change, columns) = match error {
        ApplyError::Refused { error, change } if error.code == GENERATED_ALWAYS => {
            (change, refused_identity(change))
        }
        ApplyError::RowCount { found: 0, change } if matches!(change.change, RowChange::Update { .. }) => {
            let kept: Vec<usize> = change.table.plan.kept_columns().collect();
            let exists = !kept.is_empty() && !row_itself(change, session).await?.is_empty();
            (change, if exists { kept } else { Vec::new() })
        }
        _ => return Ok(None),
    };
    let table = &change.table;
    let names = columns.into_iter().filter_map(|i| table.plan.columns.get(i)).map(|c| c.target.clone());
    let misfits: Vec<_> = names.map(|column| table.misfit(MisfitKind::IdentityAlways { column })).collect();
    let unfit = Unfit { misfits, command: change.change.operation(), finish: None };
    Ok((!unfit.misfits.is_empty()).then_some(unfit))
}

/// Returns the columns of the row identity that an update may not set, and would.
fn refused_identity(failed: &FailedChange) -> Vec<usize> {
    let RowChange::Update { new, .. } = &failed.change else { return Vec::new() };
    let old = failed.change.identity_row();
    let changes = |&at: &usize| old.is_some_and(|old| old.get(at) != new.get(at));
    let columns = failed.table.plan.columns.iter().enumerate();
    let kept: Vec<usize> = failed.table.plan.kept_columns().collect();
    columns
        .filter(|(at, column)| column.identity_always && !kept.contains(at))
        .map(|(at, _)| at)
        .filter(changes)
        .collect()
}

fn missing_row(found: u64, change: FailedChange, role: ReplicationRole) -> Result<ConflictFacts, ApplyError> {
    let operation = operation(&change.change);
    let row = if found == 0 { LocalRow::Missing } else { LocalRow::SameOrigin };
    let Some(kind) = classify_row(operation, row, 0) else {
        return Err(ApplyError::RowCount { found, change: Box::new(change) });
    };
    let message = format!("the row to {operation} is not in {}", change.table.plan.target);
    // A cascade of the target may have done already what the publisher sends next.
    let cascades = role == ReplicationRole::Origin && change.table.plan.has_foreign_keys;
    let error = cascades.then(|| ServerError {
        detail: Some(ConflictReport::FOREIGN_KEYS_ACT.to_owned()),
        ..ServerError::default()
    });
    Ok(finding(kind, &change, Vec::new(), error, message))
}

async fn refused(
    error: ServerError,
    change: FailedChange,
    session: &TargetSession,
) -> Result<ConflictFacts, ApplyError> {
    let operation = operation(&change.change);
    if classify_error(operation, &error, 0).is_none() {
        return Err(ApplyError::Refused { error: Box::new(error), change: Box::new(change) });
    }
    let (local_rows, unique_hits) = if error.code == "23505" {
        rows_in_the_way(&change, session).await?
    } else {
        (row_itself(&change, session).await?, 0)
    };
    let kind = classify_error(operation, &error, unique_hits).unwrap_or(ConflictKind::ConstraintViolation);
    let message = error.message.clone();
    Ok(finding(kind, &change, local_rows, Some(error), message))
}

/// Returns the facts of a refused TRUNCATE or COMMIT (deferred constraints), which has no row to show.
fn of_no_row(error: ServerError) -> Result<ConflictFacts, ApplyError> {
    let Some(kind) = classify_error(Operation::Truncate, &error, 0) else {
        return Err(ApplyError::Server(Box::new(error)));
    };
    let table =
        QualifiedName::new(error.schema.clone().unwrap_or_default(), error.table.clone().unwrap_or_default());
    Ok(ConflictFacts {
        kind,
        operation: Operation::Truncate,
        source: table.clone(),
        target: table,
        key: None,
        incoming: None,
        old: None,
        local_rows: Vec::new(),
        message: error.message.clone(),
        error: Some(error),
        change_index: 0,
    })
}

fn finding(
    kind: ConflictKind,
    failed: &FailedChange,
    local_rows: Vec<RowImage>,
    error: Option<ServerError>,
    message: String,
) -> ConflictFacts {
    let plan = &failed.table.plan;
    let (incoming, old) = match &failed.change {
        RowChange::Insert { new } => (Some(image(plan, new)), None),
        RowChange::Update { old, new } => (Some(image(plan, new)), old_image(plan, old)),
        RowChange::Delete { old } => (None, old_image(plan, old)),
    };
    ConflictFacts {
        kind,
        operation: operation(&failed.change),
        source: plan.source.clone(),
        target: plan.target.clone(),
        key: key_image(&failed.table, &failed.change),
        incoming,
        old,
        local_rows,
        error,
        message,
        change_index: failed.index,
    }
}

fn operation(change: &RowChange) -> Operation {
    match change {
        RowChange::Insert { .. } => Operation::Insert,
        RowChange::Update { .. } => Operation::Update,
        RowChange::Delete { .. } => Operation::Delete,
    }
}

/// Returns the local rows that conflict with the new row's unique keys, and the number of keys that conflict.
/// The row that an update changes is not among them.
async fn rows_in_the_way(
    failed: &FailedChange,
    session: &TargetSession,
) -> Result<(Vec<RowImage>, usize), ApplyError> {
    let plan = &failed.table.plan;
    let Some(new) = failed.change.new_row() else { return Ok((Vec::new(), 0)) };
    // The row that an update changes is found by each key that the update does not change.
    let own = row_itself(failed, session).await?;
    let (mut rows, mut hits) = (Vec::new(), 0);
    for unique in &plan.unique_keys {
        let Some(columns) = positions(plan, &unique.columns) else { continue };
        let Some(params) = columns.iter().map(|&i| text(new, i)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        let mut found = read_rows(session, plan, &local_rows_by_key_sql(plan, &columns), params).await?;
        found.retain(|row| !own.contains(row));
        hits += usize::from(!found.is_empty());
        for row in found {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    Ok((rows, hits))
}

/// Returns the target's row that an update or delete changes.
async fn row_itself(failed: &FailedChange, session: &TargetSession) -> Result<Vec<RowImage>, ApplyError> {
    if matches!(failed.change, RowChange::Insert { .. }) {
        return Ok(Vec::new());
    }
    let plan = &failed.table.plan;
    let Ok(exists) = plan_exists(plan, &failed.change) else { return Ok(Vec::new()) };
    read_rows(session, plan, &local_rows_by_identity_sql(plan, &exists.shape), exists.params).await
}

/// The settings that a walsender has, so that values which are equal look equal.
const IN_THE_PUBLISHERS_FORM: &str = "BEGIN; SET LOCAL TimeZone = 'UTC'; SET LOCAL bytea_output = 'hex'";

/// Reads rows as (column names, values as text, sizes of values of which only the beginning is read). If the server refuses the query, for example because a
/// column or a privilege is missing, no rows are returned, so that the change's own error is reported.
async fn read_rows(
    session: &TargetSession,
    table: &TablePlan,
    sql: &str,
    params: Vec<Param>,
) -> Result<Vec<RowImage>, ApplyError> {
    let client = session.client();
    let read = async {
        let statement = client.prepare(sql).await?;
        let rows: Vec<_> =
            futures_util::TryStreamExt::try_collect(client.query_raw(&statement, params).await?).await?;
        Ok::<Vec<tokio_postgres::Row>, tokio_postgres::Error>(rows)
    };
    let role = table.run_as.as_deref().map(|role| run_as_sql(Some(role))).unwrap_or_default();
    client.batch_execute(&format!("{IN_THE_PUBLISHERS_FORM}; {role}")).await?;
    let read = read.await;
    client.batch_execute("ROLLBACK").await?;
    let rows = match read.map_err(ApplyError::from) {
        Ok(rows) => rows,
        Err(ApplyError::Server(_)) => return Ok(Vec::new()),
        Err(other) => return Err(other),
    };
    rows.iter().take(LOCAL_ROWS_MAX).map(row_image).collect()
}

fn row_image(row: &tokio_postgres::Row) -> Result<RowImage, ApplyError> {
    let names: Vec<String> = row.try_get(0)?;
    let values: Vec<Option<String>> = row.try_get(1)?;
    let sizes: Vec<Option<i32>> = row.try_get(2)?;
    let field = |(value, size): (Option<String>, Option<i32>)| match (value, size) {
        (None, _) => FieldValue::Null,
        (Some(text), None) => FieldValue::Text(text),
        (Some(start), Some(size)) => FieldValue::Start { start, size: u64::try_from(size).unwrap_or(0) },
    };
    Ok(names.into_iter().zip(values.into_iter().zip(sizes).map(field)).collect())
}

/// Returns the positions of these target columns in the publisher's rows; none if one is not published.
fn positions(plan: &TablePlan, columns: &[String]) -> Option<Vec<usize>> {
    columns.iter().map(|name| plan.columns.iter().position(|column| column.target == *name)).collect()
}

/// Returns the value as a parameter; none if it is NULL, which equals nothing, or was not sent.
fn text(row: &Tuple, column: usize) -> Option<Param> {
    match row.get(column)? {
        Value::Null | Value::Unchanged => None,
        Value::Text(bytes) => Some(Param::Text(row.share(bytes))),
        Value::Binary(bytes) => Some(Param::Binary(row.share(bytes))),
    }
}

fn image(plan: &TablePlan, row: &Tuple) -> RowImage {
    plan.columns.iter().zip(row).map(|(column, value)| (column.source.clone(), field(value))).collect()
}

fn old_image(plan: &TablePlan, old: &OldRow) -> Option<RowImage> {
    match old {
        OldRow::NotSent => None,
        OldRow::Full(row) => Some(image(plan, row)),
        // The publisher sends NULL for the columns that are not part of the key.
        OldRow::Key(row) => Some(key_columns(plan, row)),
    }
}

fn key_image(table: &TableContext, change: &RowChange) -> Option<RowImage> {
    let row = change.identity_row().or_else(|| change.new_row())?;
    let key = key_columns(&table.plan, row);
    (!key.is_empty()).then_some(key)
}

fn key_columns(plan: &TablePlan, row: &Tuple) -> RowImage {
    plan.columns
        .iter()
        .zip(row)
        .filter(|(column, _)| column.key)
        .map(|(column, value)| (column.source.clone(), field(value)))
        .collect()
}

fn field(value: Value<'_>) -> FieldValue {
    match value {
        Value::Null => FieldValue::Null,
        Value::Unchanged => FieldValue::Unchanged,
        Value::Text(bytes) => FieldValue::from_bytes(bytes),
        Value::Binary(bytes) => FieldValue::from_binary(bytes),
    }
}
