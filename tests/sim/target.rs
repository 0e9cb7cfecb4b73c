//! The target: rows, unique keys, transactions, locks, and the tables of schema `pgsluice`.
//!
//! A row remembers which open transaction made or removed it, as PostgreSQL's rows do. A statement that meets
//! a row of another open transaction waits for that to end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pgsluice::apply::core::Advance;
use pgsluice::gap::{Gap, GapSettled, Settlement};
use pgsluice::pg::{Lsn, QualifiedName};
use pgsluice::store::{TableRow, TableState};
use pgsluice::subscription::publication_record::PublicationRecord;

use crate::mutants::{Fault, has};
use crate::tables::{Cell, Row, TABLES, named};

pub(crate) type SessionId = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) row: Row,
    /// The open transaction that has made it.
    made: Option<SessionId>,
    /// The open transaction that has removed it.
    removed: Option<SessionId>,
}

/// What is recorded of the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witness {
    pub(crate) timeline: u32,
    pub(crate) started: u64,
    pub(crate) wal: Lsn,
}

/// `pgsluice.progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) applied: Lsn,
    pub(crate) term: i64,
}

/// What is committed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meta {
    /// The owner's term.
    pub(crate) term: i64,
    /// The run of the server in which it took over.
    pub(crate) run: u32,
    pub(crate) progress: Option<Progress>,
    /// `pgsluice.table_sync`.
    pub(crate) tables: BTreeMap<usize, TableRow>,
    pub(crate) witness: Option<Witness>,
    /// `pgsluice.gap`.
    pub(crate) gaps: Vec<Gap>,
    pub(crate) publications: Vec<PublicationRecord>,
    /// Up to here the publications are known to have been as recorded.
    pub(crate) seen: Option<Lsn>,
    /// An operator asked for the published tables to be taken up.
    pub(crate) refresh: bool,
    /// A transaction that is to be passed over.
    pub(crate) skip: Option<Lsn>,
    /// Commands that have not been carried out.
    pub(crate) commands: VecDeque<Command>,
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Resync(usize),
    Accept(i64),
    Refresh,
}

impl Meta {
    pub(crate) fn open_gaps(&self) -> Vec<Gap> {
        self.gaps.iter().filter(|gap| gap.settled.is_none()).cloned().collect()
    }

    pub(crate) fn settle(&mut self, table: &QualifiedName, resumed: Lsn) {
        for gap in self.gaps.iter_mut().filter(|gap| gap.table.as_ref() == Some(table)) {
            gap.settled.get_or_insert(settled(Settlement::Resynced, Some(resumed)));
        }
    }
}

pub(crate) fn settled(how: Settlement, resumed: Option<Lsn>) -> GapSettled {
    GapSettled { at: jiff::Timestamp::UNIX_EPOCH, by: None, how, resumed }
}

/// What can be locked beside rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lockable {
    Owner,
    Progress,
    Record(usize),
    Table(usize),
}

/// A write to the tables of `pgsluice` that commits with its transaction.
#[derive(Debug, Clone, Copy)]
enum Write {
    Progress(Progress),
    /// A copy is complete.
    Ready {
        table: usize,
        snapshot: Lsn,
        position: Lsn,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) queue: VecDeque<(u64, crate::ops::Op)>,
    pub(crate) in_transaction: bool,
    pub(crate) failed: bool,
    /// Rows came behind a refusal.
    pub(crate) rows_ended: bool,
    /// Since this one, the session's rows were refused.
    writes: Vec<Write>,
    /// It holds the subscription's lock.
    pub(crate) has_lock: bool,
    pub(crate) is_blocked: bool,
    /// Since when, if it is.
    pub(crate) blocked_at: Option<u64>,
    /// It has marked a copy as ready.
    pub(crate) marked: bool,
}

/// A statement has to wait for another transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocked;

/// The target refuses: so many rows were not met, or a key is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

#[derive(Debug, Default)]
pub(crate) struct Target {
    pub(crate) tables: [Vec<Stored>; TABLES.len()],
    /// The tables' names have these numbers.
    pub(crate) numbers: [u32; TABLES.len()],
    pub(crate) stamps: [i64; TABLES.len()],
    pub(crate) meta: Meta,
    /// Counts the server's runs.
    pub(crate) run: u32,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    /// Exclusive locks, and shared ones of the owner's row.
    locks: BTreeMap<Lockable, SessionId>,
    shares: BTreeSet<SessionId>,
    /// Strangers' locks on tables.
    pub(crate) strangers: BTreeMap<usize, u32>,
    /// The furthest position that was ever committed.
    pub(crate) furthest: Lsn,
    /// The highest term ever given out: a restored target must not give one out again, so the clock is part
    /// of it.
    pub(crate) terms: i64,
    /// Counts what has been committed.
    pub(crate) commits: u64,
    /// Tables of which a person has accepted that they differ.
    pub(crate) decided: [bool; TABLES.len()],
}

/// What a restore goes back to.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    tables: [Vec<Row>; TABLES.len()],
    numbers: [u32; TABLES.len()],
    meta: Meta,
}

impl Target {
    pub(crate) fn name(&self, table: usize) -> QualifiedName {
        named(table, self.numbers[table])
    }

    /// The place of the table with this name, if there is one.
    pub(crate) fn called(&self, name: &QualifiedName) -> Option<usize> {
        let table = crate::tables::by_name(name);
        (self.name(table) == *name).then_some(table)
    }

    pub(crate) fn rows(&self, table: usize) -> Vec<Row> {
        self.tables[table].iter().filter(|stored| stored.made.is_none()).map(|stored| stored.row).collect()
    }

    pub(crate) fn is_touched(&self, table: usize) -> bool {
        self.tables[table].iter().any(|stored| stored.made.is_some() || stored.removed.is_some())
    }

    pub(crate) fn copy(&self) -> Copy {
        Copy {
            tables: std::array::from_fn(|table| self.rows(table)),
            numbers: self.numbers,
            meta: self.meta.clone(),
        }
    }

    /// All sessions have ended.
    pub(crate) fn restore(&mut self, copy: &Copy) {
        for (rows, copied) in self.tables.iter_mut().zip(&copy.tables) {
            *rows = copied.iter().map(|&row| Stored { row, made: None, removed: None }).collect();
        }
        for table in 0..TABLES.len() {
            if self.numbers[table] != copy.numbers[table] {
                self.numbers[table] = copy.numbers[table];
                self.stamps[table] += 1;
            }
        }
        self.meta = copy.meta.clone();
        self.run += 1;
    }

    pub(crate) fn put_row(&mut self, table: usize, row: Row) {
        self.tables[table].push(Stored { row, made: None, removed: None });
    }

    pub(crate) fn take_row(&mut self, table: usize, row: &Row) -> bool {
        let at = self.tables[table].iter().position(|stored| stored.row == *row);
        at.map(|at| self.tables[table].remove(at)).is_some()
    }

    // --- transactions and locks -----------------------------------------------------------

    fn session(&mut self, id: SessionId) -> &mut Session {
        self.sessions.entry(id).or_default()
    }

    pub(crate) fn begin(&mut self, id: SessionId) {
        let session = self.session(id);
        session.in_transaction = true;
        session.failed = false;
    }

    pub(crate) fn lock(&mut self, id: SessionId, what: Lockable) -> Result<(), Blocked> {
        if let Lockable::Table(table) = what
            && self.strangers.contains_key(&table)
        {
            return Err(Blocked);
        }
        match self.locks.get(&what) {
            Some(holder) if *holder != id => return Err(Blocked),
            _ => {}
        }
        if what == Lockable::Owner && self.shares.iter().any(|holder| *holder != id) {
            return Err(Blocked);
        }
        self.locks.insert(what, id);
        Ok(())
    }

    /// Reads the owner's row under a shared lock.
    /// Locks the owner's row, and returns its term; none if the owner took over in another run of the server.
    pub(crate) fn share_owner(&mut self, id: SessionId) -> Result<Option<i64>, Blocked> {
        if self.locks.get(&Lockable::Owner).is_some_and(|holder| *holder != id) {
            return Err(Blocked);
        }
        self.shares.insert(id);
        let holds = self.meta.run == self.run || has(Fault::OwnerInEveryRun);
        Ok(holds.then_some(self.meta.term))
    }

    fn unlock(&mut self, id: SessionId) {
        self.locks.retain(|_, holder| *holder != id);
        self.shares.remove(&id);
    }

    /// Whether the transaction was committed.
    pub(crate) fn commit(&mut self, id: SessionId) -> bool {
        let session = self.session(id);
        if session.failed || !session.in_transaction {
            self.roll_back(id);
            return false;
        }
        session.in_transaction = false;
        session.marked = false;
        for write in std::mem::take(&mut session.writes) {
            match write {
                Write::Progress(progress) => {
                    self.meta.progress = Some(progress);
                    self.furthest = self.furthest.max(progress.applied);
                }
                Write::Ready { table, snapshot, position } => {
                    if let Some(row) = self.meta.tables.get_mut(&table) {
                        row.state = TableState::Ready;
                        (row.synced_lsn, row.copied_lsn) = (Some(position), Some(snapshot));
                        row.resync = None;
                        let source = row.source.clone();
                        self.meta.settle(&source, position);
                    }
                }
            }
        }
        for rows in &mut self.tables {
            rows.retain(|stored| stored.removed != Some(id));
            for stored in rows.iter_mut().filter(|stored| stored.made == Some(id)) {
                stored.made = None;
            }
        }
        self.unlock(id);
        self.commits += 1;
        true
    }

    pub(crate) fn roll_back(&mut self, id: SessionId) {
        let session = self.session(id);
        session.in_transaction = false;
        session.failed = false;
        session.marked = false;
        session.writes.clear();
        for rows in &mut self.tables {
            rows.retain(|stored| stored.made != Some(id));
            for stored in rows.iter_mut().filter(|stored| stored.removed == Some(id)) {
                stored.removed = None;
            }
        }
        self.unlock(id);
    }

    /// A statement of the transaction has failed: its locks are gone, and nothing of it can be committed.
    pub(crate) fn fail(&mut self, id: SessionId) {
        self.roll_back(id);
        let session = self.session(id);
        session.in_transaction = true;
        session.failed = true;
        session.rows_ended = true;
    }

    pub(crate) fn end_session(&mut self, id: SessionId) {
        self.roll_back(id);
        self.sessions.remove(&id);
    }

    pub(crate) fn lock_holder(&self) -> Option<SessionId> {
        self.sessions.iter().find(|(_, session)| session.has_lock).map(|(id, _)| *id)
    }

    // --- the tables of pgsluice -----------------------------------------------------------

    /// Moves the progress row within the session's transaction.
    pub(crate) fn advance(
        &mut self,
        id: SessionId,
        advance: Advance,
        term: i64,
        adopts: bool,
    ) -> Result<Result<(), Refused>, Blocked> {
        self.lock(id, Lockable::Progress)?;
        let found = self.meta.progress;
        let expected = Progress { applied: advance.from, term };
        match found {
            Some(found) if found == expected || adopts => {
                let next = Progress { applied: advance.to.max(found.applied), term: found.term };
                self.session(id).writes.push(Write::Progress(next));
                Ok(Ok(()))
            }
            _ => Ok(Err(Refused)),
        }
    }

    pub(crate) fn write_progress(&mut self, id: SessionId, progress: Progress) {
        self.session(id).writes.push(Write::Progress(progress));
    }

    pub(crate) fn mark_ready(&mut self, id: SessionId, table: usize, snapshot: Lsn, position: Lsn) {
        self.session(id).writes.push(Write::Ready { table, snapshot, position });
    }

    // --- rows -----------------------------------------------------------------------------

    /// The rows that equal these cells, as the session sees them; waits for one that another has removed.
    fn find(&self, id: SessionId, table: usize, wanted: &[(usize, Cell)]) -> Result<Vec<usize>, Blocked> {
        let mut found = Vec::new();
        for (at, stored) in self.tables[table].iter().enumerate() {
            let visible = stored.made.is_none_or(|maker| maker == id) && stored.removed != Some(id);
            if visible && wanted.iter().all(|&(column, cell)| stored.row[column] == cell) {
                if stored.removed.is_some() {
                    return Err(Blocked);
                }
                found.push(at);
            }
        }
        Ok(found)
    }

    pub(crate) fn exists(&self, id: SessionId, table: usize, wanted: &[(usize, Cell)]) -> bool {
        self.tables[table].iter().any(|stored| {
            stored.made.is_none_or(|maker| maker == id)
                && stored.removed != Some(id)
                && wanted.iter().all(|&(column, cell)| stored.row[column] == cell)
        })
    }

    pub(crate) fn insert(
        &mut self,
        id: SessionId,
        table: usize,
        row: Row,
    ) -> Result<Result<(), Refused>, Blocked> {
        self.shared_lock(id, table)?;
        for key in TABLES[table].uniques() {
            for stored in &self.tables[table] {
                let same = key.iter().all(|&at| row[at].is_some() && row[at] == stored.row[at]);
                if !same || stored.removed == Some(id) {
                    continue;
                }
                let undecided = stored.made.is_some_and(|maker| maker != id) || stored.removed.is_some();
                return if undecided { Err(Blocked) } else { Ok(Err(Refused)) };
            }
        }
        if TABLES[table].key().iter().any(|&at| row[at].is_none()) {
            return Ok(Err(Refused));
        }
        self.tables[table].push(Stored { row, made: Some(id), removed: None });
        Ok(Ok(()))
    }

    /// Removes rows that equal the cells: of equal ones `limit` at most. Returns how many.
    pub(crate) fn delete(
        &mut self,
        id: SessionId,
        table: usize,
        wanted: &[(usize, Cell)],
        limit: usize,
    ) -> Result<Vec<Row>, Blocked> {
        self.shared_lock(id, table)?;
        let mut found = self.find(id, table, wanted)?;
        found.truncate(limit);
        let mut removed = Vec::new();
        for at in found {
            let stored = &mut self.tables[table][at];
            stored.removed = Some(id);
            removed.push(stored.row);
        }
        Ok(removed)
    }

    /// Whether nothing of the table is locked for all; rows have locks of their own.
    fn shared_lock(&self, id: SessionId, table: usize) -> Result<(), Blocked> {
        let locked = self.locks.get(&Lockable::Table(table)).is_some_and(|holder| *holder != id);
        if locked || self.strangers.contains_key(&table) { Err(Blocked) } else { Ok(()) }
    }

    pub(crate) fn truncate(&mut self, id: SessionId, table: usize) -> Result<(), Blocked> {
        let touched = |stored: &Stored| {
            stored.made.is_some_and(|maker| maker != id) || stored.removed.is_some_and(|other| other != id)
        };
        if self.tables[table].iter().any(touched) {
            return Err(Blocked);
        }
        self.lock(id, Lockable::Table(table))?;
        for stored in &mut self.tables[table] {
            stored.removed = Some(id);
        }
        // What the transaction itself has made is gone at once.
        self.tables[table].retain(|stored| stored.made != Some(id));
        Ok(())
    }

    pub(crate) fn has_stranger(&self, table: usize) -> bool {
        self.strangers.contains_key(&table)
    }
}
