//! Ownership of a subscription: taking it over, and the term that every write of the owner names.
//!
//! # Invariants
//! - A take-over increases the term, in the transaction that reads the subscription's record.
//! - A take-over holds until the server ends: a restored one may have the same term.
//! - A write of an owner checks its term in the same statement or transaction, under a lock of the row that a
//!   take-over changes. So a write of a former owner is refused, however late it comes.
//! - A transaction locks the owner's row before any other row of the subscription, so that there are no
//!   deadlocks.

use jiff::Timestamp;
use sqlx::postgres::PgPool;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::boundary;
use crate::pg::{SubscriptionName, Term, as_owner};

use super::codec::Time;
use super::columns::time;
use super::subscription::{load, unknown};
use super::{Registration, Store, StoreError, StoreErrorKind, SubscriptionRow, lost};

/// The walsender of a stream: its process on the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walsender {
    pub pid: i32,
    pub started_at: Timestamp,
}

/// What a take-over found.
#[derive(Debug)]
pub struct Claim {
    pub owner: Ownership,
    pub row: SubscriptionRow,
    /// The walsender of the former owner's last stream. It is known only if that owner took the subscription over in this
    /// database and in this run of its server: a copy knows nothing of the walsender of the one that it was made from.
    pub walsender: Option<Walsender>,
}

/// The term of an owner: its holder owns the subscription, or did when it took the subscription over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    subscription: SubscriptionName,
    term: Term,
}

impl Ownership {
    /// The ownership of an instance that has not taken the subscription over: all its writes are refused.
    #[must_use]
    pub const fn none(subscription: SubscriptionName) -> Self {
        Self { subscription, term: Term::NONE }
    }

    #[must_use]
    pub const fn subscription(&self) -> &SubscriptionName {
        &self.subscription
    }

    /// The subscription's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.subscription.as_str()
    }

    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    fn refused(&self) -> StoreErrorKind {
        StoreErrorKind::NotOwner { subscription: self.name().to_owned() }
    }
}

/// Inserts the row of a new subscription only. Other changes come after the owner's row has been locked.
const REGISTER: &str = "INSERT INTO pgsluice.subscription (name, slot, publications) VALUES ($1, $2, $3) \
    ON CONFLICT (name) DO NOTHING";

/// The clock makes terms differ that were given out before and after the target was restored from a backup,
/// in which a counter goes back: an instance that wrote before must not be taken for the owner.
const TAKE_OVER: &str = "INSERT INTO pgsluice.owner AS o (subscription, term, instance, server_started_at) \
    VALUES ($1, (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8, $2, \
        pg_catalog.pg_postmaster_start_time()) \
    ON CONFLICT (subscription) DO UPDATE SET term = greatest(o.term + 1, excluded.term), \
    instance = excluded.instance, server_started_at = excluded.server_started_at, since = now(), \
    (walsender_pid, walsender_started_at, walsender_noted_in) = (SELECT o.walsender_pid, o.walsender_started_at, d.oid \
        FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database() \
            AND d.oid = o.walsender_noted_in AND o.server_started_at = excluded.server_started_at) \
    RETURNING term, walsender_pid, walsender_started_at";

const NOTE_WALSENDER: &str = "UPDATE pgsluice.owner SET walsender_pid = $3, walsender_started_at = $4, \
    walsender_noted_in = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
    WHERE subscription = $1 AND term = $2 AND server_started_at = pg_catalog.pg_postmaster_start_time()";

const REPORT_OWNER: &str = "UPDATE pgsluice.subscription SET slot = $2, publications = $3, instance = $4, \
    reported_at = pg_catalog.clock_timestamp() WHERE name = $1";

const COMMANDS_LEFT: &str = "UPDATE pgsluice.command SET taken_at = NULL \
    WHERE subscription = $1 AND done_at IS NULL AND taken_at IS NOT NULL";

impl Store {
    /// Registers the subscription, takes it over for `instance`, which has just got the advisory lock, and
    /// reads its record. Commands that a former owner took and did not answer become pending again. From now
    /// on, all writes of former owners are refused.
    ///
    /// It uses one session, because a fail-over waits for it.
    pub async fn claim_subscription(
        &self,
        registration: Registration<'_>,
        instance: &str,
    ) -> Result<Claim, StoreError> {
        self.run("take the subscription over", async {
            let name = registration.name.as_str();
            let mut session = self.pool.acquire().await?;
            let (term, walsender) = take_over(&mut session, registration, instance).await?;
            let row = load(&mut session, Some(name)).await?.pop().ok_or_else(|| unknown(name))?;
            let owner = Ownership { subscription: registration.name.clone(), term };
            Ok(Claim { owner, row, walsender })
        })
        .await
    }

    /// Records the walsender of the owner's stream, so that the next owner can end it.
    pub async fn note_walsender(&self, owner: &Ownership, walsender: Walsender) -> Result<(), StoreError> {
        self.run("record the walsender", async {
            let done = sqlx::query(NOTE_WALSENDER)
                .bind(owner.name())
                .bind(owner.term().as_i64())
                .bind(walsender.pid)
                .bind(Time(walsender.started_at))
                .execute(&self.pool)
                .await?;
            if done.rows_affected() == 0 { Err(owner.refused()) } else { Ok(()) }
        })
        .await
    }
}

/// Increases the term, and records the new owner. Returns the former owner's walsender, too.
async fn take_over(
    session: &mut PgConnection,
    registration: Registration<'_>,
    instance: &str,
) -> Result<(Term, Option<Walsender>), StoreErrorKind> {
    let name = registration.name.as_str();
    let mut tx = session.begin().await?;
    sqlx::query(REGISTER)
        .bind(name)
        .bind(registration.slot.as_str())
        .bind(registration.publications)
        .execute(&mut *tx)
        .await?;
    let taken = sqlx::query(TAKE_OVER).bind(name).bind(instance).fetch_one(&mut *tx).await?;
    sqlx::query(REPORT_OWNER)
        .bind(name)
        .bind(registration.slot.as_str())
        .bind(registration.publications)
        .bind(instance)
        .execute(&mut *tx)
        .await?;
    sqlx::query(COMMANDS_LEFT).bind(name).execute(&mut *tx).await?;
    boundary::deed!("subscription::claim", tx.commit().await, Err(lost()))?;
    let (pid, started_at) = (taken.try_get("walsender_pid")?, time(&taken, "walsender_started_at")?);
    let walsender = Option::zip(pid, started_at).map(|(pid, started_at)| Walsender { pid, started_at });
    Ok((Term::new(taken.try_get("term")?), walsender))
}

/// Fails unless the term is the latest one, and prevents take-overs until the transaction ends. It must be the
/// transaction's first statement.
pub(super) async fn require(session: &mut PgConnection, owner: &Ownership) -> Result<(), StoreErrorKind> {
    let owned: Option<i32> = sqlx::query_scalar(as_owner!(" SELECT 1 FROM owner"))
        .bind(owner.name())
        .bind(owner.term().as_i64())
        .fetch_optional(session)
        .await?;
    owned.map(drop).ok_or_else(|| owner.refused())
}

/// Called after a statement of the owner that changed no row: fails if another instance has taken the
/// subscription over.
pub(super) async fn still(pool: &PgPool, owner: &Ownership) -> Result<(), StoreErrorKind> {
    require(&mut *pool.acquire().await?, owner).await
}

/// As [`still`], for a statement that changes the subscription's row.
pub(super) async fn met(pool: &PgPool, rows_affected: u64, owner: &Ownership) -> Result<(), StoreErrorKind> {
    if rows_affected > 0 {
        return Ok(());
    }
    still(pool, owner).await?;
    Err(unknown(owner.name()))
}
