//! Recorded conflicts: the evidence, how often each was met, and how it was settled.
//!
//! A subscription is paused on one conflict at most. If it meets another one, the former has been settled,
//! because transactions are applied in order.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};

use crate::boundary;
use crate::conflict::{ConflictReport, Resolution, RowImage};
use crate::error::PauseReason;
use crate::pg::{Lsn, QualifiedName};

use super::codec::{Time, serialize_time};
use super::columns::{saturate, time, unsigned, word};
use super::skip::{arm_skip, disarm_skip};
use super::subscription::set_state;
use super::{
    EventKind, Ownership, State, StateChange, Store, StoreError, StoreErrorKind, event, lost, owner, spelling,
};

/// Who settles a conflict when no person does.
const BY_ITSELF: &str = "pgsluice";
/// Maximum number of conflicts in a list.
const LIST_MAX: i64 = 1000;

/// Which conflicts to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictFilter<'a> {
    /// Conflicts on which a subscription is paused.
    Open,
    /// Open and settled ones.
    All,
    /// Open and settled ones of one subscription.
    Of(&'a str),
}

/// A recorded conflict. It is serialized flat: the report's fields and these.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConflictRow {
    pub id: i64,
    #[serde(flatten)]
    pub report: ConflictReport,
    /// How often it was met, retries included.
    pub occurrences: u32,
    #[serde(serialize_with = "serialize_time")]
    pub created_at: Timestamp,
    /// When it was last met.
    #[serde(serialize_with = "serialize_time")]
    pub seen_at: Timestamp,
    /// None while it is open.
    pub settled: Option<Settlement>,
}

/// How a conflict ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settlement {
    #[serde(serialize_with = "serialize_time")]
    pub at: Timestamp,
    pub resolution: Resolution,
    pub by: Option<String>,
}

const OPEN: &str = "\
    INSERT INTO pgsluice.conflict AS c (subscription, kind, operation, source_schema, source_table, \
        target_schema, target_table, key, incoming, old, local_rows, constraint_name, sqlstate, message, \
        server_detail, xid, commit_lsn, commit_time, change_count, change_index) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) \
    ON CONFLICT (subscription, commit_lsn, change_index, kind) WHERE resolved_at IS NULL DO UPDATE \
    SET occurrences = c.occurrences + 1, seen_at = now(), key = excluded.key, local_rows = excluded.local_rows, \
        constraint_name = excluded.constraint_name, sqlstate = excluded.sqlstate, message = excluded.message, \
        server_detail = excluded.server_detail, change_count = coalesce(excluded.change_count, c.change_count) \
    RETURNING id, occurrences";

const SELECT: &str = "\
    SELECT id, subscription, kind, operation, source_schema, source_table, target_schema, target_table, key, \
        incoming, old, local_rows, constraint_name, sqlstate, message, server_detail, xid, commit_lsn, \
        commit_time, change_count, change_index, occurrences, created_at, seen_at, resolved_at, resolution, \
        resolved_by FROM pgsluice.conflict \
    WHERE ($1::pg_catalog.int8 IS NULL OR id = $1) AND ($2::pg_catalog.text IS NULL OR subscription = $2) \
      AND (resolved_at IS NULL OR NOT $3) ORDER BY id DESC LIMIT $4";

impl Store {
    /// Records a conflict and pauses its subscription on it, in one transaction, and returns its
    /// number. The same conflict met again (by a retry) keeps its number and is counted.
    pub async fn open_conflict(&self, owner: &Ownership, report: &ConflictReport) -> Result<i64, StoreError> {
        self.run("record the conflict", async {
            let opened = self.write_conflict(owner, report).await;
            if !spelling::is_untranslatable(&opened) {
                return opened;
            }
            self.write_conflict(owner, &spelling::report(report)).await
        })
        .await
    }

    async fn write_conflict(
        &self,
        owner: &Ownership,
        report: &ConflictReport,
    ) -> Result<i64, StoreErrorKind> {
        let mut tx = self.pool.begin().await?;
        owner::require(&mut tx, owner).await?;
        // The subscription's row comes next: every transaction locks it before its conflicts.
        let change = StateChange {
            reason: Some(PauseReason::Conflict.as_str().to_owned()),
            detail: Some(report.summary()),
            ..StateChange::new(State::Paused)
        };
        lock_subscription(&mut tx, &report.subscription).await?;
        let (id, occurrences) = insert(&mut tx, report).await?;
        settle_others(&mut tx, report, id).await?;
        let change = StateChange { hint: Some(report.hint(id)), conflict_id: Some(id), ..change };
        set_state(&mut tx, owner, &change).await?;
        if occurrences == 1 {
            let facts = json!({
                "conflict_id": id, "kind": report.kind, "table": report.target, "commit_lsn": report.commit_lsn,
            });
            let message = format!("conflict {id}: {} on {}", report.kind, report.target);
            event::insert(&mut tx, Some(&report.subscription), EventKind::Conflict, &message, Some(facts))
                .await?;
        }
        boundary::deed!("conflict::open", tx.commit().await, Err(lost()))?;
        Ok(id)
    }

    /// The latest conflicts, newest first, at most a thousand.
    pub async fn conflicts(&self, filter: ConflictFilter<'_>) -> Result<Vec<ConflictRow>, StoreError> {
        let (subscription, open_only) = match filter {
            ConflictFilter::Open => (None, true),
            ConflictFilter::All => (None, false),
            ConflictFilter::Of(name) => (Some(name), false),
        };
        self.run("read the conflicts", async {
            let rows = sqlx::query(SELECT)
                .bind(None::<i64>)
                .bind(subscription)
                .bind(open_only)
                .bind(LIST_MAX)
                .fetch_all(&self.pool)
                .await?;
            Ok(rows.iter().map(decode).collect::<Result<_, _>>()?)
        })
        .await
    }

    /// One conflict by its number; [`StoreErrorKind::UnknownConflict`] if there is none.
    pub async fn conflict(&self, id: i64) -> Result<ConflictRow, StoreError> {
        self.run("read the conflict", async {
            let row = sqlx::query(SELECT)
                .bind(id)
                .bind(None::<&str>)
                .bind(false)
                .bind(1_i64)
                .fetch_optional(&self.pool)
                .await?;
            Ok(decode(&row.ok_or(StoreErrorKind::UnknownConflict(id))?)?)
        })
        .await
    }

    /// Settles an open conflict of the owner's subscription. If it is settled by skipping its transaction,
    /// the skip is armed in the same transaction.
    pub async fn resolve_conflict(
        &self,
        owner: &Ownership,
        id: i64,
        resolution: Resolution,
        by: &str,
    ) -> Result<(), StoreError> {
        self.run("settle the conflict", async {
            let (name, mut tx) = (owner.name(), self.pool.begin().await?);
            owner::require(&mut tx, owner).await?;
            if resolution == Resolution::SkipTransaction
                && let Some(lsn) = open_commit_lsn(&mut tx, name, id).await?
            {
                arm_skip(&mut tx, name, lsn).await?;
            }
            let done = sqlx::query(
                "UPDATE pgsluice.conflict SET resolved_at = now(), resolution = $3, resolved_by = $4 \
                 WHERE id = $1 AND subscription = $2 AND resolved_at IS NULL",
            )
            .bind(id)
            .bind(name)
            .bind(resolution.as_str())
            .bind(by)
            .execute(&mut *tx)
            .await?;
            if done.rows_affected() == 0 {
                let known = "SELECT 1 FROM pgsluice.conflict WHERE id = $1 AND subscription = $2";
                let known: Option<i32> =
                    sqlx::query_scalar(known).bind(id).bind(name).fetch_optional(&mut *tx).await?;
                return Err(known
                    .map_or(StoreErrorKind::UnknownConflict(id), |_| StoreErrorKind::AlreadyResolved(id)));
            }
            let message = format!("conflict {id} settled by {by}: {resolution}");
            let facts = json!({ "conflict_id": id, "resolution": resolution, "by": by });
            event::insert(&mut tx, Some(name), EventKind::Resolved, &message, Some(facts)).await?;
            Ok(boundary::deed!("conflict::resolve", tx.commit().await, Err(lost()))?)
        })
        .await
    }

    /// Notes that a transaction has been skipped: settles its conflict, if any, and disarms the skip.
    pub async fn finish_skip(&self, owner: &Ownership, commit_lsn: Lsn) -> Result<(), StoreError> {
        self.run("settle a skipped transaction", async {
            let (name, mut tx) = (owner.name(), self.pool.begin().await?);
            owner::require(&mut tx, owner).await?;
            disarm_skip(&mut tx, name, commit_lsn).await?;
            sqlx::query(
                "UPDATE pgsluice.conflict SET resolved_at = now(), resolution = $3, resolved_by = $4 \
                 WHERE subscription = $1 AND commit_lsn = $2 AND resolved_at IS NULL",
            )
            .bind(name)
            .bind(commit_lsn)
            .bind(Resolution::SkipTransaction.as_str())
            .bind(BY_ITSELF)
            .execute(&mut *tx)
            .await?;
            let message = format!("the transaction that finishes at {commit_lsn} was passed over");
            let facts = json!({ "commit_lsn": commit_lsn });
            event::insert(&mut tx, Some(name), EventKind::Skip, &message, Some(facts)).await?;
            Ok(boundary::deed!("skip::finish", tx.commit().await, Err(lost()))?)
        })
        .await
    }

    /// Whether a conflict of the transaction that finishes at `commit_lsn` is open.
    pub async fn has_open_conflict(&self, name: &str, commit_lsn: Lsn) -> Result<bool, StoreError> {
        self.run("look for a conflict", async {
            let sql = "SELECT EXISTS (SELECT FROM pgsluice.conflict \
                        WHERE subscription = $1 AND commit_lsn = $2 AND resolved_at IS NULL)";
            Ok(sqlx::query_scalar(sql).bind(name).bind(commit_lsn).fetch_one(&self.pool).await?)
        })
        .await
    }

    /// Settles open conflicts of the subscription before `applied`, the end of a transaction: they were
    /// retried with success. Returns their numbers.
    pub async fn resolve_applied(&self, owner: &Ownership, applied: Lsn) -> Result<Vec<i64>, StoreError> {
        self.run("settle applied conflicts", async {
            let (name, mut tx) = (owner.name(), self.pool.begin().await?);
            owner::require(&mut tx, owner).await?;
            let ids: Vec<i64> = sqlx::query_scalar(
                "UPDATE pgsluice.conflict SET resolved_at = now(), resolution = $3, resolved_by = $4 \
                 WHERE subscription = $1 AND commit_lsn < $2 AND resolved_at IS NULL RETURNING id",
            )
            .bind(name)
            .bind(applied)
            .bind(Resolution::Retry.as_str())
            .bind(BY_ITSELF)
            .fetch_all(&mut *tx)
            .await?;
            for id in &ids {
                let message = format!("conflict {id} is past: the transaction was applied");
                let facts = json!({ "conflict_id": id, "resolution": Resolution::Retry, "by": BY_ITSELF });
                event::insert(&mut tx, Some(name), EventKind::Resolved, &message, Some(facts)).await?;
            }
            boundary::deed!("conflict::applied", tx.commit().await, Err(lost()))?;
            Ok(ids)
        })
        .await
    }
}

/// Where the transaction of an open conflict of the subscription finishes; none if there is none.
async fn open_commit_lsn(
    session: &mut PgConnection,
    name: &str,
    id: i64,
) -> Result<Option<Lsn>, StoreErrorKind> {
    let sql = "SELECT commit_lsn FROM pgsluice.conflict \
               WHERE id = $1 AND subscription = $2 AND resolved_at IS NULL";
    Ok(sqlx::query_scalar(sql).bind(id).bind(name).fetch_optional(session).await?)
}

async fn lock_subscription(session: &mut PgConnection, name: &str) -> Result<(), StoreErrorKind> {
    let known: Option<i32> =
        sqlx::query_scalar("SELECT 1 FROM pgsluice.subscription WHERE name = $1 FOR UPDATE")
            .bind(name)
            .fetch_optional(session)
            .await?;
    known.map(drop).ok_or_else(|| StoreErrorKind::UnknownSubscription(name.to_owned()))
}

async fn insert(session: &mut PgConnection, report: &ConflictReport) -> Result<(i64, i32), StoreErrorKind> {
    let row = sqlx::query_as(OPEN)
        .bind(&report.subscription)
        .bind(report.kind.as_str())
        .bind(report.operation.as_str())
        .bind(&report.source.schema)
        .bind(&report.source.name)
        .bind(&report.target.schema)
        .bind(&report.target.name)
        .bind(report.key.as_ref().map(Json))
        .bind(report.incoming.as_ref().map(Json))
        .bind(report.old.as_ref().map(Json))
        .bind(Json(&report.local_rows))
        .bind(report.constraint.as_deref())
        .bind(report.sqlstate.as_deref())
        .bind(&report.message)
        .bind(report.server_detail.as_deref())
        .bind(i64::from(report.xid))
        .bind(report.commit_lsn)
        .bind(report.commit_time.map(Time))
        .bind(report.change_count.map(saturate))
        .bind(saturate(report.change_index))
        .fetch_one(session)
        .await?;
    Ok(row)
}

/// Settles other open conflicts of the subscription, which has applied their transactions and got to this one.
async fn settle_others(
    session: &mut PgConnection,
    report: &ConflictReport,
    id: i64,
) -> Result<(), StoreErrorKind> {
    sqlx::query(
        "UPDATE pgsluice.conflict SET resolved_at = now(), resolution = $3, resolved_by = $4 \
         WHERE subscription = $1 AND id <> $2 AND resolved_at IS NULL",
    )
    .bind(&report.subscription)
    .bind(id)
    .bind(Resolution::Retry.as_str())
    .bind(BY_ITSELF)
    .execute(session)
    .await?;
    Ok(())
}

fn decode(row: &PgRow) -> Result<ConflictRow, sqlx::Error> {
    let image = |column: &str| -> Result<Option<RowImage>, sqlx::Error> {
        Ok(row.try_get::<Option<Json<RowImage>>, _>(column)?.map(|image| image.0))
    };
    let table = |schema: &str, table: &str| -> Result<QualifiedName, sqlx::Error> {
        Ok(QualifiedName { schema: row.try_get(schema)?, name: row.try_get(table)? })
    };
    let narrow = |column: &str, value: i64| {
        u32::try_from(value)
            .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
    };
    let settled = match time(row, "resolved_at")? {
        None => None,
        Some(at) => {
            Some(Settlement { at, resolution: word(row, "resolution")?, by: row.try_get("resolved_by")? })
        }
    };
    Ok(ConflictRow {
        id: row.try_get("id")?,
        report: ConflictReport {
            subscription: row.try_get("subscription")?,
            kind: word(row, "kind")?,
            operation: word(row, "operation")?,
            source: table("source_schema", "source_table")?,
            target: table("target_schema", "target_table")?,
            key: image("key")?,
            incoming: image("incoming")?,
            old: image("old")?,
            local_rows: row.try_get::<Json<Vec<RowImage>>, _>("local_rows")?.0,
            constraint: row.try_get("constraint_name")?,
            sqlstate: row.try_get("sqlstate")?,
            message: row.try_get("message")?,
            server_detail: row.try_get("server_detail")?,
            xid: narrow("xid", row.try_get("xid")?)?,
            commit_lsn: row.try_get("commit_lsn")?,
            commit_time: time(row, "commit_time")?,
            change_count: unsigned(row, "change_count")?,
            change_index: unsigned(row, "change_index")?.unwrap_or(0),
        },
        occurrences: narrow("occurrences", i64::from(row.try_get::<i32, _>("occurrences")?))?,
        created_at: row.try_get::<Time, _>("created_at")?.0,
        seen_at: row.try_get::<Time, _>("seen_at")?.0,
        settled,
    })
}
