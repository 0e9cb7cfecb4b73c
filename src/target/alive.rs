//! Whether the server of a session is still there, while it does not answer.
//!
//! A statement may take any time, or wait for a lock, and TCP notices only that a host is gone, not that a proxy has lost
//! what is behind it. So another connection asks the server what the session does: it is alive while it works. If it waits
//! for what it is sent, it has to answer at once.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::session::TargetSession;
use crate::error::Diagnosis;
use crate::net::{self, ClientOptions, ConnectErrorKind};
use crate::pg::conninfo::ConnInfo;

/// What the session's backend does: whether it waits for its client. No row if it has ended.
const DOES: &str = "SELECT a.wait_event_type = 'Client' AND a.wait_event = 'ClientRead' \
    FROM pg_catalog.pg_stat_activity a \
    WHERE a.pid = $1 AND a.usename = session_user AND a.datname = pg_catalog.current_database()";

/// After this time without anything sent or received, the session is asked something. It is short, because the owner of a
/// subscription shows by it that it lives (`lock`).
const QUIET_MAX: Duration = Duration::from_secs(1);

/// What was found out about a session that is quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Alive,
    /// Its server cannot be asked either.
    NoServer,
    /// Its server has no such session any more.
    Ended,
    /// It waits for what has been sent to it.
    Unreached,
}

impl TargetSession {
    /// Waits until the session has shown no sign of life for about `peer_timeout`, and tells what was found. Cancel-safe.
    pub async fn lost(&self, peer_timeout: Duration) -> Diagnosis {
        let part = peer_timeout / 4;
        loop {
            let quiet = self.client().quiet_for();
            let asked = Instant::now();
            if let Some(left) = QUIET_MAX.checked_sub(quiet).filter(|left| !left.is_zero()) {
                sleep(left).await;
                continue;
            }
            if self.answers_within(part * 3).await {
                continue;
            }
            let lost = match self.sign_of_life(part).await {
                Sign::Alive => {
                    sleep(part * 2).await;
                    continue;
                }
                Sign::NoServer => "a new connection to its server was not answered either",
                Sign::Ended => "its server has no such session any more",
                Sign::Unreached => "its server waits for what was sent to it long ago",
            };
            return no_answer(quiet + asked.elapsed(), lost);
        }
    }

    /// Asks the server about a session that does not answer; each question may take `patience`.
    async fn sign_of_life(&self, patience: Duration) -> Sign {
        match timeout(patience, self.waits_for_its_client()).await {
            Err(_) | Ok(Err(Unasked::NoServer)) => Sign::NoServer,
            Ok(Ok(Some(false)) | Err(Unasked::Refused)) => Sign::Alive,
            Ok(Ok(Some(true))) if self.answers_within(patience).await => Sign::Alive,
            Ok(Ok(Some(true))) => Sign::Unreached,
            Ok(Ok(None)) => Sign::Ended,
        }
    }

    /// Whether the session answers in this time, or anything else than the question moves.
    async fn answers_within(&self, patience: Duration) -> bool {
        /// Its type, its length and an empty string.
        const QUESTION_BYTES: u64 = 6;
        let before = self.client().bytes_moved();
        // It waits behind statements that are under way.
        let asked = timeout(patience, self.client().batch_execute("")).await;
        asked.is_ok() || self.client().bytes_moved() > before + QUESTION_BYTES
    }

    async fn waits_for_its_client(&self) -> Result<Option<bool>, Unasked> {
        let options =
            ClientOptions { application_name: Some("pgsluice watch".to_owned()), ..ClientOptions::default() };
        let _place = net::places::moment().await;
        // Another host of the connection string does not know the session.
        let hosts = vec![self.client().host().clone()];
        let info = ConnInfo { hosts, ..self.conninfo().clone() };
        let client = net::client(&info, &options).await.map_err(|error| match *error.kind {
            ConnectErrorKind::Resolve(_)
            | ConnectErrorKind::NoAddress
            | ConnectErrorKind::Connect(_)
            | ConnectErrorKind::TimedOut(_)
            | ConnectErrorKind::Lost(_)
            | ConnectErrorKind::Closed => Unasked::NoServer,
            _ => Unasked::Refused,
        })?;
        let row = client.query_opt(DOES, &[&self.pid()]).await.map_err(|_| Unasked::NoServer)?;
        Ok(row.map(|row| row.get::<_, Option<bool>>(0).unwrap_or_default()))
    }
}

/// A session on the target has not answered for so long. `why` says what else was found.
#[must_use]
pub fn no_answer(waited: Duration, why: &str) -> Diagnosis {
    Diagnosis::new(format!("the target has not answered for {} s", waited.as_secs()))
        .detail(format!("{why}, so the connection counts as dead (peer_timeout)"))
        .hint("apply goes on by itself once the target answers; look at the network between")
}

/// Why the server could not be asked.
enum Unasked {
    NoServer,
    /// It answers, and lets nobody in now.
    Refused,
}
