//! A subscription's row: its configuration, its state, its positions.

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::boundary;
use crate::error::{Diagnosis, PauseReason};
use crate::gap::Gap;
use crate::pg::{Lsn, SlotName, SubscriptionName, as_owner};
use crate::subscription::publication_record::PublicationRecord;
use crate::subscription::trust::PublisherRecord;

use super::codec::Time;
use super::columns::{lsn, time, unsigned, word};
use super::lock::Held;
use super::publisher;
use super::table::{self, TableRow};
use super::{
    Desired, EventKind, Ownership, Refresh, State, Store, StoreError, StoreErrorKind, event, gap, lost,
    owner, spelling,
};

/// What the configuration says of a subscription.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    pub name: &'a SubscriptionName,
    pub slot: &'a SlotName,
    pub publications: &'a [String],
}

/// A state to report, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    pub state: State,
    /// The reason as a word: [`PauseReason::as_str`], or another one if the state is not `paused`.
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub conflict_id: Option<i64>,
}

impl StateChange {
    #[must_use]
    pub const fn new(state: State) -> Self {
        Self { state, reason: None, detail: None, hint: None, conflict_id: None }
    }

    /// Returns the change to `paused` for this reason.
    #[must_use]
    pub fn paused(reason: PauseReason, diagnosis: &Diagnosis) -> Self {
        Self::new(State::Paused).because(reason.as_str(), diagnosis)
    }

    /// Adds the reason's word and its text. Primary and detail of the text become the detail.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>, diagnosis: &Diagnosis) -> Self {
        self.reason = Some(reason.into());
        self.detail = Some(match &diagnosis.detail {
            Some(detail) => format!("{}: {detail}", diagnosis.primary),
            None => diagnosis.primary.clone(),
        });
        self.hint.clone_from(&diagnosis.hint);
        self
    }
}

/// The positions that change all the time. A `None` is written as unknown.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Positions {
    pub received_lsn: Option<Lsn>,
    pub flushed_lsn: Option<Lsn>,
    pub publisher_lsn: Option<Lsn>,
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
    /// `pg_replication_slots.wal_status` on the publisher.
    pub wal_status: Option<String>,
    /// WAL bytes that the slot makes the publisher keep.
    pub retained_bytes: Option<u64>,
    /// Up to here the publications are known to be as recorded. An unknown one leaves the recorded value.
    pub publications_seen: Option<Lsn>,
}

/// How far the subscription has been applied; written by `apply` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub applied_lsn: Lsn,
    /// When the last applied transaction committed on the publisher.
    pub commit_time: Option<Timestamp>,
    /// Transactions applied so far.
    pub transactions: u64,
    pub updated_at: Timestamp,
}

/// A subscription with its progress and its tables, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SubscriptionRow {
    pub name: String,
    pub slot: String,
    pub publisher_system_id: Option<String>,
    pub publications: Vec<String>,
    pub state: State,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub conflict_id: Option<i64>,
    pub state_since: Timestamp,
    pub desired: Desired,
    /// The transaction that is to be skipped, by the position of its commit record.
    pub skip_lsn: Option<Lsn>,
    pub positions: Positions,
    /// Warnings about features that are not available.
    pub warnings: Vec<String>,
    /// Host and process that applies, or last applied, it.
    pub instance: Option<String>,
    /// When that instance last wrote.
    pub reported_at: Option<Timestamp>,
    /// Whether that is longer ago than an instance that works would leave it.
    pub is_silent: bool,
    pub created_at: Timestamp,
    pub progress: Option<Progress>,
    /// An open conflict's transaction has been applied, because the write that settles the conflict was lost.
    pub has_passed_conflict: bool,
    /// The record of the publisher; none if nothing has been recorded, or only by an older version.
    pub publisher: Option<PublisherRecord>,
    /// What is known of the publications' past.
    pub publication_record: Vec<PublicationRecord>,
    /// Somebody has begun to remove the subscription.
    pub is_being_removed: bool,
    /// Whether the OIDs of the tables' targets were recorded in this database, and not in one of which this one is a
    /// dump. None where an older version recorded them.
    pub is_same_database: Option<bool>,
    /// The tables, sorted by their name on the publisher.
    pub tables: Vec<TableRow>,
    /// The open gaps, oldest first.
    pub gaps: Vec<Gap>,
    /// An operator asked for the published tables to be taken up, by the command with this number.
    pub refresh: Option<(Refresh, i64)>,
    /// Whether a session holds the advisory lock: a service applies it now.
    pub owned: bool,
}

/// Positions are selected as text, because sqlx would query the catalog for `pg_lsn` in every new session.
const SELECT: &str = "\
    SELECT s.name, s.slot, s.publisher_system_id, s.publications, s.state, s.reason, s.detail, s.hint, \
           s.conflict_id, s.state_since, s.desired, s.skip_lsn::pg_catalog.text, \
           s.received_lsn::pg_catalog.text, s.flushed_lsn::pg_catalog.text, \
           s.publisher_lsn::pg_catalog.text, s.lag_bytes, s.lag_seconds, s.wal_status, s.retained_bytes, \
           s.warnings, s.instance, s.reported_at, s.reported_at < now() - interval '15 seconds' AS silent, \
           s.created_at, p.applied_lsn::pg_catalog.text, \
           p.commit_time, p.transactions, p.updated_at, s.publisher_timeline, \
           s.publisher_timeline_start::pg_catalog.text, s.publisher_started_at, s.publisher_is_standby, s.publisher_database, \
           s.publisher_wal_lsn::pg_catalog.text AS witnessed_wal, s.publisher_next_xid, \
           s.slot_restart_lsn::pg_catalog.text, s.publisher_seen_at, s.distrusted_started_at, \
           s.publication_record, s.record_oid = 'pgsluice.table_sync'::pg_catalog.regclass AS same_database, \
           s.publications_seen_lsn::pg_catalog.text, s.refresh, s.refresh_command, \
           s.removal_began_at IS NOT NULL AS being_removed, \
           EXISTS (SELECT FROM pgsluice.conflict c \
               WHERE c.subscription = s.name AND c.resolved_at IS NULL AND c.commit_lsn < p.applied_lsn) AS passed \
    FROM pgsluice.subscription s LEFT JOIN pgsluice.progress p ON p.subscription = s.name \
    WHERE $1::pg_catalog.text IS NULL OR s.name = $1 ORDER BY s.name";

/// The row and its event change together, or neither. A write that was given up while it waited for a lock may be carried out
/// after later ones: it changes nothing then. (Where the server's clock was set back, it counts again after a minute.)
const SET_STATE: &str = as_owner!(
    ", old AS (\
        SELECT s.name, s.state, (s.state, s.reason, s.conflict_id) IS DISTINCT FROM ($3, $4, $7) AS changed \
        FROM pgsluice.subscription s, owner WHERE s.name = owner.name AND (s.state_written_at > now() \
            AND s.state_written_at < now() + interval '1 minute') IS NOT TRUE FOR UPDATE OF s\
    ), updated AS (\
        UPDATE pgsluice.subscription s SET state_written_at = now(), state = $3, reason = $4, detail = $5, hint = $6, conflict_id = $7, \
            reported_at = now(), state_since = CASE WHEN old.changed THEN now() ELSE s.state_since END \
        FROM old WHERE s.name = old.name RETURNING old.changed, old.state\
    ), logged AS (\
        INSERT INTO pgsluice.event (subscription, kind, message, detail) \
        SELECT $1, 'state', state || ' -> ' || $3 || coalesce(' (' || $4 || ')', ''), $8 FROM updated WHERE changed\
    ) SELECT changed FROM updated"
);

/// Sets the state of a subscription that this instance's configuration has disabled.
const SET_DISABLED: &str = "UPDATE pgsluice.subscription SET state = $2, reason = NULL, detail = NULL, \
    hint = NULL, conflict_id = NULL, reported_at = now(), state_since = now() WHERE name = $1 AND state <> $2";

impl Store {
    /// Inserts the subscription, or updates its slot and publications.
    pub async fn register_subscription(&self, registration: Registration<'_>) -> Result<(), StoreError> {
        self.run("register the subscription", async {
            sqlx::query(
                "INSERT INTO pgsluice.subscription AS s (name, slot, publications) VALUES ($1, $2, $3) \
                 ON CONFLICT (name) DO UPDATE SET slot = excluded.slot, publications = excluded.publications \
                 WHERE (s.slot, s.publications) IS DISTINCT FROM (excluded.slot, excluded.publications)",
            )
            .bind(registration.name.as_str())
            .bind(registration.slot.as_str())
            .bind(registration.publications)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Every subscription, by name.
    pub async fn subscriptions(&self) -> Result<Vec<SubscriptionRow>, StoreError> {
        self.run("read the subscriptions", async { load(&mut *self.pool.acquire().await?, None).await }).await
    }

    /// One subscription, if the database knows it.
    pub async fn subscription(&self, name: &str) -> Result<Option<SubscriptionRow>, StoreError> {
        let read = async { load(&mut *self.pool.acquire().await?, Some(name)).await };
        Ok(self.run("read the subscription", read).await?.pop())
    }

    /// Writes a state. If state, reason or conflict have changed, an event is recorded and true returned. If
    /// only detail or hint have changed, they are written without an event.
    pub async fn set_state(&self, owner: &Ownership, change: &StateChange) -> Result<bool, StoreError> {
        self.run("report the subscription's state", async {
            let mut session = self.pool.acquire().await?;
            let reported = set_state(&mut session, owner, change).await;
            if !spelling::is_untranslatable(&reported) {
                return reported;
            }
            set_state(&mut session, owner, &spelling::state_change(change)).await
        })
        .await
    }

    /// Writes that a subscription is disabled, unless an instance applies it.
    pub async fn set_disabled(&self, name: &str) -> Result<(), StoreError> {
        self.run("report the subscription as disabled", async {
            let mut session = self.pool.acquire().await?;
            if !Held::read(&mut session).await?.has(name) {
                let disabled = State::Disabled.as_str();
                sqlx::query(SET_DISABLED).bind(name).bind(disabled).execute(&mut *session).await?;
            }
            Ok(())
        })
        .await
    }

    /// Replaces the list of warnings.
    pub async fn set_warnings(&self, owner: &Ownership, warnings: &[String]) -> Result<(), StoreError> {
        self.run("report the subscription's warnings", async {
            let written = self.write_warnings(owner, warnings).await;
            if !spelling::is_untranslatable(&written) {
                return written;
            }
            let ascii: Vec<String> = warnings.iter().map(|warning| spelling::text(warning)).collect();
            self.write_warnings(owner, &ascii).await
        })
        .await
    }

    async fn write_warnings(&self, owner: &Ownership, warnings: &[String]) -> Result<(), StoreErrorKind> {
        let done = sqlx::query(as_owner!(
            " UPDATE pgsluice.subscription s SET warnings = $3 FROM owner WHERE s.name = owner.name"
        ))
        .bind(owner.name())
        .bind(owner.term().as_i64())
        .bind(Json(warnings))
        .execute(&self.pool)
        .await?;
        owner::met(&self.pool, done.rows_affected(), owner).await
    }

    /// Records that the subscription is about to be removed.
    pub async fn begin_removal(&self, name: &str) -> Result<(), StoreError> {
        self.run("record that the subscription is removed", async {
            let begun = "UPDATE pgsluice.subscription SET removal_began_at = coalesce(removal_began_at, now()) \
                WHERE name = $1";
            let done = boundary::deed!(
                "drop::begin",
                sqlx::query(begun).bind(name).execute(&self.pool).await,
                Err(lost())
            )?;
            found(done.rows_affected(), name)
        })
        .await
    }

    /// Records that the subscription stays after all.
    pub async fn abandon_removal(&self, name: &str) -> Result<(), StoreError> {
        self.run("record that the subscription stays", async {
            let stays = "UPDATE pgsluice.subscription SET removal_began_at = NULL WHERE name = $1";
            found(sqlx::query(stays).bind(name).execute(&self.pool).await?.rows_affected(), name)
        })
        .await
    }

    /// Deletes the subscription with its progress, tables, conflicts and commands. Its events stay. The slot
    /// on the publisher must be dropped before, because its name is known from this row only.
    pub async fn remove_subscription(&self, name: &str) -> Result<(), StoreError> {
        self.run("remove the subscription", async {
            let mut tx = self.pool.begin().await?;
            // Every transaction locks the owner's row first.
            sqlx::query("SELECT 1 FROM pgsluice.owner WHERE subscription = $1 FOR UPDATE")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            let done = sqlx::query("DELETE FROM pgsluice.subscription WHERE name = $1")
                .bind(name)
                .execute(&mut *tx)
                .await?;
            found(done.rows_affected(), name)?;
            event::insert(&mut tx, Some(name), EventKind::Removed, "removed with its state", None).await?;
            Ok(boundary::deed!("drop::state", tx.commit().await, Err(lost()))?)
        })
        .await
    }
}

pub(super) async fn load(
    session: &mut PgConnection,
    name: Option<&str>,
) -> Result<Vec<SubscriptionRow>, StoreErrorKind> {
    // State, progress and tables are read under one snapshot, so that they agree.
    let mut tx = session.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
    let rows = sqlx::query(SELECT).bind(name).fetch_all(&mut *tx).await?;
    let mut rows = rows.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
    let mut tables = table::load(&mut tx, name).await?;
    let mut gaps = gap::load(&mut tx, name).await?;
    let held = Held::read(&mut tx).await?;
    tx.commit().await?;
    for row in &mut rows {
        row.tables = tables.remove(&row.name).unwrap_or_default();
        row.gaps = gaps.remove(&row.name).unwrap_or_default();
        row.owned = held.has(&row.name);
    }
    Ok(rows)
}

pub(super) async fn set_state(
    session: &mut PgConnection,
    owner: &Ownership,
    change: &StateChange,
) -> Result<bool, StoreErrorKind> {
    let facts: Value = json!({
        "state": change.state, "reason": change.reason, "detail": change.detail, "conflict_id": change.conflict_id,
    });
    let changed = sqlx::query_scalar(SET_STATE)
        .bind(owner.name())
        .bind(owner.term().as_i64())
        .bind(change.state.as_str())
        .bind(change.reason.as_deref())
        .bind(change.detail.as_deref())
        .bind(change.hint.as_deref())
        .bind(change.conflict_id)
        .bind(Json(facts))
        .fetch_optional(&mut *session)
        .await?;
    match changed {
        Some(changed) => Ok(changed),
        None => {
            owner::require(&mut *session, owner).await?;
            let is_there = "SELECT 1 FROM pgsluice.subscription s WHERE s.name = $1";
            let found: Option<i32> =
                sqlx::query_scalar(is_there).bind(owner.name()).fetch_optional(session).await?;
            found.map(|_| false).ok_or_else(|| unknown(owner.name()))
        }
    }
}

fn decode(row: &PgRow) -> Result<SubscriptionRow, sqlx::Error> {
    let progress = match lsn(row, "applied_lsn")? {
        None => None,
        Some(applied_lsn) => Some(Progress {
            applied_lsn,
            commit_time: time(row, "commit_time")?,
            transactions: unsigned(row, "transactions")?.unwrap_or(0),
            updated_at: row.try_get::<Time, _>("updated_at")?.0,
        }),
    };
    Ok(SubscriptionRow {
        name: row.try_get("name")?,
        slot: row.try_get("slot")?,
        publisher_system_id: row.try_get("publisher_system_id")?,
        publications: row.try_get("publications")?,
        state: word(row, "state")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        hint: row.try_get("hint")?,
        conflict_id: row.try_get("conflict_id")?,
        state_since: row.try_get::<Time, _>("state_since")?.0,
        desired: word(row, "desired")?,
        skip_lsn: lsn(row, "skip_lsn")?,
        positions: Positions {
            received_lsn: lsn(row, "received_lsn")?,
            flushed_lsn: lsn(row, "flushed_lsn")?,
            publisher_lsn: lsn(row, "publisher_lsn")?,
            lag_bytes: unsigned(row, "lag_bytes")?,
            lag_seconds: row.try_get("lag_seconds")?,
            wal_status: row.try_get("wal_status")?,
            retained_bytes: unsigned(row, "retained_bytes")?,
            publications_seen: lsn(row, "publications_seen_lsn")?,
        },
        warnings: row.try_get::<Json<Vec<String>>, _>("warnings")?.0,
        instance: row.try_get("instance")?,
        reported_at: time(row, "reported_at")?,
        is_silent: row.try_get::<Option<bool>, _>("silent")?.unwrap_or_default(),
        created_at: row.try_get::<Time, _>("created_at")?.0,
        progress,
        has_passed_conflict: row.try_get("passed")?,
        publisher: publisher::decode(row)?,
        is_being_removed: row.try_get("being_removed")?,
        is_same_database: row.try_get("same_database")?,
        publication_record: row.try_get::<Json<Vec<PublicationRecord>>, _>("publication_record")?.0,
        tables: Vec::new(),
        gaps: Vec::new(),
        refresh: match row.try_get::<Option<&str>, _>("refresh")? {
            Some(_) => Some((word(row, "refresh")?, row.try_get("refresh_command")?)),
            None => None,
        },
        owned: false,
    })
}

/// Fails if an UPDATE or DELETE by name has not found its row.
pub(super) fn found(rows_affected: u64, name: &str) -> Result<(), StoreErrorKind> {
    if rows_affected == 0 { Err(unknown(name)) } else { Ok(()) }
}

pub(super) fn unknown(name: &str) -> StoreErrorKind {
    StoreErrorKind::UnknownSubscription(name.to_owned())
}
