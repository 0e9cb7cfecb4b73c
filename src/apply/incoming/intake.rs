//! Turns the stream's messages into events: relations resolved, changes numbered, transactions told
//! apart.
//!
//! # Transactions in progress
//! A publisher that may (`streaming`) sends a large transaction in pieces before it knows how it ends,
//! and other transactions in between. The first one that touches a table of ours is taken as if it were
//! next: it is applied as it comes, in a target transaction that commits only if it does. Nearly always
//! that is how it goes, and target and publisher have worked at the same time. If something else of
//! ours commits first, or part of it is rolled back, it was not next: the publisher is asked to send whole
//! transactions ([`ApplyError::SendWhole`]), and nothing is lost but the work. So nothing has to be put
//! by, in memory or on disk.

use std::sync::Arc;

use crate::apply::change::RowChange;
use crate::apply::incoming::event::Event;
use crate::apply::incoming::tables::{Lookup, Tables};
use crate::apply::{ApplyError, TableContext};
use crate::pg::Lsn;
use crate::pgoutput::{Begin, Format, Message, Relation, StreamAbort, StreamCommit, Truncate};

/// Where a transaction in progress will finish: beyond the position of every table that takes part.
const NOT_YET: Lsn = Lsn::new(u64::MAX);

#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) tables: Tables,
    /// How values come.
    format: Format,
    /// The publisher's transaction that is being received.
    receiving: Option<Receiving>,
    /// Whose piece of a transaction in progress this is.
    piece: Option<u32>,
    /// The end of the last transaction received.
    received: Lsn,
}

#[derive(Debug, Clone, Copy)]
enum Receiving {
    Whole { begin: Begin, changes: u64 },
    InProgress { xid: u32, changes: u64 },
}

/// What a message means.
#[derive(Debug)]
pub(crate) enum Taken {
    Nothing,
    Event(Event),
    /// A table's description, to be held against the target.
    Announce(Relation),
    /// The transaction in progress has committed: how it would have begun, and its end.
    Ended(Begin, Event),
    /// The transaction in progress was rolled back.
    RolledBack,
}

impl Intake {
    pub(crate) fn new(tables: Tables, format: Format, received: Lsn) -> Self {
        Self { tables, format, receiving: None, piece: None, received }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The position up to which the stream has been received, between two transactions; none within
    /// one.
    pub(crate) fn received(&self) -> Option<Lsn> {
        self.receiving.is_none().then_some(self.received)
    }

    /// Where the transaction that is being received finishes, if there is one and it is known.
    pub(crate) fn finishes_at(&self) -> Option<Lsn> {
        match self.receiving {
            Some(Receiving::Whole { begin, .. }) => Some(begin.final_lsn),
            Some(Receiving::InProgress { .. }) | None => None,
        }
    }

    /// Whether it is not known yet how the transaction that is being received ends.
    pub(crate) fn is_in_progress(&self) -> bool {
        self.piece.is_some() || matches!(self.receiving, Some(Receiving::InProgress { .. }))
    }

    /// Takes note of an idle publisher's position; only between transactions.
    pub(crate) fn note_idle(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
    }

    /// Takes the stream's next message.
    pub(crate) fn take(&mut self, message: Message) -> Result<Taken, ApplyError> {
        match message {
            Message::Insert(m) => self.change(m.relation_oid, RowChange::Insert { new: m.new }),
            Message::Update(m) => self.change(m.relation_oid, RowChange::Update { old: m.old, new: m.new }),
            Message::Delete(m) => self.change(m.relation_oid, RowChange::Delete { old: m.old.into() }),
            Message::Truncate(m) => self.truncate(&m),
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => {
                let Some(Receiving::Whole { changes, .. }) = self.receiving.take() else {
                    return Err(outside("COMMIT"));
                };
                self.received = commit.end_lsn;
                Ok(Taken::Event(Event::Commit { commit, changes }))
            }
            Message::Relation(relation) => Ok(Taken::Announce(relation)),
            Message::Type(message) => {
                self.tables.announce_type(message)?;
                Ok(Taken::Nothing)
            }
            // Neither carries anything for a table: where a transaction first came from, and what
            // an application said beside its rows.
            Message::Origin(_) | Message::Logical(_) => Ok(Taken::Nothing),
            Message::StreamStart(start) => {
                if self.piece.replace(start.xid).is_some() || self.finishes_at().is_some() {
                    return Err(ApplyError::OutOfOrder("a stream start within something".to_owned()));
                }
                Ok(Taken::Nothing)
            }
            Message::StreamStop => match self.piece.take() {
                Some(_) => Ok(Taken::Nothing),
                None => Err(outside("a stream stop")),
            },
            Message::StreamCommit(commit) => self.stream_commit(commit),
            Message::StreamAbort(abort) => self.stream_abort(abort),
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<Taken, ApplyError> {
        match self.receiving {
            None => {
                self.receiving = Some(Receiving::Whole { begin, changes: 0 });
                Ok(Taken::Event(Event::Begin(begin)))
            }
            Some(Receiving::InProgress { .. }) => Err(ApplyError::SendWhole),
            Some(Receiving::Whole { .. }) => {
                Err(ApplyError::OutOfOrder("BEGIN within a transaction".to_owned()))
            }
        }
    }

    fn stream_commit(&mut self, StreamCommit { xid, commit }: StreamCommit) -> Result<Taken, ApplyError> {
        match self.receiving {
            Some(Receiving::InProgress { xid: ours, changes }) if ours == xid => {
                self.receiving = None;
                self.received = commit.end_lsn;
                let (final_lsn, commit_time) = (commit.commit_lsn, commit.commit_time);
                let begin = Begin { final_lsn, commit_time, xid };
                Ok(Taken::Ended(begin, Event::Commit { commit, changes }))
            }
            // Nothing of it concerned us.
            Some(Receiving::InProgress { .. }) => Ok(Taken::Nothing),
            None => {
                self.received = commit.end_lsn;
                Ok(Taken::Event(Event::Idle(commit.end_lsn)))
            }
            Some(Receiving::Whole { .. }) => {
                Err(ApplyError::OutOfOrder("a stream commit within a transaction".to_owned()))
            }
        }
    }

    fn stream_abort(&mut self, abort: StreamAbort) -> Result<Taken, ApplyError> {
        match self.receiving {
            Some(Receiving::InProgress { xid, .. }) if xid == abort.xid => {
                if abort.subxid != abort.xid {
                    return Err(ApplyError::SendWhole);
                }
                self.receiving = None;
                Ok(Taken::RolledBack)
            }
            _ => Ok(Taken::Nothing),
        }
    }

    fn change(&mut self, relation: u32, mut change: RowChange) -> Result<Taken, ApplyError> {
        let finish = self.finish(change.operation())?;
        let Some(table) = self.find(relation, finish)?.map(Arc::clone) else {
            self.pass_over();
            return Ok(Taken::Nothing);
        };
        if self.format == Format::Binary {
            change.binary_as_text(&table.text_columns);
        }
        let index = self.count()?;
        Ok(Taken::Event(Event::Change { table, change, index }))
    }

    fn truncate(&mut self, message: &Truncate) -> Result<Taken, ApplyError> {
        let finish = self.finish("TRUNCATE")?;
        let mut tables = Vec::with_capacity(message.relation_oids.len());
        for &relation in &message.relation_oids {
            tables.extend(self.find(relation, finish)?.map(Arc::clone));
        }
        if tables.is_empty() {
            self.pass_over();
            return Ok(Taken::Nothing);
        }
        let index = self.count()?;
        Ok(Taken::Event(Event::Truncate { tables, restart_seqs: message.restart_seqs, index }))
    }

    /// Where the transaction of a change finishes.
    fn finish(&self, what: &str) -> Result<Lsn, ApplyError> {
        match (self.piece, self.receiving) {
            (Some(_), _) => Ok(NOT_YET),
            (None, Some(Receiving::Whole { begin, .. })) => Ok(begin.final_lsn),
            (None, Some(Receiving::InProgress { .. }) | None) => Err(outside(what)),
        }
    }

    /// Counts a change of a table that is not ours.
    fn pass_over(&mut self) {
        match (self.piece, &mut self.receiving) {
            (None, Some(Receiving::Whole { changes, .. })) => *changes += 1,
            (Some(xid), Some(Receiving::InProgress { xid: ours, changes })) if *ours == xid => *changes += 1,
            _ => {}
        }
    }

    /// Counts a change that is ours, and tells its place in its transaction.
    fn count(&mut self) -> Result<u64, ApplyError> {
        match (self.piece, &mut self.receiving) {
            (None, Some(Receiving::Whole { changes, .. })) => {
                *changes += 1;
                Ok(*changes)
            }
            (Some(xid), Some(Receiving::InProgress { xid: ours, changes })) if *ours == xid => {
                *changes += 1;
                Ok(*changes)
            }
            (Some(xid), receiving @ None) => {
                *receiving = Some(Receiving::InProgress { xid, changes: 1 });
                Ok(1)
            }
            (Some(_), Some(_)) => Err(ApplyError::SendWhole),
            (None, _) => Err(outside("a change")),
        }
    }

    /// Finds the table of a relation; none if its changes are not to be applied.
    fn find(&self, relation: u32, finish: Lsn) -> Result<Option<&Arc<TableContext>>, ApplyError> {
        match self.tables.lookup(relation, finish) {
            Lookup::Apply(table) => Ok(Some(table)),
            Lookup::PassOver => Ok(None),
            Lookup::Unannounced => Err(ApplyError::OutOfOrder(format!(
                "a change of relation {relation}, which no Relation message announced"
            ))),
        }
    }
}

fn outside(what: &str) -> ApplyError {
    ApplyError::OutOfOrder(format!("{what} outside a transaction"))
}
