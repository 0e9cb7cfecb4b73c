//! Recognises a connection pooler that gives the statements of one session to different backends.
//!
//! ```text
//! announced process id = backend's ──▶ no pooler
//!                      ≠           ──▶ a second session begins a transaction, and the first is asked again:
//!                                      each has its own backend        ──▶ session mode
//!                                      they share or change backends   ──▶ refused
//! ```
//! A server announces its backend's process id at start-up, for cancel requests (protocol.sgml,
//! "BackendKeyData"); a pooler announces numbers of its own. All this happens before anything is set in the
//! session: in transaction mode, a setting stays with the backend, which serves other applications next.

use std::sync::Arc;

use std::io;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::client::{Negotiated, PgClient};
use super::error::{ConnectErrorKind, Step};
use super::establish::LoginError;
use super::metered::Metered;
use super::server_error::server_error;
use super::stream::NetStream;

/// How often the second session begins a transaction. A pool that takes its backends in turn may leave the
/// first session its own once.
const ROUNDS: u32 = 3;
/// The bytes of a cancel request, and of the process id in it.
const CANCEL_REQUEST_BYTES: usize = 16;
const PROCESS_ID: std::ops::Range<usize> = 8..12;

const BACKEND: &str = "SELECT pg_catalog.pg_backend_pid()";

/// Fails if the session's statements go to different backends. `second` opens another session on the same
/// host, with nothing set in it; it runs only if a pooler answers.
pub(super) async fn require_one_backend(
    client: &Client,
    second: impl Future<Output = Result<PgClient, LoginError>> + Send,
) -> Result<(), LoginError> {
    let own = backend(client, BACKEND).await?;
    let announced = announced(client).await.map_err(|error| failed(ConnectErrorKind::Lost(error)))?;
    if own == Some(announced) {
        return Ok(());
    }
    let second = second.await?;
    // In statement mode, BEGIN would end the session without a word.
    let other = backend(&second, BACKEND).await?;
    if own.is_none() || other == own {
        return Err(failed(ConnectErrorKind::Pooled));
    }
    for _ in 0..ROUNDS {
        let other = backend(&second, &format!("BEGIN READ ONLY; {BACKEND}")).await?;
        let again = backend(client, BACKEND).await?;
        second.batch_execute("ROLLBACK").await.map_err(driver)?;
        if other.is_none() || other == own || again != own {
            return Err(failed(ConnectErrorKind::Pooled));
        }
    }
    Ok(())
}

/// Returns the process id of the backend that runs `sql`; none if the server refuses it.
async fn backend(client: &Client, sql: &str) -> Result<Option<i32>, LoginError> {
    match client.simple_query(sql).await {
        Ok(messages) => Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        })),
        Err(error) if server_error(&error).is_some() => Ok(None),
        Err(error) => Err(driver(error)),
    }
}

/// Returns the process id that was announced at start-up. The driver does not tell it, but writes it into a
/// cancel request; this one stays here.
async fn announced(client: &Client) -> io::Result<i32> {
    let (near, mut far) = UnixStream::pair()?;
    client
        .cancel_token()
        .cancel_query_raw(Metered::new(NetStream::Unix(near), None, Arc::default()), Negotiated)
        .await
        .map_err(io::Error::other)?;
    let mut request = [0; CANCEL_REQUEST_BYTES];
    far.read_exact(&mut request).await?;
    let id = request[PROCESS_ID].try_into().map_err(io::Error::other)?;
    Ok(i32::from_be_bytes(id))
}

fn driver(error: tokio_postgres::Error) -> LoginError {
    failed(ConnectErrorKind::Driver(error))
}

fn failed(kind: ConnectErrorKind) -> LoginError {
    LoginError::new(Step::Database, kind)
}
