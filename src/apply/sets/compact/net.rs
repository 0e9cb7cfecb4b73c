//! The net effect of each key's changes, for tables where the order of different rows means nothing.
//!
//! ```text
//! close: absent ─▶ deletes ─▶ updates, by the columns that they set ─▶ inserts
//! ```
//! # What must not be left out
//! A state that a row only passes through is not written, so nothing on the target gets to refuse
//! it, as it would have row by row. Where something might (a NULL that is not wanted, a label that
//! is not known, a CHECK…), everything so far is written first, the passing state with it, and the
//! net effect starts anew.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Deref;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::neighbours::add_sets;
use super::{Company, Key, Keyed, Planned, SetKind, SetRow, SetStep, Uncompactable, key_columns, key_of};
use crate::apply::statement::ColumnSet;
use crate::pgoutput::{Tuple, Value};
use crate::schema::{ColumnPlan, TablePlan};

/// A row with more bytes than this might be refused by an index (a btree entry takes 2,704 bytes,
/// `BTMaxItemSize` in PostgreSQL's `nbtree.h`; what is short as text may be longer inside).
const INDEXED_BYTES_MAX: usize = 1000;

/// A row as an event has it, or (seldom, so it may lie elsewhere) one made of several.
#[derive(Debug, Clone)]
enum Row<'a> {
    Sent(&'a Tuple),
    Made(Box<Tuple>),
}

impl<'a> Row<'a> {
    fn over(newer: &'a Tuple, older: &Tuple) -> Self {
        match newer.over(older) {
            Cow::Borrowed(newer) => Self::Sent(newer),
            Cow::Owned(made) => Self::Made(Box::new(made)),
        }
    }

    fn into_tuple(self) -> Tuple {
        match self {
            Self::Sent(tuple) => tuple.clone(),
            Self::Made(tuple) => *tuple,
        }
    }
}

impl Deref for Row<'_> {
    type Target = Tuple;

    fn deref(&self) -> &Tuple {
        match self {
            Self::Sent(tuple) => tuple,
            Self::Made(tuple) => tuple,
        }
    }
}

/// What is left of a key's changes.
#[derive(Debug, Clone)]
enum Net<'a> {
    /// First absent, now there.
    Inserted(Row<'a>),
    /// First absent, and gone again.
    Vanished { identity: Row<'a> },
    /// First present, now changed.
    Updated { identity: &'a Tuple, image: Row<'a> },
    /// First present, now gone.
    Deleted { identity: &'a Tuple },
    /// First present, deleted, and inserted anew: what the publisher does not send starts over.
    Replaced { identity: &'a Tuple, image: Row<'a> },
}

impl Net<'_> {
    /// The state that the row has now, if it is there.
    fn image(&self) -> Option<&Tuple> {
        match self {
            Self::Inserted(image) | Self::Updated { image, .. } | Self::Replaced { image, .. } => Some(image),
            Self::Vanished { .. } | Self::Deleted { .. } => None,
        }
    }
}

#[derive(Default)]
pub(super) struct NetRows<'a> {
    /// Where each key's row is; not kept as long as there is nothing but inserts, or deletes: a key that
    /// comes twice then contradicts itself, which the key's index or the set's row count notices.
    index: Option<Index<'a>>,
    rows: Vec<Net<'a>>,
}

type Index<'a> = HashMap<Key<'a>, usize, RandomState>;

impl<'a> NetRows<'a> {
    pub(super) fn push(
        &mut self,
        table: &Planned,
        change: Keyed<'a>,
        steps: &mut Vec<SetStep>,
    ) -> Result<(), Uncompactable> {
        if change.company == Company::None {
            // Whatever was before must be done, and nothing may overtake.
            self.close(table, steps);
            steps.push(change.alone(table));
            return Ok(());
        }
        if self.index.is_none() && self.goes_on_alike(&change.kind) {
            self.rows.push(first(&change)?);
            return Ok(());
        }
        let key = change.key(table.plan())?.ok_or(Uncompactable)?;
        if self.index.is_none() {
            self.index = Some(self.indexed(table.plan())?);
        }
        match self.index.get_or_insert_default().entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(self.rows.len());
                self.rows.push(first(&change)?);
            }
            Entry::Occupied(entry) => {
                let row = self.rows.get_mut(*entry.get()).ok_or(Uncompactable)?;
                if row.image().is_some_and(|image| may_be_refused(table.plan(), image)) {
                    self.close(table, steps);
                    return self.push(table, change, steps);
                }
                *row = next(row, &change)?;
            }
        }
        Ok(())
    }

    /// Whether the change is an insert among inserts, or a delete among deletes.
    fn goes_on_alike(&self, kind: &SetKind) -> bool {
        matches!(
            (kind, self.rows.last()),
            (SetKind::Insert, None | Some(Net::Inserted(_)))
                | (SetKind::Delete, None | Some(Net::Deleted { .. }))
        )
    }

    fn indexed(&self, plan: &TablePlan) -> Result<Index<'a>, Uncompactable> {
        let mut index = Index::with_capacity_and_hasher(self.rows.len() * 2, RandomState::default());
        for (at, row) in self.rows.iter().enumerate() {
            let (Net::Inserted(Row::Sent(named_by)) | Net::Deleted { identity: named_by }) = row else {
                return Err(Uncompactable);
            };
            let key = key_of(named_by, key_columns(plan))?.ok_or(Uncompactable)?;
            if index.insert(key, at).is_some() {
                return Err(Uncompactable);
            }
        }
        Ok(index)
    }

    pub(super) fn close(&mut self, table: &Planned, steps: &mut Vec<SetStep>) {
        self.index = None;
        let (mut absent, mut deletes, mut inserts) = (Vec::new(), Vec::new(), Vec::new());
        let mut updates: Vec<(ColumnSet, Vec<SetRow>)> = Vec::new();
        let mut left = self.rows.len() + 1;
        for row in self.rows.drain(..) {
            left -= 1;
            match row {
                Net::Inserted(image) => put(&mut inserts, SetRow::new(image.into_tuple()), left),
                Net::Vanished { identity } => put(&mut absent, SetRow::named(identity.into_tuple()), left),
                Net::Deleted { identity } => put(&mut deletes, SetRow::named(identity.clone()), left),
                Net::Replaced { identity, image } => {
                    put(&mut deletes, SetRow::named(identity.clone()), left);
                    put(&mut inserts, SetRow::new(image.into_tuple()), left);
                }
                Net::Updated { identity, image } => {
                    let set = table.set_by(&image);
                    let row = changed(identity, image);
                    match updates.iter_mut().find(|(columns, _)| *columns == set) {
                        Some((_, rows)) => rows.push(row),
                        None => {
                            // Most updates set the same columns; further sets get few rows.
                            let capacity = if updates.is_empty() { left } else { 1 };
                            let mut rows = Vec::with_capacity(capacity);
                            rows.push(row);
                            updates.push((set, rows));
                        }
                    }
                }
            }
        }
        let set = |kind, rows: Vec<SetRow>| {
            let table = Arc::clone(&table.context);
            (!rows.is_empty()).then_some(SetStep::Set { table, kind, rows, range: None })
        };
        steps.extend(set(SetKind::Absent, absent));
        let changed = updates.into_iter().map(|(columns, rows)| (SetKind::Update(columns), rows));
        for (kind, rows) in std::iter::once((SetKind::Delete, deletes)).chain(changed) {
            add_sets(&table.context, &kind, rows, steps);
        }
        steps.extend(set(SetKind::Insert, inserts));
    }
}

fn changed(identity: &Tuple, image: Row<'_>) -> SetRow {
    match image {
        Row::Sent(image) => SetRow::changed(identity, image),
        Row::Made(image) => SetRow { identity: Some(identity.clone()), image: Some(*image) },
    }
}

/// Puts one of `left` rows into a set, which may get them all: usually a batch has one kind of change, and
/// growing step by step would move every row several times.
fn put(set: &mut Vec<SetRow>, row: SetRow, left: usize) {
    if set.is_empty() {
        set.reserve_exact(left);
    }
    set.push(row);
}

fn first<'a>(change: &Keyed<'a>) -> Result<Net<'a>, Uncompactable> {
    match (&change.kind, change.identity, change.image) {
        (SetKind::Insert, _, Some(image)) => Ok(Net::Inserted(Row::Sent(image))),
        (SetKind::Update(_), Some(identity), Some(image)) => {
            Ok(Net::Updated { identity, image: Row::Sent(image) })
        }
        (SetKind::Delete, Some(identity), _) => Ok(Net::Deleted { identity }),
        _ => Err(Uncompactable),
    }
}

/// The net effect of `row` followed by one more change. Pairs that no publisher produces (an
/// insert where the row is, an update where it is not) are left to the exact path.
fn next<'a>(row: &Net<'a>, change: &Keyed<'a>) -> Result<Net<'a>, Uncompactable> {
    Ok(match (row.clone(), &change.kind, change.image) {
        (Net::Inserted(before), SetKind::Update(_), Some(image)) => Net::Inserted(Row::over(image, &before)),
        (Net::Inserted(before), SetKind::Delete, _) => Net::Vanished { identity: before },
        (Net::Vanished { .. }, SetKind::Insert, Some(image)) => Net::Inserted(Row::Sent(image)),
        (Net::Updated { identity, image: before }, SetKind::Update(_), Some(image)) => {
            Net::Updated { identity, image: Row::over(image, &before) }
        }
        (Net::Updated { identity, .. } | Net::Replaced { identity, .. }, SetKind::Delete, _) => {
            Net::Deleted { identity }
        }
        (Net::Deleted { identity }, SetKind::Insert, Some(image)) => {
            Net::Replaced { identity, image: Row::Sent(image) }
        }
        (Net::Replaced { identity, image: before }, SetKind::Update(_), Some(image)) => {
            Net::Replaced { identity, image: Row::over(image, &before) }
        }
        _ => return Err(Uncompactable),
    })
}

/// Whether something on the target might refuse this state of a row, were it written.
fn may_be_refused(plan: &TablePlan, image: &Tuple) -> bool {
    let refused = |(column, value): (&ColumnPlan, Value<'_>)| match value {
        Value::Null => column.not_null,
        Value::Unchanged => false,
        // A publisher without an encoding sends any bytes.
        Value::Text(bytes) => column.refuses_values || std::str::from_utf8(bytes).is_err(),
        Value::Binary(_) => column.refuses_values,
    };
    let size_bytes = || image.iter().filter_map(Value::as_bytes).map(<[u8]>::len).sum::<usize>();
    plan.judges_rows
        || plan.columns.iter().zip(image.iter()).any(refused)
        || (plan.other_indexes && size_bytes() > INDEXED_BYTES_MAX)
}
