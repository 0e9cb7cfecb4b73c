//! Connects to servers; replication and SQL connections use the same steps.
//!
//! ```text
//! ConnInfo ─▶ name ─▶ route ─▶ port ─▶ TLS ─▶ authentication ─▶ database (─▶ replication)
//!             └──────── dial ────────────┘   └─ client, or replication::ReplicationConnection ─┘
//! ```
//! A failure names the step that failed and its remedy ([`ConnectError::diagnosis`]), because the usual
//! causes look alike to the operator.
//!
//! # Invariants
//! - Names are resolved at every connection, every address is tried, and `connect_timeout` bounds each
//!   host as a whole.
//! - `sslmode`, `sslnegotiation` and `channel_binding` have their meaning in libpq.
//! - Nothing is set in an SQL session before it is known to have a backend of its own, because a pooler in
//!   transaction mode would give that backend, and what is set in it, to other applications.
//! - Before a server has admitted the session, its messages are at most 64 KiB long; afterwards `sizes` has a bound for
//!   each kind.
//! - A session ends once its server waits for its clients to leave (`shutdown`).
//! - A password is only sent to the server: no error, log line or `Debug` output holds it.
//!
//! Callers do retries and back-off; `config` reads the environment.

mod activity;
mod binding;
mod client;
mod driver;
mod error;
mod establish;
mod explain;
mod metered;
mod paced;
pub(crate) mod places;
mod pooler;
mod server_error;
mod shutdown;
mod sizes;
mod socket;
mod stream;
mod tls;
mod verify;
mod version;

pub use client::{ClientOptions, PgClient, client};
pub use driver::Ended;
pub use error::{ConnectError, ConnectErrorKind, Purpose, Step, TlsSetupError};
pub(crate) use establish::{Login, LoginError, establish};
pub use metered::{Meter, Rows};
pub use server_error::server_error;
pub(crate) use shutdown::{CANNOT_CONNECT_NOW, Watched};
pub use sizes::Oversize;
pub(crate) use sizes::{HEADER_BYTES, Handling, MESSAGE_BYTES_MAX, Shortener, Sizes};
pub use stream::{Encryption, NetStream};
pub(crate) use version::server_version_num;

use crate::pg::conninfo::{ConnInfo, Host};

/// A connected stream before start-up: nothing has been sent on it except for TLS.
#[derive(Debug)]
pub struct Dialed {
    pub stream: NetStream,
    /// The host that answered.
    pub host: Host,
}

/// Connects to the first host that answers, up to and including TLS, and stops before start-up.
///
/// `sslmode=allow` stays unencrypted here, because only a refused log-in makes it try encryption.
/// [`client()`] and the replication connection try both.
pub async fn dial(info: &ConnInfo) -> Result<Dialed, ConnectError> {
    establish(info, &Reach).await
}

/// Starts a session up on a stream, without a set-up: for the fuzz target of start-up messages.
#[doc(hidden)]
pub async fn client_over(stream: NetStream, info: &ConnInfo) -> Result<PgClient, Box<ConnectErrorKind>> {
    let options = ClientOptions::default();
    let start_up = client::StartUp { info, options: &options, watching: client::Watching::No };
    let host = info.hosts.first().cloned().ok_or(ConnectErrorKind::NoAddress)?;
    start_up.log_in(Dialed { stream, host }).await.map_err(|error| error.kind)
}

/// A log-in that does nothing.
struct Reach;

impl Login for Reach {
    type Session = Dialed;

    fn purpose(&self) -> Purpose {
        Purpose::Sql
    }

    async fn log_in(&self, dialed: Dialed) -> Result<Dialed, LoginError> {
        Ok(dialed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::{ReplicationConnection, ReplicationStream, SessionOptions};

    fn sendable<T: Send>(value: T) -> T {
        value
    }

    /// Checks at compile time that connections can be made and used from spawned tasks.
    #[expect(dead_code, reason = "checked by the compiler")]
    async fn futures_can_move_between_threads(
        info: &ConnInfo,
        session: &SessionOptions,
        stream: &mut ReplicationStream,
    ) {
        let _ = sendable(dial(info)).await;
        let _ = sendable(client(info, &ClientOptions::default())).await;
        let _ = sendable(ReplicationConnection::connect(info, session)).await;
        let _ = sendable(stream.next()).await;
    }
}
