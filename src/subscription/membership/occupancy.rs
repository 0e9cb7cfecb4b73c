//! New tables whose target other tables have, or had: which one a table replaces, and with which it shares rows.

use std::fmt::Write as _;

use super::Seen;
use crate::pg::{Lsn, QualifiedName};
use crate::schema::sharing::{Place, Sharing, Writer};

/// A new table whose target has rows of recorded tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupied {
    /// Its OID on the publisher.
    pub oid: u32,
    /// Its changes that commit after this position may have been passed over; none if that is not known.
    pub from: Option<Lsn>,
    /// How it shares rows with which table, in words.
    pub facts: String,
}

/// Finds published tables that are new, and would go into the target of a recorded table that is not published any
/// more: it was renamed on both sides, and another one took its place. `target` returns the OID of the target that a
/// published table is to have; `recorded` are the records with the OIDs of table and target.
///
/// A target that another published table goes into as well is nobody's alone.
pub fn heirs(
    recorded: &[(&QualifiedName, Option<u32>, Option<u32>)],
    published: &[Seen],
    target: impl Fn(&QualifiedName) -> Option<u32>,
) -> Vec<(QualifiedName, u32)> {
    let is_published = |oid: &Option<u32>| published.iter().any(|seen| Some(seen.oid) == *oid);
    let (follows, gone): (Vec<_>, Vec<_>) = recorded.iter().partition(|(_, oid, _)| is_published(oid));
    let former = |target: u32| {
        let of = |(_, _, recorded): &&(_, _, Option<u32>)| *recorded == Some(target);
        gone.iter().copied().find(of).filter(|_| !follows.iter().copied().any(|record| of(&record)))
    };
    let is_new = |seen: &&Seen| {
        !recorded.iter().any(|(_, oid, _)| *oid == Some(seen.oid))
            && !gone.iter().any(|(name, _, _)| **name == seen.name)
    };
    let new = published.iter().filter(is_new);
    new.filter_map(|seen| Some((former(target(&seen.name)?)?.0.clone(), seen.oid))).collect()
}

/// A recorded table whose rows are in its target, or are about to be.
#[derive(Debug, Clone, Copy)]
pub struct Occupant<'a> {
    pub source: &'a QualifiedName,
    pub place: &'a Place,
    /// Up to here nothing of its rows was published by other tables; none if that is not known.
    pub from: Option<Lsn>,
}

/// Judges a new table with this OID by the tables that are recorded; `own` is its record's name, if it has one already.
/// A switch of `publish_via_partition_root` shows so: the root comes in place of its partitions, or the other way round,
/// with the same rows. So does a partition that was detached.
#[must_use]
pub fn occupied(
    oid: u32,
    new: &Place,
    own: Option<&QualifiedName>,
    recorded: &[Occupant<'_>],
) -> Option<Occupied> {
    let others = recorded.iter().filter(|occupant| Some(occupant.source) != own);
    let found: Vec<(Sharing, &Occupant<'_>)> =
        others.filter_map(|occupant| Some((new.shares_with(occupant.place)?, occupant))).collect();
    let &(sharing, first) = found.first()?;
    let writer = Writer { subscription: None, source: first.source.clone(), target: first.place.clone() };
    let mut facts = writer.in_words(sharing);
    if found.len() > 1 {
        let _ = write!(facts, "; the same holds for {} more", found.len() - 1);
    }
    let known = found.iter().all(|(_, occupant)| occupant.from.is_some());
    let from = found.iter().filter_map(|(_, occupant)| occupant.from).min().filter(|_| known);
    Some(Occupied { oid, from, facts })
}
