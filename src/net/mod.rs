//! Dialling: one way to reach a server for every connection, replication and SQL alike.
//!
//! ```text
//! ConnInfo ─▶ name ─▶ route ─▶ port ─▶ TLS ─▶ authentication ─▶ database (─▶ replication)
//!             └──────── dial ────────────┘   └─ client, or replication::ReplicationConnection ─┘
//! ```
//! A connection that cannot be made says which of these steps failed and what cures it
//! ([`ConnectError::diagnosis`]); from afar the usual causes all look alike.
//!
//! # Invariants
//! - Names are resolved at every connection, every address is tried, and `connect_timeout` bounds
//!   each host as a whole.
//! - `sslmode`, `sslnegotiation` and `channel_binding` mean what they mean in libpq.
//! - A password is exposed to the wire only: no error, log line or `Debug` output holds it.
//!
//! What is absent: retries and back-off (the callers'), reading of the environment (`config`'s).

mod binding;
mod client;
mod error;
mod establish;
mod explain;
mod paced;
mod socket;
mod stream;
mod tls;
mod verify;
mod version;

pub use client::{ClientOptions, Ended, PgClient, client, server_error};
pub use error::{ConnectError, ConnectErrorKind, Purpose, Step, TlsSetupError};
pub(crate) use establish::{Login, LoginError, establish};
pub use stream::{Encryption, NetStream};
pub(crate) use version::server_version_num;

use crate::pg::conninfo::{ConnInfo, Host};

/// A stream on which nothing has been said yet: start-up comes next.
#[derive(Debug)]
pub struct Dialed {
    pub stream: NetStream,
    /// Which of the hosts answered.
    pub host: Host,
}

/// Reaches the first host that answers, up to and including TLS, and stops before start-up.
///
/// `sslmode=allow` stays unencrypted here, since only a refused log-in would call for encryption;
/// [`client()`] and the replication connection do try both.
pub async fn dial(info: &ConnInfo) -> Result<Dialed, ConnectError> {
    establish(info, &Reach).await
}

/// Logs in nowhere.
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

    /// Connections are made and used from spawned tasks: this need only compile.
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
