//! Creating and upgrading schema `pgsluice`.
//!
//! # Privileges
//! The first migration creates the schema and needs CREATE on the database; later ones need ownership of the
//! schema. If there is nothing to do, [`Store::migrate`] succeeds for a role with table privileges only,
//! because it finds that out by reading.
//!
//! # Concurrent instances
//! An advisory lock of pgsluice admits one instance at a time. Missing migrations are determined under the
//! lock, so that each is reported by the instance that ran it. sqlx's own lock is not used: it is shared with
//! all other programs that migrate this database with sqlx, and it is kept by the session if a migration
//! fails. The session here is closed in any case, which releases the lock.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection as _, Executor as _, PgConnection, SqlSafeStr as _};

use super::{Store, StoreError, StoreErrorKind, lost};
use crate::boundary;
use crate::pg::MIGRATION_LOCK_KEY;

/// Maximum time of waiting for other instances' migrations, and of a migration.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(5);
pub(super) const ACTION: &str = "migrate schema pgsluice";

/// Every version of schema `pgsluice`: number, description, SQL.
const MIGRATIONS: [(i64, &str, &str); 17] = [
    (1, "subscriptions", include_str!("../../migrations/0001_subscriptions.sql")),
    (2, "conflicts", include_str!("../../migrations/0002_conflicts.sql")),
    (3, "commands", include_str!("../../migrations/0003_commands.sql")),
    (4, "boxes", include_str!("../../migrations/0004_boxes.sql")),
    (5, "plan_id", include_str!("../../migrations/0005_plan_id.sql")),
    (6, "terms", include_str!("../../migrations/0006_terms.sql")),
    (7, "publisher history", include_str!("../../migrations/0007_publisher_history.sql")),
    (8, "gaps", include_str!("../../migrations/0008_gaps.sql")),
    (9, "membership", include_str!("../../migrations/0009_membership.sql")),
    (10, "resync", include_str!("../../migrations/0010_resync.sql")),
    (11, "columns", include_str!("../../migrations/0011_columns.sql")),
    (12, "column numbers", include_str!("../../migrations/0012_column_numbers.sql")),
    (13, "accepted", include_str!("../../migrations/0013_accepted.sql")),
    (14, "copied", include_str!("../../migrations/0014_copied.sql")),
    (15, "server runs", include_str!("../../migrations/0015_server_runs.sql")),
    (16, "take over", include_str!("../../migrations/0016_take_over.sql")),
    (17, "instances", include_str!("../../migrations/0017_instances.sql")),
];

/// The version of schema `pgsluice` that this pgsluice works with.
pub const SCHEMA_VERSION: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;

/// A migration that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppliedMigration {
    pub version: i64,
    /// Its description.
    pub description: &'static str,
}

impl Store {
    /// Brings schema `pgsluice` to [`SCHEMA_VERSION`] and returns the migrations that were run.
    pub async fn migrate(&self) -> Result<Vec<AppliedMigration>, StoreError> {
        let mut session = self.session().await?;
        let applied = self.migrate_in(&mut session).await;
        super::end(session).await;
        applied
    }

    /// As [`Self::migrate`]; `session` is used to find out whether there is anything to do.
    pub(super) async fn migrate_in(
        &self,
        session: &mut PgConnection,
    ) -> Result<Vec<AppliedMigration>, StoreError> {
        let installed = self.run(ACTION, async { Ok(installed(session).await?) }).await?;
        match judge(&installed) {
            Ok(()) => Ok(Vec::new()),
            Err(StoreErrorKind::NotMigrated { .. }) => self.upgrade().await,
            Err(kind) => Err(StoreError::new(ACTION, kind)),
        }
    }

    /// The version of schema `pgsluice`; none if the schema does not exist.
    pub async fn schema_version(&self) -> Result<Option<i64>, StoreError> {
        let action = "read the version of schema pgsluice";
        let installed =
            self.run(action, async { Ok(installed(&mut *self.pool.acquire().await?).await?) }).await?;
        Ok(installed.last().map(|(version, _)| *version))
    }

    /// Fails unless the target's schema is the one that this pgsluice works with.
    pub async fn require_schema(&self) -> Result<(), StoreError> {
        let action = "check schema pgsluice";
        self.run(action, async { judge(&installed(&mut *self.pool.acquire().await?).await?) }).await
    }

    async fn upgrade(&self) -> Result<Vec<AppliedMigration>, StoreError> {
        let mut session = self.session().await?;
        let work = tokio::time::timeout(MIGRATION_TIMEOUT, upgrade(&mut session));
        let outcome = work.await.unwrap_or(Err(StoreErrorKind::Lost(None)));
        match outcome {
            Ok(_) => drop(session.close().await),
            // The session may be in a transaction, so it is closed without a farewell message.
            Err(_) => drop(session.close_hard().await),
        }
        outcome.map_err(|kind| StoreError::new(ACTION, kind))
    }
}

async fn upgrade(session: &mut PgConnection) -> Result<Vec<AppliedMigration>, StoreErrorKind> {
    let limit = format!("SET statement_timeout = {}", MIGRATION_TIMEOUT.as_millis());
    session.execute(sqlx::AssertSqlSafe(limit)).await?;
    sqlx::query("SELECT pg_catalog.pg_advisory_lock($1)")
        .bind(MIGRATION_LOCK_KEY)
        .execute(&mut *session)
        .await?;
    let before = installed(session).await?;
    match judge(&before) {
        Ok(()) => return Ok(Vec::new()),
        Err(StoreErrorKind::NotMigrated { .. }) => {}
        Err(kind) => return Err(kind),
    }
    let mut migrator = migrator();
    if !schema_exists(session).await? {
        migrator.create_schema("pgsluice");
    }
    let lost = || Err(sqlx::migrate::MigrateError::Execute(lost()));
    boundary::deed!("migrate::run", migrator.run_direct(None, session, false).await, lost())?;
    let is_new = |version: i64| before.iter().all(|(installed, _)| *installed != version);
    Ok(MIGRATIONS
        .into_iter()
        .filter(|(version, ..)| is_new(*version))
        .map(|(version, description, _)| AppliedMigration { version, description })
        .collect())
}

fn migrator() -> Migrator {
    let migrations = MIGRATIONS
        .into_iter()
        .map(|(version, description, sql)| {
            let description = Cow::Borrowed(description);
            Migration::new(version, description, MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.dangerous_set_table_name("pgsluice._sqlx_migrations");
    migrator.set_locking(false);
    migrator
}

/// Returns the installed versions and checksums, in order; none if the schema does not exist. It asks the
/// catalog first, so that a missing schema is no error and needs no privilege.
async fn installed(session: &mut PgConnection) -> Result<Vec<(i64, Vec<u8>)>, sqlx::Error> {
    let there: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'pgsluice' AND c.relname = '_sqlx_migrations')",
    )
    .fetch_one(&mut *session)
    .await?;
    if !there {
        return Ok(Vec::new());
    }
    sqlx::query_as("SELECT version, checksum FROM pgsluice._sqlx_migrations WHERE success ORDER BY version")
        .fetch_all(session)
        .await
}

async fn schema_exists(session: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'pgsluice')")
        .fetch_one(session)
        .await
}

/// Compares the installed migrations with those of this version. Only `NotMigrated` can be repaired by
/// migrating.
fn judge(installed: &[(i64, Vec<u8>)]) -> Result<(), StoreErrorKind> {
    let carried = migrator();
    for (version, checksum) in installed {
        match carried.iter().find(|migration| migration.version == *version) {
            Some(migration) if *migration.checksum == **checksum => {}
            None if *version > SCHEMA_VERSION => {
                let newest = installed.last().map_or(*version, |(version, _)| *version);
                return Err(StoreErrorKind::Newer { found: newest, required: SCHEMA_VERSION });
            }
            Some(_) | None => return Err(StoreErrorKind::Foreign { version: *version }),
        }
    }
    if installed.len() == MIGRATIONS.len() {
        return Ok(());
    }
    let found = installed.last().map(|(version, _)| *version);
    Err(StoreErrorKind::NotMigrated { found, required: SCHEMA_VERSION })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried() -> Vec<(i64, Vec<u8>)> {
        migrator().iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect()
    }

    #[test]
    fn versions_are_judged() {
        assert!(judge(&carried()).is_ok());
        assert!(matches!(judge(&[]), Err(StoreErrorKind::NotMigrated { found: None, .. })));
        assert!(matches!(judge(&carried()[..1]), Err(StoreErrorKind::NotMigrated { found: Some(1), .. })));

        let mut newer = carried();
        newer.extend([(SCHEMA_VERSION + 1, vec![]), (SCHEMA_VERSION + 2, vec![])]);
        let found = SCHEMA_VERSION + 2;
        assert!(matches!(judge(&newer), Err(StoreErrorKind::Newer { found: f, .. }) if f == found));

        let mut changed = carried();
        changed[0].1[0] ^= 1;
        assert!(matches!(judge(&changed), Err(StoreErrorKind::Foreign { version: 1 })));
    }

    #[test]
    fn every_table_and_column_is_explained() {
        for (version, _, sql) in MIGRATIONS {
            let mut table = "";
            for line in sql.lines() {
                if let Some(rest) = line.strip_prefix("CREATE TABLE ") {
                    table = rest.trim_end_matches(" (");
                    assert!(sql.contains(&format!("COMMENT ON TABLE {table} IS")), "{version}: {table}");
                } else if let Some(column) =
                    line.strip_prefix("    ").and_then(|line| line.split_whitespace().next())
                    && column.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                {
                    let comment = format!("COMMENT ON COLUMN {table}.{column} IS");
                    assert!(sql.contains(&comment), "{version}: {table}.{column}");
                }
            }
        }
    }
}
