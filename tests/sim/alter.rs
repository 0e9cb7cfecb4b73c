//! What is done to the publisher's publications and tables, and to the target's, while rows are written. Some of it
//! takes two steps: a table is renamed on one side after the other, a publication is dropped and made again.

use pgsluice::schema::Operations;
use pgsluice::store::TableState;

use crate::catalog::{Catalog, Member, PUBLICATIONS, Publication};
use crate::publisher::Publisher;
use crate::random::Random;
use crate::tables::{Kind, LOG, TABLES};
use crate::world::{Event, MS, Time, World};

/// Until a lock has gone.
const AGAIN: Time = 20 * MS;

#[derive(Debug, Clone)]
pub(crate) enum Alteration {
    Join(usize),
    Leave(usize),
    /// Joins the other publication as well, or leaves that.
    Second(usize),
    /// Another table takes its name.
    Replace(usize),
    RenameOnBothSides(usize, Side),
    /// Is called otherwise on the publisher for a while.
    RenameAndBack(usize),
    /// The second step: the publisher's table gets this number.
    Named(usize, u32),
    /// The second step: the target's table gets this number.
    TargetNamed(usize, u32),
    Drop(&'static str),
    MadeAgain(&'static str, Vec<Former>),
    /// Is called otherwise for a while.
    RenamePublication(&'static str),
    NamedBack(&'static str),
    Publish(&'static str, u64),
    Filter(usize),
    Columns(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Publisher,
    Target,
}

/// A member of a publication that was dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Former {
    slot: usize,
    even: bool,
    columns: Option<usize>,
}

/// An alteration at random.
pub(crate) fn any(kind: u64, random: &mut Random) -> Alteration {
    let table = random.between(1, TABLES.len() as u64 - 1);
    let table = usize::try_from(table).unwrap_or(1);
    let name = PUBLICATIONS[usize::from(random.percent(30))];
    match kind {
        0 => Alteration::Leave(table),
        1 => Alteration::Second(table),
        2 => Alteration::Replace(table),
        3 if random.percent(50) => Alteration::RenameOnBothSides(table, Side::Publisher),
        3 => Alteration::RenameOnBothSides(table, Side::Target),
        4 => Alteration::RenameAndBack(table),
        5 => Alteration::Drop(name),
        6 => Alteration::RenamePublication(name),
        7 => Alteration::Publish(name, random.below(3)),
        8 => Alteration::Filter(table),
        _ => Alteration::Columns(table),
    }
}
/// How many kinds [`any`] has.
pub(crate) const KINDS: u64 = 10;

/// Carries out a step. One that has to wait for a lock is tried again.
pub(crate) fn alter(world: &mut World, what: Alteration, random: &mut Random) {
    match what {
        Alteration::Join(table) => join(world, table, random),
        Alteration::Leave(table) => leave(world, table, random),
        Alteration::Second(table) => second(world, table, random),
        Alteration::Replace(table) => replace(world, table, random),
        Alteration::RenameOnBothSides(table, first) => rename(world, table, first, random),
        Alteration::RenameAndBack(table) => {
            if begins_to_rename(world, table) {
                let number = world.publisher.new_oid();
                let former = world.publisher.catalog.tables[table].number;
                set_name(world, table, number, random);
                later(world, Alteration::Named(table, former), random);
            }
        }
        Alteration::Named(table, number) => {
            if world.publisher.is_locked(table) {
                return again(world, Alteration::Named(table, number));
            }
            world.history.renaming[table] = false;
            set_name(world, table, number, random);
        }
        Alteration::TargetNamed(table, number) => {
            if world.target.is_touched(table) || world.target.has_stranger(table) {
                return again(world, Alteration::TargetNamed(table, number));
            }
            world.history.renaming[table] = false;
            // The publisher may have gone back meanwhile.
            let number = world.publisher.catalog.tables[table].number;
            name_target(world, table, number);
        }
        what => alter_publication(world, what, random),
    }
    world.wake_walsenders();
}

fn alter_publication(world: &mut World, what: Alteration, random: &mut Random) {
    match what {
        Alteration::Drop(name) => {
            let Some(publication) = world.publisher.catalog.publication(name) else { return };
            let members = members(&world.publisher.catalog, publication);
            touch(world, members.iter().map(|member| member.slot));
            world.history.missed = true;
            change(world, format!("drops {name}"), random, |catalog| {
                catalog.publications.retain(|publication| publication.name != name);
            });
            later(world, Alteration::MadeAgain(name, members), random);
        }
        Alteration::MadeAgain(name, members) => make_again(world, name, &members, random),
        Alteration::RenamePublication(name) => {
            let Some(publication) = world.publisher.catalog.publication(name) else { return };
            let members = members(&world.publisher.catalog, publication);
            touch(world, members.iter().map(|member| member.slot));
            world.history.missed = true;
            let to = format!("{name}_away");
            write_row(world, name, random, move |publication| publication.name = to);
            later(world, Alteration::NamedBack(name), random);
        }
        Alteration::NamedBack(name) => {
            let away = format!("{name}_away");
            write_row(world, &away, random, |publication| name.clone_into(&mut publication.name));
        }
        Alteration::Publish(name, pick) => {
            let inserts = Operations::INSERT;
            let actions = [inserts, inserts.or(Operations::UPDATE), Operations::ALL]
                [usize::try_from(pick).unwrap_or(2)];
            let Some(publication) = world.publisher.catalog.publication(name) else { return };
            let members = members(&world.publisher.catalog, publication);
            touch(world, members.iter().map(|member| member.slot));
            write_row(world, name, random, |publication| publication.actions = actions);
        }
        Alteration::Filter(table) => set_member(world, table, random, |member| {
            member.even = !member.even;
            true
        }),
        Alteration::Columns(table) => set_member(world, table, random, |member| {
            member.columns = if member.columns.is_some() { None } else { Some(3) };
            // Without all columns, no row of a table with a full identity could be found.
            !TABLES[table].is_full() && TABLES[table] != Kind::AllKey
        }),
        _ => {}
    }
}

/// Undoes what keeps rows from being published, as far as publications are concerned.
pub(crate) fn restore(world: &mut World, random: &mut Random) {
    for name in PUBLICATIONS {
        let narrowed =
            world.publisher.catalog.publication(name).is_some_and(|one| one.actions != Operations::ALL);
        if narrowed {
            alter(world, Alteration::Publish(name, 2), random);
        }
        if world.publisher.catalog.publication(name).is_none() {
            alter(world, Alteration::NamedBack(name), random);
            make_again(world, name, &[], random);
        }
    }
    // A server that was restored has its former names.
    for table in 0..TABLES.len() {
        let number = world.publisher.catalog.tables[table].number;
        if world.target.numbers[table] != number {
            alter(world, Alteration::TargetNamed(table, number), random);
        }
    }
}

fn again(world: &mut World, what: Alteration) {
    world.history.to_come += 1;
    world.after(AGAIN, Event::Alter(what));
}

fn later(world: &mut World, what: Alteration, random: &mut Random) {
    world.history.to_come += 1;
    let time = if random.percent(60) { random.below(400) } else { random.below(3000) } * MS;
    world.after(time, Event::Alter(what));
}

fn touch(world: &mut World, tables: impl IntoIterator<Item = usize>) {
    for table in tables {
        world.history.touched[table] = true;
        world.history.left[table] = None;
    }
}

fn change(world: &mut World, what: String, random: &mut Random, change: impl FnOnce(&mut Catalog)) {
    world.publisher.change_catalog(change, random);
    seen_later(world, what, random);
}

/// A commit is in WAL some time before it can be seen.
fn seen_later(world: &mut World, what: String, random: &mut Random) {
    let end = world.publisher.end;
    world.tell(|| format!("publisher: {what}, WAL ends at {end}"));
    if random.percent(60) {
        world.publisher.reveal();
    } else {
        let time = random.between(1, 30_000);
        world.after(time, Event::Reveal);
    }
}

fn members(catalog: &Catalog, publication: &Publication) -> Vec<Former> {
    let slot = |member: &Member| {
        Some(Former { slot: catalog.slot_of(member.table)?, even: member.even, columns: member.columns })
    };
    publication.members.iter().filter_map(slot).collect()
}

/// ALTER PUBLICATION that writes the publication's row.
fn write_row(world: &mut World, name: &str, random: &mut Random, write: impl FnOnce(&mut Publication)) {
    let version = world.publisher.next_xid;
    let mut what = String::new();
    let name = name.to_owned();
    if world.publisher.catalog.publication(&name).is_none() {
        return;
    }
    world.publisher.change_catalog(
        |catalog| {
            if let Some(publication) = catalog.publication_mut(&name) {
                write(publication);
                publication.version = version;
                what = format!("alters {name}: {} with {:?}", publication.name, publication.actions);
            }
        },
        random,
    );
    seen_later(world, what, random);
}

fn make_again(world: &mut World, name: &'static str, members: &[Former], random: &mut Random) {
    if world.publisher.catalog.publication(name).is_some() {
        return;
    }
    let (oid, version) = (world.publisher.new_oid(), world.publisher.next_xid);
    let rows: Vec<u32> = members.iter().map(|_| world.publisher.new_oid()).collect();
    touch(world, members.iter().map(|member| member.slot));
    change(world, format!("creates {name} again"), random, |catalog| {
        let member = |(slot, row): (&Former, u32)| {
            let table = catalog.tables[slot.slot].oid;
            Member { row, table, even: slot.even, columns: slot.columns }
        };
        let members = members.iter().zip(rows).map(member).collect();
        let actions = Operations::ALL;
        catalog.publications.push(Publication { oid, name: name.to_owned(), version, actions, members });
    });
}

// --- tables -------------------------------------------------------------------------------------

/// The publications that have the table, among those that exist.
fn having(world: &World, table: usize) -> Vec<(String, Member)> {
    let catalog = &world.publisher.catalog;
    let oid = catalog.tables[table].oid;
    let member = |one: &Publication| Some((one.name.clone(), one.member(oid)?));
    catalog.publications.iter().filter_map(member).collect()
}

fn add(world: &mut World, table: usize, name: &str, random: &mut Random) {
    let list = having(world, table).first().and_then(|(_, member)| member.columns);
    let (row, oid) = (world.publisher.new_oid(), world.publisher.catalog.tables[table].oid);
    change(world, format!("adds t{table} to {name}"), random, |catalog| {
        if let Some(publication) = catalog.publication_mut(name) {
            publication.set(Member { row, table: oid, even: false, columns: list });
        }
    });
}

fn join(world: &mut World, table: usize, random: &mut Random) {
    let there = having(world, table).iter().any(|(name, _)| name == "p");
    if !there && world.publisher.catalog.publication("p").is_some() {
        let p = world.publisher.catalog.publication("p");
        let narrowed = p.is_some_and(|p| p.actions != Operations::ALL);
        // Where the walsender fails, the stream goes on without the publication for a while.
        let missed = world.config.strict && world.history.missed;
        if narrowed || missed || world.history.left[table].is_some() {
            touch(world, [table]);
        }
        add(world, table, "p", random);
    }
}

fn leave(world: &mut World, table: usize, random: &mut Random) {
    let having = having(world, table);
    if having.is_empty() {
        return;
    }
    let ready = world.target.meta.tables.get(&table).is_some_and(|row| row.state == TableState::Ready);
    let plain = ready && !world.history.touched[table] && world.publisher.catalog.is_published(table);
    touch(world, [table]);
    let (oid, width) =
        (world.publisher.catalog.tables[table].oid, world.publisher.catalog.tables[table].width);
    let at = world.publisher.end;
    change(world, format!("drops t{table} from its publications"), random, |catalog| {
        catalog.publications.iter_mut().for_each(|publication| publication.remove(oid));
    });
    world.history.left[table] = plain.then_some((at, width));
}

fn second(world: &mut World, table: usize, random: &mut Random) {
    let having = having(world, table);
    let oid = world.publisher.catalog.tables[table].oid;
    if having.len() > 1 {
        // It was filtered by that one alone, or is from now on.
        if having.iter().any(|(_, member)| member.even) {
            touch(world, [table]);
        }
        change(world, format!("drops t{table} from q"), random, |catalog| {
            if let Some(publication) = catalog.publication_mut("q") {
                publication.remove(oid);
            }
        });
        // What the first one publishes has been published all the time.
        let narrowed = world.publisher.catalog.publications.iter().any(|one| one.actions != Operations::ALL);
        if narrowed || world.publisher.catalog.publication("p").is_none() {
            touch(world, [table]);
        }
    } else if having.iter().any(|(name, _)| name == "p")
        && let Some(q) = world.publisher.catalog.publication("q")
    {
        let narrowed = q.actions != Operations::ALL
            || world.publisher.catalog.publications.iter().any(|one| one.actions != q.actions);
        if narrowed || having.iter().any(|(_, member)| member.even) {
            touch(world, [table]);
        }
        add(world, table, "q", random);
    }
}

fn replace(world: &mut World, table: usize, random: &mut Random) {
    if table == LOG || world.history.renaming[table] {
        return;
    }
    if world.publisher.is_locked(table) {
        return again(world, Alteration::Replace(table));
    }
    touch(world, [table]);
    let having = having(world, table);
    let stays = random.percent(80);
    let (oid, row) = (world.publisher.new_oid(), world.publisher.new_oid());
    world.publisher.replace(
        table,
        |catalog| {
            let former = catalog.tables[table].oid;
            catalog.tables[table].oid = oid;
            catalog.tables[table].version += 1;
            catalog.publications.iter_mut().for_each(|publication| publication.remove(former));
            if let Some((name, _)) = having.first().filter(|_| stays)
                && let Some(publication) = catalog.publication_mut(name)
            {
                publication.set(Member { row, table: oid, even: false, columns: None });
            }
        },
        random,
    );
    seen_later(world, format!("replaces t{table}"), random);
}

/// Sets the table's row in the publication again, if only one has it.
fn set_member(world: &mut World, table: usize, random: &mut Random, set: impl FnOnce(&mut Member) -> bool) {
    let having = having(world, table);
    let [(name, member)] = having.as_slice() else { return };
    let mut member = *member;
    if !set(&mut member) {
        return;
    }
    touch(world, [table]);
    member.row = world.publisher.new_oid();
    let what = format!("sets t{table} in {name}: even {}, columns {:?}", member.even, member.columns);
    change(world, what, random, |catalog| {
        if let Some(publication) = catalog.publication_mut(name) {
            publication.set(member);
        }
    });
}

/// Whether the table can be renamed now. The model has one record for each table, and none for a former one besides: one
/// that was replaced keeps its name until that has been seen.
fn begins_to_rename(world: &mut World, table: usize) -> bool {
    let oid = world.publisher.catalog.tables[table].oid;
    let record = world.target.meta.tables.get(&table);
    let is_known = record.is_none_or(|row| row.source_oid.is_none_or(|recorded| recorded == oid));
    let free = is_known && !world.history.renaming[table] && !world.publisher.is_locked(table);
    world.history.renaming[table] |= free;
    free
}

fn rename(world: &mut World, table: usize, first: Side, random: &mut Random) {
    let touched = world.target.is_touched(table) || world.target.has_stranger(table);
    if (first == Side::Target && touched) || !begins_to_rename(world, table) {
        return;
    }
    let number = world.publisher.new_oid();
    if first == Side::Publisher {
        set_name(world, table, number, random);
        later(world, Alteration::TargetNamed(table, number), random);
    } else {
        name_target(world, table, number);
        later(world, Alteration::Named(table, number), random);
    }
}

/// A server has gone back: a person has the names on the target follow the publisher's.
pub(crate) fn follow_names(world: &mut World, random: &mut Random) {
    for table in 0..TABLES.len() {
        let number = world.publisher.catalog.tables[table].number;
        if world.target.numbers[table] != number && !world.history.renaming[table] {
            world.history.renaming[table] = true;
            later(world, Alteration::TargetNamed(table, number), random);
        }
    }
}

fn set_name(world: &mut World, table: usize, number: u32, random: &mut Random) {
    change(world, format!("renames t{table} to t{table}_{number}"), random, |catalog| {
        catalog.tables[table].number = number;
        catalog.tables[table].version += 1;
    });
}

fn name_target(world: &mut World, table: usize, number: u32) {
    world.target.numbers[table] = number;
    world.target.stamps[table] += 1;
    world.tell(|| format!("target: renames t{table} to t{table}_{number}"));
}

/// For a publisher that does not change its publications.
pub(crate) fn redescribe(publisher: &mut Publisher, table: usize, widens: bool, random: &mut Random) {
    publisher.change_catalog(
        |catalog| {
            let table = &mut catalog.tables[table];
            if widens && table.width == 3 {
                table.width = 4;
            }
            table.version += 1;
        },
        random,
    );
    publisher.reveal();
}
