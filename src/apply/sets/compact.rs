//! Many row changes become few set statements with the same meaning.
//!
//! Pure. The input is a run of events in publisher order, the output a list of [`SetStep`]s in the
//! order in which they must run within one target transaction.
//!
//! ```text
//! changes ─▶ per table: order free? ─yes─▶ net effect per key ─▶ absent, deletes, updates, inserts
//!                                   └─no──▶ runs of one kind, no key twice in a run
//! ```
//! # Why two ways
//! In an order-free table (`TablePlan::order_free`), nothing but the row identity's key relates rows to each
//! other, and keys are equal only if their bytes are. There, only the net effect of each key matters,
//! together with the precondition of its first change (INSERT: absent, UPDATE and DELETE: present). An
//! intermediate state of a row is left out if the target cannot refuse any value of it, and written otherwise
//! (`net`). In other tables the order matters: a row that is inserted and deleted again may conflict with
//! another row's unique value in between, which row-by-row apply would find. There, only consecutive changes
//! of one kind are combined (`run`).
//!
//! # Invariants
//! - The steps leave the same state as the changes one by one. They fail if one of the changes would fail,
//!   and may fail in other cases, too. After a failure, row-by-row apply decides.
//! - A set's row count proves that each of its rows found exactly one row of its own. So no key is in a set
//!   twice, and a key that may find several rows ([`KeyScope`]) is in a set of its own: two wrong counts
//!   could have the right sum.
//! - Changes that sets cannot express are `Uncompactable`; they are never approximated.
//!
//! # What a row costs
//! Rows and keys are borrowed from the events; the steps share only the rows that are left. No memory is
//! allocated for a row, except for keys of several columns and for values taken from older rows.

mod neighbours;
mod net;
mod run;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

pub use self::neighbours::KeyRange;
use self::net::NetRows;
use self::run::Run;
use crate::apply::change::RowChange;
use crate::apply::incoming::event::Event;
use crate::apply::statement::ColumnSet;
use crate::apply::table::TableContext;
use crate::pgoutput::{OldRow, Tuple, Value};
use crate::schema::{ColumnPlan, KeyScope, RowIdentity, TableKind, TablePlan};

/// One statement for many rows, or a TRUNCATE.
#[derive(Debug, Clone)]
pub enum SetStep {
    Set {
        table: Arc<TableContext>,
        kind: SetKind,
        rows: Vec<SetRow>,
        /// The range of the rows' keys, if rows are found by reading it.
        range: Option<KeyRange>,
    },
    Truncate {
        tables: Vec<Arc<TableContext>>,
        restart_seqs: bool,
    },
}

/// What a set statement does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// No row has any of these keys.
    Absent,
    Delete,
    /// Sets these columns, in rows that already have the values of the kept columns
    /// ([`TablePlan::kept_columns`]). If the key changes, rows have an old identity.
    Update(ColumnSet),
    Insert,
    /// Deletes rows without a key, which are found by all their columns; those in `null` are NULL.
    DeleteFullRow {
        null: ColumnSet,
    },
    UpdateFullRow {
        set: ColumnSet,
        null: ColumnSet,
    },
}

/// A row of a set: its identity and its new image. One of them may be missing: a deleted row has no image,
/// and an image without an identity is a new row or identifies the row itself.
#[derive(Debug, Clone)]
pub struct SetRow {
    pub identity: Option<Tuple>,
    pub image: Option<Tuple>,
}

impl SetRow {
    fn named(identity: Tuple) -> Self {
        Self { identity: Some(identity), image: None }
    }

    fn new(image: Tuple) -> Self {
        Self { identity: None, image: Some(image) }
    }

    fn changed(identity: &Tuple, image: &Tuple) -> Self {
        let names_itself = std::ptr::eq(identity, image);
        Self { identity: (!names_itself).then(|| identity.clone()), image: Some(image.clone()) }
    }

    /// The tuple whose identity columns find the row.
    #[inline]
    pub fn named_by(&self) -> Option<&Tuple> {
        self.identity.as_ref().or(self.image.as_ref())
    }
}

/// The changes contradict each other or lack a value. Row-by-row apply finds the one that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uncompactable;

/// Compacts the changes of `events`.
pub(crate) fn compact<'a>(
    events: impl IntoIterator<Item = &'a Event>,
) -> Result<Vec<SetStep>, Uncompactable> {
    let mut compactor = Compactor::default();
    for event in events {
        match event {
            Event::Change { table, change, .. } => compactor.change(table, change)?,
            Event::Truncate { tables, restart_seqs, .. } => {
                compactor.close_all();
                let (tables, restart_seqs) = (tables.clone(), *restart_seqs);
                compactor.steps.push(SetStep::Truncate { tables, restart_seqs });
            }
            Event::Begin(_) | Event::Commit { .. } => {}
        }
    }
    compactor.close_all();
    Ok(compactor.steps)
}

#[derive(Default)]
struct Compactor<'a> {
    /// Tables with changes since the last TRUNCATE, in order of appearance.
    open: Vec<OpenTable<'a>>,
    by_id: HashMap<u64, usize, RandomState>,
    steps: Vec<SetStep>,
}

struct OpenTable<'a> {
    table: Planned,
    rows: Rows<'a>,
    /// Other open tables through which the same rows of the target are written.
    rivals: Vec<usize>,
}

/// A table, and what is derived from its plan once for all its changes.
struct Planned {
    context: Arc<TableContext>,
    /// The columns that an update sets if all values were sent and the key does not change.
    settable: ColumnSet,
}

impl Planned {
    fn new(table: &Arc<TableContext>) -> Self {
        Self { context: Arc::clone(table), settable: settable(&table.plan) }
    }

    fn plan(&self) -> &TablePlan {
        &self.context.plan
    }

    /// The columns that an update sets if the key does not change.
    #[inline]
    fn set_by(&self, new: &Tuple) -> ColumnSet {
        let set = if new.is_complete() {
            self.settable.clone()
        } else {
            sent(new).filter(|&column| self.settable.contains(column)).collect()
        };
        if !set.is_empty() {
            return set;
        }
        // No column changes, but the row must exist: its key is set to itself.
        let columns = &self.plan().columns;
        let may_be_set = |&column: &usize| columns.get(column).is_some_and(|column| !column.identity_always);
        sent(new).filter(may_be_set).collect()
    }
}

/// A table's changes so far.
enum Rows<'a> {
    Net(NetRows<'a>),
    Run(Run<'a>),
}

impl Rows<'_> {
    fn of(plan: &TablePlan) -> Self {
        let keyed = matches!(plan.row_identity, RowIdentity::Key { .. });
        if plan.order_free && keyed { Self::Net(NetRows::default()) } else { Self::Run(Run::default()) }
    }
}

impl<'a> OpenTable<'a> {
    fn push(&mut self, change: &'a RowChange, steps: &mut Vec<SetStep>) -> Result<(), Uncompactable> {
        let change = Keyed::of(&self.table, change)?;
        match &mut self.rows {
            Rows::Net(net) => net.push(&self.table, change, steps),
            Rows::Run(run) => run.push(&self.table, change, steps),
        }
    }

    fn close(&mut self, steps: &mut Vec<SetStep>) {
        match &mut self.rows {
            Rows::Net(net) => net.close(&self.table, steps),
            Rows::Run(run) => run.close(&self.table, steps),
        }
    }
}

impl<'a> Compactor<'a> {
    fn change(&mut self, table: &Arc<TableContext>, change: &'a RowChange) -> Result<(), Uncompactable> {
        let at = match self.by_id.get(&table.id) {
            Some(&at) => at,
            None => self.open(table),
        };
        // Earlier changes of the same rows through other published tables are written first.
        let rivals = self.open.get_mut(at).map(|open| std::mem::take(&mut open.rivals)).unwrap_or_default();
        for &rival in &rivals {
            if let Some(rival) = self.open.get_mut(rival) {
                rival.close(&mut self.steps);
            }
        }
        let open = self.open.get_mut(at).ok_or(Uncompactable)?;
        open.rivals = rivals;
        open.push(change, &mut self.steps)
    }

    fn open(&mut self, table: &Arc<TableContext>) -> usize {
        let at = self.open.len();
        let mut rivals = Vec::new();
        for (other_at, other) in self.open.iter_mut().enumerate() {
            if overlap(other.table.plan(), &table.plan) {
                other.rivals.push(at);
                rivals.push(other_at);
            }
        }
        self.open.push(OpenTable { table: Planned::new(table), rows: Rows::of(&table.plan), rivals });
        self.by_id.insert(table.id, at);
        at
    }

    fn close_all(&mut self) {
        for mut open in self.open.drain(..) {
            open.close(&mut self.steps);
        }
        self.by_id.clear();
    }
}

/// Whether two plans write the same rows. Several published tables may be mapped to one target table, a table
/// may have got a new Relation message, and a table may be mapped to a partition of another one's target.
fn overlap(a: &TablePlan, b: &TablePlan) -> bool {
    let partitioned = a.kind == TableKind::Partitioned || b.kind == TableKind::Partitioned;
    a.target_oid == b.target_oid || (partitioned && a.target_family_oid == b.target_family_oid)
}

/// A change with its key as bytes. Equal bytes are equal keys. Unless the table is order-free, different
/// bytes may be equal for the target's type (1.0 and 1.00); then the statements' row counts differ, and the
/// batch fails.
struct Keyed<'a> {
    kind: SetKind,
    identity: Option<&'a Tuple>,
    image: Option<&'a Tuple>,
    company: Company,
}

/// Whether a change may share its set with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    Any,
    /// An update that changes the key, or a key that may find several rows.
    None,
}

impl<'a> Keyed<'a> {
    fn of(table: &Planned, change: &'a RowChange) -> Result<Self, Uncompactable> {
        let plan = table.plan();
        let width = plan.columns.len();
        match change {
            RowChange::Insert { new } => {
                if new.len() != width || !new.is_complete() {
                    return Err(Uncompactable);
                }
                let (kind, image) = (SetKind::Insert, Some(new));
                Ok(Self { kind, identity: None, image, company: Company::Any })
            }
            RowChange::Update { old: OldRow::Full(old), new } if is_full_row(plan) => {
                let refused =
                    |(i, column): (usize, &ColumnPlan)| column.identity_always && old.get(i) != new.get(i);
                if new.len() != width || old.len() != width || plan.columns.iter().enumerate().any(refused) {
                    return Err(Uncompactable);
                }
                let kind = SetKind::UpdateFullRow { set: table.set_by(new), null: nulls(old)? };
                Ok(Self { kind, identity: Some(old), image: Some(new), company: company(plan) })
            }
            RowChange::Delete { old: OldRow::Full(old) } if is_full_row(plan) => {
                if old.len() != width {
                    return Err(Uncompactable);
                }
                let kind = SetKind::DeleteFullRow { null: nulls(old)? };
                Ok(Self { kind, identity: Some(old), image: None, company: company(plan) })
            }
            RowChange::Update { old, new } => {
                let (named_by, columns) = (old.tuple().unwrap_or(new), key_columns(plan));
                if new.len() != width || named_by.len() != width || columns.is_empty() {
                    return Err(Uncompactable);
                }
                let moves = !matches!(old, OldRow::NotSent)
                    && columns.iter().any(|&column| named_by.get(column) != new.get(column));
                let set = if moves { moved(plan, new) } else { table.set_by(new) };
                if set.is_empty() {
                    return Err(Uncompactable);
                }
                let (kind, identity, image) = (SetKind::Update(set), Some(named_by), Some(new));
                let company = if moves { Company::None } else { company(plan) };
                Ok(Self { kind, identity, image, company })
            }
            RowChange::Delete { old } => {
                let named_by = old.tuple().ok_or(Uncompactable)?;
                if named_by.len() != width || key_columns(plan).is_empty() {
                    return Err(Uncompactable);
                }
                let (kind, identity) = (SetKind::Delete, Some(named_by));
                Ok(Self { kind, identity, image: None, company: company(plan) })
            }
        }
    }

    /// The key that identifies the row, for a new row its own; none in a table without a key.
    fn key(&self, plan: &TablePlan) -> Result<Option<Key<'a>>, Uncompactable> {
        key_of(self.identity.or(self.image).ok_or(Uncompactable)?, key_columns(plan))
    }

    fn row(&self) -> SetRow {
        match (self.identity, self.image) {
            (Some(identity), Some(image)) => SetRow::changed(identity, image),
            (identity, image) => SetRow { identity: identity.cloned(), image: image.cloned() },
        }
    }

    fn alone(self, table: &Planned) -> SetStep {
        SetStep::Set {
            table: Arc::clone(&table.context),
            rows: vec![self.row()],
            kind: self.kind,
            range: None,
        }
    }
}

/// Whether a row that is identified by its key may share a set with others.
fn company(plan: &TablePlan) -> Company {
    match plan.row_identity {
        RowIdentity::Key { scope: KeyScope::Leaves | KeyScope::OtherEquality, .. } => Company::None,
        RowIdentity::Key { scope: KeyScope::Table, .. } | RowIdentity::None | RowIdentity::FullRow => {
            Company::Any
        }
    }
}

/// Whether rows are found by all their columns.
fn is_full_row(plan: &TablePlan) -> bool {
    matches!(plan.row_identity, RowIdentity::FullRow)
}

/// Returns the columns of a whole old row that are NULL.
fn nulls(row: &Tuple) -> Result<ColumnSet, Uncompactable> {
    if !row.is_complete() {
        return Err(Uncompactable);
    }
    Ok(row.iter().enumerate().filter(|(_, value)| *value == Value::Null).map(|(i, _)| i).collect())
}

/// Returns all values of a row as one byte string. Values that were not sent are taken from `older`.
fn bytes_of(row: &Tuple, older: Option<&Tuple>) -> Vec<u8> {
    let row = older.map_or(Cow::Borrowed(row), |older| row.over(older));
    let mut bytes = Vec::with_capacity(row.size_bytes() + row.len() * size_of::<u64>());
    for value in row.iter() {
        match value.as_bytes() {
            None => bytes.extend_from_slice(&u64::MAX.to_be_bytes()),
            Some(value) => put_delimited(&mut bytes, value),
        }
    }
    bytes
}

fn put_delimited(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&(value.len() as u64).to_be_bytes());
    out.extend_from_slice(value);
}

fn key_columns(plan: &TablePlan) -> &[usize] {
    match &plan.row_identity {
        RowIdentity::Key { columns, .. } => columns,
        RowIdentity::None | RowIdentity::FullRow => &[],
    }
}

/// Returns the columns that an update may set. An unchanged key is not set in an order-free table, where
/// equal keys have equal bytes on both sides and no trigger fires. The server refuses SET for GENERATED
/// ALWAYS identity columns.
fn settable(plan: &TablePlan) -> ColumnSet {
    let key = if plan.order_free { key_columns(plan) } else { &[] };
    let columns = plan.columns.iter().enumerate();
    columns.filter(|(i, column)| !key.contains(i) && !column.identity_always).map(|(i, _)| i).collect()
}

/// Returns the columns that an update sets if the key changes.
fn moved(plan: &TablePlan, new: &Tuple) -> ColumnSet {
    let kept: ColumnSet = plan.kept_columns().collect();
    sent(new).filter(|&column| !kept.contains(column)).collect()
}

/// Returns the columns whose values were sent.
fn sent(row: &Tuple) -> impl Iterator<Item = usize> {
    row.iter().enumerate().filter(|(_, value)| *value != Value::Unchanged).map(|(i, _)| i)
}

/// The key's values as one byte string: the bytes of one column, or those of several with their lengths.
type Key<'a> = Cow<'a, [u8]>;

fn key_of<'a>(row: &'a Tuple, columns: &[usize]) -> Result<Option<Key<'a>>, Uncompactable> {
    let value = |&column: &usize| row.get(column).and_then(Value::as_bytes).ok_or(Uncompactable);
    match columns {
        [] => Ok(None),
        [column] => Ok(Some(Cow::Borrowed(value(column)?))),
        _ => {
            let mut key = Vec::new();
            for column in columns {
                put_delimited(&mut key, value(column)?);
            }
            Ok(Some(Cow::Owned(key)))
        }
    }
}
