//! Ends a table's copy: writes its `ready` mark, commits, and finds out whether a COMMIT without an answer
//! succeeded.
//!
//! # Why the table's record is read
//! If the connection is lost during COMMIT, the copy may be committed or not, and a committed copy must not
//! be made again. The table's record says which, because its mark is part of the transaction. A query that
//! locks the row waits for a COMMIT that the server is still executing, and then sees its result.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use tracing::{debug, info};

use super::initial::CopyJob;
use super::{CopyError, Side};
use crate::boundary;
use crate::net::places;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, as_owner};
use crate::store::Ownership;
use crate::target::{OpenError, TargetSession};

/// Marks a table as synchronised, if no later attempt has begun and no other instance owns the subscription.
/// The table's open gaps are settled with it.
const MARK_READY: &str = as_owner!(
    ", marked AS (\
        UPDATE pgsluice.table_sync t SET state = 'ready', synced_lsn = $5, copied_lsn = $8, rows_copied = $6, \
            error = NULL, resync = NULL, updated_at = pg_catalog.clock_timestamp() FROM owner \
        WHERE t.subscription = owner.name AND t.source_schema = $3 AND t.source_table = $4 AND t.attempt = $7 \
        AND t.state IN ('copying', 'catching_up') \
        RETURNING t.subscription, t.source_schema, t.source_table, t.resync_by\
    ), settled AS (\
        UPDATE pgsluice.gap g SET settled_at = pg_catalog.clock_timestamp(), \
            settled_by = coalesce(m.resync_by, 'pgsluice'), settlement = 'resynced', resumed_lsn = $5 FROM marked m \
        WHERE g.subscription = m.subscription AND g.source_schema = m.source_schema \
            AND g.source_table = m.source_table AND g.settled_at IS NULL \
        RETURNING g.id, g.subscription, g.kind\
    ), logged AS (\
        INSERT INTO pgsluice.event (subscription, kind, message, detail) \
        SELECT s.subscription, 'gap', 'gap ' || s.id || ' was settled: the table was synchronised again', \
            pg_catalog.jsonb_build_object('gap_id', s.id, 'kind', s.kind) FROM settled s\
    ) SELECT 1 FROM marked"
);

/// The mark holds locks that a take-over waits for. If COMMIT does not come, because the process is stopped or
/// disconnected, the server ends the session.
const COMMIT_SOON: &str = "SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// Returns one row if the attempt has made the table `ready` at this position. Waits for a COMMIT that the
/// server is executing.
const IS_READY: &str = "SELECT 1 FROM (SELECT t.state, t.attempt, t.synced_lsn FROM pgsluice.table_sync t \
    WHERE t.subscription = $1 AND t.source_schema = $2 AND t.source_table = $3 FOR UPDATE) AS t \
    WHERE t.state = 'ready' AND t.attempt = $4 AND t.synced_lsn = $5";

/// Maximum time for reading the record, which includes a restart of the target.
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
const ASK_POLL: Duration = Duration::from_millis(500);

/// Marks the table `ready` from `position` on, within the open target transaction. `snapshot` is the position of its
/// copy's snapshot.
pub async fn finish_table(
    target: &Client,
    owner: &Ownership,
    job: &CopyJob,
    snapshot: Lsn,
    position: Lsn,
    rows: u64,
) -> Result<(), CopyError> {
    let (source, rows) = (&job.source, i64::try_from(rows).unwrap_or(i64::MAX));
    let on_target = CopyError::on(Side::Target);
    target.batch_execute(COMMIT_SOON).await.map_err(&on_target)?;
    let [snapshot, position] = [snapshot, position].map(|lsn| PgLsn::from(lsn.as_u64()));
    let (name, term) = (owner.name(), owner.term().as_i64());
    let marked = target
        .execute(
            MARK_READY,
            &[&name, &term, &source.schema, &source.name, &position, &rows, &job.attempt, &snapshot],
        )
        .await
        .map_err(&on_target)?;
    if marked == 1 { Ok(()) } else { Err(CopyError::Superseded(source.clone())) }
}

/// Commits a copy that [`finish_table`] has marked. If the answer is lost, a new session to `target` reads
/// the record.
///
/// # Errors
/// The copy was rolled back; or, with [`CopyError::Unsettled`], the record could not be read.
pub async fn commit(
    of: CommitOf,
    session: &TargetSession,
    target: &ConnInfo,
    owner: &Ownership,
    job: &CopyJob,
    position: Lsn,
) -> Result<(), CopyError> {
    let client = session.client();
    let answer = match of {
        CommitOf::InitialCopy => {
            boundary::deed!("copy::commit", client.batch_execute("COMMIT").await, Err(client.lose().await))
        }
        CommitOf::TableSync => {
            boundary::deed!(
                "table_sync::commit",
                client.batch_execute("COMMIT").await,
                Err(client.lose().await)
            )
        }
    };
    let Err(error) = answer else { return Ok(()) };
    let error = CopyError::target(error);
    debug!(relation = %job.source, %error, "the answer to a copy's COMMIT is no success, asking the record");
    let deadline = Instant::now() + ASK_TIMEOUT;
    loop {
        match tokio::time::timeout_at(deadline, is_ready(target, owner, job, position)).await {
            Ok(Ok(Landed::Yes)) => {
                info!(relation = %job.source, "the copy's COMMIT has landed, although its answer was lost");
                return Ok(());
            }
            Ok(Ok(Landed::No)) => return Err(error),
            Ok(Err(unasked)) if Instant::now() + ASK_POLL < deadline => {
                debug!(relation = %job.source, error = %unasked, "the record could not be asked");
                tokio::time::sleep(ASK_POLL).await;
            }
            Ok(Err(_)) | Err(_) => return Err(CopyError::Unsettled(job.source.clone())),
        }
    }
}

/// The kind of copy that a COMMIT ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOf {
    InitialCopy,
    /// The copy of a table that joins a running stream.
    TableSync,
}

/// The result of a COMMIT whose answer was lost.
enum Landed {
    Yes,
    No,
}

async fn is_ready(
    target: &ConnInfo,
    owner: &Ownership,
    job: &CopyJob,
    position: Lsn,
) -> Result<Landed, CopyError> {
    let name = format!("{} copy's record", owner.name());
    let _place = places::moment().await;
    let session = TargetSession::open(target, &name).await.map_err(CopyError::OpenTarget)?;
    // A transaction with a row lock counts as a change, so its COMMIT would wait for synchronous standbys.
    session
        .set_synchronous_commit("off")
        .await
        .map_err(|error| CopyError::OpenTarget(OpenError::Prepare(error)))?;
    let position = PgLsn::from(position.as_u64());
    let (schema, table) = (&job.source.schema, &job.source.name);
    let row = session
        .client()
        .query_opt(IS_READY, &[&owner.name(), schema, table, &job.attempt, &position])
        .await
        .map_err(CopyError::target)?;
    Ok(if row.is_some() { Landed::Yes } else { Landed::No })
}
