//! Replication origins of the target session: their names, and taking and leaving them.

use std::time::Duration;

use super::error::TargetError;
use super::session::{INSUFFICIENT_PRIVILEGE, TargetSession, refused};
use crate::error::Diagnosis;
use crate::pg::{SubscriptionName, quote_ident, quote_literal};

/// PostgreSQL's error for an origin that another session has.
const OBJECT_IN_USE: &str = "55006";

/// How often, and how many times, an origin is asked for that a session which has just been let go
/// of still holds: a backend gives up its locks a moment before its origin.
const ORIGIN_POLL: Duration = Duration::from_millis(100);
const ORIGIN_ATTEMPTS_MAX: u32 = 50;

/// Copies that have an origin at the same time, at most: an origin is one session's.
pub const COPY_ORIGINS_MAX: usize = 2;

/// The name of the replication origin of a subscription's transactions.
#[must_use]
pub fn origin_name(subscription: &SubscriptionName) -> String {
    format!("pgsluice_{subscription}")
}

/// The origin of the rows that one of the initial copy's workers writes.
#[must_use]
pub fn copy_origin_name(subscription: &SubscriptionName, worker: usize) -> String {
    format!("{}_copy{worker}", origin_name(subscription))
}

/// The origin of a table that joins a running stream.
#[must_use]
pub fn sync_origin_name(subscription: &SubscriptionName) -> String {
    format!("{}_sync", origin_name(subscription))
}

impl TargetSession {
    /// Gives every transaction of the session a replication origin, so that a publication of the
    /// target with `origin = none` leaves them out (EDGE_CASES 31). A role that may not have one
    /// goes on without, with a warning.
    ///
    /// # Errors
    /// Also if another session keeps the origin for seconds (55006).
    pub async fn set_origin(&mut self, origin: &str) -> Result<(), TargetError> {
        let create = "DO $do$ BEGIN \
            IF pg_catalog.pg_replication_origin_oid(NAME) IS NULL THEN \
                PERFORM pg_catalog.pg_replication_origin_create(NAME); END IF; \
            PERFORM pg_catalog.pg_replication_origin_session_setup(NAME); END $do$"
            .replace("NAME", &quote_literal(origin));
        let mut attempts = 1;
        let problem = loop {
            match refused(self.client(), &create).await? {
                None => {
                    self.origin = Some(origin.to_owned());
                    return Ok(());
                }
                // A session that has just been let go of still ends.
                Some(problem) if problem.code == OBJECT_IN_USE && attempts < ORIGIN_ATTEMPTS_MAX => {
                    attempts += 1;
                    tokio::time::sleep(ORIGIN_POLL).await;
                }
                Some(problem) if problem.code == OBJECT_IN_USE => {
                    return Err(TargetError::Server(Box::new(problem)));
                }
                Some(problem) => break problem,
            }
        };
        let lacks =
            if problem.code == INSUFFICIENT_PRIVILEGE { OriginLack::Privilege } else { OriginLack::Room };
        let warning = no_origin(&self.role, lacks);
        let detail = warning.detail.clone().unwrap_or_default();
        self.warnings.push(warning.detail(format!("{}; {detail}", problem.message)));
        Ok(())
    }

    /// Gives the session's origin up and removes it: a target has room for few
    /// (`max_replication_slots`), and a copy needs its own only while it runs. One that the role may
    /// not remove stays for the next copy.
    pub async fn release_origin(&mut self) -> Result<(), TargetError> {
        let Some(origin) = self.origin.take() else { return Ok(()) };
        let release = "SELECT pg_catalog.pg_replication_origin_session_reset(); \
            SELECT pg_catalog.pg_replication_origin_drop(NAME)"
            .replace("NAME", &quote_literal(&origin));
        if let Some(problem) = refused(self.client(), &release).await? {
            tracing::debug!(origin, error = %problem, "a replication origin is left behind");
        }
        Ok(())
    }

    /// Removes every origin of a subscription that is being dropped, however its sessions ended.
    ///
    /// # Errors
    /// Also without the privilege, or if a session keeps one of them for seconds.
    pub async fn drop_origins(&self, subscription: &SubscriptionName) -> Result<(), TargetError> {
        let of_copies = (0..COPY_ORIGINS_MAX).map(|worker| copy_origin_name(subscription, worker));
        let names = [origin_name(subscription), sync_origin_name(subscription)];
        let names: Vec<String> = names.into_iter().chain(of_copies).collect();
        let sql = "SELECT pg_catalog.pg_replication_origin_drop(o.roname) \
            FROM pg_catalog.pg_replication_origin o WHERE o.roname = ANY ($1)";
        let mut attempts = 1;
        loop {
            let error = match self.client().execute(sql, &[&names]).await {
                Ok(_) => return Ok(()),
                Err(error) => TargetError::from(error),
            };
            let in_use = error.server_error().is_some_and(|error| error.code == OBJECT_IN_USE);
            if !in_use || attempts >= ORIGIN_ATTEMPTS_MAX {
                return Err(error);
            }
            attempts += 1;
            tokio::time::sleep(ORIGIN_POLL).await;
        }
    }
}

/// Why transactions cannot have an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginLack {
    /// The role may not execute the functions for it.
    Privilege,
    /// The server has no room for any.
    Room,
}

/// What it costs that transactions carry no origin.
#[must_use]
pub fn no_origin(role: &str, lacks: OriginLack) -> Diagnosis {
    let hint = match lacks {
        OriginLack::Privilege => format!(
            "on the target, as a superuser: GRANT EXECUTE ON FUNCTION \
             pg_catalog.pg_replication_origin_oid(text), pg_catalog.pg_replication_origin_create(text), \
             pg_catalog.pg_replication_origin_drop(text), \
             pg_catalog.pg_replication_origin_session_setup(text), \
             pg_catalog.pg_replication_origin_session_reset() TO {};",
            quote_ident(role)
        ),
        OriginLack::Room => {
            "set max_replication_slots (PostgreSQL 18: max_active_replication_origins) above 0 on the target"
                .to_owned()
        }
    };
    Diagnosis::new("replicated transactions carry no replication origin")
        .detail(
            "a subscriber of this target with origin = none would receive them, and a bidirectional set-up \
             would loop",
        )
        .hint(hint)
}
