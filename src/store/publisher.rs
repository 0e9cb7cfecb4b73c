//! The record of the publisher: its system identifier, and facts by which it is recognised later.

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::boundary;
use crate::pg::as_owner;
use crate::subscription::trust::{PublisherRecord, Role, Witnesses};

use super::codec::Time;
use super::columns::{lsn, saturate, time, unsigned};
use super::{Ownership, Store, StoreError, lost, owner};

impl Store {
    /// Records the system identifier of the publisher that positions belong to.
    pub async fn set_publisher(&self, owner: &Ownership, system_id: &str) -> Result<(), StoreError> {
        self.run("record the publisher", async {
            let recorded = sqlx::query(as_owner!(
                " UPDATE pgsluice.subscription s SET publisher_system_id = $3 FROM owner WHERE s.name = owner.name"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(system_id)
            .execute(&self.pool);
            let done = boundary::deed!("subscription::publisher", recorded.await, Err(lost()))?;
            owner::met(&self.pool, done.rows_affected(), owner).await
        })
        .await
    }

    /// Records the facts about a publisher that has just been found to be trusted.
    pub async fn set_publisher_record(
        &self,
        owner: &Ownership,
        publisher: &PublisherRecord,
    ) -> Result<(), StoreError> {
        self.run("record the publisher's timeline", async {
            let witnesses = publisher.witnesses;
            let done = sqlx::query(as_owner!(
                " UPDATE pgsluice.subscription s SET publisher_timeline = $3, publisher_timeline_start = $4, \
                 publisher_started_at = $5, publisher_wal_lsn = $6, publisher_next_xid = $7, \
                 slot_restart_lsn = $8, publisher_seen_at = $9, distrusted_started_at = $10, \
                 publisher_is_standby = $11, publisher_database = $12 FROM owner WHERE s.name = owner.name"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(i64::from(publisher.timeline))
            .bind(publisher.timeline_start)
            .bind(publisher.started_at.map(Time))
            .bind(witnesses.wal)
            .bind(witnesses.next_xid.map(saturate))
            .bind(witnesses.restart_lsn)
            .bind(witnesses.seen_at.map(Time))
            .bind(publisher.distrusted.map(Time))
            .bind(publisher.role == Role::Standby)
            .bind(publisher.database.map(i64::from))
            .execute(&self.pool)
            .await?;
            owner::met(&self.pool, done.rows_affected(), owner).await
        })
        .await
    }

    /// Records that the publisher that was started at `started_at` runs on an older state of its data.
    pub async fn distrust_publisher(
        &self,
        owner: &Ownership,
        started_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.run("record that the publisher is not trusted", async {
            let done = sqlx::query(as_owner!(
                " UPDATE pgsluice.subscription s SET distrusted_started_at = $3 FROM owner WHERE s.name = owner.name"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(Time(started_at))
            .execute(&self.pool)
            .await?;
            owner::met(&self.pool, done.rows_affected(), owner).await
        })
        .await
    }

    /// Raises the recorded values of the publisher, a primary, and never lowers them. It changes nothing
    /// unless the record is about this run of the publisher, on this timeline or as a standby that has been
    /// promoted since.
    pub async fn raise_witnesses(
        &self,
        owner: &Ownership,
        (timeline, started_at): (u32, Timestamp),
        witnesses: &Witnesses,
    ) -> Result<(), StoreError> {
        self.run("record what was seen of the publisher", async {
            sqlx::query(as_owner!(
                " UPDATE pgsluice.subscription s SET publisher_wal_lsn = greatest(publisher_wal_lsn, $5), \
                 publisher_next_xid = greatest(publisher_next_xid, $6), \
                 slot_restart_lsn = greatest(slot_restart_lsn, $7), publisher_seen_at = now(), \
                 publisher_timeline = $3, publisher_is_standby = false, publisher_timeline_start = \
                     CASE WHEN publisher_timeline = $3 THEN publisher_timeline_start END \
                 FROM owner WHERE s.name = owner.name AND publisher_started_at = $4 AND (publisher_timeline = $3 \
                     OR publisher_is_standby AND publisher_timeline < $3)"
            ))
            .bind(owner.name())
            .bind(owner.term().as_i64())
            .bind(i64::from(timeline))
            .bind(Time(started_at))
            .bind(witnesses.wal)
            .bind(witnesses.next_xid.map(saturate))
            .bind(witnesses.restart_lsn)
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}

/// Decodes the record; none if no timeline is recorded.
pub(super) fn decode(row: &PgRow) -> Result<Option<PublisherRecord>, sqlx::Error> {
    let timeline: Option<i64> = row.try_get("publisher_timeline")?;
    let Some(timeline) = timeline.and_then(|timeline| u32::try_from(timeline).ok()) else { return Ok(None) };
    Ok(Some(PublisherRecord {
        timeline,
        timeline_start: lsn(row, "publisher_timeline_start")?,
        role: match row.try_get("publisher_is_standby")? {
            Some(true) => Role::Standby,
            Some(false) | None => Role::Primary,
        },
        database: unsigned(row, "publisher_database")?.and_then(|oid| u32::try_from(oid).ok()),
        started_at: time(row, "publisher_started_at")?,
        witnesses: Witnesses {
            wal: lsn(row, "witnessed_wal")?,
            next_xid: unsigned(row, "publisher_next_xid")?,
            restart_lsn: lsn(row, "slot_restart_lsn")?,
            seen_at: time(row, "publisher_seen_at")?,
        },
        distrusted: time(row, "distrusted_started_at")?,
    }))
}
