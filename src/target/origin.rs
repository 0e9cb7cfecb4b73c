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

/// Whose transactions carry an origin. An origin belongs to one session at a time, so sessions that run
/// together have one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginUse {
    /// The subscription's stream.
    Apply,
    /// One of the initial copy's workers, by number.
    Copy(usize),
    /// A table that joins a running stream.
    TableSync,
}

impl OriginUse {
    fn all() -> impl Iterator<Item = Self> {
        [Self::Apply, Self::TableSync].into_iter().chain((0..COPY_ORIGINS_MAX).map(Self::Copy))
    }

    /// The origin's name. Origins belong to the whole cluster (`pg_replication_origin` is a shared
    /// catalog), so the name holds the database's OID, as the built-in subscriber's holds its
    /// subscription's. The subscription's name may hold any character and therefore comes last.
    fn name(self, database: u32, subscription: &SubscriptionName) -> String {
        match self {
            Self::Apply => format!("pgsluice:{database}:apply:{subscription}"),
            Self::Copy(worker) => format!("pgsluice:{database}:copy{worker}:{subscription}"),
            Self::TableSync => format!("pgsluice:{database}:sync:{subscription}"),
        }
    }

    /// The name that earlier versions gave it, the same in every database of a cluster.
    fn former_name(self, subscription: &SubscriptionName) -> String {
        match self {
            Self::Apply => format!("pgsluice_{subscription}"),
            Self::Copy(worker) => format!("pgsluice_{subscription}_copy{worker}"),
            Self::TableSync => format!("pgsluice_{subscription}_sync"),
        }
    }
}

impl TargetSession {
    /// Gives every transaction of the session a replication origin, so that a publication of the
    /// target with `origin = none` leaves them out. A role that may not have one
    /// goes on without, with a warning.
    ///
    /// # Errors
    /// Also if another session keeps the origin for seconds (55006).
    pub async fn set_origin(
        &mut self,
        subscription: &SubscriptionName,
        of: OriginUse,
    ) -> Result<(), TargetError> {
        let origin = of.name(self.database, subscription);
        let create = "DO $do$ BEGIN \
            IF pg_catalog.pg_replication_origin_oid(NAME) IS NULL THEN \
                PERFORM pg_catalog.pg_replication_origin_create(NAME); END IF; \
            PERFORM pg_catalog.pg_replication_origin_session_setup(NAME); END $do$"
            .replace("NAME", &quote_literal(&origin));
        let mut attempts = 1;
        let problem = loop {
            match refused(self.client(), &create).await? {
                None => {
                    self.origin = Some(origin);
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
        let names: Vec<String> = OriginUse::all().map(|of| of.name(self.database, subscription)).collect();
        let mut attempts = 1;
        loop {
            let Err(error) = self.drop_named(&names).await else { break };
            if !is_in_use(&error) || attempts >= ORIGIN_ATTEMPTS_MAX {
                return Err(error);
            }
            attempts += 1;
            tokio::time::sleep(ORIGIN_POLL).await;
        }
        self.drop_former_origins(subscription).await
    }

    /// Removes the origins that an earlier version made for a subscription of this name. They may be
    /// another database's: one that is in use is left alone. One that is not in use may go: whoever
    /// needs it makes it again, and no position is kept in it.
    async fn drop_former_origins(&self, subscription: &SubscriptionName) -> Result<(), TargetError> {
        for name in OriginUse::all().map(|of| of.former_name(subscription)) {
            match self.drop_named(&[name]).await {
                Err(error) if is_in_use(&error) => {
                    tracing::debug!(%error, "an origin of an earlier version is in use and stays");
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Removes those of the origins that exist.
    async fn drop_named(&self, names: &[String]) -> Result<(), TargetError> {
        let sql = "SELECT pg_catalog.pg_replication_origin_drop(o.roname) \
            FROM pg_catalog.pg_replication_origin o WHERE o.roname = ANY ($1)";
        self.client().execute(sql, &[&names]).await?;
        Ok(())
    }
}

fn is_in_use(error: &TargetError) -> bool {
    error.server_error().is_some_and(|error| error.code == OBJECT_IN_USE)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_one_database_s_and_one_subscription_s() {
        let name = |text: &str| -> SubscriptionName { text.parse().expect("a name") };
        let mut names = std::collections::HashSet::new();
        // The names of the former scheme, and of this one, as names of subscriptions.
        for subscription in ["a", "a_sync", "a_copy0", "5:apply:a", "pgsluice:5:apply:a", "apply:a"] {
            for (database, of) in [5, 51].into_iter().flat_map(|db| OriginUse::all().map(move |of| (db, of)))
            {
                assert!(
                    names.insert(of.name(database, &name(subscription))),
                    "{subscription} {database} {of:?}"
                );
            }
        }
        assert!(names.iter().all(|name| !name.starts_with("pgsluice_")), "a former name is never used again");
    }
}
