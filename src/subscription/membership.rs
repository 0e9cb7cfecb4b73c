//! Which tables the subscription follows, judged by their history. Pure.
//!
//! The walsender decodes each change with the catalog of the change's own moment. So what it sends for a table of
//! ours was published when it was made, whatever the publications say now: the members are the recorded tables. A look at the
//! publications only adds tables, begins the leaving of tables, and shows gaps.
//!
//! ```text
//! new ─▶ followed ──not published any more──▶ leaving ──the stream has passed the look──▶ left
//!            ▲                                   │                                         │
//!            └── held by a gap ◀─────────── published again, or replaced ◀─────────────────┘
//! ```
//! A table is its OID. If it was renamed, it is the same table; a table that took the name of another one is not. Nor
//! is one that goes into the target of another one, which was renamed on both sides before that.
//!
//! # Leaving
//! A transaction that was open when the table left may commit later, with changes from before. So the record keeps
//! the next transaction identifier at the look that missed the table: only older transactions can have such changes,
//! and all of those apply. No position is needed for that. The position of the look says when the table is let go,
//! which people see.
//!
//! # Rows of others
//! A new table is not copied if its target has rows that other tables have brought ([`occupied`]): it is held by a gap.
//!
//! # What cannot be seen
//! - A partition that was attached with rows, or detached, below a table that is published via its root.
//! - Changes between two looks that leave no trace in the catalog's rows.

mod occupancy;
mod targets;

use std::collections::{HashMap, HashSet};

use crate::gap::{GapKind, NewGap};
use crate::pg::{Lsn, QualifiedName};
use crate::schema::{Continuity, Mark, Marks, Redefined};

pub use self::occupancy::{Occupant, Occupied, heirs, occupied};
pub use self::targets::{Renamed, TargetOids, called, other_target, renamed};

/// What the record says of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub source: QualifiedName,
    /// None where an older version recorded the table.
    pub oid: Option<u32>,
    /// None where an older version recorded the table.
    pub marks: Option<Marks>,
    pub left: Option<Left>,
    pub synchronised: Synchronised,
    /// The position of its copy's snapshot: the target has what was committed before. A stream that went on without a
    /// missing publication proves nothing of what came between that and the position from which on its changes apply.
    pub copied: Option<Lsn>,
    /// The kind of the gap that holds it; none if none does.
    pub held: Option<GapKind>,
    /// Why its target is not the one that has its rows, in words; none if it is.
    pub other_target: Option<String>,
}

/// Whether the target has the table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronised {
    Yes,
    /// It has rows, and they are to be synchronised again.
    Again,
    /// It is still to be copied.
    No,
}

/// A table that is not published any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Up to here it is known to have been published; none if that is not known.
    pub from: Option<Lsn>,
    /// The position of the look that missed it first: it left before.
    pub lsn: Lsn,
    /// The next transaction identifier then, with its epoch: changes of older transactions apply.
    pub xid: u64,
    pub gone: LetGo,
}

/// Whether the stream has passed the look that missed a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetGo {
    NotYet,
    Done,
}

/// A table at a look at the publications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub oid: u32,
    pub name: QualifiedName,
    pub marks: Marks,
}

/// A look at the publications.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    pub published: &'a [Seen],
    /// Recorded tables that exist and are not published: their OIDs and names.
    pub others: &'a [(u32, QualifiedName)],
    /// Published tables that would go into the target of a recorded one that is not published: the record's name, and
    /// the OID.
    pub heirs: &'a [(QualifiedName, u32)],
    /// New tables that would be copied on top of rows that other tables have brought.
    pub occupied: &'a [Occupied],
    /// Every change that the look could see was committed before this position.
    pub end: Lsn,
    /// The next transaction identifier, with its epoch.
    pub unused_xid: u64,
    /// Up to here the publications are known to have been as recorded.
    pub seen: Option<Lsn>,
    /// The recorded position.
    pub applied: Option<Lsn>,
    /// Publications that were missing in the stream since the last look, or are so at the recorded position.
    pub refused: &'a [String],
    /// Publications that the stream is not asked for any more, because they do not exist.
    pub unasked: &'a [String],
    /// Everything that transactions have written which were open at the recorded position lies behind this one
    /// (`restart_lsn` of the slot); none if that is not known.
    pub restart: Option<Lsn>,
}

/// What becomes of tables that are published and not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTables {
    Follow,
    Leave,
}

/// The verdict on a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Its recorded name; none if it is new.
    pub recorded: Option<QualifiedName>,
    pub source: QualifiedName,
    pub oid: Option<u32>,
    pub marks: Option<Marks>,
    pub left: Option<Left>,
    pub change: Change,
    /// Gaps to be recorded, before the table's record is.
    pub gaps: Vec<NewGap>,
}

/// What has happened to a table since it was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Joins,
    /// It is followed, or has left, as before.
    Nothing,
    /// The publications publish it in another way.
    Redefined,
    /// It is not published any more.
    Leaves,
    /// The stream has passed the look that missed it.
    LetGo,
    /// It may not have been published for some time.
    Returns,
    /// Another table has its name, or its target.
    Replaced,
}

/// The verdict on all tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judged {
    pub tables: Vec<Judgement>,
    /// Recorded tables that are of no concern any more: they left before they were copied.
    pub removed: Vec<QualifiedName>,
    /// Published tables that are not followed.
    pub strangers: Vec<QualifiedName>,
}

impl Observed<'_> {
    /// Whether the stream sends everything that the mark publishes. It goes on without the publications that are
    /// refused, so that also what was synchronised since may lack changes. Another publication that the table is in
    /// since later brings nothing of what open transactions have changed before.
    fn is_sent(&self, mark: &Mark) -> bool {
        let was_seen = |since: Lsn| self.restart.is_some_and(|restart| since <= restart);
        let is_old = self.refused.is_empty() || mark.since.is_none_or(was_seen);
        !self.refused.contains(&mark.name) && is_old
    }

    /// The refused publication that may have published the table.
    fn refused_of(&self, marks: &Marks) -> Option<&String> {
        let of_table = marks.0.iter().find_map(|mark| self.refused.iter().find(|name| **name == mark.name));
        of_table.or_else(|| self.refused.first())
    }

    /// Finds the target of a table that was renamed, or comes back, to be occupied.
    fn occupied_by(&self, table: &Recorded, seen: &Seen) -> Option<&Occupied> {
        let is_other = table.source != seen.name || table.left.is_some();
        self.occupied.iter().find(|of| of.oid == seen.oid && is_other)
    }
}

impl Recorded {
    /// Up to here it is known to have been published.
    fn published_up_to(&self, observed: &Observed<'_>) -> Option<Lsn> {
        self.left.map_or(observed.seen.max(self.copied), |left| left.from)
    }
}

/// Judges the recorded tables by a look at the publications.
#[must_use]
pub fn judge(recorded: &[Recorded], observed: &Observed<'_>, new: NewTables) -> Judged {
    let by_oid: HashMap<u32, &Seen> = observed.published.iter().map(|seen| (seen.oid, seen)).collect();
    let by_name: HashMap<&QualifiedName, &Seen> =
        observed.published.iter().map(|seen| (&seen.name, seen)).collect();
    let known: HashSet<u32> = recorded.iter().filter_map(|table| table.oid).collect();
    let successor = |name: &QualifiedName| {
        let named = by_name.get(name).copied().filter(|seen| !known.contains(&seen.oid));
        let heir = observed.heirs.iter().find(|(former, _)| former == name);
        named.or_else(|| heir.and_then(|(_, oid)| by_oid.get(oid).copied()))
    };
    let mut judged = Judged::default();
    for table in recorded {
        let same = table.oid.and_then(|oid| by_oid.get(&oid).copied());
        let judgement = match (same, successor(&table.source), table.synchronised) {
            (Some(seen), _, Synchronised::No | Synchronised::Again)
                if let Some(occupied) = observed.occupied_by(table, seen) =>
            {
                judged.removed.push(table.source.clone());
                Some(held_off(seen, occupied, observed))
            }
            // Its copy brings everything.
            (Some(seen), _, Synchronised::No | Synchronised::Again)
            | (None, Some(seen), Synchronised::No | Synchronised::Again) => {
                Some(follow(table, seen, observed))
            }
            (Some(seen), _, Synchronised::Yes) => {
                let compared = compare(table, seen, observed);
                Some(Judgement { gaps: with_other_target(compared.gaps, table, observed), ..compared })
            }
            (None, Some(seen), Synchronised::Yes) if table.oid.is_none() => {
                Some(adopt(table, seen, observed))
            }
            (None, Some(seen), Synchronised::Yes) => Some(replaced(table, seen, observed)),
            (None, None, Synchronised::Yes | Synchronised::Again) => Some(leaving(table, observed)),
            (None, None, Synchronised::No) => None,
        };
        match judgement {
            Some(judgement) => judged.tables.push(judgement),
            None => judged.removed.push(table.source.clone()),
        }
    }
    release_names(&mut judged, observed);
    let followed: HashSet<u32> = judged.tables.iter().filter_map(|table| table.oid).collect();
    for seen in observed.published.iter().filter(|seen| !followed.contains(&seen.oid)) {
        match new {
            NewTables::Follow => {
                let occupied = observed.occupied.iter().find(|occupied| occupied.oid == seen.oid);
                judged.tables.push(occupied.map_or_else(|| joins(seen), |of| held_off(seen, of, observed)));
            }
            NewTables::Leave => judged.strangers.push(seen.name.clone()),
        }
    }
    judged.tables.sort_by(|a, b| a.source.cmp(&b.source));
    judged
}

fn joins(seen: &Seen) -> Judgement {
    Judgement {
        recorded: None,
        source: seen.name.clone(),
        oid: Some(seen.oid),
        marks: Some(seen.marks.clone()),
        left: None,
        change: Change::Joins,
        gaps: Vec::new(),
    }
}

/// A new table that is followed, and not copied on top of other tables' rows.
fn held_off(seen: &Seen, occupied: &Occupied, observed: &Observed<'_>) -> Judgement {
    let gap = NewGap {
        table: Some(seen.name.clone()),
        kind: GapKind::Occupied,
        from: occupied.from,
        to: Some(observed.end),
        since: None,
        detail: Some(occupied.facts.clone()),
    };
    Judgement { gaps: vec![gap], ..joins(seen) }
}

/// The table as it is seen now.
fn follow(table: &Recorded, seen: &Seen, observed: &Observed<'_>) -> Judgement {
    let marks = match (&table.marks, table.synchronised) {
        (Some(recorded), Synchronised::Yes) => seen.marks.clone().first_seen(recorded, observed.end),
        // Its copy begins once everything has ended that is older.
        _ => seen.marks.clone(),
    };
    let (recorded, marks) = (Some(table.source.clone()), Some(marks));
    Judgement { recorded, marks, change: Change::Nothing, ..joins(seen) }
}

/// A table of an older version's record. What happened before cannot be judged, unless it was seen to leave.
fn adopt(table: &Recorded, seen: &Seen, observed: &Observed<'_>) -> Judgement {
    match table.left {
        Some(_) => returned(table, seen, table.published_up_to(observed), GapKind::Returned, None, observed),
        None => follow(table, seen, observed),
    }
}

fn compare(table: &Recorded, seen: &Seen, observed: &Observed<'_>) -> Judgement {
    let continuity = table.marks.as_ref().map_or(Continuity::Same, |recorded| {
        let kept = recorded.0.iter().filter(|mark| observed.is_sent(mark)).cloned().collect();
        match seen.marks.since(&Marks(kept)) {
            // It is the same one, but it did not exist under its name all the time.
            Continuity::Broken => match observed.refused_of(recorded) {
                Some(name) => Continuity::MadeAgain(name.clone()),
                None => Continuity::Broken,
            },
            continuity => continuity,
        }
    });
    let from = table.published_up_to(observed);
    match (continuity, table.left) {
        (Continuity::MadeAgain(name), _) => {
            let facts = format!("publication \"{name}\"");
            returned(table, seen, from, GapKind::Publication, Some(facts), observed)
        }
        (Continuity::Broken, _) | (_, Some(_)) => {
            returned(table, seen, from, GapKind::Returned, None, observed)
        }
        (Continuity::Same, None) => follow(table, seen, observed),
        (Continuity::Redefined(what), None) => {
            let gaps = what.iter().map(|what| redefinition(table, *what, seen, from, observed)).collect();
            Judgement { change: Change::Redefined, gaps, ..follow(table, seen, observed) }
        }
    }
}

/// Adds the gap of a table that goes into another target than before.
fn with_other_target(mut gaps: Vec<NewGap>, table: &Recorded, observed: &Observed<'_>) -> Vec<NewGap> {
    let facts = table.other_target.clone();
    let found = facts.map(|facts| gap(table, GapKind::OtherTarget, None, Some(facts), observed));
    gaps.extend(found.map(|gap| NewGap { to: observed.applied, ..gap }));
    gaps
}

fn redefinition(
    table: &Recorded,
    what: Redefined,
    seen: &Seen,
    from: Option<Lsn>,
    observed: &Observed<'_>,
) -> NewGap {
    let kind = match what {
        Redefined::Operations => GapKind::Operations,
        Redefined::RowFilter => GapKind::RowFilter,
        Redefined::Columns => GapKind::Columns,
    };
    gap(table, kind, redefined_from(table, what, seen, from), None, observed)
}

/// Where the changes begin that may be missing because of another definition. What the earlier one left out is not on
/// the target, however long ago it was written; but a copy brings the rows of every operation.
fn redefined_from(table: &Recorded, what: Redefined, seen: &Seen, from: Option<Lsn>) -> Option<Lsn> {
    let was_left_out = table.marks.as_ref().is_some_and(|marks| marks.left_out(what, &seen.marks));
    match (was_left_out, what) {
        (false, _) => from,
        (true, Redefined::Operations) => table.copied,
        (true, Redefined::RowFilter | Redefined::Columns) => None,
    }
}

fn returned(
    table: &Recorded,
    seen: &Seen,
    from: Option<Lsn>,
    kind: GapKind,
    facts: Option<String>,
    observed: &Observed<'_>,
) -> Judgement {
    // One gap is enough to hold it: that one goes on. What the earlier definition left out is older than that.
    let mut gaps = vec![gap(table, table.held.unwrap_or(kind), from, facts, observed)];
    if let Some(was) = &table.marks {
        let left_out = was.differences(&seen.marks).filter(|what| was.left_out(*what, &seen.marks));
        gaps.extend(left_out.map(|what| redefinition(table, what, seen, from, observed)));
    }
    Judgement { change: Change::Returns, gaps, ..follow(table, seen, observed) }
}

/// Changes of the former table that have not been applied are passed over, so the gap begins where they do.
fn replaced(table: &Recorded, seen: &Seen, observed: &Observed<'_>) -> Judgement {
    let published = table.published_up_to(observed);
    let from =
        published.map(|published| observed.applied.map_or(published, |applied| published.min(applied)));
    let gaps = vec![gap(table, GapKind::Replaced, from, None, observed)];
    Judgement { change: Change::Replaced, gaps, ..follow(table, seen, observed) }
}

fn gap(
    table: &Recorded,
    kind: GapKind,
    from: Option<Lsn>,
    detail: Option<String>,
    observed: &Observed<'_>,
) -> NewGap {
    NewGap { table: Some(table.source.clone()), kind, from, to: Some(observed.end), since: None, detail }
}

fn leaving(table: &Recorded, observed: &Observed<'_>) -> Judgement {
    let named = || observed.others.iter().find(|(_, name)| *name == table.source).map(|&(oid, _)| oid);
    let (from, lsn, xid) = (observed.seen.max(table.copied), observed.end, observed.unused_xid);
    let mut left = table.left.unwrap_or(Left { from, lsn, xid, gone: LetGo::NotYet });
    let mut change = if table.left.is_some() { Change::Nothing } else { Change::Leaves };
    if left.gone == LetGo::NotYet && observed.applied.is_some_and(|applied| applied >= left.lsn) {
        (left.gone, change) = (LetGo::Done, Change::LetGo);
    }
    Judgement {
        recorded: Some(table.source.clone()),
        source: table.source.clone(),
        oid: table.oid.or_else(named),
        marks: table.marks.clone(),
        left: Some(left),
        change,
        gaps: last_changes(table, left, observed).into_iter().collect(),
    }
}

/// Before version 18, a stream cannot ask for a publication where it no longer exists. What transactions changed before
/// that, and before the table left, is not sent then if they commit behind it.
fn last_changes(table: &Recorded, left: Left, observed: &Observed<'_>) -> Option<NewGap> {
    let is_missing =
        |mark: &&Mark| observed.refused.iter().chain(observed.unasked).any(|name| *name == mark.name);
    let mark = table.marks.as_ref()?.0.iter().find(is_missing)?;
    let may_be_open = observed.restart.is_none_or(|restart| restart < left.lsn);
    let facts = format!(
        "publication \"{}\" no longer exists, so that nothing is sent of transactions which changed the table before and \
         committed later",
        mark.name
    );
    let gap = gap(table, GapKind::LastChanges, observed.applied, Some(facts), observed);
    (may_be_open && table.held.is_none()).then_some(NewGap { to: None, ..gap })
}

/// A table that has left keeps its recorded name, unless another one has that now.
fn release_names(judged: &mut Judged, observed: &Observed<'_>) {
    let taken: HashSet<QualifiedName> =
        judged.tables.iter().filter(|table| table.left.is_none()).map(|table| table.source.clone()).collect();
    let tables = std::mem::take(&mut judged.tables);
    for table in tables {
        if table.left.is_some() && taken.contains(&table.source) {
            let now = observed.others.iter().find(|(oid, _)| Some(*oid) == table.oid);
            match (now, table.recorded) {
                (Some((_, name)), recorded) if !taken.contains(name) => {
                    judged.tables.push(Judgement { recorded, source: name.clone(), ..table });
                }
                (_, recorded) => judged.removed.extend(recorded),
            }
        } else {
            judged.tables.push(table);
        }
    }
}

#[cfg(test)]
mod tests;
