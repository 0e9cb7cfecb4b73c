//! How faults strike.

use pgsluice::pg::Lsn;
use pgsluice::store::TableState;

use crate::alter;
use crate::plan::Strike;
use crate::publisher::Slot;
use crate::random::Random;
use crate::run::Run;
use crate::tables::Kind;
use crate::tables::TABLES;
use crate::world::{ConnId, Event, MS, Plant, Shown, World};

/// Lets a fault strike.
pub(crate) fn strike(run: &mut Run, what: Strike) {
    run.world.borrow_mut().tell(|| format!("FAULT {what:?}"));
    match what {
        Strike::Crash(instance) => crash(run, instance),
        what => {
            let mut world = run.world.borrow_mut();
            match what {
                Strike::PublisherRestarts
                | Strike::PublisherRestored(_)
                | Strike::Promoted
                | Strike::PromotedBehind(_)
                | Strike::SlotDropped
                | Strike::SlotMadeAgain => at_publisher(&mut world, what),
                what => on_the_way(&mut world, what),
            }
        }
    }
}

fn crash(run: &mut Run, instance: usize) {
    let Some(task) = run.tasks[instance].take() else { return };
    drop(task);
    let mut world = run.world.borrow_mut();
    world.instances[instance].shown = Shown::Down;
    world.instances[instance].frozen = false;
    world.instances[instance].resume = false;
    let later = world.random.between(2, 400) * MS;
    world.after(later, Event::Start { instance });
}

fn on_the_way(world: &mut World, what: Strike) {
    match what {
        Strike::Freeze(instance, time) => freeze(world, instance, time),
        Strike::TakeOver(time) => {
            if let Some(holder) = world.target.lock_holder() {
                let instance = world.conns.get(&holder).map_or(0, |conn| conn.instance);
                freeze(world, instance, time);
                world.end_served(holder);
            }
        }
        Strike::EndSession(pick) => {
            let all: Vec<ConnId> = world.target.sessions.keys().copied().collect();
            if let Some(&conn) = Random::new(pick, 3).pick(&all) {
                world.end_served(conn);
            }
        }
        Strike::Cut(pick) => {
            let all: Vec<ConnId> =
                world.conns.iter().filter(|(_, conn)| conn.served && !conn.lost).map(|(id, _)| *id).collect();
            if let Some(&conn) = Random::new(pick, 3).pick(&all) {
                world.cut(conn);
            }
        }
        Strike::EndWalsender => world.end_walsenders(),
        Strike::LoseBeforeCommit => world.armed.lose_before_commit += 1,
        Strike::LoseAfterCommit => world.armed.lose_after_commit += 1,
        Strike::NotSent => world.armed.not_sent += 1,
        Strike::OutOfStep => world.armed.out_of_step += 1,
        Strike::LockTable(table, time) => {
            if !world.target.is_touched(table) {
                *world.target.strangers.entry(table).or_default() += 1;
                world.after(time, Event::StrangerLeaves { table });
            }
        }
        Strike::TargetDdl(table) => {
            if !world.target.is_touched(table) {
                world.target.stamps[table] += 1;
            }
        }
        Strike::Plant(pick) => plant(world, &mut Random::new(pick, 4)),
        Strike::LockIsBroken => world.armed.lock_is_broken = true,
        Strike::CopyTarget => {
            world.target_copy = Some((world.target.copy(), world.planted.clone()));
        }
        Strike::RestoreTarget => {
            let Some((copy, planted)) = world.target_copy.take() else { return };
            let all: Vec<ConnId> = world.target.sessions.keys().copied().collect();
            for conn in all {
                world.end_served(conn);
            }
            world.target.restore(&copy);
            world.history.is_settling = false;
            let before = std::mem::replace(&mut world.planted, planted);
            world.is_unplanted |= before.len() > world.planted.len();
            alter::follow_names(world, &mut Random::new(world.publisher.end.as_u64(), 6));
            world.is_doubtful = true;
        }
        _ => {}
    }
}

fn freeze(world: &mut World, instance: usize, time: u64) {
    world.instances[instance].frozen = true;
    world.after(time, Event::Thaw { instance });
}

/// A stranger adds a row that will be in the way, or takes one away.
fn plant(world: &mut World, random: &mut Random) {
    let suits = |table: usize| {
        let record = world.target.meta.tables.get(&table);
        matches!(TABLES[table], Kind::Keyed | Kind::Uniques)
            && record.is_some_and(|record| record.state == TableState::Ready)
            && !world.target.is_touched(table)
            && !world.target.has_stranger(table)
            && world.planted.iter().all(|(planted, ..)| *planted != table)
    };
    let tables: Vec<usize> = (0..TABLES.len()).filter(|&table| suits(table)).collect();
    let Some(&table) = random.pick(&tables) else { return };
    let rows = world.target.rows(table);
    if random.percent(50) {
        let free = (0..12).find(|id| rows.iter().all(|row| row[0] != Some(*id)) && random.percent(50));
        if let Some(id) = free {
            // Its values are nobody else's.
            let row = [Some(id), Some(900 + id), Some(99), None];
            world.target.put_row(table, row);
            world.planted.push((table, row, Plant::Added));
        }
    } else if let Some(&row) = random.pick(&rows) {
        world.target.take_row(table, &row);
        world.planted.push((table, row, Plant::Taken));
    }
}

fn at_publisher(world: &mut World, what: Strike) {
    match what {
        Strike::SlotDropped | Strike::SlotMadeAgain => world.end_walsenders(),
        _ => world.end_publisher(),
    }
    let mut random = Random::new(world.publisher.end.as_u64(), 5);
    let past = |pick: u64, world: &World| -> Option<Lsn> {
        let all = &world.publisher.wal;
        Random::new(pick, 3).pick(all).map(|stored| stored.end)
    };
    let judged = world.target.meta.witness.map(|witness| witness.started);
    if !matches!(what, Strike::SlotDropped | Strike::SlotMadeAgain) {
        world.is_untold |= world.older_run.is_some_and(|run| judged.is_none_or(|judged| judged < run));
    }
    match what {
        Strike::PublisherRestarts => world.publisher.restart(&mut random),
        Strike::Promoted => {
            let end = world.publisher.end;
            world.publisher.promote(end, &mut random);
        }
        Strike::PublisherRestored(pick) => {
            if let Some(at) = past(pick, world) {
                world.is_doubtful = true;
                world.publisher.cut(at);
                world.history.touched.fill(true);
                slot_as_of(world, at);
                world.publisher.restart(&mut random);
                world.older_run = Some(world.publisher.started);
            }
        }
        Strike::PromotedBehind(pick) => {
            if let Some(at) = past(pick, world) {
                world.is_doubtful = true;
                world.publisher.promote(at, &mut random);
                world.history.touched.fill(true);
                slot_as_of(world, at);
            }
        }
        Strike::SlotDropped => {
            world.is_doubtful = true;
            world.publisher.slot = None;
        }
        Strike::SlotMadeAgain => {
            if world.publisher.slot.is_some() {
                world.is_doubtful = true;
                let at = world.publisher.end;
                world.publisher.slot = Some(Slot { confirmed: at, saved: at });
            }
        }
        _ => {}
    }
    alter::follow_names(world, &mut random);
    world.wake_walsenders();
}

/// The slot as it was when WAL ended there.
fn slot_as_of(world: &mut World, at: Lsn) {
    let then = world.confirmations.iter().rev().find(|(end, _)| *end <= at).map(|(_, confirmed)| *confirmed);
    world.publisher.slot = then.map(|confirmed| Slot { confirmed, saved: confirmed });
}
