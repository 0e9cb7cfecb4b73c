//! The audit: what changed, and when. Events are kept for a time, also after their subscription has been
//! removed.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};

use super::codec::{Time, serialize_time};
use super::{Store, StoreError, StoreErrorKind};

/// How long events, settled conflicts and gaps, and answered commands are kept, days.
const KEEP_DAYS: i32 = 90;

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The subscription's state changed.
    State,
    /// A conflict was met for the first time.
    Conflict,
    /// A conflict was settled.
    Resolved,
    /// An operator submitted a command.
    Command,
    /// A skip was armed, or carried out.
    Skip,
    /// Tables joined or left the subscription.
    Table,
    /// A gap was found, accepted or settled.
    Gap,
    /// The subscription was removed.
    Removed,
}

/// One event, as recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventRow {
    pub id: i64,
    #[serde(serialize_with = "serialize_time")]
    pub at: Timestamp,
    pub subscription: Option<String>,
    /// [`EventKind::as_str`], or the word of another version.
    pub kind: String,
    pub message: String,
    pub detail: Option<Value>,
}

impl EventKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Conflict => "conflict",
            Self::Resolved => "resolved",
            Self::Command => "command",
            Self::Skip => "skip",
            Self::Table => "table",
            Self::Gap => "gap",
            Self::Removed => "removed",
        }
    }
}

impl Store {
    /// Records an event. The store's other writes record their own events.
    pub async fn record_event(
        &self,
        subscription: Option<&str>,
        kind: EventKind,
        message: &str,
        detail: Option<Value>,
    ) -> Result<(), StoreError> {
        self.run("record an event", async {
            insert(&mut *self.pool.acquire().await?, subscription, kind, message, detail).await
        })
        .await
    }

    /// The latest events, newest first, of one subscription or of all.
    pub async fn events(&self, subscription: Option<&str>, limit: u32) -> Result<Vec<EventRow>, StoreError> {
        self.run("read the events", async {
            let rows = sqlx::query(
                "SELECT id, at, subscription, kind, message, detail FROM pgsluice.event \
                 WHERE $1::pg_catalog.text IS NULL OR subscription = $1 ORDER BY id DESC LIMIT $2",
            )
            .bind(subscription)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
            let decode = |row: &sqlx::postgres::PgRow| {
                Ok(EventRow {
                    id: row.try_get("id")?,
                    at: row.try_get::<Time, _>("at")?.0,
                    subscription: row.try_get("subscription")?,
                    kind: row.try_get("kind")?,
                    message: row.try_get("message")?,
                    detail: row.try_get("detail")?,
                })
            };
            Ok(rows.iter().map(decode).collect::<Result<_, sqlx::Error>>()?)
        })
        .await
    }

    /// The number of the last event that removed a subscription of this name; 0 if there is none.
    pub async fn last_removal(&self, name: &str) -> Result<i64, StoreError> {
        let sql = "SELECT coalesce(max(id), 0) FROM pgsluice.event WHERE subscription = $1 AND kind = $2";
        let read = sqlx::query_scalar(sql).bind(name).bind(EventKind::Removed.as_str()).fetch_one(&self.pool);
        self.run("look for a removal of the subscription", async { Ok(read.await?) }).await
    }

    /// Deletes events, settled conflicts and gaps, and answered commands that are older than 90 days. Returns the
    /// number of rows. It is meant to be called about once a day.
    pub async fn prune(&self) -> Result<u64, StoreError> {
        self.run("prune old events", async {
            let mut pruned = 0;
            for statement in [
                "DELETE FROM pgsluice.event WHERE at < now() - make_interval(days => $1)",
                "DELETE FROM pgsluice.conflict WHERE resolved_at < now() - make_interval(days => $1)",
                "DELETE FROM pgsluice.gap WHERE settled_at < now() - make_interval(days => $1)",
                "DELETE FROM pgsluice.command WHERE done_at < now() - make_interval(days => $1)",
            ] {
                pruned += sqlx::query(statement).bind(KEEP_DAYS).execute(&self.pool).await?.rows_affected();
            }
            Ok(pruned)
        })
        .await
    }
}

pub(super) async fn insert(
    session: &mut PgConnection,
    subscription: Option<&str>,
    kind: EventKind,
    message: &str,
    detail: Option<Value>,
) -> Result<(), StoreErrorKind> {
    sqlx::query("INSERT INTO pgsluice.event (subscription, kind, message, detail) VALUES ($1, $2, $3, $4)")
        .bind(subscription)
        .bind(kind.as_str())
        .bind(message)
        .bind(detail.map(Json))
        .execute(session)
        .await?;
    Ok(())
}
