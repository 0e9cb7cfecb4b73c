//! The net effect of each key's changes, for tables where the order of different rows means nothing.
//!
//! ```text
//! close: absent ─▶ deletes ─▶ updates, by the columns that they set ─▶ inserts
//! ```
//! # Intermediate states
//! An intermediate state of a row is not written, so the target cannot refuse it, which it might have done
//! row by row. If the target might refuse a value of it (by NOT NULL, an enum's labels, a CHECK constraint
//! and so on), everything so far is written first, the intermediate state included, and the net effect is
//! computed anew from there.

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

/// An index might refuse a row with more bytes than this. A btree entry has at most 2,704 bytes
/// (`BTMaxItemSize` in PostgreSQL's `nbtree.h`), and a value may be longer in an index than as text.
const INDEXED_BYTES_MAX: usize = 1000;

/// A row of an event, or one that was combined from several. The latter is rare and therefore boxed.
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

/// The net effect of a key's changes.
#[derive(Debug, Clone)]
enum Net<'a> {
    /// The row did not exist before and exists now.
    Inserted(Row<'a>),
    /// The row did not exist before and was inserted and deleted.
    Vanished { identity: Row<'a> },
    /// The row existed before and was updated.
    Updated { identity: &'a Tuple, image: Row<'a> },
    /// The row existed before and was deleted.
    Deleted { identity: &'a Tuple },
    /// The row existed before, was deleted and was inserted again. Columns that only the target has get their
    /// defaults.
    Replaced { identity: &'a Tuple, image: Row<'a> },
}

impl Net<'_> {
    /// The row's current state; none if it does not exist.
    fn image(&self) -> Option<&Tuple> {
        match self {
            Self::Inserted(image) | Self::Updated { image, .. } | Self::Replaced { image, .. } => Some(image),
            Self::Vanished { .. } | Self::Deleted { .. } => None,
        }
    }
}

#[derive(Default)]
pub(super) struct NetRows<'a> {
    /// The position of each key's row. It is not kept while all changes are inserts, or all are deletes: a
    /// key that comes twice is then an error that the target finds by the key's index or the set's row count.
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
            // All earlier changes are written first, so that order is kept.
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

    /// Whether all changes so far are inserts and this is one, or all are deletes and this is one.
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
                            // Most updates set the same columns, so further sets get few rows.
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

/// Appends one of `left` rows to a set. Room is reserved for all of them, because usually a batch has one
/// kind of change, and growing step by step would move every row several times.
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

/// Returns the net effect of `row` followed by one more change. Pairs that no publisher produces (an insert
/// of a row that exists, an update of one that does not) are left to row-by-row apply.
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

/// Whether the target might refuse this state of a row.
fn may_be_refused(plan: &TablePlan, image: &Tuple) -> bool {
    let refused = |(column, value): (&ColumnPlan, Value<'_>)| match value {
        Value::Null => column.not_null,
        Value::Unchanged => false,
        // A publisher with the encoding SQL_ASCII sends any bytes.
        Value::Text(bytes) => column.refuses_values || std::str::from_utf8(bytes).is_err(),
        Value::Binary(_) => column.refuses_values,
    };
    let size_bytes = || image.iter().filter_map(Value::as_bytes).map(<[u8]>::len).sum::<usize>();
    plan.judges_rows
        || plan.columns.iter().zip(image.iter()).any(refused)
        || (plan.other_indexes && size_bytes() > INDEXED_BYTES_MAX)
}
