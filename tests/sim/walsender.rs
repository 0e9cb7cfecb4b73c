//! A walsender: decodes WAL from a slot's position on, as PostgreSQL's reorder buffer does, into messages.
//!
//! What matters of the reorder buffer is here: transactions that commit before the start are not sent; a
//! transaction that outgrows the memory is streamed in pieces if that was asked for and the start has been
//! reached, and else its largest part is spilled; a subtransaction all of which was spilled when its
//! transaction was streamed does not count as streamed, so that its abort is not announced.
//!
//! Each change is decoded with the catalog of its own moment: what is published, which operations, rows and columns,
//! and what the table is called. Versions before 18 fail at a change of a moment at which a publication that they
//! were asked for did not exist.

use std::collections::BTreeMap;
use std::rc::Rc;

use pgsluice::pg::Lsn;
use pgsluice::pgoutput::{
    Begin, Commit, Delete, DeletedRow, Insert, Message, OldRow, StreamAbort, StreamCommit, StreamStart,
    Truncate, Update,
};

use pgsluice::schema::Operations;

use crate::catalog::{Catalog, Way};
use crate::publisher::{Change, Publisher, Record, Stored};
use crate::tables::{TABLES, named, relation, tuple};

/// What a walsender sends.
#[derive(Debug, Clone)]
pub(crate) enum Sent {
    Message(Message),
    Keepalive { wal_end: Lsn, wants_report: bool },
}

/// What was asked for at START_REPLICATION, and what the server is like.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) streaming: bool,
    /// Changes that are kept in memory.
    pub(crate) memory: usize,
    /// Whether a transaction without published changes is sent, as versions before 15 do.
    pub(crate) sends_empty: bool,
    pub(crate) publications: Vec<String>,
    /// Whether a publication that does not exist is a failure, as before version 18.
    pub(crate) strict: bool,
}

/// What a Relation message says of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Description {
    oid: u32,
    number: u32,
    width: usize,
    version: u32,
}

#[derive(Debug, Clone)]
struct Queued {
    at: Lsn,
    change: Change,
    catalog: usize,
}

#[derive(Debug, Clone, Default)]
struct Part {
    changes: Vec<Queued>,
    /// How many of them are in memory.
    in_memory: usize,
    streamed: bool,
}

#[derive(Debug, Default)]
struct Transaction {
    /// By the transaction or subtransaction that made them.
    parts: BTreeMap<u32, Part>,
    streamed: bool,
    /// Relations described within its pieces, with their versions.
    described: BTreeMap<usize, Description>,
}

#[derive(Debug)]
pub(crate) struct Walsender {
    options: Options,
    start: Lsn,
    /// The next record.
    next: usize,
    /// Everything before is sent.
    pub(crate) sent: Lsn,
    transactions: BTreeMap<u32, Transaction>,
    catalogs: Vec<Rc<Catalog>>,
    /// The last description of each relation.
    described: [Option<Description>; TABLES.len()],
    out: Vec<Sent>,
    /// The publication that did not exist.
    pub(crate) missing: Option<String>,
}

impl Walsender {
    pub(crate) fn new(publisher: &Publisher, confirmed: Lsn, asked: Lsn, options: Options) -> Self {
        let start = asked.max(confirmed);
        let next = publisher.restart_for(confirmed);
        let at = publisher.wal.get(next).map_or(publisher.end, |stored| stored.at);
        Self {
            options,
            start,
            next,
            sent: at,
            transactions: BTreeMap::new(),
            catalogs: vec![publisher.catalog_at(at)],
            described: [None; TABLES.len()],
            out: Vec::new(),
            missing: None,
        }
    }

    pub(crate) fn is_idle(&self, publisher: &Publisher) -> bool {
        self.missing.is_some() || self.next >= publisher.wal.len()
    }

    /// Decodes a record.
    pub(crate) fn step(&mut self, publisher: &Publisher) -> Vec<Sent> {
        let Some(stored) = publisher.wal.get(self.next).filter(|_| self.missing.is_none()) else {
            return Vec::new();
        };
        self.next += 1;
        match &stored.record {
            Record::Other => {}
            Record::Catalog(catalog) => self.catalogs.push(Rc::clone(catalog)),
            Record::Change { top, xid, change } => self.queue(stored.at, *top, *xid, change),
            Record::Commit { top } => self.commit(*top, stored),
            Record::Abort { top, xids } => xids.iter().for_each(|&xid| self.abort(*top, xid)),
        }
        if self.missing.is_none() {
            self.sent = stored.end;
        }
        std::mem::take(&mut self.out)
    }

    fn queue(&mut self, at: Lsn, top: u32, xid: u32, change: &Change) {
        let catalog = self.catalogs.len() - 1;
        let transaction = self.transactions.entry(top).or_default();
        let part = transaction.parts.entry(xid).or_default();
        part.changes.push(Queued { at, change: change.clone(), catalog });
        part.in_memory += 1;
        while self.transactions.values().map(Transaction::in_memory).sum::<usize>() > self.options.memory {
            if self.options.streaming && at >= self.start {
                let largest = self.transactions.iter().max_by_key(|(_, transaction)| transaction.in_memory());
                let Some((&top, _)) = largest else { return };
                self.stream(top);
            } else {
                let parts =
                    self.transactions.values_mut().flat_map(|transaction| transaction.parts.values_mut());
                let Some(largest) = parts.max_by_key(|part| part.in_memory) else { return };
                largest.in_memory = 0;
            }
        }
    }

    fn stream(&mut self, top: u32) {
        let Some(mut transaction) = self.transactions.remove(&top) else { return };
        let mut changes = Vec::new();
        for (&xid, part) in &mut transaction.parts {
            part.streamed |= xid == top || part.in_memory > 0;
            part.in_memory = 0;
            changes.extend(part.changes.drain(..).map(|queued| (xid, queued)));
        }
        changes.sort_by_key(|(_, queued)| queued.at);
        let first = !std::mem::replace(&mut transaction.streamed, true);
        // The top-level transaction counts, whether or not it has changes of its own.
        transaction.parts.entry(top).or_default().streamed = true;
        let begin = self.out.len();
        self.out.push(Sent::Message(Message::StreamStart(StreamStart { xid: top, first })));
        for (xid, queued) in changes {
            self.send(&queued, Some((xid, &mut transaction.described)));
        }
        if self.missing.is_some() {
            self.out.truncate(begin);
        } else {
            self.out.push(Sent::Message(Message::StreamStop));
        }
        self.transactions.insert(top, transaction);
    }

    fn commit(&mut self, top: u32, stored: &Stored) {
        let streamed = self.transactions.get(&top).is_some_and(|transaction| transaction.streamed);
        if stored.at < self.start && !streamed {
            self.transactions.remove(&top);
            return;
        }
        let time = i64::try_from(stored.at.as_u64()).unwrap_or(0);
        let commit = Commit { commit_lsn: stored.at, end_lsn: stored.end, commit_time: time };
        if streamed {
            self.stream(top);
            if self.missing.is_some() {
                return;
            }
            self.out.push(Sent::Message(Message::StreamCommit(StreamCommit { xid: top, commit })));
            if let Some(transaction) = self.transactions.remove(&top) {
                for (table, version) in transaction.described {
                    self.described[table] = Some(version);
                }
            }
            return;
        }
        let transaction = self.transactions.remove(&top).unwrap_or_default();
        let mut changes: Vec<Queued> =
            transaction.parts.into_values().flat_map(|part| part.changes).collect();
        changes.sort_by_key(|queued| queued.at);
        let begin = self.out.len();
        for queued in &changes {
            self.send(queued, None);
        }
        if self.missing.is_some() {
            self.out.truncate(begin);
        } else if self.out.len() > begin || (self.options.sends_empty && !changes.is_empty()) {
            let message = Begin { final_lsn: stored.at, commit_time: time, xid: top };
            self.out.insert(begin, Sent::Message(Message::Begin(message)));
            self.out.push(Sent::Message(Message::Commit(commit)));
        }
    }

    fn abort(&mut self, top: u32, xid: u32) {
        let Some(transaction) = self.transactions.get_mut(&top) else { return };
        let part = transaction.parts.remove(&xid);
        let announced = part.is_some_and(|part| part.streamed) || (xid == top && transaction.streamed);
        if xid == top {
            self.transactions.remove(&top);
        }
        if announced {
            self.out.push(Sent::Message(Message::StreamAbort(StreamAbort { xid: top, subxid: xid })));
        }
    }

    fn describe(
        &mut self,
        table: usize,
        catalog: &Catalog,
        width: usize,
        within: Option<&mut BTreeMap<usize, Description>>,
    ) {
        let is = catalog.tables[table];
        let description = Description { oid: is.oid, number: is.number, width, version: is.version };
        let before = match within {
            Some(described) => described.insert(table, description),
            None => self.described[table].replace(description),
        };
        if before != Some(description) {
            let message = relation(table, is.oid, named(table, is.number), width);
            self.out.push(Sent::Message(Message::Relation(message)));
        }
    }

    fn send(&mut self, queued: &Queued, within: Option<(u32, &mut BTreeMap<usize, Description>)>) {
        if self.missing.is_some() {
            return;
        }
        let catalog = Rc::clone(&self.catalogs[queued.catalog]);
        let (xid, mut described) = match within {
            Some((xid, described)) => (Some(xid), Some(described)),
            None => (None, None),
        };
        let asked = match catalog.asked(&self.options.publications, self.options.strict) {
            Ok(asked) => asked,
            Err(missing) => {
                self.missing = Some(missing);
                return;
            }
        };
        let operation = operation(&queued.change);
        let ways: Vec<(usize, Way)> = queued
            .change
            .tables()
            .into_iter()
            .filter_map(|table| Some((table, catalog.way(table, operation, &asked)?)))
            .collect();
        let Some(&(_, way)) = ways.first() else { return };
        let Some(change) = filtered(&queued.change, way) else { return };
        for &(table, way) in &ways {
            self.describe(table, &catalog, way.width, described.as_deref_mut());
        }
        let oids: Vec<u32> = ways.iter().map(|(table, _)| catalog.tables[*table].oid).collect();
        self.out.push(Sent::Message(message(&change, oids, way.width, xid)));
    }
}

fn operation(change: &Change) -> Operations {
    match change {
        Change::Insert { .. } => Operations::INSERT,
        Change::Update { .. } => Operations::UPDATE,
        Change::Delete { .. } => Operations::DELETE,
        Change::Truncate { .. } => Operations::TRUNCATE,
        Change::Replace { .. } => Operations::NONE,
    }
}

/// The change as the row filter lets it through.
fn filtered(change: &Change, way: Way) -> Option<Change> {
    match change {
        Change::Insert { new, .. } => way.has(new).then(|| change.clone()),
        Change::Delete { old, .. } => way.has(old).then(|| change.clone()),
        Change::Update { table, old, new } => match (way.has(old), way.has(new)) {
            (true, true) => Some(change.clone()),
            (false, true) => Some(Change::Insert { table: *table, new: *new }),
            (true, false) => Some(Change::Delete { table: *table, old: *old }),
            (false, false) => None,
        },
        Change::Truncate { .. } => Some(change.clone()),
        Change::Replace { .. } => None,
    }
}

impl Transaction {
    fn in_memory(&self) -> usize {
        self.parts.values().map(|part| part.in_memory).sum()
    }
}

fn message(change: &Change, oids: Vec<u32>, width: usize, xid: Option<u32>) -> Message {
    let relation_oid = oids.first().copied().unwrap_or(0);
    match change {
        Change::Insert { new, .. } => {
            Message::Insert(Insert { xid, relation_oid, new: tuple(new, width, None, &[]) })
        }
        Change::Update { table, old, new } => {
            let kind = TABLES[*table];
            let moved = kind.key().iter().any(|&at| old[at] != new[at]);
            // A value that is stored apart, and did not change, is not sent; even ones are.
            let apart =
                width > 2 && !kind.is_full() && old[2] == new[2] && old[2].is_some_and(|b| b % 2 == 1);
            let unchanged: &[usize] = if apart { &[2] } else { &[] };
            let old = match (kind.is_full(), moved) {
                (true, _) => OldRow::Full(tuple(old, width, None, &[])),
                (false, true) => OldRow::Key(tuple(old, width, Some(kind.key()), &[])),
                (false, false) => OldRow::NotSent,
            };
            let new = tuple(new, width, None, unchanged);
            Message::Update(Update { xid, relation_oid, old, new })
        }
        Change::Delete { table, old } => {
            let kind = TABLES[*table];
            let old = if kind.is_full() {
                DeletedRow::Full(tuple(old, width, None, &[]))
            } else {
                DeletedRow::Key(tuple(old, width, Some(kind.key()), &[]))
            };
            Message::Delete(Delete { xid, relation_oid, old })
        }
        Change::Truncate { .. } | Change::Replace { .. } => {
            Message::Truncate(Truncate { xid, relation_oids: oids, cascade: false, restart_seqs: false })
        }
    }
}
