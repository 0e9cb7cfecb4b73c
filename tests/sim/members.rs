//! The store's writes about tables and gaps, as far as they decide: `store::members`, `store::gap` and
//! `store::intervention`.

use jiff::Timestamp;
use pgsluice::gap::{Gap, Hold, NewGap, Settlement};
use pgsluice::pg::Lsn;
use pgsluice::store::{Resync, TableRecord, TableRow, TableState};

use crate::ops::{Op, Reply, is_owner};
use crate::tables::by_name;
use crate::target::{Blocked, Command, Lockable, SessionId, Target, settled};

/// Carries out one short transaction.
pub(crate) fn record(target: &mut Target, id: SessionId, op: &Op) -> Result<Reply, Blocked> {
    let (Op::OpenGap { term, .. }
    | Op::RecordMembers { term, .. }
    | Op::EndRefresh { term }
    | Op::Release { term, .. }
    | Op::ReportSeen { term, .. }
    | Op::CarryOut { term }) = *op
    else {
        return Ok(Reply::Silent);
    };
    if !is_owner(target, id, term)? {
        return Ok(Reply::NotOwner);
    }
    match op {
        Op::OpenGap { gap, .. } => open(target, id, gap)?,
        Op::RecordMembers { tables, publications, .. } => {
            lock_all(target, id)?;
            write(target, tables);
            target.meta.publications.clone_from(publications);
        }
        Op::EndRefresh { .. } => target.meta.refresh = false,
        Op::Release { position, .. } => {
            lock_all(target, id)?;
            release(target, *position);
        }
        Op::ReportSeen { seen, .. } => target.meta.seen = target.meta.seen.max(Some(*seen)),
        _ => {
            lock_all(target, id)?;
            carry_out(target);
        }
    }
    Ok(Reply::Done)
}

fn lock_all(target: &mut Target, id: SessionId) -> Result<(), Blocked> {
    let tables: Vec<usize> = target.meta.tables.keys().copied().collect();
    tables.into_iter().try_for_each(|table| target.lock(id, Lockable::Record(table)))
}

/// A gap that is open already is widened.
fn open(target: &mut Target, id: SessionId, new: &NewGap) -> Result<(), Blocked> {
    let Some(name) = &new.table else { return Ok(()) };
    let at = by_name(name);
    target.lock(id, Lockable::Record(at))?;
    let meta = &mut target.meta;
    let row = meta.tables.get_mut(&at).filter(|row| row.source == *name);
    let Some(row) = row.filter(|row| matches!(row.state, TableState::Ready | TableState::Paused)) else {
        return Ok(());
    };
    if new.kind.hold() == Hold::Until && row.state == TableState::Ready {
        row.state = TableState::Paused;
        row.attempt += 1;
    }
    let same =
        |gap: &&mut Gap| gap.settled.is_none() && gap.table.as_ref() == Some(name) && gap.kind == new.kind;
    if let Some(known) = meta.gaps.iter_mut().find(same) {
        known.from = known.from.min(new.from);
        known.to = known.to.max(new.to);
        return Ok(());
    }
    let number = i64::try_from(meta.gaps.len()).unwrap_or(0) + 1;
    meta.gaps.push(Gap {
        id: number,
        subscription: "sim".to_owned(),
        table: Some(name.clone()),
        kind: new.kind,
        hold: new.kind.hold(),
        from: new.from,
        to: new.to,
        since: None,
        detail: new.detail.clone(),
        opened_at: Timestamp::UNIX_EPOCH,
        accepted: None,
        settled: None,
    });
    Ok(())
}

/// Makes the record have exactly these tables. One that is renamed keeps its gaps.
fn write(target: &mut Target, tables: &[TableRecord]) {
    let meta = &mut target.meta;
    meta.tables.retain(|_, row| tables.iter().any(|table| table.recorded.as_ref() == Some(&row.source)));
    for table in tables {
        if let Some(recorded) = table.recorded.as_ref().filter(|recorded| **recorded != table.source) {
            let open = meta.gaps.iter_mut().filter(|gap| gap.settled.is_none());
            for gap in open.filter(|gap| gap.table.as_ref() == Some(recorded)) {
                gap.table = Some(table.source.clone());
            }
        }
        let row = meta.tables.entry(by_name(&table.source)).or_insert_with(|| pending(table));
        row.source.clone_from(&table.source);
        row.target.clone_from(&table.target);
        row.source_oid = table.source_oid;
        row.target_oid = table.target_oid;
        row.marks.clone_from(&table.marks);
        row.left = table.left;
    }
}

fn pending(table: &TableRecord) -> TableRow {
    TableRow {
        source: table.source.clone(),
        target: table.target.clone(),
        state: TableState::Pending,
        synced_lsn: None,
        copied_lsn: None,
        attempt: 0,
        rows_copied: 0,
        rows_estimated: None,
        error: None,
        exact_because: None,
        resync: None,
        described: None,
        source_oid: None,
        target_oid: None,
        marks: None,
        left: None,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

fn release(target: &mut Target, position: Lsn) {
    let meta = &mut target.meta;
    for row in meta.tables.values_mut().filter(|row| row.state == TableState::Paused) {
        if meta.gaps.iter().any(|gap| gap.holds_table(&row.source)) {
            continue;
        }
        (row.state, row.synced_lsn) = (TableState::Ready, Some(position));
        row.attempt += 1;
    }
}

/// A command that cannot be carried out is refused, and changes nothing.
fn carry_out(target: &mut Target) {
    let meta = &mut target.meta;
    match meta.commands.pop_front() {
        Some(Command::Refresh) => meta.refresh = true,
        Some(Command::Resync(table)) => {
            if let Some(row) = meta.tables.get_mut(&table).filter(|row| row.left.is_none()) {
                (row.state, row.synced_lsn, row.resync) = (TableState::Pending, None, Some(Resync::Replace));
                row.copied_lsn = None;
                row.attempt += 1;
            }
        }
        Some(Command::Accept(number)) => {
            let open = |gap: &&mut Gap| gap.id == number && gap.settled.is_none();
            let Some(gap) = meta.gaps.iter_mut().find(open) else { return };
            let Some(at) = gap.table.as_ref().map(by_name) else { return };
            let paused = meta.tables.get(&at).is_some_and(|row| row.state == TableState::Paused);
            if gap.hold == Hold::Nothing || paused {
                gap.settled = Some(settled(Settlement::Accepted, None));
                target.decided[at] = true;
            }
        }
        None => {}
    }
}
