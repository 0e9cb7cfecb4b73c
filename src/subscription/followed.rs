//! What the record of the subscription's tables means: how each is judged, which of its changes apply, and how a
//! judgement is recorded. Without I/O: `take_up` reads and writes, and the simulator does so in its models.

use crate::apply::Applies;
use crate::gap::{Gap, GapKind};
use crate::pg::{Lsn, QualifiedName};
use crate::schema::Mapping;
use crate::store::{TableRecord, TableRow, TableState};

use super::membership::{
    Judged, Judgement, NewTables, Recorded, Renamed, Synchronised, TargetOids, called, renamed,
};

/// What happens to tables that are published and not recorded. `continues`: the stream goes on from a recorded
/// position. Without `auto_refresh`, tables join then only if an operator has asked for it.
#[must_use]
pub const fn new_tables(continues: bool, auto_refresh: bool, is_asked: bool) -> NewTables {
    if continues && !auto_refresh && !is_asked { NewTables::Leave } else { NewTables::Follow }
}

/// The record of a table, as it is judged.
#[must_use]
pub fn recorded(row: &TableRow, gaps: &[Gap]) -> Recorded {
    Recorded {
        source: row.source.clone(),
        oid: row.source_oid,
        marks: row.marks.clone(),
        left: row.left,
        copied: row.copied_lsn,
        held: gaps.iter().find(|gap| gap.holds_table(&row.source)).map(|gap| gap.kind),
        other_target: None,
        synchronised: match row.state {
            TableState::Ready | TableState::Paused | TableState::Left => Synchronised::Yes,
            _ if row.resync.is_some() => Synchronised::Again,
            TableState::Pending | TableState::Copying | TableState::CatchingUp => Synchronised::No,
        },
    }
}

/// The position from which on a table's changes are passed over, because a gap holds it.
fn held_from(row: &TableRow, gaps: &[Gap]) -> Option<Lsn> {
    let holding = gaps.iter().filter(|gap| gap.holds_table(&row.source));
    holding.map(|gap| gap.from.unwrap_or_default()).min()
}

/// Whether nothing holds a table any more that is paused. While the stream goes on without a publication that the
/// walsender has `refused`, tables stay as they are, because their changes may not be sent.
pub fn is_any_released<'a>(
    rows: impl IntoIterator<Item = &'a TableRow>,
    gaps: &[Gap],
    refused: &[String],
) -> bool {
    let is_released = |row: &TableRow| row.state == TableState::Paused && held_from(row, gaps).is_none();
    refused.is_empty() && rows.into_iter().any(is_released)
}

/// Which changes of a table apply.
#[must_use]
pub fn applies(row: &TableRow, gaps: &[Gap], unused_xid: u64) -> Applies {
    /// Identifiers are compared in a circle, and the publisher keeps no transaction that is older than half of it.
    const OLDEST: u64 = 1 << 31;
    let position = match row.state {
        TableState::Ready | TableState::Paused | TableState::Left => row.synced_lsn,
        TableState::Pending | TableState::Copying | TableState::CatchingUp => None,
    };
    let position = position.filter(|_| row.left.is_none_or(|left| unused_xid < left.xid + OLDEST));
    #[expect(clippy::cast_possible_truncation, reason = "the stream names transactions without their epoch")]
    let left_xid = row.left.map(|left| left.xid as u32);
    let held = if row.state == TableState::Paused { held_from(row, gaps).or(Some(Lsn::ZERO)) } else { None };
    Applies { position, held_from: held, left_xid }
}

/// A table as it is to be recorded, and its record so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording<'a> {
    pub table: TableRecord,
    pub row: Option<&'a TableRow>,
}

/// The tables as they are to be recorded.
#[must_use]
pub fn recordings<'a>(judged: &Judged, mapping: &Mapping, rows: &'a [TableRow]) -> Vec<Recording<'a>> {
    judged.tables.iter().map(|table| recording(table, mapping, rows)).collect()
}

fn recording<'a>(table: &Judgement, mapping: &Mapping, rows: &'a [TableRow]) -> Recording<'a> {
    let row = table.recorded.as_ref().and_then(|recorded| rows.iter().find(|row| row.source == *recorded));
    // The target of a table that has left is the one that it had.
    let mapped = mapping.target(&table.source).filter(|_| table.left.is_none());
    let target = mapped.or(row.map(|row| &row.target)).unwrap_or(&table.source);
    let goes_elsewhere = table.gaps.iter().any(|gap| gap.kind == GapKind::OtherTarget);
    let record = TableRecord {
        recorded: table.recorded.clone(),
        source: table.source.clone(),
        target: target.clone(),
        source_oid: table.oid,
        // Rows that are still to be copied go into whatever has the name then.
        target_oid: row
            .filter(|row| !goes_elsewhere && !row.is_to_be_copied())
            .and_then(|row| row.target_oid),
        marks: table.marks.clone(),
        left: table.left,
        held: table.gaps.first().filter(|_| table.recorded.is_none()).cloned(),
    };
    Recording { table: record, row }
}

/// Whether the record has exactly these tables.
#[must_use]
pub fn is_as_recorded(tables: &[TableRecord], rows: &[TableRow]) -> bool {
    let is = |row: &TableRow, table: &TableRecord| {
        row.source == table.source
            && row.target == table.target
            && row.source_oid == table.source_oid
            && row.target_oid == table.target_oid
            && row.marks == table.marks
            && row.left == table.left
    };
    tables.len() == rows.len() && tables.iter().all(|table| rows.iter().any(|row| is(row, table)))
}

/// The names and OIDs of the target's tables that [`identify`] needs: those whose OIDs are not on record, and those
/// of tables that were renamed on the publisher.
#[must_use]
pub fn targets_to_look_up(tables: &[Recording<'_>]) -> (Vec<QualifiedName>, Vec<u32>) {
    let (mut names, mut oids) = (Vec::new(), Vec::new());
    for Recording { table, row } in tables {
        // Changes of transactions that were open when it left may still come, also once it has been let go.
        if table.left.is_some() {
            names.push(table.target.clone());
            oids.extend(table.target_oid);
        }
        let moved = row.is_some_and(|row| row.target != table.target);
        if table.left.is_none() && (table.target_oid.is_none() || moved) {
            names.push(table.target.clone());
            if moved && is_renamed(table) {
                names.extend(row.map(|row| row.target.clone()));
                oids.extend(table.target_oid);
            }
        }
    }
    (names, oids)
}

/// A table that was renamed on the publisher, while its target was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub source: QualifiedName,
    /// The name of its target.
    pub at: QualifiedName,
    /// The name that its target is to have.
    pub to: QualifiedName,
}

/// Notes the targets by their OIDs. A table that has left keeps its target, whatever that is called now. Returns the
/// tables whose targets have still to be renamed.
pub fn identify(tables: &mut [Recording<'_>], found: &TargetOids) -> Vec<Waiting> {
    for Recording { table, .. } in tables.iter_mut().filter(|recording| recording.table.left.is_some()) {
        if let Some(name) = table.target_oid.and_then(|oid| called(found, oid)) {
            table.target.clone_from(name);
        }
    }
    let mut waiting = Vec::new();
    for Recording { table, row } in tables.iter_mut().filter(|recording| recording.table.left.is_none()) {
        if let Some(row) = row.filter(|row| is_renamed(table) && row.target != table.target)
            && let Renamed::NotYet(at) = renamed((&row.target, row.target_oid), &table.target, found)
        {
            waiting.push(Waiting { source: table.source.clone(), at, to: table.target.clone() });
        }
        if let Some(&oid) = found.get(&table.target) {
            table.target_oid = Some(oid);
        }
    }
    waiting
}

fn is_renamed(table: &TableRecord) -> bool {
    table.recorded.as_ref().is_some_and(|name| *name != table.source)
}
