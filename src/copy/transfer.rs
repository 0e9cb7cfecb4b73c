//! Copies the rows of one table from COPY to COPY, within transactions that are open on both servers.
//!
//! # Why the table's file is compared
//! ALTER TABLE with a new type writes all rows anew, as rows of its own transaction. An older snapshot sees none
//! of them, and the copy would be empty; the publisher does not stream them either. TRUNCATE, VACUUM FULL and
//! CLUSTER make a new file, too, and are not told apart. From the COPY on, its lock keeps the file.
//!
//! # Why the table itself is compared
//! COPY finds the table by its name, as it is then, and the columns were named when the copy was planned. Until its
//! snapshot, which may be much later, other columns may have come, whose values are neither copied nor streamed, or the
//! table may have been renamed, and another one may have its name.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, CopyInSink, Row};
use tracing::debug;

use super::command::extra_messages;
use super::initial::CopyJob;
use super::{CopyError, Existing, Side};
use crate::apply::statement::run_as_sql;
use crate::net::{Meter, PgClient};
use crate::target::TargetSession;

/// Size of the pieces, in bytes, in which rows are sent to the target. The publisher sends one message for
/// each row.
const PIECE_BYTES: usize = 128 << 10;

/// Whether `$1` names the table `$2` now, and whether its file, or that of a partition, is not the one that the
/// transaction's snapshot sees. `to_regclass` and `pg_relation_filenode` look at the catalog as it is now.
const NOW: &str = "WITH RECURSIVE tree (oid) AS (SELECT $2::pg_catalog.oid \
        UNION ALL SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid) \
    SELECT pg_catalog.to_regclass($1)::pg_catalog.oid = $2 AS same, \
        EXISTS (SELECT FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid \
            WHERE c.relfilenode <> 0 AND c.relfilenode <> pg_catalog.pg_relation_filenode(c.oid)) AS rewritten";

/// Whether `$1` names the table `$2` now, and the columns that the transaction's snapshot sees.
const SEEN: &str = "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid = $2 AS same, \
    ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute a WHERE a.attrelid = $2 AND a.attnum > 0 \
        AND NOT a.attisdropped ORDER BY a.attnum) AS numbers, \
    ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a WHERE a.attrelid = $2 AND a.attnum > 0 \
        AND NOT a.attisdropped ORDER BY a.attnum) AS names";

/// Copies the table's rows from `source` (whose transaction has the snapshot) to `target` (whose transaction is
/// open). Returns the number of rows copied. [`settle_rows`] has to follow; `source` is not needed for that, so its
/// transaction, which holds a lock and a snapshot on the publisher, can be ended before.
pub async fn copy_rows(source: &PgClient, target: &TargetSession, job: &CopyJob) -> Result<u64, CopyError> {
    run_as(target, job, job.run_as.as_deref()).await?;
    job.existing.prepare(target, &job.source).await?;
    let rows = transfer(source, target.client(), job, &job.copied).await?;
    run_as(target, job, None).await?;
    Ok(rows)
}

/// Treats the rows that the target table had before [`copy_rows`] as the job says.
pub async fn settle_rows(target: &TargetSession, job: &CopyJob) -> Result<(), CopyError> {
    if job.existing == Existing::Keep {
        return Ok(());
    }
    run_as(target, job, job.run_as.as_deref()).await?;
    job.existing.finish(target, &job.source).await?;
    run_as(target, job, None).await
}

/// Takes the role as which the job's rows are written, or, with none, gives it back.
async fn run_as(target: &TargetSession, job: &CopyJob, role: Option<&str>) -> Result<(), CopyError> {
    if job.run_as.is_none() {
        return Ok(());
    }
    target.client().batch_execute(&run_as_sql(role)).await.map_err(CopyError::target)
}

/// Copies the table's rows from `source` (whose transaction has the snapshot) to `target` (whose transaction
/// is open), in binary if both tables allow it. `copied` counts the rows while they are copied. Returns their
/// number.
async fn transfer(
    source: &PgClient,
    target: &Client,
    job: &CopyJob,
    copied: &AtomicU64,
) -> Result<u64, CopyError> {
    let from_publisher = |error| match source.meter().and_then(Meter::refused) {
        Some((bytes, bytes_max)) => CopyError::TooLarge { table: job.source.clone(), bytes, bytes_max },
        None => CopyError::publisher(error),
    };
    let metered = source.meter().map(Meter::rows);
    expect_seen(source, job).await?;
    job.commands.refuse_values(source, &job.source).await?;
    let format = job.commands.format(source, target).await?;
    debug!(relation = %job.source, %format, "COPY to COPY");
    let rows = source.copy_out(&job.commands.copy_out(format)).await.map_err(&from_publisher)?;
    let sink = target.copy_in(job.commands.copy_in(format)).await.map_err(CopyError::on(Side::Target))?;
    tokio::pin!(rows, sink);
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    let mut messages: u64 = 0;
    while let Some(message) = rows.next().await {
        // On an error the sink is dropped, which makes the target's COPY fail: nothing is committed.
        let mut message = message.map_err(&from_publisher)?;
        messages += 1;
        let bytes = message.len();
        if let Some(error) = job.commands.refusal(&message, messages) {
            return Err(CopyError::Server(Side::Target, Box::new(error)));
        }
        if bytes >= PIECE_BYTES {
            // A large row goes in pieces that share its bytes: neither a copy of it nor its whole size is
            // buffered here or in the driver.
            if !piece.is_empty() {
                send(sink.as_mut(), piece.split().freeze()).await?;
            }
            while !message.is_empty() {
                send(sink.as_mut(), message.split_to(message.len().min(PIECE_BYTES))).await?;
            }
        } else {
            piece.extend_from_slice(&message);
        }
        if let Some(metered) = &metered {
            metered.used(bytes);
        }
        if piece.len() >= PIECE_BYTES {
            copied.store(messages, Ordering::Relaxed);
            send(sink.as_mut(), piece.split().freeze()).await?;
            piece.reserve(PIECE_BYTES);
        }
    }
    if !piece.is_empty() {
        send(sink.as_mut(), piece.freeze()).await?;
    }
    sink.finish().await.map_err(CopyError::on(Side::Target))?;
    // From the COPY on, its lock keeps name and file.
    let now = ask(source, NOW, job).await?;
    if now.get::<_, Option<bool>>("same") != Some(true) {
        return Err(CopyError::Changed(job.source.clone()));
    }
    if now.get("rewritten") {
        return Err(CopyError::Rewritten(job.source.clone()));
    }
    let count = messages.saturating_sub(extra_messages(format));
    copied.store(count, Ordering::Relaxed);
    Ok(count)
}

/// Fails unless the table is the one whose copy was planned. Its name may still be given to another one.
async fn expect_seen(source: &PgClient, job: &CopyJob) -> Result<(), CopyError> {
    let now = ask(source, SEEN, job).await?;
    let (same, numbers, names): (Option<bool>, Vec<i16>, Vec<String>) = (now.get(0), now.get(1), now.get(2));
    if same == Some(true) && numbers.into_iter().zip(names).eq(job.seen.columns.iter().cloned()) {
        return Ok(());
    }
    Err(CopyError::Changed(job.source.clone()))
}

/// Runs a query about the table: `$1` is its name, `$2` its OID.
async fn ask(source: &PgClient, sql: &str, job: &CopyJob) -> Result<Row, CopyError> {
    let name = job.source.quoted();
    let parameters = [(&name as &(dyn ToSql + Sync), Type::TEXT), (&job.seen.oid, Type::OID)];
    source.query_typed_one(sql, &parameters).await.map_err(CopyError::publisher)
}

async fn send(mut sink: std::pin::Pin<&mut CopyInSink<Bytes>>, piece: Bytes) -> Result<(), CopyError> {
    sink.send(piece).await.map_err(CopyError::on(Side::Target))
}
