//! Replication origins of the target session: their names, and setting up and dropping them.

use std::time::Duration;

use super::error::TargetError;
use super::session::{INSUFFICIENT_PRIVILEGE, TargetSession, refused};
use crate::error::Diagnosis;
use crate::pg::{SubscriptionName, quote_ident, quote_literal};

/// PostgreSQL's error for an origin that another session uses.
const OBJECT_IN_USE: &str = "55006";

/// Delay between attempts to set up an origin that an ending session still uses: a backend releases its locks
/// a moment before its origin.
const ORIGIN_POLL: Duration = Duration::from_millis(100);
const ORIGIN_ATTEMPTS_MAX: u32 = 50;

/// Maximum number of initial copies that have an origin at the same time.
pub const COPY_ORIGINS_MAX: usize = 2;

/// The use of an origin. Only one session at a time can use an origin, so sessions that run at the same time
/// have one each.
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

    /// The name in earlier versions, which was the same in every database of a cluster.
    fn former_name(self, subscription: &SubscriptionName) -> String {
        match self {
            Self::Apply => format!("pgsluice_{subscription}"),
            Self::Copy(worker) => format!("pgsluice_{subscription}_copy{worker}"),
            Self::TableSync => format!("pgsluice_{subscription}_sync"),
        }
    }
}

impl TargetSession {
    /// Gives every transaction of the session a replication origin, so that subscribers of the target with
    /// `origin = none` do not receive them. Without the privilege, the session goes on without an origin,
    /// with a warning.
    ///
    /// # Errors
    /// Also if another session uses the origin for seconds (55006).
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
                // A former session that is ending may still use the origin.
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

    /// Resets the session's origin and drops it: a target has few (`max_replication_slots`), and a copy needs
    /// its own only while it runs. An origin that the role may not drop stays for the next copy.
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

    /// Drops every origin of a subscription that is being removed.
    ///
    /// # Errors
    /// Also without the privilege, or if a session uses one of them for seconds.
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

    /// Drops the origins that an earlier version created for a subscription of this name. They may belong to
    /// another database, so one that is in use is not dropped. One that is not in use can be dropped: it
    /// holds no position, and a session that needs it creates it again.
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

    /// Drops those of the origins that exist.
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
    /// All of the server's origins are in use (`max_replication_slots`).
    Room,
}

/// Describes the consequences of transactions without an origin.
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
            "raise max_replication_slots (PostgreSQL 18: max_active_replication_origins) on the target, which takes \
             a restart, or drop origins that nothing uses: SELECT external_id, remote_lsn FROM \
             pg_replication_origin_status;"
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
        // The names of subscriptions include names of origins in the former scheme and in this one.
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
