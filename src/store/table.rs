//! The tables of a subscription: their target tables, and the state of each copy.
//!
//! A table becomes `ready` within the transaction of its copy (module `copy`), together with its rows. All
//! other states are written here.
//!
//! # Invariants
//! - A copy has a number, `attempt`. A write about a copy takes effect only while the copy is the table's
//!   latest. So neither an earlier copy nor a write about it can be committed later.
//! - The state and position of a `ready` table change only by a gap that holds it (`gap`), and by a command to
//!   synchronise it again (`intervention`). Otherwise only `exact_because` and `described` are written.

use std::collections::HashMap;

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};

use crate::boundary;
use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName, as_owner};
use crate::schema::{Marks, SeenTable};
use crate::subscription::membership::{Left, LetGo};

use super::codec::Time;
use super::columns::{lsn, saturate, unsigned, word};
use super::{Ownership, Resync, Store, StoreError, StoreErrorKind, TableState, lost, owner, spelling};

/// The result of a write about a table's synchronisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableStep {
    /// It has been written, for the copy with this number.
    Taken { attempt: i32 },
    /// Nothing was written, because the table is synchronised from this position on.
    Ready { synced_lsn: Lsn },
}

/// How the stream describes a table, and why it is applied row by row; none if it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTable {
    pub source: QualifiedName,
    pub described: SeenTable,
    pub exact_because: Option<&'static str>,
}

/// A table's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRow {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub state: TableState,
    /// Changes that commit at or beyond this position apply.
    pub synced_lsn: Option<Lsn>,
    /// The position of its copy's snapshot; none if it was not copied, or an older version did it.
    pub copied_lsn: Option<Lsn>,
    /// The number of the latest copy; 0 before the first.
    pub attempt: i32,
    pub rows_copied: u64,
    pub rows_estimated: Option<u64>,
    /// Why its copy failed.
    pub error: Option<Diagnosis>,
    /// Why it is applied row by row.
    pub exact_because: Option<String>,
    /// How its copy treats the rows that the target table has; none if it joins.
    pub resync: Option<Resync>,
    /// The table as the stream last described it; none before the first description.
    pub described: Option<SeenTable>,
    /// Its OID on the publisher; none where an older version recorded it.
    pub source_oid: Option<u32>,
    /// Its OID on the target, if it has been looked up.
    pub target_oid: Option<u32>,
    /// How the publications published it when they were last looked at.
    pub marks: Option<Marks>,
    /// It is not published any more.
    pub left: Option<Left>,
    pub updated_at: Timestamp,
}

impl TableRow {
    /// Whether it has to be copied before the stream applies its changes.
    #[must_use]
    pub const fn is_to_be_copied(&self) -> bool {
        matches!(self.state, TableState::Pending | TableState::Copying | TableState::CatchingUp)
    }
}

impl Store {
    /// Ensures that no copy that was begun before can commit, and waits for those that the server is
    /// committing. After that, only the owner changes the record of its tables.
    pub async fn end_copies(&self, owner: &Ownership) -> Result<(), StoreError> {
        self.run("end the copies of an earlier attempt", async {
            let done = sqlx::query(as_owner!(
                " UPDATE pgsluice.table_sync t SET attempt = t.attempt + 1, updated_at = now() FROM owner \
                 WHERE t.subscription = owner.name AND t.attempt > 0 AND t.state <> 'ready'"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .execute(&self.pool)
            .await?;
            if done.rows_affected() > 0 { Ok(()) } else { owner::still(&self.pool, owner).await }
        })
        .await
    }

    /// Writes the state of a table whose latest copy has the number `attempt`, with the error of its copy if
    /// it failed.
    ///
    /// # Errors
    /// Also [`StoreErrorKind::CopySuperseded`], if there has been another copy since.
    pub async fn set_table_state(
        &self,
        owner: &Ownership,
        source: &QualifiedName,
        attempt: i32,
        state: TableState,
        error: Option<&Diagnosis>,
    ) -> Result<TableStep, StoreError> {
        self.run("report a table's state", async {
            let written = self.write_table_state(owner, source, attempt, state, error).await;
            if !spelling::is_untranslatable(&written) {
                return written;
            }
            let ascii = error.map(spelling::diagnosis);
            self.write_table_state(owner, source, attempt, state, ascii.as_ref()).await
        })
        .await
    }

    async fn write_table_state(
        &self,
        owner: &Ownership,
        source: &QualifiedName,
        attempt: i32,
        state: TableState,
        error: Option<&Diagnosis>,
    ) -> Result<TableStep, StoreErrorKind> {
        let taken = sqlx::query_scalar(as_owner!(
            " UPDATE pgsluice.table_sync t SET state = $6, error = $7, updated_at = now() FROM owner \
             WHERE t.subscription = owner.name AND t.source_schema = $3 AND t.source_table = $4 \
             AND t.attempt = $5 AND t.state <> 'ready' RETURNING t.attempt"
        ))
        .bind(owner.name())
        .bind(owner.term().as_i64())
        .bind(&source.schema)
        .bind(&source.name)
        .bind(attempt)
        .bind(state.as_str())
        .bind(error.map(Json))
        .fetch_optional(&self.pool)
        .await?;
        self.step(owner, source, taken).await
    }

    /// Makes a table that is not copied, and whose latest copy has the number `attempt`, `ready`: changes that
    /// commit from `position` on apply.
    ///
    /// # Errors
    /// As of [`Self::set_table_state`].
    pub async fn set_table_ready(
        &self,
        owner: &Ownership,
        source: &QualifiedName,
        attempt: i32,
        position: Lsn,
    ) -> Result<TableStep, StoreError> {
        self.run("report a table as ready", async {
            let made = sqlx::query_scalar(as_owner!(
                " UPDATE pgsluice.table_sync t SET state = 'ready', synced_lsn = $6, error = NULL, \
                 updated_at = now() FROM owner WHERE t.subscription = owner.name AND t.source_schema = $3 \
                 AND t.source_table = $4 AND t.attempt = $5 AND t.state <> 'ready' RETURNING t.attempt"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(&source.schema)
            .bind(&source.name)
            .bind(attempt)
            .bind(position)
            .fetch_optional(&self.pool);
            let taken = boundary::deed!("table::ready", made.await, Err(lost()))?;
            self.step(owner, source, taken).await
        })
        .await
    }

    /// Makes tables ready, each with the number of its latest copy, as [`Self::set_table_ready`] does. Returns how
    /// many it has found to be as expected; the others stay as they are.
    pub async fn set_tables_ready(
        &self,
        owner: &Ownership,
        tables: &[(&QualifiedName, i32)],
        position: Lsn,
    ) -> Result<usize, StoreError> {
        let schemas: Vec<&str> = tables.iter().map(|(source, _)| source.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|(source, _)| source.name.as_str()).collect();
        let attempts: Vec<i32> = tables.iter().map(|(_, attempt)| *attempt).collect();
        self.run("report tables as ready", async {
            let made = sqlx::query(as_owner!(
                " UPDATE pgsluice.table_sync t SET state = 'ready', synced_lsn = $6, error = NULL, \
                 updated_at = now() FROM owner, \
                   ROWS FROM (pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[]), \
                              pg_catalog.unnest($5::pg_catalog.int4[])) AS n(schema, name, attempt) \
                 WHERE t.subscription = owner.name AND t.source_schema = n.schema AND t.source_table = n.name \
                 AND t.attempt = n.attempt AND t.state <> 'ready'"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(&schemas)
            .bind(&names)
            .bind(&attempts)
            .bind(position)
            .execute(&self.pool);
            let made = boundary::deed!("table::ready", made.await, Err(lost()))?;
            let made = usize::try_from(made.rows_affected()).unwrap_or(usize::MAX);
            if made < tables.len() {
                owner::still(&self.pool, owner).await?;
            }
            Ok(made)
        })
        .await
    }

    /// Starts a copy of a table whose latest copy has the number `attempt`. The table is then `copying`, and
    /// only the copy with the returned number may write about it.
    ///
    /// # Errors
    /// As of [`Self::set_table_state`].
    pub async fn begin_copy(
        &self,
        owner: &Ownership,
        source: &QualifiedName,
        attempt: i32,
    ) -> Result<TableStep, StoreError> {
        self.run("begin a table's copy", async {
            let begun = sqlx::query_scalar(as_owner!(
                " UPDATE pgsluice.table_sync t SET state = 'copying', attempt = t.attempt + 1, rows_copied = 0, \
                 synced_lsn = NULL, copied_lsn = NULL, error = NULL, updated_at = now() FROM owner \
                 WHERE t.subscription = owner.name AND t.source_schema = $3 AND t.source_table = $4 \
                 AND t.attempt = $5 AND t.state <> 'ready' RETURNING t.attempt"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(&source.schema)
            .bind(&source.name)
            .bind(attempt)
            .fetch_optional(&self.pool);
            let taken = boundary::deed!("table::begin_copy", begun.await, Err(lost()))?;
            self.step(owner, source, taken).await
        })
        .await
    }

    /// Turns the result of a write, which may have found its row or not, into a step.
    async fn step(
        &self,
        owner: &Ownership,
        source: &QualifiedName,
        taken: Option<i32>,
    ) -> Result<TableStep, StoreErrorKind> {
        if let Some(attempt) = taken {
            return Ok(TableStep::Taken { attempt });
        }
        owner::still(&self.pool, owner).await?;
        let row: Option<(String, Option<Lsn>)> = sqlx::query_as(
            "SELECT state, synced_lsn FROM pgsluice.table_sync \
             WHERE subscription = $1 AND source_schema = $2 AND source_table = $3",
        )
        .bind(owner.name())
        .bind(&source.schema)
        .bind(&source.name)
        .fetch_optional(&self.pool)
        .await?;
        let (state, synced_lsn) = row.ok_or_else(|| unknown_table(owner.name(), source))?;
        match synced_lsn {
            Some(synced_lsn) if state == TableState::Ready.as_str() => Ok(TableStep::Ready { synced_lsn }),
            _ => Err(StoreErrorKind::CopySuperseded { source: source.clone() }),
        }
    }

    /// Writes how many rows a copy has copied. It has no effect if the copy is not the latest.
    pub async fn report_copy(
        &self,
        owner: &Ownership,
        source: &QualifiedName,
        attempt: i32,
        rows_copied: u64,
        rows_estimated: Option<u64>,
    ) -> Result<(), StoreError> {
        self.run("report a table's copy", async {
            let done = sqlx::query(as_owner!(
                " UPDATE pgsluice.table_sync t SET rows_copied = $6, \
                 rows_estimated = coalesce($7, t.rows_estimated), updated_at = now() FROM owner \
                 WHERE t.subscription = owner.name AND t.source_schema = $3 AND t.source_table = $4 \
                 AND t.attempt = $5 AND t.state = 'copying'"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(&source.schema)
            .bind(&source.name)
            .bind(attempt)
            .bind(saturate(rows_copied))
            .bind(rows_estimated.map(saturate))
            .execute(&self.pool)
            .await?;
            if done.rows_affected() > 0 { Ok(()) } else { owner::still(&self.pool, owner).await }
        })
        .await
    }

    /// Writes what tables are like that are to be copied.
    pub async fn set_described(
        &self,
        owner: &Ownership,
        tables: &[(QualifiedName, SeenTable)],
    ) -> Result<(), StoreError> {
        self.run("record what tables are like", async {
            let pick = |pick: fn(&QualifiedName) -> &String| -> Vec<&str> {
                tables.iter().map(|(source, _)| pick(source).as_str()).collect()
            };
            let done = sqlx::query(as_owner!(
                " UPDATE pgsluice.table_sync t SET described = w.d FROM owner, \
                 unnest($3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.jsonb[]) AS w (s, t, d) \
                 WHERE t.subscription = owner.name AND t.source_schema = w.s AND t.source_table = w.t"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(pick(|source| &source.schema))
            .bind(pick(|source| &source.name))
            .bind(tables.iter().map(|(_, described)| Json(described)).collect::<Vec<_>>())
            .execute(&self.pool)
            .await?;
            if done.rows_affected() > 0 { Ok(()) } else { owner::still(&self.pool, owner).await }
        })
        .await
    }

    /// Writes how the stream describes tables, and why each is applied row by row; none if it is not.
    pub async fn set_planned(&self, owner: &Ownership, tables: &[PlannedTable]) -> Result<(), StoreError> {
        let schemas: Vec<&str> = tables.iter().map(|table| table.source.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.source.name.as_str()).collect();
        let reasons: Vec<Option<&str>> = tables.iter().map(|table| table.exact_because).collect();
        self.run("report how a table is applied", async {
            let done = sqlx::query(as_owner!(
                " UPDATE pgsluice.table_sync t SET exact_because = n.reason, described = n.described, \
                   updated_at = now() FROM owner, \
                   ROWS FROM (pg_catalog.unnest($3::pg_catalog.text[]), pg_catalog.unnest($4::pg_catalog.text[]), \
                              pg_catalog.unnest($5::pg_catalog.text[]), pg_catalog.unnest($6::pg_catalog.jsonb[])) \
                   AS n(schema, name, reason, described) \
                 WHERE t.subscription = owner.name AND t.source_schema = n.schema AND t.source_table = n.name"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(&schemas)
            .bind(&names)
            .bind(&reasons)
            .bind(tables.iter().map(|table| Json(&table.described)).collect::<Vec<_>>())
            .execute(&self.pool)
            .await?;
            if done.rows_affected() > 0 { Ok(()) } else { owner::still(&self.pool, owner).await }
        })
        .await
    }
}

pub(super) fn unknown_table(name: &str, source: &QualifiedName) -> StoreErrorKind {
    StoreErrorKind::UnknownTable { subscription: name.to_owned(), source: source.clone() }
}

/// Returns the tables of one subscription, or of all, sorted by subscription.
pub(super) async fn load(
    session: &mut PgConnection,
    name: Option<&str>,
) -> Result<HashMap<String, Vec<TableRow>>, StoreErrorKind> {
    let rows = sqlx::query(
        "SELECT subscription, source_schema, source_table, target_schema, target_table, state, \
         synced_lsn::pg_catalog.text, copied_lsn::pg_catalog.text, attempt, rows_copied, rows_estimated, error, exact_because, described, \
         updated_at, resync, \
         source_oid, target_oid, marks, left_from::pg_catalog.text, left_lsn::pg_catalog.text, left_xid, \
         let_go_at IS NOT NULL AS let_go FROM pgsluice.table_sync \
         WHERE $1::pg_catalog.text IS NULL OR subscription = $1 ORDER BY source_schema, source_table",
    )
    .bind(name)
    .fetch_all(session)
    .await?;
    let mut tables: HashMap<String, Vec<TableRow>> = HashMap::new();
    for row in &rows {
        tables.entry(row.try_get("subscription")?).or_default().push(decode(row)?);
    }
    Ok(tables)
}

fn decode(row: &PgRow) -> Result<TableRow, sqlx::Error> {
    let name = |schema: &str, table: &str| -> Result<QualifiedName, sqlx::Error> {
        Ok(QualifiedName { schema: row.try_get(schema)?, name: row.try_get(table)? })
    };
    Ok(TableRow {
        source: name("source_schema", "source_table")?,
        target: name("target_schema", "target_table")?,
        state: word(row, "state")?,
        synced_lsn: lsn(row, "synced_lsn")?,
        copied_lsn: lsn(row, "copied_lsn")?,
        attempt: row.try_get("attempt")?,
        rows_copied: unsigned(row, "rows_copied")?.unwrap_or(0),
        rows_estimated: unsigned(row, "rows_estimated")?,
        error: row.try_get::<Option<Json<Diagnosis>>, _>("error")?.map(|error| error.0),
        exact_because: row.try_get("exact_because")?,
        resync: match row.try_get::<Option<&str>, _>("resync")? {
            Some(_) => Some(word(row, "resync")?),
            None => None,
        },
        described: row.try_get::<Option<Json<SeenTable>>, _>("described")?.map(|described| described.0),
        source_oid: oid(row, "source_oid")?,
        target_oid: oid(row, "target_oid")?,
        marks: row.try_get::<Option<Json<Marks>>, _>("marks")?.map(|marks| marks.0),
        left: left(row)?,
        updated_at: row.try_get::<Time, _>("updated_at")?.0,
    })
}

fn oid(row: &PgRow, column: &str) -> Result<Option<u32>, sqlx::Error> {
    Ok(unsigned(row, column)?.and_then(|oid| u32::try_from(oid).ok()))
}

fn left(row: &PgRow) -> Result<Option<Left>, sqlx::Error> {
    let Some((lsn, xid)) = lsn(row, "left_lsn")?.zip(unsigned(row, "left_xid")?) else { return Ok(None) };
    let gone = if row.try_get("let_go")? { LetGo::Done } else { LetGo::NotYet };
    Ok(Some(Left { from: self::lsn(row, "left_from")?, lsn, xid, gone }))
}
