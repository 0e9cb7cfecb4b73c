//! What sessions ask of the target, and what comes of it: the SQL of `apply`, `copy` and `store`, as far as it
//! decides what is committed.

use std::sync::Arc;

use pgsluice::apply::TableContext;
use pgsluice::apply::change::RowChange;
use pgsluice::apply::core::{Advance, Answer, Batch, Description};
use pgsluice::apply::rows::facts::ConflictFacts;
use pgsluice::apply::sets::compact::{SetKind, SetRow, SetStep};
use pgsluice::conflict::{ConflictKind, Operation};
use pgsluice::gap::NewGap;
use pgsluice::pg::{Lsn, QualifiedName};
use pgsluice::pgoutput::Tuple;
use pgsluice::schema::RowIdentity;
use pgsluice::store::{TableRecord, TableRow, TableState};
use pgsluice::subscription::publication_record::PublicationRecord;

use crate::members;
use crate::mutants::{Fault, has};
use crate::tables::{self, Cell, Row, TABLES, cells};
use crate::target::{Blocked, Lockable, Progress, Refused, SessionId, Target, Witness};

/// A request, as it stands in a session's queue.
#[derive(Debug)]
pub(crate) enum Op {
    // The applying session.
    TryLock,
    TakeOver {
        term: i64,
    },
    CreateProgress {
        term: i64,
        at: Lsn,
    },
    Describe {
        tables: Vec<QualifiedName>,
    },
    TargetOids,
    /// No publication existed between these positions.
    PassOver {
        advance: Advance,
        term: i64,
    },
    Batch {
        batch: Batch,
        term: i64,
        done: usize,
    },
    /// The COMMIT that was sent with a batch.
    BatchCommit {
        failed: bool,
    },
    NotSent,
    Settle {
        expected: Lsn,
        term: i64,
    },
    BeginRows,
    Row {
        table: Arc<TableContext>,
        change: RowChange,
        index: u64,
    },
    TruncateRows {
        tables: Vec<Arc<TableContext>>,
        index: u64,
        done: usize,
    },
    CommitRows {
        advance: Advance,
        term: i64,
        stamps: Vec<(usize, i64)>,
    },
    /// Rows and progress are written: only COMMIT is left.
    RowsCommit,
    Reset,
    // The store's.
    Claim,
    OpenGap {
        term: i64,
        gap: NewGap,
    },
    RecordMembers {
        term: i64,
        tables: Vec<TableRecord>,
        publications: Vec<PublicationRecord>,
    },
    EndRefresh {
        term: i64,
    },
    /// Lets tables go on that are held by nothing any more.
    Release {
        term: i64,
        position: Lsn,
    },
    /// Up to here the publications are known to have been as recorded.
    ReportSeen {
        term: i64,
        seen: Lsn,
    },
    /// Carries out the first of the operator's commands.
    CarryOut {
        term: i64,
    },
    EndCopies {
        term: i64,
    },
    BeginCopy {
        term: i64,
        table: usize,
        attempt: i32,
    },
    SetState {
        term: i64,
        table: usize,
        attempt: i32,
        state: TableState,
    },
    /// `judged`: what an attempt has seen; else only more of the same run of the publisher.
    SetWitness {
        term: i64,
        witness: Witness,
        judged: bool,
    },
    /// A conflict's evidence is recorded.
    OpenConflict {
        term: i64,
    },
    /// Whether the copy has landed; waits for a COMMIT under way.
    IsReady {
        table: usize,
        attempt: i32,
        position: Lsn,
    },
    // A table's synchronisation.
    Copy {
        table: usize,
        into: QualifiedName,
        rows: Vec<Row>,
        /// The rows that are there are removed first.
        replaces: bool,
        done: usize,
    },
    /// A change that is none is a TRUNCATE.
    CatchUp {
        table: usize,
        changes: Vec<Option<RowChange>>,
        done: usize,
    },
    MarkReady {
        term: i64,
        table: usize,
        attempt: i32,
        /// The position of the copy's snapshot.
        snapshot: Lsn,
        position: Lsn,
    },
    Commit,
    /// The client has closed its end.
    Close,
}

/// What comes back.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    Locked(bool),
    Position(Option<Lsn>),
    Claimed {
        term: i64,
    },
    Records(crate::target::Meta),
    Answer(Answer),
    Described(Description),
    Oids(Vec<(QualifiedName, u32)>),
    Copy(Option<CopyStep>),
    Landed(bool),
    /// The owner's term has changed.
    NotOwner,
    /// An error that ends the attempt, or the copy.
    Failed(&'static str),
    /// Nothing is told.
    Silent,
}

/// How a step of a copy fared; none if there has been another one since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyStep {
    Taken { attempt: i32 },
    Ready { synced: Lsn },
}

/// What became of an operation.
#[derive(Debug)]
pub(crate) enum Executed {
    Reply(Reply),
    /// The rest of it comes next.
    Next(Op),
    Blocked(Op),
}

fn done() -> Reply {
    Reply::Answer(Answer::Done { took: std::time::Duration::ZERO })
}

fn failed(cause: &str) -> Answer {
    Answer::Failed { cause: cause.to_owned() }
}

/// Carries an operation out, or finds that it has to wait.
pub(crate) fn execute(target: &mut Target, id: SessionId, op: Op) -> Executed {
    let reply = match op {
        Op::Batch { .. }
        | Op::BatchCommit { .. }
        | Op::NotSent
        | Op::Settle { .. }
        | Op::BeginRows
        | Op::Row { .. }
        | Op::TruncateRows { .. }
        | Op::CommitRows { .. }
        | Op::RowsCommit => return apply(target, id, op),
        Op::Copy { .. } | Op::CatchUp { .. } | Op::MarkReady { .. } | Op::Commit => {
            return copy(target, id, op);
        }
        Op::TryLock => {
            let free = target.lock_holder().is_none_or(|holder| holder == id);
            if let Some(session) = target.sessions.get_mut(&id) {
                session.has_lock |= free;
            }
            Reply::Locked(free)
        }
        Op::Describe { tables } => {
            let describe = |name: QualifiedName| {
                let found = target.called(&name);
                let described = found.map(|table| tables::target(table, name.clone(), target.stamps[table]));
                (name, described.map(Arc::new))
            };
            Reply::Described(tables.into_iter().map(describe).collect())
        }
        Op::TargetOids => {
            let oids = (0..TABLES.len()).map(|table| (target.name(table), tables::oid(table)));
            Reply::Oids(oids.collect())
        }
        Op::PassOver { advance, term } => {
            target.begin(id);
            match target.advance(id, advance, term, false) {
                Err(Blocked) => return Executed::Blocked(Op::PassOver { advance, term }),
                Ok(Ok(())) if target.commit(id) => Reply::Done,
                Ok(_) => {
                    target.roll_back(id);
                    Reply::NotOwner
                }
            }
        }
        Op::Reset => {
            target.roll_back(id);
            Reply::Done
        }
        Op::Close => Reply::Silent,
        op => return store(target, id, op),
    };
    Executed::Reply(reply)
}

// --- sets and rows ----------------------------------------------------------------------------

fn apply(target: &mut Target, id: SessionId, op: Op) -> Executed {
    let reply = match op {
        Op::Batch { batch, term, done } => return send_batch(target, id, batch, term, done),
        Op::BatchCommit { failed: refused } => {
            if target.commit(id) && !refused {
                done()
            } else {
                Reply::Answer(failed("a set was refused"))
            }
        }
        Op::NotSent => Reply::Answer(Answer::NotSent { cause: "not prepared".to_owned() }),
        Op::Settle { expected, term } => {
            target.roll_back(id);
            let agrees = target.meta.progress == Some(Progress { applied: expected, term });
            if agrees { done() } else { Reply::Answer(Answer::Moved) }
        }
        Op::BeginRows => {
            target.begin(id);
            if let Some(session) = target.sessions.get_mut(&id) {
                session.rows_ended = false;
            }
            Reply::Silent
        }
        Op::Row { table, change, index } => return send_row(target, id, table, change, index),
        Op::TruncateRows { tables, index, done: at } => {
            if rows_ended(target, id) {
                return Executed::Reply(Reply::Answer(Answer::PassedOver));
            }
            for (n, table) in tables.iter().enumerate().skip(at) {
                if target.truncate(id, tables::by_name(&table.plan.target)) == Err(Blocked) {
                    return Executed::Blocked(Op::TruncateRows { tables, index, done: n });
                }
            }
            done()
        }
        Op::CommitRows { advance, term, stamps } => {
            if stamps.iter().any(|&(table, stamp)| target.stamps[table] != stamp) {
                target.roll_back(id);
                return Executed::Reply(Reply::Failed("a target table has changed"));
            }
            let adopts = has(Fault::AdoptRecord);
            match target.advance(id, advance, term, adopts) {
                Err(Blocked) => return Executed::Blocked(Op::CommitRows { advance, term, stamps }),
                Ok(Ok(())) => return Executed::Next(Op::RowsCommit),
                Ok(Err(Refused)) => {
                    end_rows(target, id);
                    Reply::Answer(Answer::Moved)
                }
            }
        }
        Op::RowsCommit => {
            let committed = target.commit(id);
            if committed { done() } else { Reply::Failed("nothing to commit") }
        }
        _ => Reply::Silent,
    };
    Executed::Reply(reply)
}

/// Carries out an operation that either does all that it has to or, if it has to wait, nothing.
fn all_or_nothing<T>(
    target: &mut Target,
    table: usize,
    act: impl FnOnce(&mut Target) -> Result<T, Blocked>,
) -> Result<T, Blocked> {
    let before = target.tables[table].clone();
    let result = act(target);
    if result.is_err() {
        target.tables[table] = before;
    }
    result
}

fn send_batch(target: &mut Target, id: SessionId, batch: Batch, term: i64, from: usize) -> Executed {
    let is_dead = target.sessions.get(&id).is_some_and(|session| session.failed);
    if batch.begins && from == 0 && !is_dead {
        target.begin(id);
    }
    let mut refused =
        target.sessions.get(&id).is_none_or(|session| session.failed || !session.in_transaction);
    for (at, step) in batch.sets.iter().enumerate().skip(from) {
        if refused {
            break;
        }
        match send_set(target, id, step) {
            Err(Blocked) => return Executed::Blocked(Op::Batch { batch, term, done: at }),
            Ok(result) => refused |= result.is_err(),
        }
    }
    if !refused && let Some(advance) = batch.advance {
        match target.advance(id, advance, term, false) {
            Err(Blocked) => {
                return Executed::Blocked(Op::Batch { done: batch.sets.len().max(1), batch, term });
            }
            Ok(result) => refused |= result.is_err(),
        }
    }
    if refused && let Some(session) = target.sessions.get_mut(&id) {
        session.failed = true;
    }
    match (batch.advance, refused) {
        (Some(_), failed) => Executed::Next(Op::BatchCommit { failed }),
        (None, false) => Executed::Reply(done()),
        (None, true) => Executed::Reply(Reply::Answer(failed("a slice was refused"))),
    }
}

fn identity_of(table: &TableContext, row: &Tuple) -> Vec<(usize, Cell)> {
    let cells = cells(row);
    match &table.plan.row_identity {
        RowIdentity::Key { columns, .. } => columns.iter().map(|&at| (at, cells[at].flatten())).collect(),
        RowIdentity::FullRow | RowIdentity::None => {
            (0..table.plan.columns.len()).map(|at| (at, cells[at].flatten())).collect()
        }
    }
}

fn row_of(new: &Tuple) -> Row {
    cells(new).map(Option::flatten)
}

fn send_set(target: &mut Target, id: SessionId, step: &SetStep) -> Result<Result<(), Refused>, Blocked> {
    match step {
        SetStep::Truncate { tables, .. } => {
            for table in tables {
                target.truncate(id, tables::by_name(&table.plan.target))?;
            }
            Ok(Ok(()))
        }
        SetStep::Set { table, kind, rows, .. } => {
            let at = tables::by_name(&table.plan.target);
            if target.stamps[at] != table.plan.target_stamp || target.called(&table.plan.target).is_none() {
                return Ok(Err(Refused));
            }
            all_or_nothing(target, at, |target| write_set(target, id, table, at, kind, rows))
        }
    }
}

fn write_set(
    target: &mut Target,
    id: SessionId,
    table: &TableContext,
    at: usize,
    kind: &SetKind,
    rows: &[SetRow],
) -> Result<Result<(), Refused>, Blocked> {
    if *kind == SetKind::Insert {
        for row in rows {
            let Some(image) = &row.image else { return Ok(Err(Refused)) };
            if target.insert(id, at, row_of(image))?.is_err() {
                return Ok(Err(Refused));
            }
        }
        return Ok(Ok(()));
    }
    let identities: Vec<Vec<(usize, Cell)>> =
        rows.iter().filter_map(|row| row.named_by()).map(|row| identity_of(table, row)).collect();
    if *kind == SetKind::Absent {
        let there = identities.iter().any(|identity| target.exists(id, at, identity));
        return Ok(if there { Err(Refused) } else { Ok(()) });
    }
    // Rows are found as they were before the statement, and each meets one of its own.
    let mut removed = Vec::new();
    for identity in &identities {
        let is_key = matches!(table.plan.row_identity, RowIdentity::Key { .. });
        let met = target.delete(id, at, identity, if is_key { usize::MAX } else { 1 })?;
        let [met] = met[..] else { return Ok(Err(Refused)) };
        removed.push(met);
    }
    let set = match kind {
        SetKind::Update(set) | SetKind::UpdateFullRow { set, .. } => set,
        _ => return Ok(Ok(())),
    };
    for (row, mut new) in rows.iter().zip(removed) {
        let Some(image) = &row.image else { return Ok(Err(Refused)) };
        let image = cells(image);
        for column in set.iter() {
            new[column] = image[column].flatten();
        }
        if target.insert(id, at, new)?.is_err() {
            return Ok(Err(Refused));
        }
    }
    Ok(Ok(()))
}

fn rows_ended(target: &Target, id: SessionId) -> bool {
    target.sessions.get(&id).is_none_or(|session| session.rows_ended)
}

fn end_rows(target: &mut Target, id: SessionId) {
    target.roll_back(id);
    if let Some(session) = target.sessions.get_mut(&id) {
        session.rows_ended = true;
    }
}

fn send_row(
    target: &mut Target,
    id: SessionId,
    table: Arc<TableContext>,
    change: RowChange,
    index: u64,
) -> Executed {
    let ended = rows_ended(target, id);
    if ended && !has(Fault::RowsOutside) {
        return Executed::Reply(Reply::Answer(Answer::PassedOver));
    }
    if ended {
        target.begin(id);
    }
    let at = tables::by_name(&table.plan.target);
    match all_or_nothing(target, at, |target| write_row(target, id, &table, at, &change)) {
        Err(Blocked) => Executed::Blocked(Op::Row { table, change, index }),
        Ok(written) if ended => {
            if written.is_ok() {
                target.commit(id);
            }
            Executed::Reply(Reply::Answer(Answer::PassedOver))
        }
        Ok(Ok(())) => Executed::Reply(done()),
        Ok(Err(Refused)) => {
            end_rows(target, id);
            if target.stamps[at] != table.plan.target_stamp {
                return Executed::Reply(Reply::Failed("a target table has changed"));
            }
            let kind = match change {
                RowChange::Insert { .. } => ConflictKind::InsertExists,
                RowChange::Update { .. } => ConflictKind::UpdateMissing,
                RowChange::Delete { .. } => ConflictKind::DeleteMissing,
            };
            let facts = ConflictFacts::bare(kind, Operation::Insert, table.plan.target.clone(), index);
            Executed::Reply(Reply::Answer(Answer::Refused(Box::new(facts))))
        }
    }
}

/// One row: exactly one is met.
fn write_row(
    target: &mut Target,
    id: SessionId,
    table: &TableContext,
    at: usize,
    change: &RowChange,
) -> Result<Result<(), Refused>, Blocked> {
    if let RowChange::Insert { new } = change {
        return target.insert(id, at, row_of(new));
    }
    let Some(named_by) = change.identity_row() else { return Ok(Err(Refused)) };
    let identity = identity_of(table, named_by);
    let is_key = matches!(table.plan.row_identity, RowIdentity::Key { .. });
    let met = target.delete(id, at, &identity, if is_key { usize::MAX } else { 1 })?;
    let [mut row] = met[..] else { return Ok(Err(Refused)) };
    let Some(new) = change.new_row() else { return Ok(Ok(())) };
    for (cell, new) in row.iter_mut().zip(cells(new)).take(table.plan.columns.len()) {
        if let Some(new) = new {
            *cell = new;
        }
    }
    target.insert(id, at, row)
}

// --- a table's synchronisation ------------------------------------------------------------------

fn copy(target: &mut Target, id: SessionId, op: Op) -> Executed {
    let reply = match op {
        Op::Copy { table, into, rows, replaces, done } => {
            if done == 0 {
                target.begin(id);
                if target.called(&into).is_none() {
                    target.roll_back(id);
                    return Executed::Reply(Reply::Failed("the target table does not exist"));
                }
                let removes = replaces && !has(Fault::CopyOnTop);
                if removes && target.delete(id, table, &[], usize::MAX) == Err(Blocked) {
                    return Executed::Blocked(Op::Copy { table, into, rows, replaces, done });
                }
            }
            for (at, row) in rows.iter().enumerate().skip(done) {
                match target.insert(id, table, *row) {
                    Err(Blocked) => {
                        return Executed::Blocked(Op::Copy { table, into, rows, replaces, done: at });
                    }
                    Ok(Err(Refused)) => {
                        target.roll_back(id);
                        return Executed::Reply(Reply::Failed("a row of the copy is there already"));
                    }
                    Ok(Ok(())) => {}
                }
            }
            Reply::Done
        }
        Op::CatchUp { table, changes, done } => return catch_up(target, id, table, changes, done),
        Op::MarkReady { term, table, attempt, snapshot, position } => {
            let shared = target.share_owner(id);
            let locked = shared.and_then(|owner| target.lock(id, Lockable::Record(table)).map(|()| owner));
            let Ok(owner) = locked else {
                return Executed::Blocked(Op::MarkReady { term, table, attempt, snapshot, position });
            };
            let is_ours = |record: &&TableRow| {
                record.attempt == attempt
                    && matches!(record.state, TableState::Copying | TableState::CatchingUp)
            };
            let record = target.meta.tables.get(&table);
            let accepted =
                (owner == Some(term) && record.filter(is_ours).is_some()) || has(Fault::UnfencedCopy);
            if !accepted || record.is_none() {
                target.roll_back(id);
                return Executed::Reply(Reply::Failed("the copy was superseded"));
            }
            target.mark_ready(id, table, snapshot, position);
            if let Some(session) = target.sessions.get_mut(&id) {
                session.marked = true;
            }
            Reply::Done
        }
        Op::Commit => {
            if target.commit(id) {
                Reply::Done
            } else {
                Reply::Failed("nothing to commit")
            }
        }
        _ => Reply::Silent,
    };
    Executed::Reply(reply)
}

fn catch_up(
    target: &mut Target,
    id: SessionId,
    table: usize,
    changes: Vec<Option<RowChange>>,
    from: usize,
) -> Executed {
    for (at, change) in changes.iter().enumerate().skip(from) {
        let written = all_or_nothing(target, table, |target| {
            let Some(change) = change else { return target.truncate(id, table).map(Ok) };
            if let RowChange::Insert { new } = change {
                return target.insert(id, table, row_of(new));
            }
            let kind = TABLES[table];
            let Some(named_by) = change.identity_row() else { return Ok(Err(Refused)) };
            let cells_of = cells(named_by);
            let columns: Vec<usize> =
                if kind.key().is_empty() { (0..named_by.len()).collect() } else { kind.key().to_vec() };
            let identity: Vec<(usize, Cell)> =
                columns.into_iter().map(|column| (column, cells_of[column].flatten())).collect();
            let met = target.delete(id, table, &identity, 1)?;
            let [mut row] = met[..] else { return Ok(Err(Refused)) };
            let Some(new) = change.new_row() else { return Ok(Ok(())) };
            for (cell, new) in row.iter_mut().zip(cells(new)).take(new.len()) {
                *cell = new.unwrap_or(*cell);
            }
            target.insert(id, table, row)
        });
        match written {
            Err(Blocked) => return Executed::Blocked(Op::CatchUp { table, changes, done: at }),
            Ok(Err(Refused)) => {
                target.roll_back(id);
                return Executed::Reply(Reply::Failed("a row could not be caught up"));
            }
            Ok(Ok(())) => {}
        }
    }
    Executed::Reply(Reply::Done)
}

// --- the store ----------------------------------------------------------------------------------

/// One statement, or one short transaction, that commits at once.
fn store(target: &mut Target, id: SessionId, op: Op) -> Executed {
    target.begin(id);
    match record(target, id, &op) {
        Ok(reply) => {
            target.commit(id);
            Executed::Reply(reply)
        }
        Err(Blocked) => {
            target.roll_back(id);
            Executed::Blocked(op)
        }
    }
}

fn record(target: &mut Target, id: SessionId, op: &Op) -> Result<Reply, Blocked> {
    Ok(match *op {
        Op::Claim => {
            target.lock(id, Lockable::Owner)?;
            target.meta.term += 1;
            if !has(Fault::TermsGoBack) {
                target.meta.term = target.meta.term.max(target.terms + 1);
            }
            target.terms = target.meta.term;
            target.meta.run = target.run;
            Reply::Claimed { term: target.meta.term }
        }
        Op::TakeOver { term } => {
            let is_owner = is_owner(target, id, term)?;
            target.lock(id, Lockable::Progress)?;
            match target.meta.progress {
                Some(found) if is_owner && (found.term <= term || has(Fault::UnfencedStore)) => {
                    target.write_progress(id, Progress { applied: found.applied, term });
                    Reply::Position(Some(found.applied))
                }
                Some(_) => Reply::NotOwner,
                None => Reply::Position(None),
            }
        }
        Op::CreateProgress { term, at } => {
            let owner = target.share_owner(id)?;
            target.lock(id, Lockable::Progress)?;
            if owner != Some(term) || target.meta.progress.is_some() {
                return Ok(Reply::NotOwner);
            }
            target.write_progress(id, Progress { applied: at, term });
            Reply::Done
        }
        Op::OpenGap { .. }
        | Op::RecordMembers { .. }
        | Op::EndRefresh { .. }
        | Op::Release { .. }
        | Op::ReportSeen { .. }
        | Op::CarryOut { .. } => return members::record(target, id, op),
        Op::EndCopies { term } => {
            if !is_owner(target, id, term)? {
                return Ok(Reply::NotOwner);
            }
            if !has(Fault::UnfencedCopy) {
                let tables: Vec<usize> = target.meta.tables.keys().copied().collect();
                for table in tables {
                    target.lock(id, Lockable::Record(table))?;
                }
                for record in target.meta.tables.values_mut() {
                    if record.attempt > 0 && record.state != TableState::Ready {
                        record.attempt += 1;
                    }
                }
            }
            Reply::Records(target.meta.clone())
        }
        Op::BeginCopy { term, table, attempt } => {
            let step = |record: &mut TableRow| {
                (record.state, record.synced_lsn, record.copied_lsn) = (TableState::Copying, None, None);
                record.attempt += 1;
            };
            copy_step(target, id, term, table, attempt, step)?
        }
        Op::SetState { term, table, attempt, state } => {
            copy_step(target, id, term, table, attempt, |record| record.state = state)?
        }
        Op::SetWitness { term, witness, judged } => {
            if !is_owner(target, id, term)? {
                return Ok(Reply::NotOwner);
            }
            let same =
                |known: Witness| (known.timeline, known.started) == (witness.timeline, witness.started);
            if judged || target.meta.witness.is_some_and(same) || has(Fault::LateWitness) {
                target.meta.witness = Some(witness);
            }
            Reply::Done
        }
        Op::OpenConflict { term } => {
            if is_owner(target, id, term)? {
                Reply::Done
            } else {
                Reply::NotOwner
            }
        }
        Op::IsReady { table, attempt, position } => {
            target.lock(id, Lockable::Record(table))?;
            let found = target.meta.tables.get(&table);
            let landed = found.is_some_and(|row| {
                (row.state, row.attempt, row.synced_lsn) == (TableState::Ready, attempt, Some(position))
            });
            Reply::Landed(landed)
        }
        _ => Reply::Silent,
    })
}

pub(crate) fn is_owner(target: &mut Target, id: SessionId, term: i64) -> Result<bool, Blocked> {
    Ok(target.share_owner(id)? == Some(term) || has(Fault::UnfencedStore))
}

/// Writes over a copy's record, if the copy is the latest, and the table is not ready.
fn copy_step(
    target: &mut Target,
    id: SessionId,
    term: i64,
    table: usize,
    attempt: i32,
    write: impl FnOnce(&mut TableRow),
) -> Result<Reply, Blocked> {
    let owner = target.share_owner(id)?;
    target.lock(id, Lockable::Record(table))?;
    let unfenced = has(Fault::UnfencedStore);
    if owner != Some(term) && !unfenced {
        return Ok(Reply::NotOwner);
    }
    let over_ready = has(Fault::CopyOverReady) || has(Fault::LostCopyFailed) || unfenced;
    Ok(match target.meta.tables.get_mut(&table) {
        None => Reply::Copy(None),
        Some(record) if record.state == TableState::Ready && !over_ready => match record.synced_lsn {
            Some(synced) => Reply::Copy(Some(CopyStep::Ready { synced })),
            None => Reply::Copy(None),
        },
        Some(record) if record.attempt == attempt || over_ready => {
            write(record);
            Reply::Copy(Some(CopyStep::Taken { attempt: record.attempt }))
        }
        Some(_) => Reply::Copy(None),
    })
}
