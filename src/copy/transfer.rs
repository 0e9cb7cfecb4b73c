//! Copies the rows of one table from COPY to COPY, within transactions that are open on both servers.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_postgres::{Client, CopyInSink};
use tracing::debug;

use super::command::extra_messages;
use super::initial::CopyJob;
use super::{CopyError, Side};

/// Size of the pieces, in bytes, in which rows are sent to the target. The publisher sends one message for
/// each row.
const PIECE_BYTES: usize = 128 << 10;

/// Copies the table's rows from `source` (whose transaction has the snapshot) to `target` (whose transaction
/// is open), in binary if both tables allow it. `copied` counts the rows while they are copied. Returns their
/// number.
pub async fn transfer(
    source: &Client,
    target: &Client,
    job: &CopyJob,
    copied: &AtomicU64,
) -> Result<u64, CopyError> {
    let from_publisher = CopyError::on(Side::Publisher);
    let format = job.commands.format(source, target).await?;
    debug!(relation = %job.source, %format, "COPY to COPY");
    let rows = source.copy_out(&job.commands.copy_out(format)).await.map_err(&from_publisher)?;
    let sink = target.copy_in(job.commands.copy_in(format)).await.map_err(CopyError::on(Side::Target))?;
    tokio::pin!(rows, sink);
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    let mut messages: u64 = 0;
    while let Some(message) = rows.next().await {
        // On an error the sink is dropped, which makes the target's COPY fail: nothing is committed.
        piece.extend_from_slice(&message.map_err(&from_publisher)?);
        messages += 1;
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
    let count = messages.saturating_sub(extra_messages(format));
    copied.store(count, Ordering::Relaxed);
    Ok(count)
}

async fn send(mut sink: std::pin::Pin<&mut CopyInSink<Bytes>>, piece: Bytes) -> Result<(), CopyError> {
    sink.send(piece).await.map_err(CopyError::on(Side::Target))
}
