//! The rows that a table has when it is synchronised again: replaced, truncated, or merged with the publisher's.
//!
//! Everything happens in the transaction of the copy, so that a failure leaves the rows as they were.
//!
//! # Replace
//! DELETE, then COPY. Readers see the former rows until the transaction commits. Foreign keys of other tables
//! are no obstacle if the role may set `session_replication_role`; otherwise they act, so that a table is
//! refused whose rows take others with them (ON DELETE CASCADE and the like).
//!
//! # Merge
//! COPY into a temporary table, then DELETE, UPDATE and INSERT of what differs, by a unique key of the target.
//! Rows are compared by their images (`*<>`), because `=` takes some values for equal that differ. Columns that
//! are not published keep their values.

use std::fmt::Write as _;

use tokio_postgres::types::Type;
use tracing::debug;

use super::{CopyError, Side};
use crate::apply::statement::{Sequences, scan_target, truncate_sql};
use crate::error::{Diagnosis, ServerError};
use crate::net::server_error;
use crate::pg::{QualifiedName, quote_ident};
use crate::schema::{ColumnPlan, KeyEquality, ReplicationRole, TablePlan};
use crate::store::Resync;
use crate::target::TargetSession;

/// Name of the temporary table of a merge. A session merges one table at a time.
const STAGED: &str = "pgsluice_resync";

/// The session's settings have rows found by their key's index, which the temporary table has not.
const JOIN_WHOLE_TABLES: &str =
    "SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on";
const JOIN_BY_KEY: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

/// Foreign keys of other tables whose action changes their rows when a row of table `$1` is deleted.
const CASCADES: &str = "SELECT pg_catalog.format('%s of %s', pg_catalog.quote_ident(c.conname), \
        c.conrelid::pg_catalog.regclass) FROM pg_catalog.pg_constraint c \
    WHERE c.contype = 'f' AND c.confrelid = pg_catalog.to_regclass($1) AND c.conrelid <> c.confrelid \
    AND c.confdeltype IN ('c', 'n', 'd') ORDER BY c.conname LIMIT 1";

/// What happens with the rows that the target table has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: the table joins, and its rows are added.
    Keep,
    /// The statement that deletes them.
    Replace(String),
    /// The statement that truncates the table.
    Truncate(String),
    Merge(Result<MergeSql, NoMerge>),
}

/// The statements of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeSql {
    /// Creates the temporary table with the columns that are copied.
    stage: String,
    delete: String,
    /// None if no column but those of the key is copied.
    update: Option<String>,
    insert: String,
}

/// Why a table cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoMerge {
    /// No unique key of the target has only columns that are copied and NOT NULL.
    NoKey,
    /// This column is GENERATED ALWAYS AS IDENTITY and not part of the key, so no UPDATE may set it.
    Identity(String),
}

impl Existing {
    #[must_use]
    pub fn new(resync: Option<Resync>, plan: &TablePlan) -> Self {
        match resync {
            None => Self::Keep,
            Some(Resync::Replace) => Self::Replace(format!("DELETE FROM {}", scan_target(plan))),
            Some(Resync::Truncate) => Self::Truncate(truncate_sql([plan], Sequences::Continue)),
            Some(Resync::Merge) => Self::Merge(merge_sql(plan)),
        }
    }

    /// The plan of the table that COPY writes to.
    #[must_use]
    pub fn destination(&self, plan: &TablePlan) -> TablePlan {
        match self {
            Self::Merge(_) => TablePlan { target: staged(), ..plan.clone() },
            Self::Keep | Self::Replace(_) | Self::Truncate(_) => plan.clone(),
        }
    }

    /// Makes room for the publisher's rows, within the open transaction.
    pub(super) async fn prepare(
        &self,
        target: &TargetSession,
        table: &QualifiedName,
    ) -> Result<(), CopyError> {
        match self {
            Self::Keep => Ok(()),
            Self::Replace(delete) => {
                refuse_cascades(target, delete, table).await?;
                // A deferrable foreign key is checked once the publisher's rows are there.
                run(target, Resync::Replace, table, &format!("SET CONSTRAINTS ALL DEFERRED; {delete}")).await
            }
            Self::Truncate(truncate) => run(target, Resync::Truncate, table, truncate).await,
            Self::Merge(Ok(merge)) => run(target, Resync::Merge, table, &merge.stage).await,
            Self::Merge(Err(why)) => Err(CopyError::Existing(Box::new(why.diagnosis(table)))),
        }
    }

    /// Writes what differs, once the publisher's rows have been copied.
    pub(super) async fn finish(
        &self,
        target: &TargetSession,
        table: &QualifiedName,
    ) -> Result<(), CopyError> {
        let Self::Merge(Ok(merge)) = self else { return Ok(()) };
        let staged = staged().quoted();
        run(target, Resync::Merge, table, &format!("ANALYZE {staged}; {JOIN_WHOLE_TABLES}")).await?;
        let statements = [Some(&merge.delete), merge.update.as_ref(), Some(&merge.insert)];
        for statement in statements.into_iter().flatten() {
            let rows = target.client().execute(statement.as_str(), &[]).await;
            let rows = rows.map_err(|error| failed(Resync::Merge, table, error))?;
            debug!(relation = %table, rows, verb = statement.get(..6), "merged");
        }
        run(target, Resync::Merge, table, &format!("DROP TABLE {staged}; {JOIN_BY_KEY}")).await
    }
}

async fn run(
    target: &TargetSession,
    how: Resync,
    table: &QualifiedName,
    statements: &str,
) -> Result<(), CopyError> {
    target.client().batch_execute(statements).await.map_err(|error| failed(how, table, error))
}

/// Refuses a table whose rows would take rows of other tables with them.
async fn refuse_cascades(
    target: &TargetSession,
    delete: &str,
    table: &QualifiedName,
) -> Result<(), CopyError> {
    if target.replication_role() == ReplicationRole::Replica {
        return Ok(());
    }
    let name = delete.trim_start_matches("DELETE FROM ").trim_start_matches("ONLY ");
    let found = target.client().query_typed(CASCADES, &[(&name, Type::TEXT)]).await;
    let found = found.map_err(CopyError::on(Side::Target))?;
    let Some(key) = found.first().and_then(|row| row.try_get::<_, String>(0).ok()) else { return Ok(()) };
    let diagnosis = Diagnosis::new(format!("the rows of {table} cannot be replaced"))
        .detail(format!("foreign key {key} would delete or change rows of its own table with them"))
        .hint(
            "use \"pgsluice resync … --merge\", or let the target role set session_replication_role (GRANT SET ON \
             PARAMETER session_replication_role TO the role)",
        );
    Err(CopyError::Existing(Box::new(diagnosis)))
}

fn failed(how: Resync, table: &QualifiedName, error: tokio_postgres::Error) -> CopyError {
    match server_error(&error) {
        Some(server) => CopyError::Existing(Box::new(refused(how, table, &server))),
        None => CopyError::Connection(Side::Target, error),
    }
}

/// Describes a statement that the target refused.
fn refused(how: Resync, table: &QualifiedName, error: &ServerError) -> Diagnosis {
    let failed = format!("{table} could not be synchronised again ({how}); its rows are as they were");
    let mut detail = format!("target: {error}");
    if let Some(more) = &error.detail {
        let _ = write!(detail, "; {more}");
    }
    let logged = error.may_quote_values().then(|| format!("{failed}: {}", error.to_code()));
    let diagnosis = Diagnosis::new(failed).detail(detail).hint(hint(how, table, error));
    Diagnosis { logged_as: logged, ..diagnosis }
}

fn hint(how: Resync, table: &QualifiedName, error: &ServerError) -> String {
    match (how, error.code.as_str()) {
        (Resync::Merge, "42501") if error.message.contains("temporary") => {
            "on the target: GRANT TEMPORARY ON DATABASE … TO the target role; or resync without --merge"
                .to_owned()
        }
        (Resync::Truncate, "42501") => {
            format!("on the target: GRANT TRUNCATE ON {} TO the target role", table.quoted())
        }
        (_, "42501") => format!(
            "on the target: GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO the target role",
            table.quoted()
        ),
        (Resync::Truncate, "0A000") => "resync without --truncate".to_owned(),
        (Resync::Replace, "23503") => {
            "rows of other tables refer to the rows: resync with --merge, or let the \
             target role set session_replication_role"
                .to_owned()
        }
        (Resync::Merge, "23505") => {
            "rows have exchanged values of another unique constraint: resync without --merge".to_owned()
        }
        _ => error.hint.clone().unwrap_or_else(|| {
            "it is tried again by itself; what it met must be fixed first, or another way chosen".to_owned()
        }),
    }
}

impl NoMerge {
    fn diagnosis(&self, table: &QualifiedName) -> Diagnosis {
        let refused = Diagnosis::new(format!("the rows of {table} cannot be merged"));
        match self {
            Self::NoKey => refused
                .detail(
                    "the target table has no unique key whose columns are all published and NOT NULL, so a row cannot \
                     be found again",
                )
                .hint("resync without --merge, or add such a key to the target table (ALTER TABLE … ADD PRIMARY KEY)"),
            Self::Identity(column) => refused
                .detail(format!(
                    "column \"{column}\" is GENERATED ALWAYS AS IDENTITY and not part of the key, so no UPDATE may \
                     set it"
                ))
                .hint(format!(
                    "resync without --merge, or ALTER TABLE … ALTER COLUMN {} SET GENERATED BY DEFAULT on the target",
                    quote_ident(column)
                )),
        }
    }
}

fn staged() -> QualifiedName {
    QualifiedName::new("pg_temp", STAGED)
}

/// Builds the statements of a merge.
fn merge_sql(plan: &TablePlan) -> Result<MergeSql, NoMerge> {
    let key = merge_key(plan).ok_or(NoMerge::NoKey)?;
    let in_key = |column: &ColumnPlan| key.iter().any(|other| other.target == column.target);
    if let Some(column) = plan.columns.iter().find(|column| column.identity_always && !in_key(column)) {
        return Err(NoMerge::Identity(column.target.clone()));
    }
    let (target, staged) = (scan_target(plan), staged().quoted());
    let names: Vec<String> = plan.columns.iter().map(|column| quote_ident(&column.target)).collect();
    let list = names.join(", ");
    let same_key = key.iter().map(|column| equal(column)).collect::<Vec<_>>().join(" AND ");
    let settable = plan.columns.iter().filter(|column| !column.identity_always);
    let settable: Vec<String> = settable.map(|column| quote_ident(&column.target)).collect();
    let all_of =
        |row: &str| settable.iter().map(|name| format!("{row}.{name}")).collect::<Vec<_>>().join(", ");
    let update = (!settable.is_empty()).then(|| {
        let assignments: Vec<String> = settable.iter().map(|name| format!("{name} = m.{name}")).collect();
        format!(
            "UPDATE {target} AS t SET {} FROM {staged} AS m WHERE {same_key} AND \
             ROW({})::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW({})::pg_catalog.record",
            assignments.join(", "),
            all_of("t"),
            all_of("m")
        )
    });
    let overriding = if plan.identity_always { " OVERRIDING SYSTEM VALUE" } else { "" };
    Ok(MergeSql {
        stage: format!(
            "CREATE TEMPORARY TABLE {staged} ON COMMIT DROP AS SELECT {list} FROM {target} WITH NO DATA"
        ),
        delete: format!(
            "DELETE FROM {target} AS t WHERE NOT EXISTS (SELECT FROM {staged} AS m WHERE {same_key})"
        ),
        update,
        insert: format!(
            "INSERT INTO {} ({list}){overriding} SELECT {list} FROM {staged} AS m \
             WHERE NOT EXISTS (SELECT FROM {target} AS t WHERE {same_key})",
            plan.target.quoted()
        ),
    })
}

/// The columns of a unique key of the target by which a row is found again; the primary key comes first.
fn merge_key(plan: &TablePlan) -> Option<Vec<&ColumnPlan>> {
    let column = |name: &String| {
        plan.columns
            .iter()
            .find(|column| column.target == *name && column.not_null && column.equality.is_some())
    };
    plan.unique_keys
        .iter()
        .filter(|key| key.equality != KeyEquality::Other)
        .find_map(|key| key.columns.iter().map(column).collect())
}

/// Returns `t."column" OPERATOR("schema".=) m."column"`.
fn equal(column: &ColumnPlan) -> String {
    let (schema, operator) =
        column.equality.as_ref().map_or(("pg_catalog", "="), |op| (op.schema.as_str(), op.name.as_str()));
    let name = quote_ident(&column.target);
    format!("t.{name} OPERATOR({}.{operator}) m.{name}", quote_ident(schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_statement_names_the_way_out() {
        let error = |code: &str| ServerError { code: code.to_owned(), ..ServerError::default() };
        let table = QualifiedName::new("public", "t");
        for (how, code, expected) in [
            (Resync::Merge, "23505", "without --merge"),
            (Resync::Truncate, "0A000", "without --truncate"),
            (Resync::Truncate, "42501", "GRANT TRUNCATE"),
            (Resync::Replace, "42501", "DELETE ON"),
            (Resync::Replace, "23503", "--merge"),
        ] {
            let hint = refused(how, &table, &error(code)).hint.unwrap_or_default();
            assert!(hint.contains(expected), "{how} {code}: {hint}");
        }
    }
}
