//! The task that runs a session's connection, and why it ended.

use std::future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_postgres::{AsyncMessage, Connection};

use super::metered::Metered;
use super::server_error::{from_db_error, server_error};
use super::shutdown::Watched;
use crate::error::ServerError;

/// Why a connection ended.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// The error; `None` when this side ended the connection.
    pub error: Option<Arc<tokio_postgres::Error>>,
    /// The last notice before the end. A server that crashes or shuts down may announce that in a
    /// notice. Of one that waits for its clients before it shuts down, it is what it told another session.
    pub notice: Option<ServerError>,
}

impl Ended {
    /// Returns the server's reason: a `FATAL` error or a notice of class 57 (operator intervention).
    #[must_use]
    pub fn server_error(&self) -> Option<ServerError> {
        let fatal = self.error.as_deref().and_then(server_error);
        fatal.or_else(|| self.notice.clone().filter(|notice| notice.class() == "57"))
    }
}

/// The task that runs the connection; it ends with its owner.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) task: JoinHandle<()>,
    pub(super) abort: AbortHandle,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// Runs the connection until it ends, or until its server, if it is watched, waits for its clients to leave.
pub(super) fn drive(
    mut connection: Connection<Metered, Metered>,
    watched: Option<Watched>,
) -> (Driver, watch::Receiver<Option<Ended>>) {
    let (sender, receiver) = watch::channel(None);
    let task = tokio::spawn(async move {
        let mut notice = None;
        let stops = async {
            match &watched {
                Some(watched) => watched.stops().await,
                None => future::pending().await,
            }
        };
        let run = async {
            loop {
                match future::poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notice(said))) => notice = Some(from_db_error(&said)),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break Some(Arc::new(error)),
                    None => break None,
                }
            }
        };
        let ended = tokio::select! {
            biased;
            error = run => Ended { error, notice },
            refusal = stops => Ended { error: None, notice: Some(refusal) },
        };
        // The reason is set before the connection is dropped, so that it can be read as soon as a
        // request fails.
        sender.send_replace(Some(ended));
        drop(connection);
    });
    let abort = task.abort_handle();
    (Driver { task, abort }, receiver)
}
