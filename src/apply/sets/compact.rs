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
//! Where nothing but the row identity's key relates rows to each other, and bytes tell its values
//! apart (`TablePlan::order_free`), only the net effect of each key matters, together with what its
//! first change implies (INSERT: absent, UPDATE and DELETE: present). A state that a row only passes
//! through is left out if no value of it can be refused, and written otherwise (`net`). Elsewhere
//! order matters: a row that is inserted and deleted again may have met another row's unique value
//! in between, and row by row would have found it. There, only neighbours of one kind are put
//! together (`run`).
//!
//! # Invariants
//! - Running the steps leaves the state that running the changes one by one would leave, and fails
//!   if (not only if) one of them would have failed. On failure the exact path judges.
//! - A set's row count proves that each of its rows met exactly one row of its own: no key twice,
//!   and where a key may find several rows ([`KeyScope`]) it stands alone, since two counts that are
//!   wrong could add up to a right one.
//! - What cannot be expressed is `Uncompactable`, never approximated.
//!
//! # What a row costs
//! Rows and keys are borrowed from the events; only what is left in the end is shared with the steps. No
//! row allocates anything of its own, but for keys of several columns and values taken over from older rows.

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
use crate::schema::{KeyScope, RowIdentity, TableKind, TablePlan};

/// One statement for many rows, or a barrier.
#[derive(Debug, Clone)]
pub enum SetStep {
    Set {
        table: Arc<TableContext>,
        kind: SetKind,
        rows: Vec<SetRow>,
        /// Of the rows' keys, if reading it is how to find them.
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
    /// Sets these columns; the key stays or (rows have an old identity then) changes.
    Update(ColumnSet),
    Insert,
    /// The same two for rows without a key, found by all they hold; these columns of theirs are NULL.
    DeleteFullRow {
        null: ColumnSet,
    },
    UpdateFullRow {
        set: ColumnSet,
        null: ColumnSet,
    },
}

/// A row of a set: what names it, and what it becomes. Either may be all there is: an image without an
/// identity is a new row, or names itself.
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

/// The changes contradict each other, or miss a value: row by row will tell which.
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
    /// Tables with changes since the last barrier, in order of appearance.
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

/// A table, and what its plan means for each of its changes.
struct Planned {
    context: Arc<TableContext>,
    /// The columns that an update sets if all values came and the key stays.
    settable: ColumnSet,
}

impl Planned {
    fn new(table: &Arc<TableContext>) -> Self {
        Self { context: Arc::clone(table), settable: settable(&table.plan) }
    }

    fn plan(&self) -> &TablePlan {
        &self.context.plan
    }

    /// The columns that an update sets, unless the key moves.
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
        // Nothing of the row changes, but it must be there: its key is set to itself.
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
        // What has been done to these rows under another name comes first.
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

/// Whether two plans write the same rows: several published tables may go into one, one table may
/// have been announced anew, and one may go into a partition of another's target.
fn overlap(a: &TablePlan, b: &TablePlan) -> bool {
    let partitioned = a.kind == TableKind::Partitioned || b.kind == TableKind::Partitioned;
    a.target_oid == b.target_oid || (partitioned && a.target_family_oid == b.target_family_oid)
}

/// A change whose key is bytes. Equal bytes are equal keys; unless the table is order free,
/// unequal ones may still be equal to the target's type (1.0 and 1.00), which the statements' row
/// counts then notice.
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
                if new.len() != width || old.len() != width {
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
                let set = if moves { sent(new).collect() } else { table.set_by(new) };
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

    /// The key that names the row (for a new row, its own); none where rows have no key.
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

/// Whether a row that is named by its key may share a set with others.
fn company(plan: &TablePlan) -> Company {
    match plan.row_identity {
        RowIdentity::Key { scope: KeyScope::Leaves | KeyScope::OtherEquality, .. } => Company::None,
        RowIdentity::Key { scope: KeyScope::Table, .. } | RowIdentity::None | RowIdentity::FullRow => {
            Company::Any
        }
    }
}

/// Whether rows are found by all they hold.
fn is_full_row(plan: &TablePlan) -> bool {
    matches!(plan.row_identity, RowIdentity::FullRow)
}

/// The columns of a whole old row that are NULL.
fn nulls(row: &Tuple) -> Result<ColumnSet, Uncompactable> {
    if !row.is_complete() {
        return Err(Uncompactable);
    }
    Ok(row.iter().enumerate().filter(|(_, value)| *value == Value::Null).map(|(i, _)| i).collect())
}

/// All values of a row in one piece. Values that were not sent are `older`'s.
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

/// The columns that an update may set. A key that stays need not be set where equal keys are the same
/// bytes on both sides (no trigger is there to see it); GENERATED ALWAYS identity columns refuse it.
fn settable(plan: &TablePlan) -> ColumnSet {
    let key = if plan.order_free { key_columns(plan) } else { &[] };
    let columns = plan.columns.iter().enumerate();
    columns.filter(|(i, column)| !key.contains(i) && !column.identity_always).map(|(i, _)| i).collect()
}

/// The columns whose values came.
fn sent(row: &Tuple) -> impl Iterator<Item = usize> {
    row.iter().enumerate().filter(|(_, value)| *value != Value::Unchanged).map(|(i, _)| i)
}

/// The key's values in one piece: one column's bytes as they are, several with their lengths.
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
