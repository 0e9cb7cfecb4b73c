//! Many row changes become few set statements with the same meaning.
//!
//! Pure. The input is a run of events in publisher order, the output a list of [`Step`]s in the
//! order in which they must run within one target transaction.
//!
//! ```text
//! changes ─▶ per table: order free? ─yes─▶ net effect per key ─▶ absent, deletes, updates, inserts
//!                                   └─no──▶ runs of one kind, no key twice in a run
//! ```
//! # Why two ways
//! Where nothing but the row identity's key can refuse a row (`TablePlan::order_free`), rows with
//! different keys don't meet: only the net effect of each key matters, together with what its first
//! change implies (INSERT: absent, UPDATE and DELETE: present). Where another constraint watches,
//! order and passing states matter, too: a row that is inserted and deleted again may have met a
//! conflict in between, and row by row would have found it. There, only neighbours of one kind are
//! put together.
//!
//! # Invariants
//! - Running the steps leaves the state that running the changes one by one would leave, and fails
//!   if (not only if) one of them would have failed. On failure the exact path judges.
//! - What cannot be expressed is [`Uncompactable`], never approximated.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use foldhash::fast::RandomState;

use super::event::Event;
use super::plan::RowChange;
use super::planned::TableContext;
use super::statement::ColumnSet;
use crate::pgoutput::{OldRow, Tuple, Value};
use crate::schema::{RowIdentity, TablePlan};

/// One statement for many rows, or a barrier.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Set { table: Arc<TableContext>, kind: SetKind, rows: Vec<SetRow> },
    Truncate { tables: Vec<Arc<TableContext>>, restart_seqs: bool },
}

/// What a set statement does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SetKind {
    /// No row has any of these keys.
    Absent,
    Delete,
    /// Sets these columns; the key stays or (rows have an old identity then) changes.
    Update(ColumnSet),
    Insert,
}

/// A row of a set: what names it, and what it becomes. Either may be all there is.
#[derive(Debug, Clone)]
pub(super) struct SetRow {
    pub(super) identity: Option<Tuple>,
    pub(super) image: Option<Tuple>,
}

/// The changes contradict each other, or miss a value: row by row will tell which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uncompactable;

/// Compacts the changes of `events`.
pub(super) fn compact<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Vec<Step>, Uncompactable> {
    let mut compactor = Compactor::default();
    for event in events {
        match event {
            Event::Change { table, change, .. } => compactor.change(table, change)?,
            Event::Truncate { tables, restart_seqs, .. } => {
                compactor.close_all();
                let (tables, restart_seqs) = (tables.clone(), *restart_seqs);
                compactor.steps.push(Step::Truncate { tables, restart_seqs });
            }
            Event::Begin(_) | Event::Commit { .. } | Event::Idle(_) => {}
        }
    }
    compactor.close_all();
    Ok(compactor.steps)
}

#[derive(Default)]
struct Compactor {
    /// Tables with changes since the last barrier, in order of appearance.
    open: Vec<OpenTable>,
    by_id: HashMap<u64, usize, RandomState>,
    steps: Vec<Step>,
}

struct OpenTable {
    table: Arc<TableContext>,
    rows: Rows,
}

/// A table's changes so far.
enum Rows {
    Net(NetRows),
    Run(Run),
}

impl Compactor {
    fn change(&mut self, table: &Arc<TableContext>, change: &RowChange) -> Result<(), Uncompactable> {
        let at = match self.by_id.entry(table.id) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let keyed = matches!(table.plan.row_identity, RowIdentity::Key { .. });
                let rows = if table.plan.order_free && keyed {
                    Rows::Net(NetRows::default())
                } else {
                    Rows::Run(Run::default())
                };
                self.open.push(OpenTable { table: Arc::clone(table), rows });
                *entry.insert(self.open.len() - 1)
            }
        };
        let Some(open) = self.open.get_mut(at) else { return Err(Uncompactable) };
        let change = Keyed::of(&table.plan, change)?;
        match &mut open.rows {
            Rows::Net(net) => {
                if change.moves {
                    // The key changes: whatever was before must be done, and nothing may overtake.
                    net.close(table, &mut self.steps);
                    self.steps.push(change.alone(table));
                    return Ok(());
                }
                net.push(&table.plan, &change)
            }
            Rows::Run(run) => run.push(table, change, &mut self.steps),
        }
    }

    fn close_all(&mut self) {
        for mut open in self.open.drain(..) {
            match &mut open.rows {
                Rows::Net(net) => net.close(&open.table, &mut self.steps),
                Rows::Run(run) => run.close(&open.table, &mut self.steps),
            }
        }
        self.by_id.clear();
    }
}

/// A change with its key as bytes. Equal bytes are equal keys; unequal ones may still be equal to
/// the target's type (1.0 and 1.00), which the statements' row counts then notice.
struct Keyed<'a> {
    kind: SetKind,
    identity: Option<&'a Tuple>,
    image: Option<&'a Tuple>,
    /// The update changes the key.
    moves: bool,
}

impl<'a> Keyed<'a> {
    fn of(plan: &TablePlan, change: &'a RowChange) -> Result<Self, Uncompactable> {
        let columns = key_columns(plan);
        let width = plan.columns.len();
        match change {
            RowChange::Insert { new } => {
                if new.len() != width || new.iter().any(|value| value == Value::Unchanged) {
                    return Err(Uncompactable);
                }
                Ok(Self { kind: SetKind::Insert, identity: None, image: Some(new), moves: false })
            }
            RowChange::Update { old, new } => {
                let named_by = old.tuple().unwrap_or(new);
                if new.len() != width || named_by.len() != width || columns.is_empty() {
                    return Err(Uncompactable);
                }
                let moves = !matches!(old, OldRow::NotSent)
                    && columns.iter().any(|&column| named_by.get(column) != new.get(column));
                let set = present(plan, new, moves);
                if set.iter().next().is_none() {
                    return Err(Uncompactable);
                }
                let identity = Some(named_by);
                Ok(Self { kind: SetKind::Update(set), identity, image: Some(new), moves })
            }
            RowChange::Delete { old } => {
                let named_by = old.tuple().ok_or(Uncompactable)?;
                if named_by.len() != width || columns.is_empty() {
                    return Err(Uncompactable);
                }
                Ok(Self { kind: SetKind::Delete, identity: Some(named_by), image: None, moves: false })
            }
        }
    }

    /// The key that names the row; for a new row, its own.
    fn key(&self, plan: &TablePlan) -> Result<Bytes, Uncompactable> {
        key_of(self.identity.or(self.image).ok_or(Uncompactable)?, key_columns(plan))
    }

    fn row(&self) -> SetRow {
        SetRow { identity: self.identity.cloned(), image: self.image.cloned() }
    }

    fn alone(self, table: &Arc<TableContext>) -> Step {
        Step::Set { table: Arc::clone(table), rows: vec![self.row()], kind: self.kind }
    }
}

fn key_columns(plan: &TablePlan) -> &[usize] {
    match &plan.row_identity {
        RowIdentity::Key { columns, .. } => columns,
        RowIdentity::None | RowIdentity::FullRow => &[],
    }
}

/// The columns that an update sets. A key that stays need not be set where equal keys are the same
/// bytes on both sides (no trigger is there to see it); GENERATED ALWAYS identity columns refuse it.
fn present(plan: &TablePlan, new: &Tuple, moves: bool) -> ColumnSet {
    let key: &[usize] = match &plan.row_identity {
        RowIdentity::Key { columns, .. } if plan.order_free => columns,
        _ => &[],
    };
    let stays = |i: usize| key.contains(&i) || plan.columns.get(i).is_some_and(|c| c.identity_always);
    let values = new.iter().enumerate().filter(|(_, value)| *value != Value::Unchanged);
    values.map(|(i, _)| i).filter(|&i| moves || !stays(i)).collect()
}

/// The key's values in one piece: one column's bytes as they are, several with their lengths.
fn key_of(row: &Tuple, columns: &[usize]) -> Result<Bytes, Uncompactable> {
    if let [column] = columns {
        return match row.get(*column) {
            Some(Value::Text(_) | Value::Binary(_)) => row.bytes(*column).ok_or(Uncompactable),
            _ => Err(Uncompactable),
        };
    }
    let mut key = BytesMut::new();
    for &column in columns {
        let value = row.get(column).and_then(Value::as_bytes).ok_or(Uncompactable)?;
        key.put_u64(value.len() as u64);
        key.put_slice(value);
    }
    Ok(key.freeze())
}

// --- net effect per key --------------------------------------------------------------------------

/// What is left of a key's changes.
#[derive(Debug, Clone)]
enum Net {
    /// First absent, now there.
    Inserted(Tuple),
    /// First absent, and gone again.
    Vanished { identity: Tuple },
    /// First present, now changed.
    Updated { identity: Tuple, image: Tuple },
    /// First present, now gone.
    Deleted { identity: Tuple },
    /// First present, deleted, and inserted anew: what the publisher does not send starts over.
    Replaced { identity: Tuple, image: Tuple },
}

#[derive(Default)]
struct NetRows {
    /// Where each key's row is; not kept as long as there is nothing but inserts, or deletes: a key that
    /// comes twice then contradicts itself, which the statement's own guard notices.
    index: Option<HashMap<Bytes, usize, RandomState>>,
    rows: Vec<Net>,
}

impl NetRows {
    fn push(&mut self, plan: &TablePlan, change: &Keyed<'_>) -> Result<(), Uncompactable> {
        if self.index.is_none() && self.goes_on_alike(&change.kind) {
            self.rows.push(first(&change.kind, change.identity, change.image)?);
            return Ok(());
        }
        let mut index = match self.index.take() {
            Some(index) => index,
            None => self.indexed(plan)?,
        };
        match index.entry(change.key(plan)?) {
            Entry::Vacant(entry) => {
                entry.insert(self.rows.len());
                self.rows.push(first(&change.kind, change.identity, change.image)?);
            }
            Entry::Occupied(entry) => {
                let row = self.rows.get_mut(*entry.get()).ok_or(Uncompactable)?;
                *row = next(plan, row, &change.kind, change.image)?;
            }
        }
        self.index = Some(index);
        Ok(())
    }

    /// Whether the change is an insert among inserts, or a delete among deletes.
    fn goes_on_alike(&self, kind: &SetKind) -> bool {
        match (kind, self.rows.last()) {
            (SetKind::Insert, None | Some(Net::Inserted(_)))
            | (SetKind::Delete, None | Some(Net::Deleted { .. })) => true,
            (SetKind::Insert | SetKind::Delete | SetKind::Update(_) | SetKind::Absent, _) => false,
        }
    }

    fn indexed(&self, plan: &TablePlan) -> Result<HashMap<Bytes, usize, RandomState>, Uncompactable> {
        let mut index = HashMap::with_capacity_and_hasher(self.rows.len() * 2, RandomState::default());
        for (at, row) in self.rows.iter().enumerate() {
            let (Net::Inserted(named_by) | Net::Deleted { identity: named_by }) = row else {
                return Err(Uncompactable);
            };
            if index.insert(key_of(named_by, key_columns(plan))?, at).is_some() {
                return Err(Uncompactable);
            }
        }
        Ok(index)
    }

    fn close(&mut self, table: &Arc<TableContext>, steps: &mut Vec<Step>) {
        self.index = None;
        let (mut absent, mut deletes, mut inserts) = (Vec::new(), Vec::new(), Vec::new());
        let mut updates: Vec<(ColumnSet, Vec<SetRow>)> = Vec::new();
        let named = |identity| SetRow { identity: Some(identity), image: None };
        let new = |image| SetRow { identity: None, image: Some(image) };
        for row in self.rows.drain(..) {
            match row {
                Net::Inserted(image) => inserts.push(new(image)),
                Net::Vanished { identity } => absent.push(named(identity)),
                Net::Deleted { identity } => deletes.push(named(identity)),
                Net::Replaced { identity, image } => {
                    deletes.push(named(identity));
                    inserts.push(new(image));
                }
                Net::Updated { identity, image } => {
                    let set = present(&table.plan, &image, false);
                    let row = SetRow { identity: Some(identity), image: Some(image) };
                    match updates.iter_mut().find(|(columns, _)| *columns == set) {
                        Some((_, rows)) => rows.push(row),
                        None => updates.push((set, vec![row])),
                    }
                }
            }
        }
        let mut step = |kind, rows: Vec<SetRow>| {
            if !rows.is_empty() {
                steps.push(Step::Set { table: Arc::clone(table), kind, rows });
            }
        };
        step(SetKind::Absent, absent);
        step(SetKind::Delete, deletes);
        for (columns, rows) in updates {
            step(SetKind::Update(columns), rows);
        }
        step(SetKind::Insert, inserts);
    }
}

fn first(kind: &SetKind, identity: Option<&Tuple>, image: Option<&Tuple>) -> Result<Net, Uncompactable> {
    match (kind, identity.cloned(), image.cloned()) {
        (SetKind::Insert, _, Some(image)) => Ok(Net::Inserted(image)),
        (SetKind::Update(_), Some(identity), Some(image)) => Ok(Net::Updated { identity, image }),
        (SetKind::Delete, Some(identity), _) => Ok(Net::Deleted { identity }),
        _ => Err(Uncompactable),
    }
}

/// The net effect of `row` followed by one more change. Pairs that no publisher produces (an
/// insert where the row is, an update where it is not) are left to the exact path.
fn next(plan: &TablePlan, row: &Net, kind: &SetKind, image: Option<&Tuple>) -> Result<Net, Uncompactable> {
    // A passing NULL that the target refuses would be a conflict row by row.
    let passing = match row {
        Net::Inserted(image) | Net::Updated { image, .. } | Net::Replaced { image, .. } => Some(image),
        Net::Vanished { .. } | Net::Deleted { .. } => None,
    };
    if passing.is_some_and(|image| refuses_null(plan, image)) {
        return Err(Uncompactable);
    }
    Ok(match (row.clone(), kind, image) {
        (Net::Inserted(before), SetKind::Update(_), Some(image)) => Net::Inserted(image.over(&before)),
        (Net::Inserted(before), SetKind::Delete, _) => Net::Vanished { identity: before },
        (Net::Vanished { .. }, SetKind::Insert, Some(image)) => Net::Inserted(image.clone()),
        (Net::Updated { identity, image: before }, SetKind::Update(_), Some(image)) => {
            Net::Updated { identity, image: image.over(&before) }
        }
        (Net::Updated { identity, .. } | Net::Replaced { identity, .. }, SetKind::Delete, _) => {
            Net::Deleted { identity }
        }
        (Net::Deleted { identity }, SetKind::Insert, Some(image)) => {
            Net::Replaced { identity, image: image.clone() }
        }
        (Net::Replaced { identity, image: before }, SetKind::Update(_), Some(image)) => {
            Net::Replaced { identity, image: image.over(&before) }
        }
        _ => return Err(Uncompactable),
    })
}

fn refuses_null(plan: &TablePlan, image: &Tuple) -> bool {
    plan.columns.iter().zip(image.iter()).any(|(column, value)| column.not_null && value == Value::Null)
}

// --- ordered runs --------------------------------------------------------------------------------

/// Neighbouring changes of one kind, no key twice.
#[derive(Default)]
struct Run {
    kind: Option<SetKind>,
    keys: HashSet<Bytes, RandomState>,
    rows: Vec<SetRow>,
}

impl Run {
    fn push(
        &mut self,
        table: &Arc<TableContext>,
        change: Keyed<'_>,
        steps: &mut Vec<Step>,
    ) -> Result<(), Uncompactable> {
        let key = change.key(&table.plan)?;
        let fits = self.kind.as_ref() == Some(&change.kind)
            && !change.moves
            && (key.is_empty() || !self.keys.contains(&key));
        if !fits {
            self.close(table, steps);
        }
        if change.moves {
            steps.push(change.alone(table));
            return Ok(());
        }
        self.rows.push(change.row());
        self.keys.insert(key);
        self.kind = Some(change.kind);
        Ok(())
    }

    fn close(&mut self, table: &Arc<TableContext>, steps: &mut Vec<Step>) {
        self.keys.clear();
        if let Some(kind) = self.kind.take() {
            steps.push(Step::Set { table: Arc::clone(table), kind, rows: std::mem::take(&mut self.rows) });
        }
    }
}
