//! Sets of rows whose integer keys lie close together.
//!
//! Statements that change a whole table, or delete an old part of it, usually produce changes in the order of
//! the key. Reading a range of the key's index finds such rows faster than looking up each one: a DELETE
//! takes half the time, an UPDATE a seventh less. So rows are sorted by their key, and keys that lie close
//! together form a set with a range. This is not done for tables where the order of changes matters.

use std::sync::Arc;

use super::{SetKind, SetRow, SetStep};
use crate::apply::table::TableContext;
use crate::pgoutput::Value;
use crate::schema::{ArrayInput, KeyScope, RowIdentity, TableKind, TablePlan, TypeName};

/// Minimum number of rows that are sorted.
const SORTED_ROWS_MIN: usize = 16;
/// Minimum number of rows that are found by a range. Changing the planner settings takes two more messages.
const RANGE_ROWS_MIN: usize = 256;
/// Keys at least this far apart start a new group.
const FAR: u64 = 16;
/// Maximum number of integers in a group's range for each of its rows. Each integer may be a row of the
/// table, which is read in vain if the set does not change it.
const INTEGERS_PER_ROW_MAX: u64 = 3;

/// The first and the last of a set's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange {
    pub(crate) first: i64,
    pub(crate) last: i64,
}

/// Adds steps for `rows`, which exist, keep their keys, and may change in any order: one for each range, and
/// one for all other rows.
pub(super) fn add_sets(
    table: &Arc<TableContext>,
    kind: &SetKind,
    rows: Vec<SetRow>,
    steps: &mut Vec<SetStep>,
) {
    let mut add = |rows, range| {
        steps.push(SetStep::Set { table: Arc::clone(table), kind: kind.clone(), rows, range });
    };
    let keys = if rows.len() < SORTED_ROWS_MIN { None } else { integer_keys(&table.plan, &rows) };
    let Some(keys) = keys else {
        if !rows.is_empty() {
            add(rows, None);
        }
        return;
    };
    let mut keyed: Vec<(i64, SetRow)> = keys.into_iter().zip(rows).collect();
    if !keyed.is_sorted_by_key(|(key, _)| *key) {
        keyed.sort_unstable_by_key(|(key, _)| *key);
    }
    let neighbours = keyed.chunk_by(|(key, _), (next, _)| next.abs_diff(*key) < FAR);
    let groups: Vec<(usize, Option<KeyRange>)> =
        neighbours.map(|group| (group.len(), range(group))).collect();
    let mut others = Vec::new();
    let mut keyed = keyed.into_iter().map(|(_, row)| row);
    for (len, range) in groups {
        let rows = keyed.by_ref().take(len);
        if range.is_some() {
            add(rows.collect(), range);
        } else {
            others.extend(rows);
        }
    }
    if !others.is_empty() {
        add(others, None);
    }
}

/// Returns the range of these rows' keys, if they are to be found by it.
fn range(rows: &[(i64, SetRow)]) -> Option<KeyRange> {
    let ((first, _), (last, _)) = (rows.first()?, rows.last()?);
    let integers = last.abs_diff(*first).saturating_add(1);
    let worth_it = rows.len() >= RANGE_ROWS_MIN && integers <= INTEGERS_PER_ROW_MAX * rows.len() as u64;
    worth_it.then_some(KeyRange { first: *first, last: *last })
}

fn integer_keys(table: &TablePlan, rows: &[SetRow]) -> Option<Vec<i64>> {
    let column = integer_key(table)?;
    rows.iter().map(|row| integer(row.named_by()?.get(column)?)).collect()
}

/// Returns the column of the table's key, if the key is one integer.
fn integer_key(table: &TablePlan) -> Option<usize> {
    let RowIdentity::Key { columns, scope: KeyScope::Table } = &table.row_identity else { return None };
    let [key] = columns.as_slice() else { return None };
    let column = table.columns.get(*key)?;
    let is = |ty: &TypeName, names: &[&str]| ty.schema == "pg_catalog" && names.contains(&ty.name.as_str());
    let suits = table.kind == TableKind::Table
        && column.array_input == ArrayInput::OfType
        && is(&column.base_type, &["int2", "int4", "int8"])
        && column.equality.as_ref().is_none_or(|operator| is(operator, &["="]));
    suits.then_some(*key)
}

fn integer(value: Value<'_>) -> Option<i64> {
    match value {
        Value::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        Value::Binary(bytes) => match bytes.len() {
            2 => bytes.try_into().ok().map(i16::from_be_bytes).map(i64::from),
            4 => bytes.try_into().ok().map(i32::from_be_bytes).map(i64::from),
            8 => bytes.try_into().ok().map(i64::from_be_bytes),
            _ => None,
        },
        Value::Null | Value::Unchanged => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::bench::{context, plan};
    use crate::pgoutput::testing::tuple;

    fn integers(ty: &str) -> TablePlan {
        let mut plan = plan("t", &["id", "a"]);
        plan.columns[0].base_type.name = ty.to_owned();
        plan
    }

    fn key(row: &SetRow) -> i64 {
        row.named_by().and_then(|row| row.get(0)).and_then(integer).unwrap()
    }

    /// Returns the range, if any, and the number of rows of each set.
    fn sets(keys: impl IntoIterator<Item = i64>) -> Vec<(Option<(i64, i64)>, usize)> {
        let named = |key: i64| tuple(&[Value::Binary(&key.to_be_bytes()), Value::Null]);
        let rows: Vec<SetRow> = keys.into_iter().map(|key| SetRow::named(named(key))).collect();
        let mut before: Vec<i64> = rows.iter().map(key).collect();
        let mut steps = Vec::new();
        add_sets(&Arc::new(context(1, integers("int8"))), &SetKind::Delete, rows, &mut steps);
        let mut after = Vec::new();
        let sets = steps.iter().map(|step| {
            let SetStep::Set { rows, range, .. } = step else { panic!("no set") };
            after.extend(rows.iter().map(key));
            (range.map(|range| (range.first, range.last)), rows.len())
        });
        let sets = sets.collect();
        before.sort_unstable();
        after.sort_unstable();
        assert_eq!(before, after);
        sets
    }

    #[test]
    fn neighbours_have_a_set_of_their_own() {
        assert_eq!(sets((1..=300).rev()), [(Some((1, 300)), 300)]);
        assert_eq!(sets((-300..300).step_by(2)), [(Some((-300, 298)), 300)]);
        assert_eq!(sets((0..1200).step_by(4)), [(None, 300)], "too far apart");
        assert_eq!(sets(0..10), [(None, 10)], "too few");
        let apart = (5000..5300).chain(0..300).chain([1000, 3000]).chain(400..500);
        assert_eq!(sets(apart), [(Some((0, 299)), 300), (Some((5000, 5299)), 300), (None, 102)]);
        let ends = (0..256).flat_map(|n| [i64::MIN + n, i64::MAX - n]);
        let at = |first, last| (Some((first, last)), 256);
        assert_eq!(sets(ends), [at(i64::MIN, i64::MIN + 255), at(i64::MAX - 255, i64::MAX)]);
    }

    #[test]
    fn keys_come_as_text_or_in_binary() {
        assert_eq!(integer(Value::Text(b"-12")), Some(-12));
        assert_eq!(integer(Value::Binary(&[0xff, 0xfe])), Some(-2));
        assert_eq!(integer(Value::Binary(&[0, 0, 1, 0])), Some(256));
        assert_eq!(integer(Value::Binary(&(-3_i64).to_be_bytes())), Some(-3));
        for other in [Value::Null, Value::Unchanged, Value::Text(b"1.5"), Value::Binary(b"abc")] {
            assert_eq!(integer(other), None, "{other:?}");
        }
    }

    #[test]
    fn only_integers_are_neighbours() {
        let suits = |change: fn(&mut TablePlan)| {
            let mut plan = integers("int4");
            change(&mut plan);
            integer_key(&plan).is_some()
        };
        assert!(suits(|_| {}));
        assert!(!suits(|plan| plan.columns[0].base_type.name = "text".to_owned()));
        assert!(!suits(|plan| plan.columns[0].base_type.schema = "ours".to_owned()));
        assert!(!suits(|plan| plan.kind = TableKind::Partitioned));
        assert!(!suits(|plan| plan.row_identity = RowIdentity::FullRow));
        let two = RowIdentity::Key { columns: vec![0, 1], scope: KeyScope::Table };
        let mut plan = integers("int4");
        plan.row_identity = two;
        assert_eq!(integer_key(&plan), None);
    }
}
