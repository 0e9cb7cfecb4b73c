//! Whether a run ended well: everything applied exactly once, or paused for the right reason.

use pgsluice::pg::Lsn;

use crate::tables::{Row, TABLES};
use crate::target::TableState;
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
    let streams = |conn: &crate::world::Conn| {
        conn.permanent
            && conn.walsender.is_some()
            && !conn.lost
            && world.instances[conn.instance].shown == Shown::Streaming
    };
    if !world.conns.values().any(streams) {
        return Verdict::NotYet;
    }
    let end = world.publisher.end;
    let Some(progress) = world.target.meta.progress else { return Verdict::NotYet };
    let published = world.publisher.catalog.published;
    let tables = &world.target.meta.tables;
    let ready = (0..TABLES.len()).filter(|&table| published[table]).all(|table| {
        tables.get(&table).is_some_and(|record| {
            record.state == TableState::Ready && record.synced.is_some_and(|synced| synced <= end)
        })
    });
    let busy = (0..TABLES.len()).any(|table| world.target.is_touched(table));
    if progress.applied < end || !ready || busy || is_paused(world, |_| true) {
        return Verdict::NotYet;
    }
    compare(world, end, "at the end");
    Verdict::Over("applied")
}

/// A conflict at this transaction: everything before it must be applied, and nothing of it or after it.
pub(crate) fn conflict(world: &mut World, lsn: Lsn) {
    let is_put_right = world.is_unplanted || world.repaired == Some(lsn);
    if world.is_untold || (world.planted.is_empty() && is_put_right) {
        // It was found before it was put right.
        return;
    }
    if world.planted.is_empty() {
        world.violated(format!("a conflict at {lsn}, and nothing was planted"));
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
            record.state == TableState::Ready && record.synced.is_some_and(|synced| synced <= position)
        });
        if !world.publisher.catalog.published[table] || !is_synced {
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
            let synced = world.target.meta.tables.get(&table).and_then(|record| record.synced);
            let at = synced.map_or(applied, |synced| synced.max(applied));
            let is_back = world.target.rows(table).contains(&row);
            if world.publisher.state_at(at)[table].contains(&row) && !is_back {
                world.target.put_row(table, row);
            }
        }
    }
    world.repaired = world.attended.take();
    for instance in &mut world.instances {
        if matches!(instance.shown, Shown::Paused(Reason::Conflict(_))) {
            instance.resume = true;
        }
    }
    world.tell(|| "a person repairs the target, and resumes".to_owned());
}
