//! The progress row: how far a subscription has been applied.
//!
//! # Why it rides along
//! Committed separately from the rows, a crash between the two commits would either replay changes
//! that already landed or skip changes that never did. Together, a restart needs no guessing.
//!
//! # Invariants
//! - It is written here only, inside the transaction of the rows that it vouches for.
//! - It moves by compare-and-set on the previous position: of two writers, one fails.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::apply::{ApplyError, stamp};
use crate::pg::{Lsn, SubscriptionName, quote_literal};

/// Moves the position; no row means that another writer has moved it. Parameters, from `first` on: name,
/// previous, next, commit time (µs since the Unix epoch), transactions.
fn advance_sql(first: usize) -> String {
    let [name, from, to, time, transactions] = [0, 1, 2, 3, 4].map(|n| first + n);
    format!(
        "UPDATE pgsluice.progress \
         SET applied_lsn = ${to}, commit_time = pg_catalog.to_timestamp(${time}::pg_catalog.int8 / 1000000.0), \
             transactions = transactions + ${transactions}, updated_at = pg_catalog.clock_timestamp() \
         WHERE subscription = ${name} AND applied_lsn = ${from}"
    )
}

/// The same, failing by itself (a division by zero) if another writer has moved the position or a table
/// has changed since it was planned, so that COMMIT can be sent behind it unseen. One statement for both:
/// each costs a small transaction more than its rows. Two more parameters: the tables' OIDs and stamps.
pub(crate) fn advance_guarded_sql() -> String {
    let (moved, counted, next) = advance_counted(1);
    format!("WITH {moved} SELECT {counted}, {} FROM moved", stamp::guard(next))
}

/// For a larger statement: what goes into WITH, as `moved`; what, selected from it, fails by itself if another
/// writer has moved the position; and the number of the next parameter.
pub(crate) fn advance_counted(first: usize) -> (String, &'static str, usize) {
    (
        format!("moved AS ({} RETURNING 1)", advance_sql(first)),
        "1 / pg_catalog.count(*)::pg_catalog.int4",
        first + 5,
    )
}

const CREATE: &str = "INSERT INTO pgsluice.progress (subscription, applied_lsn, transactions, updated_at) \
    VALUES ($1, $2, 0, pg_catalog.clock_timestamp()) ON CONFLICT (subscription) DO NOTHING";

const IDLE: &str = "UPDATE pgsluice.progress SET applied_lsn = $3, updated_at = pg_catalog.clock_timestamp() \
    WHERE subscription = $1 AND applied_lsn = $2";

const LOAD: &str = "SELECT applied_lsn FROM pgsluice.progress WHERE subscription = $1";

/// A step of the progress row, taken within the open transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Advance {
    pub from: Lsn,
    pub to: Lsn,
    /// Commit time of the last transaction, µs since the Unix epoch.
    pub commit_time_us: i64,
    pub transactions: u64,
}

/// The position up to which everything has been applied; none before the first start.
pub async fn load(client: &Client, subscription: &SubscriptionName) -> Result<Option<Lsn>, ApplyError> {
    let row = client.query_opt(LOAD, &[&subscription.as_str()]).await.map_err(ApplyError::from)?;
    row.map(|row| row.try_get::<_, PgLsn>(0).map(|lsn| Lsn::new(lsn.into())))
        .transpose()
        .map_err(ApplyError::from)
}

/// Records where a new subscription begins: its slot's consistent point. Leaves an existing
/// position alone.
pub async fn create(client: &Client, subscription: &SubscriptionName, at: Lsn) -> Result<(), ApplyError> {
    client.execute(CREATE, &[&subscription.as_str(), &PgLsn::from(at.as_u64())]).await?;
    Ok(())
}

/// Makes everything that was committed before durable, the position included: for a session whose
/// commits don't wait for that.
pub async fn flush(client: &Client, subscription: &SubscriptionName) -> Result<(), ApplyError> {
    // A commit that waits waits for everything before it, and one without a change does not wait.
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = 'on'; \
         UPDATE pgsluice.progress SET updated_at = updated_at WHERE subscription = {}; COMMIT",
        quote_literal(subscription.as_str())
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Records that there is nothing to apply up to `to`, so that it may be reported as flushed; fails if
/// another writer got there first.
pub async fn record_idle(
    client: &Client,
    subscription: &SubscriptionName,
    from: Lsn,
    to: Lsn,
) -> Result<(), ApplyError> {
    let (was, to) = (PgLsn::from(from.as_u64()), PgLsn::from(to.as_u64()));
    let moved = client.execute(IDLE, &[&subscription.as_str(), &was, &to]).await?;
    if moved == 1 { Ok(()) } else { Err(ApplyError::ProgressMoved { expected: from }) }
}

/// Takes the step; fails if another writer got there first.
pub(crate) async fn advance(
    client: &Client,
    subscription: &SubscriptionName,
    step: Advance,
) -> Result<(), ApplyError> {
    let (from, to) = (PgLsn::from(step.from.as_u64()), PgLsn::from(step.to.as_u64()));
    let transactions = i64::try_from(step.transactions).unwrap_or(i64::MAX);
    let moved = client
        .execute(&advance_sql(1), &[&subscription.as_str(), &from, &to, &step.commit_time_us, &transactions])
        .await?;
    if moved == 1 { Ok(()) } else { Err(ApplyError::ProgressMoved { expected: step.from }) }
}
