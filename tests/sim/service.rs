//! An instance: takes the lock, claims the subscription, and makes attempts, as `subscription::worker` and
//! `subscription::attempt` do. The stream itself is in [`crate::stream`].

use pgsluice::apply::core::Advance;
use pgsluice::pg::Lsn;
use pgsluice::store::{TableRow, TableState};
use pgsluice::subscription::publication_record::Named;
use pgsluice::subscription::publications::{Proof, Publications};

use crate::catalog::Published;
use crate::link::{Connection, Link, Look, Lost, PublisherOp, PublisherReply, Snapshot};
use crate::mutants::{Fault, has};
use crate::ops::{CopyStep, Op, Reply};
use crate::stream::{self, Streamed};
use crate::tables::{Row, named};
use crate::take_up::{self, Ground, TakenUp};
use crate::target::{Meta, Witness};
use crate::world::{MS, Reason, SECOND, Shown, Time};

/// What a worker remembers between attempts.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) exact_until: Option<Lsn>,
    /// Transactions are sent whole until then.
    pub(crate) whole_until: Time,
    /// The last backing off, in milliseconds.
    backed_off: Time,
    /// As the attempt took them up, and as last seen.
    pub(crate) publications: Publications,
    pub(crate) proof: Proof,
    /// Publications that the walsender has found missing, each with the position that had been applied.
    pub(crate) refused: Vec<(Lsn, String)>,
}

impl Memory {
    pub(crate) fn refused_at(&self, applied: Option<Lsn>) -> Vec<String> {
        let at = self.refused.iter().filter(|(at, _)| Some(*at) == applied);
        at.map(|(_, name)| name.clone()).collect()
    }

    /// The walsender has found a publication missing. A new attempt asks for the others, unless it has done so.
    pub(crate) fn refuse(&mut self, at: Lsn, name: String) -> Ended {
        self.refused.retain(|(position, _)| *position == at);
        if self.refused.iter().any(|(_, refused)| *refused == name) {
            return Ended::Retry("the publication does not exist");
        }
        self.refused.push((at, name));
        Ended::Restart
    }
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
        carry_out(link, term).await?;
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

/// Carries out what an operator has asked for.
async fn carry_out(link: &Link, term: i64) -> Result<(), Ended> {
    while link.is_asked() {
        owned(&link.store(Op::CarryOut { term }).await?)?;
    }
    Ok(())
}

/// Waits for a person.
async fn hold(link: &Link, main: &Connection, reason: Reason) -> Result<(), Ended> {
    link.show(Shown::Paused(reason));
    std::future::poll_fn(|_| {
        if main.is_lost() {
            return std::task::Poll::Ready(Err(Ended::TargetLost("while paused")));
        }
        let resumes = std::mem::take(&mut link.world.borrow_mut().instances[link.instance].resume);
        if resumes || link.is_asked() {
            link.show(Shown::Working);
            return std::task::Poll::Ready(Ok(()));
        }
        std::task::Poll::Pending
    })
    .await
}

async fn attempt(link: &Link, main: &Connection, term: i64, memory: &mut Memory) -> Result<(), Ended> {
    memory.publications = Publications::default();
    let publisher = link.dial(false);
    let catalog = match publisher.ask_publisher(PublisherOp::Published).await {
        Ok(PublisherReply::Published(catalog)) => catalog,
        _ => return Err(Ended::Retry("publisher")),
    };
    let position = match main.ask(Op::TakeOver { term }).await? {
        Reply::Position(position) => position,
        _ => return Err(Ended::TargetLost("taken over")),
    };
    let meta = records(link.store(Op::EndCopies { term }).await?)?;
    let view = match publisher.ask_publisher(PublisherOp::Look).await {
        Ok(PublisherReply::Seen(seen)) => seen,
        _ => return Err(Ended::Retry("publisher")),
    };
    if let Err(reason) = judge(&meta, position, &view) {
        return Err(certain(main, term, position, reason).await);
    }
    owned(&link.store(Op::SetWitness { term, witness: witness(&view), judged: true }).await?)?;
    let ground = Ground {
        term,
        catalog: &catalog,
        view: &view,
        applied: position.or(view.slot),
        continues: position.is_some(),
    };
    let mut taken = take_up::take_up(link, main, &ground, meta, memory).await?;
    let from = match (position, view.slot) {
        (Some(position), _) => position,
        (None, Some(confirmed)) => {
            owned(&main.ask(Op::CreateProgress { term, at: confirmed }).await?)?;
            confirmed
        }
        (None, None) => match publisher.ask_publisher(PublisherOp::CreateSlot).await {
            Ok(PublisherReply::Snapshot(snapshot)) => {
                owned(&main.ask(Op::CreateProgress { term, at: snapshot.at }).await?)?;
                first_rows(link, term, &snapshot, &taken).await?;
                taken.meta = records(link.store(Op::EndCopies { term }).await?)?;
                snapshot.at
            }
            _ => return Err(Ended::Retry("slot")),
        },
    };
    let (from, named) = passed_over(link, main, term, &taken, from, memory).await?;
    let look_at = taken.let_go_at.max(named.again_at).filter(|at| *at > from);
    let start = stream::Start { term, from, view: &view, taken: &taken, named, look_at };
    match stream::run(link, main, publisher, start, memory).await? {
        // Without its evidence there is no pause: against another owner's rows, nothing conflicts.
        Streamed::Conflict(lsn, table) => match link.store(Op::OpenConflict { term }).await? {
            Reply::Done => Err(Ended::Pause(Reason::Conflict(lsn, table))),
            _ => Err(Ended::TargetLost("not the owner")),
        },
        Streamed::Anew => Err(Ended::Restart),
    }
}

/// Chooses the publications of the stream. If none of them existed for a while, the stream goes on behind that.
async fn passed_over(
    link: &Link,
    main: &Connection,
    term: i64,
    taken: &TakenUp,
    from: Lsn,
    memory: &Memory,
) -> Result<(Lsn, Named), Ended> {
    let named = take_up::named(link, taken, from, &memory.refused_at(Some(from)));
    match named.skip_to {
        None if named.names.is_empty() => Err(Ended::Retry("no publication exists")),
        None => Ok((from, named)),
        Some(to) => {
            let advance = Advance { from, to, commit_time_us: None, transactions: 0 };
            owned(&main.ask(Op::PassOver { advance, term }).await?)?;
            link.tell(|| format!("no publication existed, so the stream goes on from {to}"));
            Ok((to, take_up::named(link, taken, to, &[])))
        }
    }
}

pub(crate) fn owned(reply: &Reply) -> Result<(), Ended> {
    match reply {
        Reply::NotOwner => Err(Ended::TargetLost("not the owner")),
        Reply::Failed(why) => Err(Ended::Retry(why)),
        _ => Ok(()),
    }
}

pub(crate) fn records(reply: Reply) -> Result<Meta, Ended> {
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
        let first = meta.tables.values().filter_map(|record| record.synced_lsn).min();
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
    let copied = meta.tables.values().filter_map(|record| record.synced_lsn).max();
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

/// A table that is to be copied.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) row: TableRow,
    pub(crate) published: Published,
}

/// The tables that are to be copied.
pub(crate) fn pending(taken: &TakenUp) -> Vec<Pending> {
    let published = |row: &TableRow| {
        let found = taken.published.iter().find(|table| Some(table.seen.oid) == row.source_oid);
        found.filter(|_| row.left.is_none()).cloned()
    };
    let rows = taken.meta.tables.values().filter(|row| row.is_to_be_copied());
    rows.filter_map(|row| Some(Pending { row: row.clone(), published: published(row)? })).collect()
}

impl Pending {
    /// The rows that the copy reads; none if the table does not have this name, or another one has it.
    pub(crate) fn rows(&self, snapshot: &Snapshot) -> Option<Vec<Row>> {
        let (slot, way) = (self.published.slot, self.published.way);
        let found = &snapshot.catalog.tables[slot];
        if named(slot, found.number) != self.row.source || found.oid != self.published.seen.oid {
            return None;
        }
        Some(snapshot.rows[slot].iter().filter(|row| way.has(row)).map(|row| way.cut(*row)).collect())
    }

    pub(crate) fn copy(&self, rows: Vec<Row>) -> Op {
        let (table, into) = (self.published.slot, self.row.target.clone());
        Op::Copy { table, into, rows, replaces: self.row.resync.is_some(), done: 0 }
    }
}

async fn first_rows(link: &Link, term: i64, snapshot: &Snapshot, taken: &TakenUp) -> Result<(), Ended> {
    for pending in pending(taken) {
        let table = pending.published.slot;
        let attempt = match begin_copy(link, term, table, pending.row.attempt).await? {
            CopyStep::Taken { attempt } => attempt,
            CopyStep::Ready { .. } => continue,
        };
        let target = link.dial(false);
        let copied = async {
            let rows = pending.rows(snapshot).ok_or(Copied::Failed("there is no such table"))?;
            done(&target.ask(pending.copy(rows)).await)?;
            mark_ready(link, &target, (term, table, attempt), snapshot.at, snapshot.at).await
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
    (term, table, attempt): (i64, usize, i32),
    snapshot: Lsn,
    position: Lsn,
) -> Result<(), Copied> {
    done(&target.ask(Op::MarkReady { term, table, attempt, snapshot, position }).await)?;
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
