//! Notices that a server waits for its clients to leave before it shuts down (`pg_ctl stop -m smart`).
//!
//! It tells no session so, and refuses new ones (`canAcceptConnections` in postmaster.c). So one task for each server to
//! which sessions are open opens another one every few seconds. If that is refused, the sessions end, as a fast shutdown would
//! end them, and the shutdown goes through. What has ended is opened again once the server takes sessions.
//!
//! # Why the error code is enough
//! A server that starts up or recovers refuses new sessions by the same code. But it has no sessions then: they ended with the
//! processes of its former run.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::{debug, info};

use super::client::{ClientOptions, StartUp, Watching};
use super::establish::establish;
use crate::error::ServerError;
use crate::pg::conninfo::{ConnInfo, Host, HostAddress};

/// How often a server is asked whether it takes sessions.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time until it is asked again before sessions end, because behind a proxy another server may have answered.
const AGAIN: Duration = Duration::from_secs(1);
/// PostgreSQL's error for a session that comes while the server shuts down or starts up.
pub(crate) const CANNOT_CONNECT_NOW: &str = "57P03";
const NAME: &str = "pgsluice admission";

type Server = (HostAddress, u16);

/// The tasks, by the servers that they ask. A task ends with the last session that is watched by it.
static TASKS: LazyLock<Mutex<HashMap<Server, Weak<Asking>>>> = LazyLock::new(Mutex::default);

/// The task that asks one server.
#[derive(Debug)]
struct Asking {
    task: AbortHandle,
    /// Why the server takes no sessions, once it shuts down.
    refusal: watch::Receiver<Option<ServerError>>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that is asked until this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Watched(Arc<Asking>);

impl Watched {
    /// Watches the server at `host`, to which a session is open.
    pub(crate) fn new(info: &ConnInfo, host: &Host) -> Self {
        let mut tasks = TASKS.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has found its server to shut down has nothing more to ask.
        let runs = |asking: &Arc<Asking>| asking.refusal.borrow().is_none() && !asking.task.is_finished();
        let server = (host.address.clone(), host.port);
        if let Some(asking) = tasks.get(&server).and_then(Weak::upgrade).filter(runs) {
            return Self(asking);
        }
        tasks.retain(|_, asking| asking.strong_count() > 0);
        let info = ConnInfo { hosts: vec![host.clone()], ..info.clone() };
        let (sender, refusal) = watch::channel(None);
        let task = tokio::spawn(async move { sender.send_replace(Some(refused(&info).await)) });
        let asking = Arc::new(Asking { task: task.abort_handle(), refusal });
        tasks.insert(server, Arc::downgrade(&asking));
        Self(asking)
    }

    /// Waits until the server refuses sessions because it shuts down, and returns what it says. Cancel-safe.
    pub(crate) async fn stops(&self) -> ServerError {
        let mut stops = self.0.refusal.clone();
        let refusal = stops.wait_for(Option::is_some).await.ok().and_then(|refusal| refusal.clone());
        match refusal {
            Some(refusal) => refusal,
            // The task has ended with its runtime.
            None => std::future::pending().await,
        }
    }
}

/// Asks until the server has refused twice, and returns its error.
async fn refused(info: &ConnInfo) -> ServerError {
    loop {
        sleep(INTERVAL).await;
        if refusal(info).await.is_none() {
            continue;
        }
        sleep(AGAIN).await;
        if let Some(refusal) = refusal(info).await {
            let server = info.hosts.first().map(|host| host.address.to_string()).unwrap_or_default();
            info!(
                server,
                reason = refusal.message,
                "the server shuts down and waits for its clients, so its sessions end"
            );
            return refusal;
        }
    }
}

/// Why the server takes no sessions now.
async fn refusal(info: &ConnInfo) -> Option<ServerError> {
    let options = ClientOptions { application_name: Some(NAME.to_owned()), ..ClientOptions::default() };
    match Box::pin(establish(info, &StartUp { info, options: &options, watching: Watching::No })).await {
        Ok(session) => {
            session.close().await;
            None
        }
        Err(error) => {
            debug!(%error, "a session to find out whether the server shuts down was refused");
            error.server_error().filter(|refusal| refusal.code == CANNOT_CONNECT_NOW).cloned()
        }
    }
}
