//! An instance: takes the lock, claims the subscription, and makes attempts, as `subscription::worker` and
//! `subscription::attempt` do. The stream itself is in [`crate::stream`].

use pgsluice::pg::Lsn;

use crate::link::{Connection, Link, Look, Lost, PublisherOp, PublisherReply};
use crate::mutants::{Fault, has};
use crate::ops::{CopyStep, Op, Reply};
use crate::stream::{self, Streamed};
use crate::tables::{Row, TABLES};
use crate::target::{Meta, TableState, Witness};
use crate::world::{MS, Reason, SECOND, Shown, Time};

/// What a worker remembers between attempts.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) exact_until: Option<Lsn>,
    /// Transactions are sent whole until then.
    pub(crate) whole_until: Time,
    /// The last backing off, in milliseconds.
    backed_off: Time,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The session that holds the lock is gone, or the subscription is another's.
    TargetLost(&'static str),
    Retry(&'static str),
    Restart,
    Pause(Reason),
}

impl From<Lost> for Ended {
    fn from(_: Lost) -> Self {
        Self::TargetLost("connection")
    }
}

/// Runs until its future is dropped.
pub(crate) async fn run(link: Link) {
    let mut memory = Memory::default();
    loop {
        let why = serve(&link, &mut memory).await;
        link.tell(|| format!("lets go of the subscription: {why:?}"));
        link.show(Shown::Standby);
        let time = link.world.borrow_mut().random.between(5, 300) * MS;
        link.sleep(time).await;
    }
}

async fn serve(link: &Link, memory: &mut Memory) -> Result<(), Ended> {
    let main = link.dial(true);
    loop {
        match main.ask(Op::TryLock).await? {
            Reply::Locked(true) => break,
            _ => link.sleep(SECOND).await,
        }
    }
    let Reply::Claimed { term } = link.store(Op::Claim).await? else {
        return Err(Ended::Retry("no claim"));
    };
    link.tell(|| format!("owns the subscription, term {term}"));
    loop {
        link.show(Shown::Working);
        let ended = attempt(link, &main, term, memory).await;
        link.tell(|| format!("attempt ended: {ended:?}"));
        match ended {
            Err(Ended::TargetLost(why)) => return Err(Ended::TargetLost(why)),
            Err(Ended::Pause(reason)) => hold(link, &main, reason).await?,
            Err(Ended::Restart) => memory.backed_off = 0,
            Err(Ended::Retry(_)) | Ok(()) => {
                memory.backed_off = (memory.backed_off * 2).clamp(20, 1000);
                link.sleep(memory.backed_off * MS).await;
            }
        }
        main.ask(Op::Reset).await?;
    }
}

/// Waits for a person.
async fn hold(link: &Link, main: &Connection, reason: Reason) -> Result<(), Ended> {
    link.show(Shown::Paused(reason));
    std::future::poll_fn(|_| {
        if main.is_lost() {
            return std::task::Poll::Ready(Err(Ended::TargetLost("while paused")));
        }
        let resumes = std::mem::take(&mut link.world.borrow_mut().instances[link.instance].resume);
        if resumes {
            link.show(Shown::Working);
            return std::task::Poll::Ready(Ok(()));
        }
        std::task::Poll::Pending
    })
    .await
}

async fn attempt(link: &Link, main: &Connection, term: i64, memory: &mut Memory) -> Result<(), Ended> {
    let publisher = link.dial(false);
    let position = match main.ask(Op::TakeOver { term }).await? {
        Reply::Position(position) => position,
        _ => return Err(Ended::TargetLost("taken over")),
    };
    let meta = records(link.store(Op::EndCopies { term }).await?)?;
    let seen = match publisher.ask_publisher(PublisherOp::Look).await {
        Ok(PublisherReply::Seen(seen)) => seen,
        _ => return Err(Ended::Retry("publisher")),
    };
    if let Err(reason) = judge(&meta, position, &seen) {
        return Err(certain(main, term, position, reason).await);
    }
    owned(&link.store(Op::SetWitness { term, witness: witness(&seen), judged: true }).await?)?;
    let published: Vec<usize> = (0..TABLES.len()).filter(|&table| seen.catalog.published[table]).collect();
    owned(&link.store(Op::SyncTables { term, tables: published.clone() }).await?)?;
    let from = match (position, seen.slot) {
        (Some(position), _) => position,
        (None, Some(confirmed)) => {
            owned(&main.ask(Op::CreateProgress { term, at: confirmed }).await?)?;
            confirmed
        }
        (None, None) => match publisher.ask_publisher(PublisherOp::CreateSlot).await {
            Ok(PublisherReply::Snapshot { at, rows }) => {
                owned(&main.ask(Op::CreateProgress { term, at }).await?)?;
                first_rows(link, term, at, &rows, &published).await?;
                at
            }
            _ => return Err(Ended::Retry("slot")),
        },
    };
    let meta = records(link.store(Op::EndCopies { term }).await?)?;
    let start = stream::Start { term, from, seen: &seen, meta: &meta };
    match stream::run(link, main, publisher, start, memory).await? {
        // Without its evidence there is no pause: against another owner's rows, nothing conflicts.
        Streamed::Conflict(lsn) => match link.store(Op::OpenConflict { term }).await? {
            Reply::Done => Err(Ended::Pause(Reason::Conflict(lsn))),
            _ => Err(Ended::TargetLost("not the owner")),
        },
        Streamed::Anew => Err(Ended::Restart),
    }
}

pub(crate) fn owned(reply: &Reply) -> Result<(), Ended> {
    match reply {
        Reply::NotOwner => Err(Ended::TargetLost("not the owner")),
        Reply::Failed(why) => Err(Ended::Retry(why)),
        _ => Ok(()),
    }
}

fn records(reply: Reply) -> Result<Meta, Ended> {
    match reply {
        Reply::Records(meta) => Ok(meta),
        _ => Err(Ended::TargetLost("not the owner")),
    }
}

pub(crate) fn witness(seen: &Look) -> Witness {
    Witness { timeline: seen.timeline, started: seen.started, wal: seen.wal }
}

/// Whether publisher, slot and target still belong together.
fn judge(meta: &Meta, position: Option<Lsn>, seen: &Look) -> Result<(), Reason> {
    let Some(applied) = position else {
        // A table's rows never land before the progress row is there: the target was restored.
        let first = meta.tables.values().filter_map(|record| record.synced).min();
        return match (first, seen.slot) {
            (Some(first), Some(confirmed)) if confirmed > first => Err(Reason::Diverged),
            (Some(_), None) => Err(Reason::SlotLost),
            _ => Ok(()),
        };
    };
    let Some(confirmed) = seen.slot else { return Err(Reason::SlotLost) };
    if has(Fault::AlwaysTrusted) {
        return Ok(());
    }
    let copied = meta.tables.values().filter_map(|record| record.synced).max();
    let furthest = copied.map_or(applied, |copied| copied.max(applied));
    let past = !has(Fault::PastNotCompared);
    if let Some(known) = meta.witness.filter(|_| past) {
        if known.timeline != seen.timeline {
            let left = seen.left.iter().find(|(timeline, _)| *timeline == known.timeline);
            if left.is_none_or(|(_, at)| *at < furthest) {
                return Err(Reason::Diverged);
            }
        } else {
            let started = known.started != seen.started && seen.checkpoint < furthest.max(known.wal);
            if started || seen.wal < known.wal {
                return Err(Reason::Diverged);
            }
        }
    }
    if past && seen.wal < furthest {
        return Err(Reason::Diverged);
    }
    if confirmed > applied && !has(Fault::SlotNotCompared) {
        return Err(Reason::Diverged);
    }
    Ok(())
}

/// Another owner may have moved record and slot on, after the one was read and before the other was: then
/// nothing is wrong.
async fn certain(main: &Connection, term: i64, position: Option<Lsn>, reason: Reason) -> Ended {
    match main.ask(Op::TakeOver { term }).await {
        Ok(Reply::Position(still)) if still == position => Ended::Pause(reason),
        _ => Ended::TargetLost("another owner has moved on"),
    }
}

/// Whether the slot that is in use now has let go of nothing.
pub(crate) async fn still_trusted(main: &Connection, term: i64, from: Lsn, seen: &Look) -> Result<(), Ended> {
    let trusted = has(Fault::AlwaysTrusted) || has(Fault::SlotNotCompared) || has(Fault::SlotLookedAtOnce);
    match seen.slot {
        Some(confirmed) if confirmed > from && !trusted => {
            Err(certain(main, term, Some(from), Reason::Diverged).await)
        }
        _ => Ok(()),
    }
}

// --- copies -------------------------------------------------------------------------------------

async fn first_rows(
    link: &Link,
    term: i64,
    at: Lsn,
    rows: &[Vec<Row>; TABLES.len()],
    published: &[usize],
) -> Result<(), Ended> {
    for &table in published {
        let attempt = match begin_copy(link, term, table, 0).await? {
            CopyStep::Taken { attempt } => attempt,
            CopyStep::Ready { .. } => continue,
        };
        let target = link.dial(false);
        let copied = async {
            done(&target.ask(Op::Copy { table, rows: rows[table].clone(), done: 0 }).await)?;
            mark_ready(link, &target, term, table, attempt, at).await
        };
        match copied.await {
            Ok(()) => {}
            Err(Copied::Failed(why)) => {
                link.tell(|| format!("copy of t{table} failed: {why}"));
                hold_back(link, term, table, attempt).await?;
            }
            Err(Copied::Unsettled) => return Err(Ended::Retry("a copy is unsettled")),
        }
    }
    Ok(())
}

/// Why a copy did not land.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Copied {
    Failed(&'static str),
    /// Nobody could be asked.
    Unsettled,
}

pub(crate) fn done(reply: &Result<Reply, Lost>) -> Result<(), Copied> {
    match reply {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Failed(why)) => Err(Copied::Failed(why)),
        Ok(_) => Err(Copied::Failed("an answer of another kind")),
        Err(Lost) => Err(Copied::Failed("connection lost")),
    }
}

pub(crate) async fn begin_copy(
    link: &Link,
    term: i64,
    table: usize,
    attempt: i32,
) -> Result<CopyStep, Ended> {
    match link.store(Op::BeginCopy { term, table, attempt }).await {
        Ok(Reply::Copy(Some(step))) => Ok(step),
        Ok(Reply::NotOwner) => Err(Ended::TargetLost("not the owner")),
        Ok(_) => Err(Ended::Retry("another copy has begun")),
        Err(Lost) => Err(Ended::Retry("store")),
    }
}

/// The copy has failed: the table waits for the next one.
pub(crate) async fn hold_back(link: &Link, term: i64, table: usize, attempt: i32) -> Result<(), Ended> {
    match link.store(Op::SetState { term, table, attempt, state: TableState::Pending }).await {
        Ok(Reply::Copy(Some(CopyStep::Taken { .. }))) => Ok(()),
        Ok(Reply::NotOwner) => Err(Ended::TargetLost("not the owner")),
        _ => Err(Ended::Retry("the record has to be read again")),
    }
}

/// Marks the table ready, with its rows; asks the record if the answer to the COMMIT is lost.
pub(crate) async fn mark_ready(
    link: &Link,
    target: &Connection,
    term: i64,
    table: usize,
    attempt: i32,
    position: Lsn,
) -> Result<(), Copied> {
    done(&target.ask(Op::MarkReady { term, table, attempt, position }).await)?;
    match target.ask(Op::Commit).await {
        Ok(Reply::Done) => return Ok(()),
        Ok(_) => return Err(Copied::Failed("rolled back")),
        Err(Lost) if has(Fault::LostCopyFailed) => return Err(Copied::Failed("connection lost")),
        Err(Lost) => {}
    }
    for _ in 0..20 {
        match link.store(Op::IsReady { table, attempt, position }).await {
            Ok(Reply::Landed(true)) => return Ok(()),
            Ok(_) => return Err(Copied::Failed("rolled back")),
            Err(Lost) => link.sleep(500 * MS).await,
        }
    }
    Err(Copied::Unsettled)
}
