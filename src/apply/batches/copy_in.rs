//! Puts a set of new rows in by `COPY`: a quarter cheaper for the target than an INSERT of arrays.
//!
//! Its data may only follow the server's word that it is ready, so it takes one way there and back more,
//! and a task that waits for it. If the server refuses to begin, because something before it in the
//! transaction has failed or because the table is no longer what it was, the driver has sent one Sync too
//! many and would take each answer for that of the next request: the connection is closed at once.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::sync::oneshot;
use tokio_postgres::{CopyInSink, Statement};

use crate::apply::ApplyError;
use crate::net::{PgClient, server_error};

/// COPY data is handed to the connection in such pieces.
const PIECE_BYTES: usize = 256 << 10;

/// A COPY of a number of rows, and where its answer goes.
pub(crate) struct CopyIn {
    pub(crate) statement: Statement,
    pub(crate) data: Bytes,
    pub(crate) rows: u64,
    pub(crate) answer: oneshot::Sender<Result<(), ApplyError>>,
}

impl CopyIn {
    /// Asks by its first poll, in order with other requests. Dropped before it is through, it closes the
    /// connection: nobody could tell any more which answer belongs to what.
    pub(crate) async fn run(self, client: Arc<PgClient>) {
        let unfinished = Unfinished(Some(client));
        let Some(client) = &unfinished.0 else { return };
        let result = match client.copy_in(&self.statement).await {
            Ok(sink) => match pour(sink, self.data).await {
                Ok(copied) if copied == self.rows => Ok(()),
                Ok(_) => Err(ApplyError::SetMissed),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(match server_error(&error) {
                Some(refused) => {
                    client.hang_up();
                    ApplyError::CopyRefused(Box::new(refused))
                }
                None => ApplyError::Connection(error),
            }),
        };
        unfinished.end();
        // A receiver that has gone needs no answer.
        let _ = self.answer.send(result);
    }
}

/// Closes the connection when it is dropped while a COPY is under way.
struct Unfinished(Option<Arc<PgClient>>);

impl Unfinished {
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(client) = &self.0 {
            client.hang_up();
        }
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
