//! Puts a set of new rows in by `COPY`: a quarter cheaper for the target than an INSERT of arrays.
//!
//! Its data may only follow the server's word that it is ready, so it takes one way there and back more,
//! and a task that waits for it. Where the server refuses to begin, because something before it in the
//! transaction has failed or because the table is no longer what it was, the driver has sent one Sync too
//! many, and would take each answer for the next one's: the session is given up there and then.

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::sync::oneshot;
use tokio_postgres::{CopyInSink, Statement};

use crate::apply::ApplyError;
use crate::net::{PgClient, server_error};

/// COPY data is handed to the connection in such pieces.
const PIECE_BYTES: usize = 256 << 10;

/// A COPY of so many rows, and who waits for it.
pub(crate) struct Copying {
    pub(crate) statement: Statement,
    pub(crate) data: Bytes,
    pub(crate) rows: u64,
    pub(crate) answer: oneshot::Sender<Result<(), ApplyError>>,
}

impl Copying {
    /// Asks by its first poll, in order with other requests. A COPY that nobody waits for any more fails,
    /// but not before it is known whether it was begun.
    pub(crate) async fn run(mut self, client: &PgClient) {
        let result = match client.copy_in(&self.statement).await {
            Ok(sink) => tokio::select! {
                biased;
                // Dropped without an end, it fails.
                () = self.answer.closed() => return,
                copied = pour(sink, self.data) => match copied {
                    Ok(copied) if copied == self.rows => Ok(()),
                    Ok(_) => Err(ApplyError::SetMissed),
                    Err(error) => Err(error.into()),
                },
            },
            Err(error) => Err(match server_error(&error) {
                Some(refused) => {
                    client.hang_up();
                    ApplyError::CopyRefused(Box::new(refused))
                }
                None => ApplyError::Connection(error),
            }),
        };
        // Whoever has stopped waiting needs no answer.
        let _ = self.answer.send(result);
    }
}

/// Returns the number of rows that the server took.
async fn pour(sink: CopyInSink<Bytes>, mut data: Bytes) -> Result<u64, tokio_postgres::Error> {
    let mut sink = std::pin::pin!(sink);
    while !data.is_empty() {
        sink.send(data.split_to(data.len().min(PIECE_BYTES))).await?;
    }
    sink.finish().await
}
