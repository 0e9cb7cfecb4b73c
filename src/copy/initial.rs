//! Copies many tables under one snapshot, a few at a time.
//!
//! If a table fails, the others are still copied. Its failure is reported, and the caller copies it again by
//! itself.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::Mutex;
use tokio::sync::mpsc;
use tracing::{debug, info};

use super::commit::{CommitOf, commit, finish_table};
use super::transfer::{copy_rows, settle_rows};
use super::{CopyCommands, CopyError, Existing, Side};
use crate::net::places::{self, Place};
use crate::net::{self, ClientOptions, PgClient};
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, QualifiedName, quote_literal};
use crate::store::Ownership;
use crate::target::{COPY_ORIGINS_MAX, OpenError, OriginUse, TargetError, TargetSession};

/// Number of tables that are copied at a time. One copy keeps a core of each server busy. Each has its own
/// origin.
const COPY_WORKERS: usize = COPY_ORIGINS_MAX;

/// Maximum number of results in the channel.
const RESULTS_MAX: usize = 16;

/// A table of the publisher as it was when its copy was planned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenSource {
    pub oid: u32,
    /// The numbers and names of all columns, also those that are not published, in the order of the numbers.
    pub columns: Vec<(i16, String)>,
}

/// One table to copy.
#[derive(Debug, Clone)]
pub struct CopyJob {
    pub source: QualifiedName,
    /// What the publisher's table has to be in the snapshot.
    pub seen: SeenSource,
    pub commands: CopyCommands,
    /// What happens with the rows that the target table has.
    pub existing: Existing,
    /// The number of this attempt; a later one supersedes it.
    pub attempt: i32,
    /// The planner's estimate of the table's rows.
    pub estimated: Option<u64>,
    /// Number of rows copied so far; status and metrics read it.
    pub copied: Arc<AtomicU64>,
}

/// The settings that all copies under one snapshot share.
#[derive(Debug, Clone)]
pub struct CopyPlan {
    pub owner: Ownership,
    pub publisher: ConnInfo,
    /// Settings for sessions on the publisher, which give values the same text form as in the stream.
    pub publisher_options: ClientOptions,
    pub target: ConnInfo,
    /// The exported snapshot; `position` is its position in the WAL.
    pub snapshot: String,
    pub position: Lsn,
}

/// How one table's copy ended.
#[derive(Debug)]
pub struct CopyResult {
    pub source: QualifiedName,
    /// The number of the attempt.
    pub attempt: i32,
    /// Rows copied.
    pub outcome: Result<u64, CopyError>,
}

/// Copies all jobs under the plan's snapshot and reports each as it ends. The snapshot must stay
/// exported (its replication connection idle) until this returns.
///
/// `place` is for the first session on the target; more are used if there are places at once.
pub(crate) fn run(
    plan: CopyPlan,
    mut jobs: Vec<CopyJob>,
    place: Option<Place>,
) -> (mpsc::Receiver<CopyResult>, tokio::task::JoinSet<()>) {
    largest_first(&mut jobs);
    let (results, receiver) = mpsc::channel(RESULTS_MAX);
    let more = std::iter::from_fn(places::try_copy).map(Some);
    let held: Vec<_> = std::iter::once(place).chain(more).take(COPY_WORKERS.min(jobs.len())).collect();
    let queue = Arc::new(Mutex::new(VecDeque::from(jobs)));
    let plan = Arc::new(plan);
    let mut tasks = tokio::task::JoinSet::new();
    for (worker, place) in held.into_iter().enumerate() {
        let (queue, plan, results) = (Arc::clone(&queue), Arc::clone(&plan), results.clone());
        tasks.spawn(async move {
            // It is left after the sessions have ended.
            let _place = place;
            let mut sessions = None;
            loop {
                let Some(job) = queue.lock().await.pop_front() else {
                    return end(sessions).await;
                };
                let outcome = copy_one(&plan, &job, worker, &mut sessions).await;
                let failed = outcome.is_err();
                let result = CopyResult { source: job.source, attempt: job.attempt, outcome };
                if results.send(result).await.is_err() {
                    return;
                }
                if failed {
                    // The sessions may still be in a transaction, so the next table gets new ones.
                    sessions = None;
                }
            }
        });
    }
    (receiver, tasks)
}

/// Sorts jobs by size, so that no large table is copied last and alone. A table of unknown size counts as
/// large.
fn largest_first(jobs: &mut [CopyJob]) {
    jobs.sort_by_key(|job| Reverse(job.estimated.unwrap_or(u64::MAX)));
}

/// A worker's two connections, which are used for one table after the other.
struct Sessions {
    source: PgClient,
    target: TargetSession,
}

async fn copy_one(
    plan: &CopyPlan,
    job: &CopyJob,
    worker: usize,
    sessions: &mut Option<Sessions>,
) -> Result<u64, CopyError> {
    if sessions.is_none() {
        *sessions = Some(open(plan, worker).await?);
    }
    let Some(Sessions { source, target }) = sessions else {
        return Err(CopyError::Superseded(job.source.clone()));
    };
    let subscription = plan.owner.subscription();
    info!(%subscription, relation = %job.source, "copying table");
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(&plan.snapshot)
    );
    source.batch_execute(&begin).await.map_err(CopyError::on(Side::Publisher))?;
    let on_target = CopyError::on(Side::Target);
    target.client().batch_execute("BEGIN").await.map_err(&on_target)?;
    let rows = copy_rows(source, target, job).await?;
    settle_rows(target, job).await?;
    finish_table(target.client(), &plan.owner, job, plan.position, plan.position, rows).await?;
    let of = CommitOf::InitialCopy;
    commit(of, target, &plan.target, &plan.owner, job, plan.position).await?;
    info!(%subscription, relation = %job.source, rows, "table copied");
    // The rows are committed on the target, so a failure of the publisher's session does not matter.
    let ended = source.batch_execute("COMMIT").await;
    if ended.is_err() || target.client().is_closed() {
        debug!(%subscription, relation = %job.source, ?ended, "a copy's sessions ended early");
        end(sessions.take()).await;
    }
    Ok(rows)
}

async fn end(sessions: Option<Sessions>) {
    let Some(Sessions { mut target, .. }) = sessions else { return };
    if let Err(error) = target.release_origin().await {
        debug!(%error, "a copy's session ended early");
    }
}

async fn open(plan: &CopyPlan, worker: usize) -> Result<Sessions, CopyError> {
    let source =
        net::client(&plan.publisher, &plan.publisher_options).await.map_err(CopyError::ConnectPublisher)?;
    let subscription = plan.owner.subscription();
    let application_name = format!("{subscription} copy");
    let mut target =
        TargetSession::open(&plan.target, &application_name).await.map_err(CopyError::OpenTarget)?;
    target
        .set_origin(subscription, OriginUse::Copy(worker))
        .await
        .map_err(|error: TargetError| CopyError::OpenTarget(OpenError::Prepare(error)))?;
    Ok(Sessions { source, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_unknown_tables_go_first() {
        let job = |(name, estimated)| CopyJob {
            source: QualifiedName::new("public", name),
            seen: SeenSource::default(),
            commands: CopyCommands::default(),
            existing: Existing::Keep,
            attempt: 1,
            estimated,
            copied: Arc::default(),
        };
        let mut jobs: Vec<_> =
            [("none", Some(0)), ("few", Some(10)), ("many", Some(9000)), ("unknown", None)].map(job).into();
        largest_first(&mut jobs);
        let names: Vec<_> = jobs.iter().map(|job| job.source.name.as_str()).collect();
        assert_eq!(names, ["unknown", "many", "few", "none"]);
    }
}
