//! The publisher: tables, transactions, WAL, slot. What is committed is kept, so that the state at any
//! position can be told.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use pgsluice::pg::Lsn;

use crate::catalog::Catalog;
use crate::random::Random;
use crate::tables::{Kind, LOG, Row, TABLES};

/// One change, as WAL has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Insert {
        table: usize,
        new: Row,
    },
    Update {
        table: usize,
        old: Row,
        new: Row,
    },
    Delete {
        table: usize,
        old: Row,
    },
    Truncate {
        tables: Vec<usize>,
    },
    /// Another table with these rows has taken its place. No walsender sends that.
    Replace {
        table: usize,
        rows: Vec<Row>,
    },
}

impl Change {
    pub(crate) fn tables(&self) -> Vec<usize> {
        match self {
            Self::Insert { table, .. }
            | Self::Update { table, .. }
            | Self::Delete { table, .. }
            | Self::Replace { table, .. } => vec![*table],
            Self::Truncate { tables } => tables.clone(),
        }
    }
}

/// A record of WAL.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    /// `xid` made it, a subtransaction of `top` or `top` itself.
    Change {
        top: u32,
        xid: u32,
        change: Change,
    },
    Commit {
        top: u32,
    },
    /// Of a subtransaction with those within it, the outermost last, or of the whole transaction.
    Abort {
        top: u32,
        xids: Vec<u32>,
    },
    Catalog(Rc<Catalog>),
    /// Nothing that a slot decodes.
    Other,
}

#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) at: Lsn,
    pub(crate) end: Lsn,
    pub(crate) record: Record,
}

/// A transaction that has committed.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    pub(crate) at: Lsn,
    pub(crate) end: Lsn,
    pub(crate) changes: Vec<Made>,
}

/// A change, and where it is in WAL.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) at: Lsn,
    pub(crate) change: Change,
}

#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) confirmed: Lsn,
    /// What a restart of the publisher finds.
    pub(crate) saved: Lsn,
}

/// A transaction in progress.
#[derive(Debug, Clone)]
struct Open {
    xid: u32,
    lane: u16,
    first: Option<Lsn>,
    /// Subtransactions that are open, the innermost last.
    subs: Vec<Sub>,
    truncated: Vec<usize>,
    changes: Vec<Made>,
    only_unpublished: bool,
    /// A large transaction that only inserts, and updates what it has inserted.
    logged: bool,
}

#[derive(Debug, Clone)]
struct Sub {
    xid: u32,
    /// How many changes came before it.
    before: usize,
    /// Those within it that were released.
    within: Vec<u32>,
}

/// Rows of different transactions in progress never meet: each has a lane of its own.
pub(crate) const LANES: u16 = 3;
const IDS: u16 = 12;

#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    pub(crate) wal: Vec<Stored>,
    pub(crate) end: Lsn,
    pub(crate) committed: Vec<Committed>,
    /// Rows with everything in progress.
    live: [Vec<Row>; TABLES.len()],
    open: BTreeMap<u32, Open>,
    pub(crate) next_xid: u32,
    next_oid: u32,
    marker: u16,
    first_catalog: Rc<Catalog>,
    pub(crate) catalog: Rc<Catalog>,
    /// What a query sees of the catalog: a commit is in WAL before it can be seen.
    pub(crate) visible: Rc<Catalog>,
    /// Catalogs that cannot be seen yet, with the transactions that have made them.
    unseen: VecDeque<(u32, Rc<Catalog>)>,
    pub(crate) slot: Option<Slot>,
    pub(crate) timeline: u32,
    /// The largest number that a timeline has had.
    latest_timeline: u32,
    /// Where former timelines were left.
    pub(crate) left: Vec<(u32, Lsn)>,
    pub(crate) started: u64,
    /// Where the last checkpoint begins.
    pub(crate) checkpoint: Lsn,
    pub(crate) up: bool,
}

impl Publisher {
    pub(crate) fn new(catalog: Catalog) -> Self {
        let catalog = Rc::new(catalog);
        let start = Lsn::new(0x1000);
        Self {
            wal: Vec::new(),
            end: start,
            committed: Vec::new(),
            live: std::array::from_fn(|_| Vec::new()),
            open: BTreeMap::new(),
            next_xid: 700,
            next_oid: 1000,
            marker: 0,
            first_catalog: Rc::clone(&catalog),
            visible: Rc::clone(&catalog),
            catalog,
            unseen: VecDeque::new(),
            slot: None,
            timeline: 1,
            latest_timeline: 1,
            left: Vec::new(),
            started: 1,
            checkpoint: start,
            up: true,
        }
    }

    fn log(&mut self, record: Record, random: &mut Random) -> (Lsn, Lsn) {
        let at = self.end;
        let end = Lsn::new(at.as_u64() + 8 * random.between(2, 12));
        self.end = end;
        self.wal.push(Stored { at, end, record });
        (at, end)
    }

    /// WAL that no slot decodes.
    pub(crate) fn other(&mut self, random: &mut Random) {
        self.log(Record::Other, random);
    }

    /// The rows that are committed before a position.
    pub(crate) fn state_at(&self, position: Lsn) -> [Vec<Row>; TABLES.len()] {
        let mut state: [Vec<Row>; TABLES.len()] = std::array::from_fn(|_| Vec::new());
        for committed in self.committed.iter().take_while(|committed| committed.at < position) {
            for made in &committed.changes {
                perform(&mut state, &made.change);
            }
        }
        state
    }

    pub(crate) fn catalog_at(&self, position: Lsn) -> Rc<Catalog> {
        let before = self.wal.partition_point(|stored| stored.at < position);
        let found = self.wal[..before].iter().rev().find_map(|stored| match &stored.record {
            Record::Catalog(catalog) => Some(Rc::clone(catalog)),
            _ => None,
        });
        found.unwrap_or_else(|| Rc::clone(&self.first_catalog))
    }

    /// The position of the record at which decoding begins.
    pub(crate) fn restart_lsn(&self, confirmed: Lsn) -> Lsn {
        self.wal.get(self.restart_for(confirmed)).map_or(self.end, |stored| stored.at)
    }

    /// Where decoding has to begin, so that every transaction that commits at or after `from` is whole.
    pub(crate) fn restart_for(&self, from: Lsn) -> usize {
        let mut first: BTreeMap<u32, usize> = BTreeMap::new();
        for (at, stored) in self.wal.iter().enumerate() {
            if stored.at >= from {
                break;
            }
            match &stored.record {
                Record::Change { top, .. } => {
                    first.entry(*top).or_insert(at);
                }
                Record::Commit { top } => {
                    first.remove(top);
                }
                Record::Abort { top, xids } if xids.contains(top) => {
                    first.remove(top);
                }
                _ => {}
            }
        }
        let here = self.wal.partition_point(|stored| stored.at < from);
        first.values().copied().min().unwrap_or(here)
    }

    pub(crate) fn in_progress(&self) -> Vec<u32> {
        self.open.keys().copied().collect()
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.open.is_empty()
    }

    /// A transaction changes the catalog. Returns where it commits.
    pub(crate) fn change_catalog(&mut self, change: impl FnOnce(&mut Catalog), random: &mut Random) -> Lsn {
        change(Rc::make_mut(&mut self.catalog));
        let xid = self.next_xid;
        self.next_xid += 1;
        self.unseen.push_back((xid, Rc::clone(&self.catalog)));
        self.log(Record::Catalog(Rc::clone(&self.catalog)), random).0
    }

    /// The oldest change of the catalog that cannot be seen yet can be seen now.
    pub(crate) fn reveal(&mut self) {
        if let Some((_, catalog)) = self.unseen.pop_front() {
            self.visible = catalog;
        }
    }

    fn reveal_all(&mut self) {
        self.unseen.clear();
        self.visible = Rc::clone(&self.catalog);
    }

    /// All older transactions have ended, and can be seen.
    pub(crate) fn oldest_xid(&self) -> u32 {
        let unseen = self.unseen.iter().map(|(xid, _)| *xid);
        self.open.keys().copied().chain(unseen).min().unwrap_or(self.next_xid)
    }

    /// A number that no object has had.
    pub(crate) fn new_oid(&mut self) -> u32 {
        self.next_oid += 1;
        self.next_oid
    }

    /// Whether a transaction in progress has a lock on the table.
    pub(crate) fn is_locked(&self, table: usize) -> bool {
        let has = |open: &Open| {
            open.truncated.contains(&table)
                || open.changes.iter().any(|made| made.change.tables().contains(&table))
        };
        self.open.values().any(has)
    }

    /// Another table with rows of its own takes the table's place. Returns where that commits.
    pub(crate) fn replace(
        &mut self,
        table: usize,
        change: impl FnOnce(&mut Catalog),
        random: &mut Random,
    ) -> Lsn {
        self.live[table].clear();
        for _ in 0..random.below(5) {
            let lane = u16::try_from(random.below(u64::from(LANES))).unwrap_or(0);
            let new = self.fresh(table, lane, random);
            if self.fits(table, None, &new) {
                self.live[table].push(new);
            }
        }
        let at = self.change_catalog(change, random);
        let change = Change::Replace { table, rows: self.live[table].clone() };
        self.committed.push(Committed { at, end: self.end, changes: vec![Made { at, change }] });
        at
    }

    // --- transactions ---------------------------------------------------------------------

    pub(crate) fn begin(&mut self, random: &mut Random) -> Option<u32> {
        let taken: Vec<u16> = self.open.values().map(|open| open.lane).collect();
        let lane = (0..LANES).find(|lane| !taken.contains(lane))?;
        let xid = self.next_xid;
        self.next_xid += 1;
        let only_unpublished = random.percent(8);
        self.open.insert(
            xid,
            Open {
                xid,
                lane,
                first: None,
                subs: Vec::new(),
                truncated: Vec::new(),
                changes: Vec::new(),
                only_unpublished,
                logged: only_unpublished,
            },
        );
        Some(xid)
    }

    pub(crate) fn savepoint(&mut self, top: u32) {
        let xid = self.next_xid;
        let Some(open) = self.open.get_mut(&top) else { return };
        self.next_xid += 1;
        let before = open.changes.len();
        open.subs.push(Sub { xid, before, within: Vec::new() });
    }

    pub(crate) fn release(&mut self, top: u32) {
        // What it has done is its parent's; in WAL it stays its own.
        let Some(open) = self.open.get_mut(&top) else { return };
        let Some(sub) = open.subs.pop() else { return };
        if let Some(parent) = open.subs.last_mut() {
            parent.within.extend(sub.within);
            parent.within.push(sub.xid);
        }
    }

    pub(crate) fn rollback_to(&mut self, top: u32, random: &mut Random) {
        let Some(open) = self.open.get_mut(&top) else { return };
        let Some(Sub { xid, before, within: mut xids }) = open.subs.pop() else { return };
        xids.push(xid);
        open.changes.truncate(before);
        open.logged &=
            open.changes.iter().any(|change| matches!(change.change, Change::Insert { table: LOG, .. }))
                || open.only_unpublished;
        self.rebuild();
        self.log(Record::Abort { top, xids }, random);
    }

    pub(crate) fn commit(&mut self, top: u32, random: &mut Random) {
        if self.open.get(&top).is_some_and(|open| !open.logged && !open.changes.is_empty()) {
            self.mark(top, random);
        }
        let Some(open) = self.open.remove(&top) else { return };
        let (at, end) = self.log(Record::Commit { top }, random);
        self.committed.push(Committed { at, end, changes: open.changes });
    }

    pub(crate) fn abort(&mut self, top: u32, random: &mut Random) {
        let Some(open) = self.open.remove(&top) else { return };
        self.rebuild();
        let mut xids: Vec<u32> =
            open.subs.iter().flat_map(|sub| sub.within.iter().copied().chain([sub.xid])).collect();
        xids.push(top);
        self.log(Record::Abort { top, xids }, random);
    }

    fn rebuild(&mut self) {
        self.live = self.state_at(Lsn::new(u64::MAX));
        for open in self.open.values() {
            open.changes.iter().for_each(|made| perform(&mut self.live, &made.change));
        }
    }

    pub(crate) fn abort_all(&mut self, random: &mut Random) {
        let tops: Vec<u32> = self.open.keys().copied().collect();
        for top in tops {
            self.abort(top, random);
        }
    }

    /// The row that tells, in a table without a key, how often the transaction was applied.
    fn mark(&mut self, top: u32, random: &mut Random) {
        self.marker += 1;
        let new = [Some(self.marker), Some(u16::try_from(top % 50_000).unwrap_or(0)), None, None];
        self.make(top, Change::Insert { table: LOG, new }, random);
        if let Some(open) = self.open.get_mut(&top) {
            open.logged = true;
        }
    }

    fn make(&mut self, top: u32, change: Change, random: &mut Random) {
        let Some(open) = self.open.get_mut(&top) else { return };
        let xid = open.subs.last().map_or(open.xid, |sub| sub.xid);
        perform(&mut self.live, &change);
        let (at, _) = self.log(Record::Change { top, xid, change: change.clone() }, random);
        if let Some(open) = self.open.get_mut(&top) {
            open.changes.push(Made { at, change });
            open.first.get_or_insert(at);
        }
    }

    /// Makes a change at random.
    pub(crate) fn change(&mut self, top: u32, random: &mut Random) {
        let Some(open) = self.open.get(&top) else { return };
        let (lane, only_unpublished) = (open.lane, open.only_unpublished);
        if !open.logged && random.percent(25) {
            return self.mark(top, random);
        }
        let tables: Vec<usize> = (1..TABLES.len())
            .filter(|&table| !only_unpublished || !self.catalog.is_published(table))
            .filter(|table| self.open.values().all(|open| open.xid == top || !open.truncated.contains(table)))
            .collect();
        let Some(&table) = random.pick(&tables) else { return };
        // Otherwise nearly everything would go row by row.
        if TABLES[table] == Kind::Fires && random.percent(85) {
            return;
        }
        if random.percent(2) && self.open.len() == 1 {
            let also: Vec<usize> =
                tables.iter().copied().filter(|&other| other == table || random.percent(20)).collect();
            if let Some(open) = self.open.get_mut(&top) {
                open.truncated.extend(&also);
            }
            return self.make(top, Change::Truncate { tables: also }, random);
        }
        if let Some(change) = self.row_change(table, lane, random) {
            self.make(top, change, random);
        }
    }

    fn row_change(&self, table: usize, lane: u16, random: &mut Random) -> Option<Change> {
        let kind = TABLES[table];
        let rows: Vec<Row> =
            self.live[table].iter().filter(|row| row[0].unwrap_or(0) % LANES == lane).copied().collect();
        let old = random.pick(&rows).copied();
        match (random.below(100), old) {
            (0..45, _) | (_, None) => {
                let new = self.fresh(table, lane, random);
                self.fits(table, None, &new).then_some(Change::Insert { table, new })
            }
            (45..60, Some(old)) => Some(Change::Delete { table, old }),
            (60..72, Some(old)) => {
                // The key moves.
                let mut new = old;
                new[0] = Some(id(lane, random));
                (kind != Kind::Log && self.fits(table, Some(&old), &new)).then_some(Change::Update {
                    table,
                    old,
                    new,
                })
            }
            (72..78, Some(old)) => Some(Change::Update { table, old, new: old }),
            (_, Some(old)) => {
                let mut new = self.fresh(table, lane, random);
                new[0] = old[0];
                if random.percent(50) || kind == Kind::AllKey {
                    new[1] = old[1];
                }
                self.fits(table, Some(&old), &new).then_some(Change::Update { table, old, new })
            }
        }
    }

    fn fresh(&self, table: usize, lane: u16, random: &mut Random) -> Row {
        let small = |random: &mut Random, end| u16::try_from(random.below(end)).unwrap_or(0);
        let kind = TABLES[table];
        let a = match kind {
            Kind::Uniques if random.percent(20) => None,
            Kind::Uniques => Some(small(random, 4) * LANES + lane),
            Kind::AllKey => Some(small(random, 3)),
            _ => Some(small(random, 2)),
        };
        let b = (kind.width() > 2 && random.percent(70)).then(|| small(random, 3));
        let c = (self.catalog.tables[table].width > 3 && random.percent(50)).then(|| small(random, 3));
        [Some(id(lane, random)), a, b, c]
    }

    fn fits(&self, table: usize, old: Option<&Row>, new: &Row) -> bool {
        let mut skipped = old.is_none();
        let others = self.live[table].iter().filter(|&row| {
            if !skipped && Some(row) == old {
                skipped = true;
                return false;
            }
            true
        });
        let clashes = |row: &Row| {
            TABLES[table]
                .uniques()
                .iter()
                .any(|key| key.iter().all(|&at| row[at].is_some() && row[at] == new[at]))
        };
        let mut others = others;
        !others.any(clashes)
    }

    // --- faults ---------------------------------------------------------------------------

    /// Everything in progress is gone, and the slot is where it was last saved.
    pub(crate) fn restart(&mut self, random: &mut Random) {
        self.abort_all(random);
        self.reveal_all();
        if let Some(slot) = &mut self.slot {
            slot.confirmed = slot.saved;
        }
        self.started += 1;
        self.checkpoint = self.end;
        self.log(Record::Other, random);
    }

    /// A standby that had everything up to `at` takes over.
    pub(crate) fn promote(&mut self, at: Lsn, random: &mut Random) {
        self.cut(at);
        self.left.push((self.timeline, self.end));
        self.latest_timeline += 1;
        self.timeline = self.latest_timeline;
        self.started += 1;
        self.abort_all(random);
        self.reveal_all();
        self.checkpoint = self.end;
        self.log(Record::Other, random);
    }

    pub(crate) fn cut(&mut self, at: Lsn) {
        if at >= self.end {
            return;
        }
        self.wal.retain(|stored| stored.end <= at);
        self.end = self.wal.last().map_or(at, |stored| stored.end);
        // A server that has no more than this has not seen later timelines begin.
        while let Some(&(timeline, left_at)) = self.left.last()
            && left_at > self.end
        {
            self.timeline = timeline;
            self.left.pop();
        }
        self.committed.retain(|committed| committed.end <= at);
        // What was in progress there is rolled back, so nothing of it has to be known.
        self.open.clear();
        self.rebuild();
        self.catalog = self.catalog_at(Lsn::new(u64::MAX));
        self.reveal_all();
        if let Some(slot) = &mut self.slot {
            slot.confirmed = slot.confirmed.min(self.end);
            slot.saved = slot.saved.min(self.end);
        }
    }
}

fn id(lane: u16, random: &mut Random) -> u16 {
    u16::try_from(random.below(u64::from(IDS / LANES))).unwrap_or(0) * LANES + lane
}

pub(crate) fn perform(state: &mut [Vec<Row>; TABLES.len()], change: &Change) {
    match change {
        Change::Insert { table, new } => state[*table].push(*new),
        Change::Update { table, old, new } => {
            if let Some(row) = state[*table].iter_mut().find(|row| *row == old) {
                *row = *new;
            }
        }
        Change::Delete { table, old } => {
            if let Some(at) = state[*table].iter().position(|row| row == old) {
                state[*table].swap_remove(at);
            }
        }
        Change::Truncate { tables } => tables.iter().for_each(|&table| state[table].clear()),
        Change::Replace { table, rows } => state[*table].clone_from(rows),
    }
}
