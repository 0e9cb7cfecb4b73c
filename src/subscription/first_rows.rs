//! The initial copy of an attempt: decides which tables are copied, and records each copy.
//!
//! `copy` copies the rows. If a table's copy fails, the others go on: the failure is recorded, and the table is
//! synchronised while the stream runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::copy::{self, CopyCommands, CopyJob, CopyPlan, Existing, SeenSource};
use crate::error::Diagnosis;
use crate::net::places::{self, Place};
use crate::pg::{Lsn, QualifiedName};
use crate::replication::CreatedSlot;
use crate::store::{TableRow, TableState, TableStep};

use super::context::{Context, Phase};
use super::failure::{Cause, Failure};
use super::findings;
use super::publisher::{Publisher, copy_options};
use super::take_up::{PendingTable, PreparedTable};

/// How often the rows of a running copy are reported.
const COPY_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Copies the tables before the stream begins. Returns the synchronised tables with their positions.
pub(super) async fn first_rows(
    context: &Context,
    publisher: &Publisher,
    slot: &CreatedSlot,
    tables: &[PreparedTable],
    pending: &mut [PendingTable],
    place: Option<Place>,
) -> Result<Vec<(QualifiedName, Lsn)>, Failure> {
    if !context.subscription.copy_data {
        let rows = tables.iter().map(|table| &table.row).filter(|row| row.state != TableState::Ready);
        mark_all_ready(context, &rows.collect::<Vec<_>>(), slot.consistent_point).await?;
        return Ok(tables.iter().map(|table| (table.row.source.clone(), slot.consistent_point)).collect());
    }
    let Some(snapshot) = slot.snapshot.clone() else { return Ok(Vec::new()) };
    if pending.is_empty() {
        return Ok(Vec::new());
    }
    context.tell(Phase::Copying).await;
    let (mut jobs, mut ready) = (Vec::with_capacity(pending.len()), Vec::new());
    for table in pending {
        match copy_job(context, table).await? {
            CopyStart::Job(job) => jobs.push(*job),
            CopyStart::Ready(position) => ready.push((table.published.relation.name.clone(), position)),
        }
    }
    let plan = CopyPlan {
        owner: context.owner.clone(),
        publisher: context.subscription.publisher.clone(),
        publisher_options: copy_options(&context.subscription, publisher.encoding),
        target: context.target.clone(),
        snapshot,
        position: slot.consistent_point,
    };
    ready.extend(copy_all(context, plan, jobs, place).await?);
    Ok(ready)
}

/// Waits for a place for a copy's session on the target, where they are bounded. It is waited for before the slot is created,
/// so that the publisher retains nothing meanwhile.
pub(super) async fn place(context: &Context, pending: &[PendingTable]) -> Option<Place> {
    if !context.subscription.copy_data || pending.is_empty() {
        return None;
    }
    if let Some(place) = places::try_copy() {
        return Some(place);
    }
    let waits = findings::no_session_for_a_copy();
    context.attention(None, &waits);
    context.tell(Phase::SessionWaits(waits)).await;
    places::copy().await
}

/// Marks tables `ready` without a copy, with one statement if their records are as expected: changes that
/// commit from `position` on apply.
pub(super) async fn mark_all_ready(
    context: &Context,
    rows: &[&TableRow],
    position: Lsn,
) -> Result<(), Failure> {
    let tables: Vec<(&QualifiedName, i32)> = rows.iter().map(|row| (&row.source, row.attempt)).collect();
    if context.store.set_tables_ready(&context.owner, &tables, position).await? < rows.len() {
        for row in rows {
            // A table that is `ready` keeps its position.
            context.store.set_table_ready(&context.owner, &row.source, row.attempt, position).await?;
        }
    }
    Ok(())
}

/// How a table's copy begins.
pub(super) enum CopyStart {
    Job(Box<CopyJob>),
    /// There is none, because the table is synchronised from this position on.
    Ready(Lsn),
}

/// Begins a copy with the next number, and builds both COPY commands.
pub(super) async fn copy_job(context: &Context, table: &mut PendingTable) -> Result<CopyStart, Failure> {
    let source = &table.published.relation.name;
    let attempt = match context.store.begin_copy(&context.owner, source, table.attempt).await? {
        TableStep::Taken { attempt } => attempt,
        TableStep::Ready { synced_lsn } => return Ok(CopyStart::Ready(synced_lsn)),
    };
    table.attempt = attempt;
    let binary = context.subscription.binary;
    let existing = Existing::new(table.resync, &table.plan);
    Ok(CopyStart::Job(Box::new(CopyJob {
        source: source.clone(),
        seen: SeenSource { oid: table.published.oid, columns: table.published.all_columns.clone() },
        commands: CopyCommands::new(&table.published, &existing.destination(&table.plan), binary),
        existing,
        attempt,
        estimated: table.published.rows_estimated,
        copied: Arc::new(AtomicU64::new(0)),
    })))
}

/// Copies all tables, reports their rows meanwhile, and returns those that succeeded. A failure is recorded
/// with its table, which is synchronised while the stream runs.
async fn copy_all(
    context: &Context,
    plan: CopyPlan,
    jobs: Vec<CopyJob>,
    place: Option<Place>,
) -> Result<Vec<(QualifiedName, Lsn)>, Failure> {
    let position = plan.position;
    let watched = jobs.clone();
    context.snapshot.send_modify(|snapshot| snapshot.copies_begin(&watched));
    let (mut results, mut tasks) = copy::run(plan, jobs, place);
    let mut ticks = interval(COPY_REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut copied = Vec::new();
    loop {
        let finished = tokio::select! {
            result = results.recv() => match result {
                Some(result) => Some(result),
                None => break,
            },
            _ = ticks.tick() => None,
        };
        match finished {
            None => report_copies(context, &watched).await?,
            Some(result) => {
                context.snapshot.send_modify(|snapshot| snapshot.copy_ends(&result.source));
                let role = &context.subscription.publisher.user;
                match result.outcome {
                    Ok(_) => copied.push((result.source, position)),
                    Err(error) => {
                        let failure = Failure::of_copy(&error, &result.source, role);
                        if failure.ends_attempt() {
                            return Err(failure);
                        }
                        hold_back(context, &result.source, result.attempt, failure.diagnosis).await?;
                    }
                }
            }
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(copied)
}

/// Records that a table's copy has failed. The others go on, and the table is synchronised while the stream
/// runs.
async fn hold_back(
    context: &Context,
    source: &QualifiedName,
    attempt: i32,
    diagnosis: Diagnosis,
) -> Result<(), Failure> {
    context.attention(Some(source), &diagnosis);
    let (store, state) = (&context.store, TableState::Pending);
    match store.set_table_state(&context.owner, source, attempt, state, Some(&diagnosis)).await? {
        TableStep::Taken { .. } => {}
        TableStep::Ready { .. } => return Err(Failure::retry(diagnosis).because_of(Cause::Record)),
    }
    context.tell(Phase::TableHeldBack(Some(diagnosis))).await;
    Ok(())
}

async fn report_copies(context: &Context, jobs: &[CopyJob]) -> Result<(), Failure> {
    for job in jobs {
        let rows = job.copied.load(Ordering::Relaxed);
        if rows > 0 {
            let (store, owner) = (&context.store, &context.owner);
            store.report_copy(owner, &job.source, job.attempt, rows, job.estimated).await?;
        }
    }
    Ok(())
}
