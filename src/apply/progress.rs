//! The progress row: how far a subscription has been applied.
//!
//! # Why it commits with the rows
//! If the row were committed separately, a crash between the two commits would make the next start apply
//! changes again that had been applied, or leave out changes that had not been.
//!
//! # Invariants
//! - It is written here only, within the target transaction that applies the changes up to its position.
//! - It moves by compare-and-set on the previous position and on the owner's term: of two writers, one fails.
//! - A new owner writes its term into the row before it reads the position ([`take_over`]), and so waits for
//!   open transactions of former owners. A position that is found here later is only compared, never taken
//!   over.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::apply::core::Advance;
use crate::apply::{ApplyError, stamp};
use crate::boundary;
use crate::net::PgClient;
use crate::pg::{Lsn, SubscriptionName, Term, as_owner, quote_literal};

/// Moves the position; no row means that another writer has moved it. Parameters, from `first` on: name,
/// previous, next, commit time (µs since the Unix epoch), transactions, the owner's term.
fn advance_sql(first: usize) -> String {
    let [name, from, to, time, transactions, term] = [0, 1, 2, 3, 4, 5].map(|n| first + n);
    format!(
        "UPDATE pgsluice.progress \
         SET applied_lsn = ${to}, commit_time = coalesce(pg_catalog.to_timestamp(${time}::pg_catalog.int8 / 1000000.0), \
             commit_time), \
             transactions = transactions + ${transactions}, updated_at = pg_catalog.clock_timestamp() \
         WHERE subscription = ${name} AND applied_lsn = ${from} AND term = ${term}"
    )
}

/// Moves the position, and fails by itself (a division by zero) if another writer has moved it or a table has
/// changed since it was planned. So COMMIT can be sent before its answer. It is one statement, because a
/// second one would cost a small transaction more than its rows. Parameters: as of [`advance_sql`], then the
/// tables' OIDs and stamps.
pub(crate) fn advance_guarded_sql() -> String {
    let (moved, counted, next) = advance_counted(1);
    format!("WITH {moved} SELECT {counted}, {} FROM moved", stamp::guard(next))
}

/// Returns parts of a larger statement: the WITH query `moved`; the expression that, selected from it, fails
/// if another writer has moved the position; and the number of the next parameter.
pub(crate) fn advance_counted(first: usize) -> (String, &'static str, usize) {
    (
        format!("moved AS ({} RETURNING 1)", advance_sql(first)),
        "1 / pg_catalog.count(*)::pg_catalog.int4",
        first + 6,
    )
}

const CREATE: &str = as_owner!(
    " INSERT INTO pgsluice.progress (subscription, applied_lsn, term, transactions, updated_at) \
     SELECT owner.name, $3, $2, 0, pg_catalog.clock_timestamp() FROM owner ON CONFLICT (subscription) DO NOTHING"
);

const TAKE_OVER: &str = as_owner!(
    " UPDATE pgsluice.progress p SET term = $2 FROM owner \
     WHERE p.subscription = owner.name AND p.term <= $2 RETURNING p.applied_lsn"
);

const IDLE: &str = "UPDATE pgsluice.progress SET applied_lsn = $4, updated_at = pg_catalog.clock_timestamp() \
    WHERE subscription = $1 AND term = $2 AND applied_lsn = $3";

/// Moves the position behind a gap of the slot, and settles the gap as accepted. What lies behind the position up to
/// which it was accepted is another gap.
const PASS: &str = "WITH moved AS (\
        UPDATE pgsluice.progress SET applied_lsn = $4, updated_at = pg_catalog.clock_timestamp() \
        WHERE subscription = $1 AND term = $2 AND applied_lsn = $3 RETURNING subscription\
    ), settled AS (\
        UPDATE pgsluice.gap g SET settled_at = pg_catalog.clock_timestamp(), settled_by = coalesce(g.accepted_by, $5), \
            settlement = 'accepted', resumed_lsn = $4, \
            to_lsn = coalesce(g.accepted_lsn, greatest(g.to_lsn, $4)) FROM moved m \
        WHERE g.subscription = m.subscription AND g.source_table IS NULL AND g.settled_at IS NULL \
            AND g.kind IN ('slot_gone', 'slot_lost', 'slot_ahead') \
        RETURNING g.id, g.subscription, g.kind, g.accepted_lsn\
    ), accepted AS (\
        SELECT s.subscription, s.accepted_lsn AS from_lsn FROM settled s \
        WHERE s.accepted_lsn IS NOT NULL ORDER BY 2 DESC LIMIT 1\
    ), late AS (\
        INSERT INTO pgsluice.gap AS g (subscription, kind, holds, from_lsn, to_lsn, detail) \
        SELECT a.subscription, 'passed_over', false, a.from_lsn, $4, 'the gap had been shown up to ' || a.from_lsn \
        FROM accepted a WHERE a.from_lsn < $4 \
        ON CONFLICT (subscription, coalesce(source_schema, ''), coalesce(source_table, ''), kind) \
            WHERE settled_at IS NULL DO UPDATE \
        SET from_lsn = least(g.from_lsn, excluded.from_lsn), to_lsn = greatest(g.to_lsn, excluded.to_lsn)\
    ), logged AS (\
        INSERT INTO pgsluice.event (subscription, kind, message, detail) \
        SELECT s.subscription, 'gap', 'gap ' || s.id || ' was passed: the stream goes on from ' || $4::pg_catalog.text, \
            pg_catalog.jsonb_build_object('gap_id', s.id, 'kind', s.kind, 'from_lsn', $3::pg_catalog.text, \
                'to_lsn', $4::pg_catalog.text) FROM settled s\
    ) SELECT 1 FROM moved";

const LOAD: &str = "SELECT applied_lsn, term FROM pgsluice.progress WHERE subscription = $1";

/// Writes the owner's term into the row, and returns the position up to which everything has been applied;
/// none before the first start. It waits for open transactions of former owners, none of which can move the
/// position afterwards.
///
/// # Errors
/// Also if a later owner has written its term.
pub async fn take_over(
    client: &Client,
    subscription: &SubscriptionName,
    term: Term,
) -> Result<Option<Lsn>, ApplyError> {
    let row = client.query_opt(TAKE_OVER, &[&subscription.as_str(), &term.as_i64()]).await?;
    if let Some(row) = row {
        return Ok(Some(Lsn::new(row.try_get::<_, PgLsn>(0)?.into())));
    }
    match found(client, subscription).await? {
        Some(_) => Err(ApplyError::TakenOver),
        None => Ok(None),
    }
}

/// Returns the row's position and term; none if there is no row.
async fn found(client: &Client, subscription: &SubscriptionName) -> Result<Option<(Lsn, Term)>, ApplyError> {
    let Some(row) = client.query_opt(LOAD, &[&subscription.as_str()]).await? else { return Ok(None) };
    Ok(Some((Lsn::new(row.try_get::<_, PgLsn>(0)?.into()), Term::new(row.try_get(1)?))))
}

/// Fails unless the row has this position and term. Otherwise another writer has changed it.
pub(crate) async fn expect(
    client: &Client,
    subscription: &SubscriptionName,
    term: Term,
    position: Lsn,
) -> Result<(), ApplyError> {
    match found(client, subscription).await? {
        Some(row) if row == (position, term) => Ok(()),
        _ => Err(ApplyError::ProgressMoved { expected: position }),
    }
}

/// Records where a new subscription begins: its slot's consistent point.
///
/// # Errors
/// Also if another instance has taken the subscription over, or another writer has made the row.
pub async fn create(
    client: &PgClient,
    subscription: &SubscriptionName,
    term: Term,
    at: Lsn,
) -> Result<(), ApplyError> {
    let (name, position) = (subscription.as_str(), PgLsn::from(at.as_u64()));
    let created = boundary::deed!(
        "progress::create",
        client.execute(CREATE, &[&name, &term.as_i64(), &position]).await,
        Err(client.lose().await)
    )?;
    if created == 1 { Ok(()) } else { Err(ApplyError::TakenOver) }
}

/// Makes everything that was committed before durable, the position included. It is for sessions with
/// `synchronous_commit = off`.
pub async fn flush(client: &Client, subscription: &SubscriptionName, term: Term) -> Result<(), ApplyError> {
    // A synchronous commit waits until all earlier ones are durable. It needs a change: a transaction without
    // one does not wait.
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = 'on'; \
         UPDATE pgsluice.progress SET updated_at = updated_at WHERE subscription = {} AND term = {term}; COMMIT",
        quote_literal(subscription.as_str())
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Records, without a stream, that there is nothing to apply up to `to`; fails if another writer has moved the
/// position.
pub async fn record_idle(
    client: &Client,
    subscription: &SubscriptionName,
    term: Term,
    from: Lsn,
    to: Lsn,
) -> Result<(), ApplyError> {
    let (was, to) = (PgLsn::from(from.as_u64()), PgLsn::from(to.as_u64()));
    let moved = client.execute(IDLE, &[&subscription.as_str(), &term.as_i64(), &was, &to]).await?;
    if moved == 1 { Ok(()) } else { Err(ApplyError::ProgressMoved { expected: from }) }
}

/// Moves the position behind what the slot no longer sends, because a person, `by`, has accepted the gap; fails if
/// another writer has moved it.
pub async fn pass_gap(
    client: &PgClient,
    subscription: &SubscriptionName,
    term: Term,
    (from, to): (Lsn, Lsn),
    by: &str,
) -> Result<(), ApplyError> {
    let (was, next) = (PgLsn::from(from.as_u64()), PgLsn::from(to.as_u64()));
    let moved = boundary::deed!(
        "progress::pass_gap",
        client.execute(PASS, &[&subscription.as_str(), &term.as_i64(), &was, &next, &by]).await,
        Err(client.lose().await)
    )?;
    if moved == 1 { Ok(()) } else { Err(ApplyError::ProgressMoved { expected: from }) }
}

/// Moves the position; fails if another writer has moved it.
pub(crate) async fn advance(
    client: &Client,
    subscription: &SubscriptionName,
    term: Term,
    advance: Advance,
) -> Result<(), ApplyError> {
    let (from, to) = (PgLsn::from(advance.from.as_u64()), PgLsn::from(advance.to.as_u64()));
    let transactions = i64::try_from(advance.transactions).unwrap_or(i64::MAX);
    let moved = client
        .execute(
            &advance_sql(1),
            &[&subscription.as_str(), &from, &to, &advance.commit_time_us, &transactions, &term.as_i64()],
        )
        .await?;
    if moved == 1 { Ok(()) } else { Err(ApplyError::ProgressMoved { expected: advance.from }) }
}
