//! Whether a run ended well: everything applied exactly once, or a gap on record that covers what differs, or paused
//! for the right reason.

use pgsluice::gap::{Gap, GapKind, Hold};
use pgsluice::pg::Lsn;
use pgsluice::store::TableState;

use crate::catalog::Way;
use crate::publisher::{Change, perform};
use crate::tables::{Row, TABLES, by_name};
use crate::target::Command;
use crate::world::{Plant, Reason, Shown, World};

pub(crate) enum Verdict {
    Over(&'static str),
    NotYet,
}

/// Looks at a world in which nothing new begins.
pub(crate) fn look(world: &mut World) -> Verdict {
    if world.is_untold {
        return Verdict::Over("cannot be told");
    }
    let is_paused = |world: &World, wanted: fn(Reason) -> bool| {
        world.instances.iter().any(|instance| match instance.shown {
            Shown::Paused(reason) => wanted(reason) && !instance.frozen,
            _ => false,
        })
    };
    if is_paused(world, |reason| matches!(reason, Reason::SlotLost | Reason::Diverged)) {
        if !world.is_doubtful {
            world.violated("paused as if something were lost, and nothing is".to_owned());
        }
        return Verdict::Over("paused");
    }
    if !is_at_rest(world) || is_paused(world, |_| true) {
        return Verdict::NotYet;
    }
    if !world.history.is_settling {
        explain(world);
        if world.violation.is_some() || !settle_gaps(world) {
            return Verdict::Over("applied");
        }
        world.history.is_settling = true;
        return Verdict::NotYet;
    }
    let open = world.target.meta.open_gaps();
    let tables = open.iter().filter_map(|gap| gap.table.as_ref().map(by_name));
    // A table that has left is not synchronised again.
    if tables.into_iter().any(|table| world.publisher.catalog.is_published(table)) {
        return Verdict::NotYet;
    }
    for table in 0..TABLES.len() {
        let Some(way) = world.publisher.catalog.way_of_rows(table) else { continue };
        let (lacking, too_many) = differing(world, table, way);
        if !lacking.is_empty() || !too_many.is_empty() {
            world.violated(format!("settled, t{table} lacks {lacking:?} and has {too_many:?} too many"));
        }
    }
    Verdict::Over("settled")
}

/// Whether everything has been applied, and the publications are taken up as they are.
fn is_at_rest(world: &World) -> bool {
    let streams = |conn: &crate::world::Conn| {
        conn.permanent
            && conn.walsender.is_some()
            && !conn.lost
            && world.instances[conn.instance].shown == Shown::Streaming
    };
    let end = world.publisher.end;
    let meta = &world.target.meta;
    let catalog = &world.publisher.catalog;
    let is_seen = std::rc::Rc::ptr_eq(catalog, &world.publisher.visible)
        && world.history.taken_up == Some(catalog.fingerprint());
    let gaps = meta.open_gaps();
    let is_settling = world.history.is_settling;
    let is_ready = |table: usize| match meta.tables.get(&table) {
        None => !world.config.auto_refresh && !is_settling,
        Some(row) if row.state == TableState::Paused => gaps.iter().any(|gap| gap.holds_table(&row.source)),
        Some(row) => row.state == TableState::Ready && row.synced_lsn.is_some_and(|synced| synced <= end),
    };
    world.conns.values().any(streams)
        && meta.progress.is_some_and(|progress| progress.applied >= end)
        && meta.commands.is_empty()
        && is_seen
        && (0..TABLES.len()).filter(|&table| catalog.is_published(table)).all(is_ready)
        && !(0..TABLES.len()).any(|table| world.target.is_touched(table))
}

/// Each table has the publisher's rows, or an open gap covers what differs.
fn explain(world: &mut World) {
    let gaps = world.target.meta.open_gaps();
    for table in 0..TABLES.len() {
        let Some(row) = world.target.meta.tables.get(&table) else {
            explain_left(world, table);
            continue;
        };
        let of_table: Vec<&Gap> = gaps.iter().filter(|gap| gap.table.as_ref() == Some(&row.source)).collect();
        let way = world.publisher.catalog.way_of_rows(table);
        let (Some(way), None) = (way, row.left) else {
            explain_left(world, table);
            continue;
        };
        if world.target.decided[table] {
            continue;
        }
        if let Some(gap) = of_table.first().filter(|_| !world.history.touched[table]) {
            let text = format!("nothing has happened to t{table}, and it has a gap: {}", gap.kind);
            world.violated(text);
            continue;
        }
        let (lacking, too_many) = differing(world, table, way);
        let uncovered =
            lacking.iter().chain(&too_many).find(|row| !is_covered(world, table, way, row, &of_table));
        if let Some(row) = uncovered {
            let ranges: Vec<String> =
                of_table.iter().map(|gap| format!("{} {:?} to {:?}", gap.kind, gap.from, gap.to)).collect();
            world.violated(format!(
                "t{table} lacks {lacking:?} and has {too_many:?} too many; no gap covers {row:?}: {ranges:?}"
            ));
        }
    }
}

/// A table that has left has what was published until then.
fn explain_left(world: &mut World, table: usize) {
    let Some((left, width)) = world.history.left[table] else { return };
    let row = world.target.meta.tables.get(&table);
    let is_told =
        |gap: &Gap| gap.kind == GapKind::LastChanges && gap.table.as_ref().map(by_name) == Some(table);
    if world.is_doubtful
        || world.target.meta.open_gaps().iter().any(is_told)
        || world.target.decided[table]
        || world.planted.iter().any(|(planted, ..)| *planted == table)
        || row.is_some_and(|row| row.state != TableState::Ready)
        || world.publisher.catalog.is_published(table)
    {
        return;
    }
    let mut state: [Vec<Row>; TABLES.len()] = std::array::from_fn(|_| Vec::new());
    for made in world.publisher.committed.iter().flat_map(|committed| &committed.changes) {
        if made.at < left {
            perform(&mut state, &made.change);
        }
    }
    let way = Way { width, even: false };
    let (mut expected, mut found) = (std::mem::take(&mut state[table]), world.target.rows(table));
    expected.iter_mut().chain(&mut found).for_each(|row| *row = way.cut(*row));
    settle(&mut expected, &mut found);
    if !expected.is_empty() || !found.is_empty() {
        world.violated(format!(
            "t{table} left at {left}, and lacks {expected:?} and has {found:?} too many of what was published before"
        ));
    }
}

/// What the target lacks, and what it has too many, of the rows and columns that are published.
fn differing(world: &World, table: usize, way: Way) -> (Vec<Row>, Vec<Row>) {
    let state = world.publisher.state_at(world.publisher.end);
    let cut = |rows: &[Row]| rows.iter().filter(|row| way.has(row)).map(|row| way.cut(*row)).collect();
    let (mut expected, mut found): (Vec<Row>, Vec<Row>) =
        (cut(&state[table]), cut(&world.target.rows(table)));
    settle(&mut expected, &mut found);
    for (_, row, plant) in world.planted.iter().filter(|(planted, ..)| *planted == table) {
        let rows = if *plant == Plant::Added { &mut found } else { &mut expected };
        if let Some(at) = rows.iter().position(|other| other == row) {
            rows.swap_remove(at);
        }
    }
    expected.sort_unstable();
    found.sort_unstable();
    (expected, found)
}

/// Whether a gap covers a change of the row: it was made before the gap's end, and committed after its beginning. A
/// transaction that was open at the look that has found the gap may commit behind that.
fn is_covered(world: &World, table: usize, way: Way, row: &Row, gaps: &[&Gap]) -> bool {
    let in_range = |commit: Lsn, made: Lsn| {
        gaps.iter().any(|gap| {
            let begun = gap.from.is_none_or(|from| commit >= from);
            // Later changes of a table that is held are passed over.
            begun && (gap.hold == Hold::Until || gap.to.is_none_or(|to| made < to))
        })
    };
    let key = TABLES[table].key();
    let same = |other: &Row| {
        let other = way.cut(*other);
        if key.is_empty() { other == *row } else { key.iter().all(|&at| other[at] == row[at]) }
    };
    let concerns = |change: &Change| {
        change.tables().contains(&table)
            && match change {
                Change::Insert { new, .. } => same(new),
                Change::Update { old, new, .. } => same(old) || same(new),
                Change::Delete { old, .. } => same(old),
                Change::Truncate { .. } | Change::Replace { .. } => true,
            }
    };
    world.publisher.committed.iter().any(|committed| {
        let mut changes = committed.changes.iter();
        changes.any(|made| in_range(committed.at, made.at) && concerns(&made.change))
    })
}

/// Settles every gap, and whatever else a person knows to differ. Returns whether there is something to settle.
fn settle_gaps(world: &mut World) -> bool {
    let published: Vec<bool> =
        (0..TABLES.len()).map(|table| world.publisher.catalog.is_published(table)).collect();
    let meta = &world.target.meta;
    let mut commands = Vec::new();
    if (0..TABLES.len()).any(|table| published[table] && !meta.tables.contains_key(&table)) {
        commands.push(Command::Refresh);
    }
    let mut again: Vec<usize> =
        (0..TABLES.len()).filter(|&table| published[table] && world.target.decided[table]).collect();
    for gap in meta.open_gaps() {
        match gap.table.as_ref().map(by_name) {
            Some(table) if published[table] => again.push(table),
            _ => commands.push(Command::Accept(gap.id)),
        }
    }
    again.sort_unstable();
    again.dedup();
    commands.extend(again.into_iter().filter(|table| meta.tables.contains_key(table)).map(Command::Resync));
    world.tell(|| format!("an operator settles what differs: {commands:?}"));
    world.target.meta.commands.extend(&commands);
    !commands.is_empty()
}

/// A conflict at this transaction: everything before it must be applied, and nothing of it or after it.
pub(crate) fn conflict(world: &mut World, lsn: Lsn, table: usize) {
    if world.history.touched[table] || world.target.decided[table] {
        return;
    }
    let is_put_right = world.is_unplanted || world.repaired == Some(lsn);
    if world.is_untold || (world.planted.is_empty() && is_put_right) {
        // It was found before it was put right.
        return;
    }
    if world.planted.is_empty() {
        world.violated(format!("a conflict in t{table} at {lsn}, and nothing was planted"));
        return;
    }
    if !world.is_doubtful {
        compare(world, lsn, "at the conflict");
    }
}

/// Holds the target's tables against the publisher's at a position.
fn compare(world: &mut World, position: Lsn, when: &str) {
    let state = world.publisher.state_at(position);
    for (table, rows) in state.iter().enumerate() {
        let record = world.target.meta.tables.get(&table);
        let is_synced = record.is_some_and(|record| {
            record.state == TableState::Ready && record.synced_lsn.is_some_and(|synced| synced <= position)
        });
        let is_clean = !world.history.touched[table] && !world.target.decided[table];
        if !world.publisher.catalog.is_published(table) || !is_synced || !is_clean {
            continue;
        }
        let mut expected = rows.clone();
        let mut found = world.target.rows(table);
        settle(&mut expected, &mut found);
        for (_, row, plant) in world.planted.iter().filter(|(planted, ..)| *planted == table) {
            let rows = if *plant == Plant::Added { &mut found } else { &mut expected };
            if let Some(at) = rows.iter().position(|other| other == row) {
                rows.swap_remove(at);
            }
        }
        if expected.is_empty() && found.is_empty() {
            continue;
        }
        expected.sort_unstable();
        found.sort_unstable();
        world
            .violated(format!("{when} ({position}), t{table} lacks {expected:?} and has {found:?} too many"));
    }
}

/// Takes out what both have.
fn settle(expected: &mut Vec<Row>, found: &mut Vec<Row>) {
    expected.retain(|row| {
        let at = found.iter().position(|other| other == row);
        at.map(|at| found.swap_remove(at)).is_none()
    });
}

/// A person puts right what was planted, and lets the subscription go on. A row that was taken away may have been deleted
/// and inserted again by the publisher meanwhile.
pub(crate) fn repair(world: &mut World) {
    for (table, row, plant) in std::mem::take(&mut world.planted) {
        if world.target.is_touched(table) {
            // Not now.
            world.planted.push((table, row, plant));
        } else if plant == Plant::Added {
            world.target.take_row(table, &row);
        } else {
            let applied = world.target.meta.progress.map_or(Lsn::ZERO, |progress| progress.applied);
            let synced = world.target.meta.tables.get(&table).and_then(|record| record.synced_lsn);
            let at = synced.map_or(applied, |synced| synced.max(applied));
            let is_back = world.target.rows(table).contains(&row);
            if world.publisher.state_at(at)[table].contains(&row) && !is_back {
                world.target.put_row(table, row);
            }
        }
    }
    let attended = world.attended.take();
    world.repaired = attended.map(|(lsn, _)| lsn);
    if let Some((lsn, table)) = attended
        && (world.history.touched[table] || world.target.decided[table])
    {
        decide(world, lsn, table);
    }
    for instance in &mut world.instances {
        if matches!(instance.shown, Shown::Paused(Reason::Conflict(..))) {
            instance.resume = true;
        }
    }
    world.tell(|| "a person repairs the target, and resumes".to_owned());
}

/// A person decides about a conflict whose reason is a gap, or what was accepted: the table is synchronised again, or
/// the transaction is passed over.
fn decide(world: &mut World, lsn: Lsn, table: usize) {
    let followed = world.target.meta.tables.get(&table).is_some_and(|row| row.left.is_none());
    if followed && world.publisher.catalog.is_published(table) && world.random.percent(60) {
        world.target.meta.commands.push_back(Command::Resync(table));
        world.tell(|| format!("a person has t{table} synchronised again"));
        return;
    }
    world.target.meta.skip = Some(lsn);
    world.tell(|| format!("a person passes over the transaction at {lsn}"));
    let concerned = world.publisher.committed.iter().filter(|committed| committed.at == lsn);
    let concerned: Vec<usize> =
        concerned.flat_map(|committed| &committed.changes).flat_map(|made| made.change.tables()).collect();
    for table in concerned {
        world.target.decided[table] = true;
    }
}
