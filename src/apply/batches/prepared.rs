//! Prepares the statements of sets, once for each table and kind of change, and binds rows to them.
//!
//! # Invariants
//! - At most [`PREPARED_STATEMENTS_MAX`] and [`SINGLE_STATEMENTS_MAX`] statements are kept on the server,
//!   those that were used last. A batch keeps its own until it has been sent.
//! - A table's statements are dropped when its definition has changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio_postgres::Statement;

use crate::apply::batches::single_statement::{SingleStatement, single_statement_sql};
use crate::apply::change::Param;
use crate::apply::progress::advance_guarded_sql;
use crate::apply::recent::Recent;
use crate::apply::sets::array::set_arrays;
use crate::apply::sets::compact::{KeyRange, SetKind, SetRow, SetStep};
use crate::apply::sets::copy_data::copy_data;
use crate::apply::sets::row_search::RowSearch;
use crate::apply::sets::sql::{self, Count};
use crate::apply::stamp;
use crate::apply::statement::{ColumnSet, Sequences, Shape, identity_columns, truncate_sql};
use crate::apply::{ApplyError, TableContext};
use crate::net::PgClient;
use crate::pgoutput::{Format, Tuple};
use crate::schema::{CopyFormat, TablePlan, copy_in_sql};

/// For sets. The server takes about 20 kB for each.
const PREPARED_STATEMENTS_MAX: usize = 16_384;
/// For batches of one statement.
const SINGLE_STATEMENTS_MAX: usize = 4096;
/// Maximum number of statements that are being prepared.
const PREPARING_MAX: usize = 128;

/// Time that the target saves for each row by COPY, roughly. A COPY is used if this is more than a round trip.
const COPY_SAVES_PER_ROW: Duration = Duration::from_nanos(400);
/// Minimum number of rows for a COPY, however near the target is. A COPY waits for the server's CopyInResponse,
/// and statements that are sent after it wait, too, also while this process is busy with the next batch.
const COPY_ROWS_MIN: usize = 2048;

/// What a table's prepared statement does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Form {
    Set(SetKind, RowSearch, Count),
    /// A row of a set of few rows. Parsing and planning this takes a third of the time.
    Row(Shape, Count),
    Copy(CopyFormat),
}

/// Maximum number of rows of a set that go by statements of one row, in a batch of many sets. Each row takes the
/// server about 15 µs so, and planning a set's own statement 400 µs.
const ROWS_SINGLY_MAX: usize = 16;

/// How many tables a batch writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breadth {
    Narrow,
    /// Preparing the statements of these tables takes longer than carrying them out.
    Wide,
}

impl Form {
    fn sql(&self, table: &TablePlan, format: Format) -> String {
        match self {
            Self::Set(kind, search, count) => sql::set_sql(table, kind, *search, *count, format),
            Self::Row(shape, count) => sql::one_row_sql(table, shape, *count),
            Self::Copy(format) => copy_in_sql(table, *format),
        }
    }
}

/// What the statement of one row of such a set does; none for rows that are not found by a key.
fn row_shape(table: &TablePlan, kind: &SetKind) -> Option<Shape> {
    let null = ColumnSet::default();
    match kind {
        SetKind::Insert => Some(Shape::Insert((0..table.columns.len()).collect())),
        SetKind::Update(set) => {
            Some(Shape::Update { set: set.clone(), kept: table.kept_columns().collect(), null })
        }
        SetKind::Delete => Some(Shape::Delete { null }),
        SetKind::UpdateFullRow { .. } | SetKind::DeleteFullRow { .. } | SetKind::Absent => None,
    }
}

/// The parameters of the row's statement, as [`sql::one_row_sql`] wants them; none if the row needs another one.
fn row_params(table: &TablePlan, kind: &SetKind, row: &SetRow, count: Count) -> Option<Vec<Param>> {
    let (values, identity) = sql::parameters(table, kind);
    let set = if let SetKind::Update(set) = kind { set.iter().count() } else { values.len() };
    let (values, kept) = values.split_at(set);
    let (image, named_by) = (row.image.as_ref(), row.named_by());
    let sent = |row: Option<&Tuple>, column: usize| row.and_then(|row| Param::of(row, row.get(column)?));
    let values = values.iter().map(|&column| sent(image, column));
    let identity =
        identity.into_iter().map(|column| sent(named_by, column).filter(|value| *value != Param::Null));
    let kept = kept.iter().map(|&column| sent(image, column));
    let count = sql::takes_count(kind, count).then(|| Some(Param::Text(Bytes::from_static(b"1"))));
    values.chain(identity).chain(kept).chain(count).collect()
}

/// A set's kind, its rows, and the range of their keys.
type SetParts<'a> = (&'a SetKind, &'a [SetRow], Option<KeyRange>);

/// Whether the rows may be written one after the other. Keys that change could meet in between.
fn suits_rows(table: &TablePlan, kind: &SetKind, rows: &[SetRow]) -> bool {
    let keys_stay = match kind {
        SetKind::Update(set) => !identity_columns(table).into_iter().any(|column| set.contains(column)),
        _ => true,
    };
    keys_stay && rows.len() <= ROWS_SINGLY_MAX
}

#[derive(Debug)]
pub(crate) struct Prepared {
    client: Arc<PgClient>,
    /// How the publisher sends values.
    format: Format,
    sets: Recent<(u64, Form), Statement>,
    single: Recent<(u64, SetKind), SingleStatement>,
    progress: Option<Statement>,
    /// The statement that fails if a table has changed since it was planned.
    guard: Option<Statement>,
}

/// A step, ready to be sent.
pub(crate) enum Sendable {
    Text(String),
    Set {
        statement: Statement,
        params: Vec<Param>,
        search: RowSearch,
        /// The row count that the server must report; none if the statement checks it itself.
        expected: Option<u64>,
    },
    /// A statement of one row, with the parameters of each row; the row count is as of `Set`.
    Rows {
        statement: Statement,
        rows: Vec<Vec<Param>>,
        expected: Option<u64>,
    },
    /// A COPY statement, its data and the number of its rows.
    Copy(Statement, Bytes, u64),
}

impl Prepared {
    pub(crate) fn new(client: Arc<PgClient>, format: Format) -> Self {
        Self {
            client,
            format,
            sets: Recent::new(PREPARED_STATEMENTS_MAX),
            single: Recent::new(SINGLE_STATEMENTS_MAX),
            progress: None,
            guard: None,
        }
    }

    /// Drops a table's statements.
    pub(crate) fn forget(&mut self, table: u64) {
        self.sets.retain(|(id, _)| *id != table);
        self.single.retain(|(id, _)| *id != table);
    }

    /// Prepares the statements that these steps lack, without waiting for each other. A batch that touches many
    /// tables for the first time would otherwise wait for as many round trips.
    pub(crate) async fn steps(
        &mut self,
        steps: &[SetStep],
        counted: Count,
        breadth: Breadth,
    ) -> Result<(), ApplyError> {
        let mut missing = HashMap::new();
        for step in steps {
            let SetStep::Set { table, kind, rows, range } = step else { continue };
            let key = (table.id, self.form(table, (kind, rows, *range), counted_by(kind, counted), breadth));
            if !self.sets.contains(&key) {
                let sql = key.1.sql(&table.plan, self.format);
                missing.insert(key, sql);
            }
        }
        if missing.len() < 2 {
            return Ok(());
        }
        let client = Arc::clone(&self.client);
        let prepare = |(key, sql): (_, String)| {
            let client = Arc::clone(&client);
            async move { Ok::<_, ApplyError>((key, client.prepare(&sql).await?)) }
        };
        let mut prepared =
            futures_util::stream::iter(missing.into_iter().map(prepare)).buffer_unordered(PREPARING_MAX);
        while let Some((key, statement)) = prepared.try_next().await? {
            self.sets.insert(key, statement);
        }
        Ok(())
    }

    /// Prepares a step. A round trip to the target takes at most `round_trip`.
    pub(crate) async fn step(
        &mut self,
        step: &SetStep,
        counted: Count,
        breadth: Breadth,
        round_trip: Duration,
    ) -> Result<Sendable, ApplyError> {
        match step {
            SetStep::Truncate { tables, restart_seqs } => {
                let sequences = if *restart_seqs { Sequences::Restart } else { Sequences::Continue };
                Ok(Sendable::Text(truncate_sql(tables.iter().map(|table| &table.plan), sequences)))
            }
            SetStep::Set { table, kind, rows, range } => {
                refuse_guarded(table, rows)?;
                if *kind == SetKind::Insert
                    && is_worth_copying(rows.len(), round_trip)
                    && let Ok((format, data)) = copy_data(&table.plan.columns, rows, self.format)
                {
                    return self.copying(table, format, data, rows.len()).await;
                }
                self.set(table, (kind, rows, *range), counted_by(kind, counted), breadth).await
            }
        }
    }

    /// The form of a set. Statements of one row are planned sooner, and take longer for each row.
    fn form(
        &self,
        table: &TableContext,
        (kind, rows, range): SetParts<'_>,
        counted: Count,
        breadth: Breadth,
    ) -> Form {
        let set = Form::Set(kind.clone(), RowSearch::of(kind, range), counted);
        let few = || breadth == Breadth::Wide && suits_rows(&table.plan, kind, rows);
        if rows.len() == 1 || (few() && !self.sets.contains(&(table.id, set.clone()))) {
            return row_shape(&table.plan, kind).map_or(set, |shape| Form::Row(shape, counted));
        }
        set
    }

    async fn set(
        &mut self,
        table: &TableContext,
        set: SetParts<'_>,
        counted: Count,
        breadth: Breadth,
    ) -> Result<Sendable, ApplyError> {
        let (kind, rows, range) = set;
        let by_answer = counted == Count::ByAnswer;
        let form = self.form(table, set, counted, breadth);
        if let Form::Row(..) = form {
            let params = |row| row_params(&table.plan, kind, row, counted);
            if let Some(rows) = rows.iter().map(params).collect() {
                let statement = self.prepare(table, form).await?;
                return Ok(Sendable::Rows { statement, rows, expected: by_answer.then_some(1) });
            }
        }
        let search = RowSearch::of(kind, range);
        let statement = self.prepare(table, Form::Set(kind.clone(), search, counted)).await?;
        let params = bind(&statement, table, kind, rows, range, counted)?;
        let expected = by_answer.then_some(rows.len() as u64);
        Ok(Sendable::Set { statement, params, search, expected })
    }

    async fn copying(
        &mut self,
        table: &TableContext,
        format: CopyFormat,
        data: Bytes,
        rows: usize,
    ) -> Result<Sendable, ApplyError> {
        tracing::trace!(relation = %table.plan.target, rows, %format, "new rows go by COPY");
        let statement = self.prepare(table, Form::Copy(format)).await?;
        Ok(Sendable::Copy(statement, data, rows as u64))
    }

    /// Returns the statement for a transaction that consists of this set, and its parameters without those of
    /// the progress row.
    pub(crate) async fn single_statement(
        &mut self,
        table: &TableContext,
        kind: &SetKind,
        rows: &[SetRow],
    ) -> Result<(SingleStatement, Vec<Param>), ApplyError> {
        refuse_guarded(table, rows)?;
        let key = (table.id, kind.clone());
        let single = if let Some(single) = self.single.get(&key) {
            single
        } else {
            let single = SingleStatement::new(
                self.client.prepare(&single_statement_sql(&table.plan, kind, self.format)).await?,
            );
            self.single.insert(key, single.clone());
            single
        };
        let params = bind(&single.statement, table, kind, rows, None, Count::ByStatement)?;
        Ok((single, params))
    }

    async fn prepare(&mut self, table: &TableContext, form: Form) -> Result<Statement, ApplyError> {
        let key = (table.id, form);
        if let Some(statement) = self.sets.get(&key) {
            return Ok(statement);
        }
        let statement = self.client.prepare(&key.1.sql(&table.plan, self.format)).await?;
        self.sets.insert(key, statement.clone());
        Ok(statement)
    }

    pub(crate) async fn progress(&mut self) -> Result<Statement, ApplyError> {
        once(&self.client, &mut self.progress, advance_guarded_sql).await
    }

    pub(crate) async fn guard(&mut self) -> Result<Statement, ApplyError> {
        once(&self.client, &mut self.guard, stamp::guard_sql).await
    }
}

/// Fails if the target would silently change a value. Row by row, the change that has it is found and refused.
fn refuse_guarded(table: &TableContext, rows: &[SetRow]) -> Result<(), ApplyError> {
    if !table.plan.is_guarded() {
        return Ok(());
    }
    let refused = rows.iter().filter_map(|row| row.image.as_ref()).any(|row| table.refusal(row).is_some());
    if refused { Err(ApplyError::NotASet) } else { Ok(()) }
}

/// Returns the statement in `kept`, and prepares it first if there is none.
async fn once(
    client: &PgClient,
    kept: &mut Option<Statement>,
    sql: fn() -> String,
) -> Result<Statement, ApplyError> {
    if let Some(statement) = kept {
        return Ok(statement.clone());
    }
    Ok(kept.insert(client.prepare(&sql()).await?).clone())
}

/// How the statement of a set is counted if its batch would have it `wanted`.
fn counted_by(kind: &SetKind, wanted: Count) -> Count {
    if wanted == Count::ByAnswer && sql::answers_count(kind) { wanted } else { Count::ByStatement }
}

fn is_worth_copying(rows: usize, round_trip: Duration) -> bool {
    let saved = COPY_SAVES_PER_ROW.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX));
    rows >= COPY_ROWS_MIN && saved >= round_trip
}

/// Returns a set's parameters: one array for each column; the ends of the key range, if rows are found in one;
/// and the number of rows, if the statement checks it itself.
fn bind(
    statement: &Statement,
    table: &TableContext,
    kind: &SetKind,
    rows: &[SetRow],
    range: Option<KeyRange>,
    counted: Count,
) -> Result<Vec<Param>, ApplyError> {
    let arrays = set_arrays(&table.plan, kind, rows, statement.params());
    let mut params = arrays.map_err(|_| ApplyError::NotASet)?;
    if let Some(KeyRange { first, last }) = range {
        params.extend([first, last].map(|key| Param::Text(key.to_string().into())));
    }
    if sql::takes_count(kind, counted) {
        params.push(Param::Text(rows.len().to_string().into()));
    }
    Ok(params)
}
