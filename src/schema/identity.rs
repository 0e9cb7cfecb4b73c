//! Finds the target's key by which published updates and deletes find their rows.
//!
//! Pure. PostgreSQL uses the replica identity of the *target* (`FindUsableIndex` and
//! `RelationFindReplTupleByIndex` in `relation.c` and `execReplication.c`); here any unique key among
//! the columns whose old values the publisher sends is accepted.

use std::collections::BTreeSet;

use super::{
    KeyEquality, KeyScope, PublishedRelation, ReplicaIdentity, RowIdentity, TargetColumn, TargetTable,
    UniqueKey,
};

/// Why rows cannot be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unidentifiable {
    NoUsableKey,
    /// Indexes of published columns whose target type has no equality operator.
    NoEquality(Vec<usize>),
}

/// Chooses the row identity. `columns` holds the target's column for each published one, if it exists.
pub(super) fn row_identity(
    published: &PublishedRelation,
    table: &TargetTable,
    columns: &[Option<&TargetColumn>],
) -> Result<RowIdentity, Unidentifiable> {
    let keyed: Vec<usize> = (0..columns.len()).filter(|&at| published.columns[at].key).collect();
    match published.identity {
        // The publisher itself refuses updates and deletes of such a table.
        ReplicaIdentity::Nothing => Ok(RowIdentity::None),
        ReplicaIdentity::Default | ReplicaIdentity::Index if keyed.is_empty() => Ok(RowIdentity::None),
        ReplicaIdentity::Default | ReplicaIdentity::Index => by_key(table, columns, &keyed),
        ReplicaIdentity::Full => {
            // A key column that is NULL finds nothing, so only a key without nullable columns is better
            // than the full row.
            let filled: Vec<usize> =
                (0..columns.len()).filter(|&at| columns[at].is_some_and(|column| column.not_null)).collect();
            by_key(table, columns, &filled).or_else(|_| by_row(columns))
        }
    }
}

/// Finds a unique key within `sent`: one on exactly those columns first, then the primary key, then
/// any.
fn by_key(
    table: &TargetTable,
    columns: &[Option<&TargetColumn>],
    sent: &[usize],
) -> Result<RowIdentity, Unidentifiable> {
    let leaf_keys = table.partitioning.as_ref().map(|partitioning| partitioning.leaf_keys.as_slice());
    let scope = |key: &UniqueKey| match key.equality {
        KeyEquality::Deterministic | KeyEquality::Nondeterministic => KeyScope::Table,
        KeyEquality::Other => KeyScope::OtherEquality,
    };
    let whole = table.unique_keys.iter().map(|key| (key, scope(key)));
    let leaves = leaf_keys.unwrap_or_default().iter().map(|key| (key, KeyScope::Leaves));
    let mut found: Vec<(Vec<usize>, KeyScope, bool)> = whole
        .chain(leaves)
        .filter_map(|(key, scope)| Some((positions(key, columns, sent)?, scope, key.primary)))
        .collect();
    let all: BTreeSet<usize> = sent.iter().copied().collect();
    found.sort_by_key(|(key, scope, primary)| {
        let exact = key.iter().copied().collect::<BTreeSet<usize>>() == all;
        (*scope != KeyScope::Table, !exact, !primary)
    });
    let unequal = |key: &[usize]| without_equality(columns, key);
    if let Some((columns, scope, _)) = found.iter().find(|(key, _, _)| unequal(key).is_empty()) {
        return Ok(RowIdentity::Key { columns: columns.clone(), scope: *scope });
    }
    Err(found
        .first()
        .map_or(Unidentifiable::NoUsableKey, |(key, _, _)| Unidentifiable::NoEquality(unequal(key))))
}

/// Returns the positions of the key's columns among the published ones, if all are in `sent`.
fn positions(key: &UniqueKey, columns: &[Option<&TargetColumn>], sent: &[usize]) -> Option<Vec<usize>> {
    let position = |name: &String| {
        sent.iter().copied().find(|&at| columns[at].is_some_and(|column| column.name == *name))
    };
    key.columns.iter().map(position).collect()
}

fn by_row(columns: &[Option<&TargetColumn>]) -> Result<RowIdentity, Unidentifiable> {
    let all: Vec<usize> = (0..columns.len()).collect();
    let unequal = without_equality(columns, &all);
    if unequal.is_empty() { Ok(RowIdentity::FullRow) } else { Err(Unidentifiable::NoEquality(unequal)) }
}

fn without_equality(columns: &[Option<&TargetColumn>], among: &[usize]) -> Vec<usize> {
    let lacks = |at: &usize| columns[*at].is_some_and(|column| column.equality.is_none());
    among.iter().copied().filter(lacks).collect()
}
