//! A walsender: decodes WAL from a slot's position on, as PostgreSQL's reorder buffer does, into messages.
//!
//! What matters of the reorder buffer is here: transactions that commit before the start are not sent; a
//! transaction that outgrows the memory is streamed in pieces if that was asked for and the start has been
//! reached, and else its largest part is spilled; a subtransaction all of which was spilled when its
//! transaction was streamed does not count as streamed, so that its abort is not announced.

use std::collections::BTreeMap;

use pgsluice::pg::Lsn;
use pgsluice::pgoutput::{
    Begin, Commit, Delete, DeletedRow, Insert, Message, OldRow, StreamAbort, StreamCommit, StreamStart,
    Truncate, Update,
};

use crate::publisher::{Catalog, Change, Publisher, Record, Stored};
use crate::tables::{TABLES, oid, relation, tuple};

/// What a walsender sends.
#[derive(Debug, Clone)]
pub(crate) enum Sent {
    Message(Message),
    Keepalive { wal_end: Lsn, wants_report: bool },
}

/// What was asked for at START_REPLICATION, and what the server is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) streaming: bool,
    /// Changes that are kept in memory.
    pub(crate) memory: usize,
    /// Whether a transaction without published changes is sent, as versions before 15 do.
    pub(crate) sends_empty: bool,
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
    described: BTreeMap<usize, u32>,
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
    catalogs: Vec<Catalog>,
    /// The version of each relation that was described.
    described: [Option<u32>; TABLES.len()],
    out: Vec<Sent>,
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
        }
    }

    pub(crate) fn is_idle(&self, publisher: &Publisher) -> bool {
        self.next >= publisher.wal.len()
    }

    /// Decodes a record.
    pub(crate) fn step(&mut self, publisher: &Publisher) -> Vec<Sent> {
        let Some(stored) = publisher.wal.get(self.next) else { return Vec::new() };
        self.next += 1;
        self.sent = stored.end;
        match &stored.record {
            Record::Other => {}
            Record::Catalog(catalog) => self.catalogs.push(catalog.clone()),
            Record::Change { top, xid, change } => self.queue(stored.at, *top, *xid, change),
            Record::Commit { top } => self.commit(*top, stored),
            Record::Abort { top, xids } => xids.iter().for_each(|&xid| self.abort(*top, xid)),
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
        self.out.push(Sent::Message(Message::StreamStart(StreamStart { xid: top, first })));
        for (xid, queued) in changes {
            self.send(&queued, Some((xid, &mut transaction.described)));
        }
        self.out.push(Sent::Message(Message::StreamStop));
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
        if self.out.len() > begin || (self.options.sends_empty && !changes.is_empty()) {
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

    fn describe(&mut self, table: usize, catalog: usize, within: Option<&mut BTreeMap<usize, u32>>) {
        let (version, width) = (self.catalogs[catalog].version[table], self.catalogs[catalog].width[table]);
        let before = match within {
            Some(described) => described.insert(table, version),
            None => self.described[table].replace(version),
        };
        if before != Some(version) {
            self.out.push(Sent::Message(Message::Relation(relation(table, width))));
        }
    }

    fn send(&mut self, queued: &Queued, within: Option<(u32, &mut BTreeMap<usize, u32>)>) {
        let catalog = self.catalogs[queued.catalog].clone();
        let (xid, described) = match within {
            Some((xid, described)) => (Some(xid), Some(described)),
            None => (None, None),
        };
        let tables: Vec<usize> = match &queued.change {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
                vec![*table]
            }
            Change::Truncate { tables } => tables.clone(),
        };
        let tables: Vec<usize> = tables.into_iter().filter(|&table| catalog.published[table]).collect();
        if tables.is_empty() {
            return;
        }
        let mut described = described;
        for &table in &tables {
            self.describe(table, queued.catalog, described.as_deref_mut());
        }
        self.out.push(Sent::Message(message(&queued.change, &tables, &catalog, xid)));
    }
}

impl Transaction {
    fn in_memory(&self) -> usize {
        self.parts.values().map(|part| part.in_memory).sum()
    }
}

fn message(change: &Change, tables: &[usize], catalog: &Catalog, xid: Option<u32>) -> Message {
    match change {
        Change::Insert { table, new } => {
            let new = tuple(new, catalog.width[*table], None, &[]);
            Message::Insert(Insert { xid, relation_oid: oid(*table), new })
        }
        Change::Update { table, old, new } => {
            let (kind, width) = (TABLES[*table], catalog.width[*table]);
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
            Message::Update(Update { xid, relation_oid: oid(*table), old, new })
        }
        Change::Delete { table, old } => {
            let (kind, width) = (TABLES[*table], catalog.width[*table]);
            let old = if kind.is_full() {
                DeletedRow::Full(tuple(old, width, None, &[]))
            } else {
                DeletedRow::Key(tuple(old, width, Some(kind.key()), &[]))
            };
            Message::Delete(Delete { xid, relation_oid: oid(*table), old })
        }
        Change::Truncate { .. } => Message::Truncate(Truncate {
            xid,
            relation_oids: tables.iter().map(|&table| oid(table)).collect(),
            cascade: false,
            restart_seqs: false,
        }),
    }
}
