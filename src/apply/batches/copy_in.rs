//! Writes a set of new rows by `COPY`, which costs the target a quarter less than an INSERT of arrays.
//!
//! The data may only be sent after the server's CopyInResponse, so a COPY takes one round trip more than an
//! INSERT, and a task waits for it. If the server refuses to begin the COPY, because an earlier statement of
//! the transaction has failed or because the table has changed, the driver has sent one Sync too many and
//! would assign each later answer to the wrong request. So the connection is closed at once.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::sync::oneshot;
use tokio_postgres::{CopyInSink, Statement};

use crate::apply::ApplyError;
use crate::net::{PgClient, server_error};

/// Size of the pieces in which COPY data is handed to the connection.
const PIECE_BYTES: usize = 256 << 10;

/// A COPY of a number of rows, and the channel for its result.
pub(crate) struct CopyIn {
    pub(crate) statement: Statement,
    pub(crate) data: Bytes,
    pub(crate) rows: u64,
    pub(crate) answer: oneshot::Sender<Result<(), ApplyError>>,
}

impl CopyIn {
    /// Runs the COPY. The first poll sends the statement, in order with other requests. If the future is
    /// dropped before it has ended, the connection is closed: later answers could not be assigned to
    /// requests.
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
        // Sending fails only if the receiver has been dropped, and then no answer is needed.
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
