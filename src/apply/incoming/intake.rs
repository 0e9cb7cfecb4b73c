//! Turns the stream's messages into events: resolves relations, numbers changes, and keeps transactions apart.
//!
//! # Transactions in progress
//! With `streaming`, the publisher sends a large transaction in pieces before it commits, and other
//! transactions in between. The first such transaction that changes one of the subscription's tables is
//! assumed to be the next to commit: its changes are applied when they come, in a target transaction that
//! commits only if the publisher's transaction does. Target and publisher then work at the same time. A
//! change is applied so only if it certainly belongs to the transaction that will commit. Otherwise the
//! publisher is asked to send transactions after their commit ([`End::SendWhole`]), and the target
//! transaction is rolled back. That happens if
//! - another transaction is received first, or another one in progress changes a table of the subscription;
//! - a subtransaction is rolled back;
//! - a subtransaction made the change. The publisher does not send an abort for each one: a subtransaction
//!   that was spilled to disk before the transaction could be streamed counts as not streamed
//!   (`ReorderBufferTruncateTXN` and `ReorderBufferAbort` in `reorderbuffer.c`);
//! - the table's position lies beyond what has been received: whether the transaction commits before or after
//!   that position is known at its end only.
//!
//! So no change has to be stored until the transaction's end is known, neither in memory nor on disk.
//!
//! # What a change needs
//! Which operations come is decided by the publications as they were when the changes were made, so each change is
//! held against what its own operation needs: a key, privileges, columns. If the target's table lacked that when it
//! was described, it is described once more, because a GRANT is no change of the table. Only if the table still
//! lacks it, the stream ends there ([`End::Unfit`]). A change that does not apply needs nothing.

use std::sync::Arc;
use std::time::Duration;

use super::event::Event;
use super::tables::{Announced, Finish, Fit, Lookup, Tables, Verdict};
use crate::apply::change::RowChange;
use crate::apply::end::{End, Unfit};
use crate::mutation::{self, Mutation};
use crate::pg::Lsn;
use crate::pgoutput::{Begin, Format, Message, StreamAbort, StreamCommit, Truncate};
use crate::schema::{Misfit, Operations};

#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) tables: Tables,
    /// How the publisher sends values.
    format: Format,
    /// The publisher transaction that is being received. A transaction in progress counts from its first
    /// change of a table of the subscription.
    receiving: Option<Receiving>,
    /// The transaction in progress that the current piece belongs to.
    piece: Option<u32>,
    /// The end of the last transaction received.
    received: Lsn,
    /// The one transaction that is passed over, by the position of its commit record.
    skip: Option<Lsn>,
    /// A change that waits for its tables to be described once more.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    message: HeldMessage,
    /// The relations that have been described for it.
    described: Vec<u32>,
}

#[derive(Debug)]
enum HeldMessage {
    Change { relation: u32, made_by: Option<u32>, change: RowChange },
    Truncate(Truncate),
}

#[derive(Debug, Clone, Copy)]
enum Receiving {
    Whole { begin: Begin, changes: u64 },
    InProgress { xid: u32, changes: u64 },
}

/// A change of tables that lack what its operation needs.
struct Lacking {
    relations: Vec<u32>,
    operation: Operations,
    command: &'static str,
    /// The transaction, and where it commits.
    within: (u32, Finish),
}

/// The result of a message.
#[derive(Debug)]
pub(crate) enum Taken {
    Nothing,
    Event(Event),
    /// A transaction without changes of the subscription's tables ended here.
    Passed(Lsn),
    /// A Relation message came.
    Announced(Announced),
    /// The transaction in progress has committed: its Begin, as a whole transaction has one, and its commit.
    Ended(Begin, Event),
    /// The transaction in progress was rolled back.
    RolledBack,
}

impl Intake {
    pub(crate) fn new(tables: Tables, format: Format, received: Lsn, skip: Option<Lsn>) -> Self {
        Self { tables, format, receiving: None, piece: None, received, skip, held: None }
    }

    /// Whether a change waits for its tables to be described once more.
    pub(crate) fn holds_change(&self) -> bool {
        self.held.is_some()
    }

    /// Takes the change that waited, once its table has been described. Returns none if no change waited.
    pub(crate) fn take_held(&mut self) -> Option<Result<Taken, End>> {
        let Held { message, described } = self.held.take()?;
        Some(match message {
            HeldMessage::Change { relation, made_by, change } => {
                self.change(relation, made_by, change, described)
            }
            HeldMessage::Truncate(truncate) => self.truncate(truncate, described),
        })
    }

    /// Whether the transaction that finishes at `finish` is passed over.
    pub(crate) fn passes_over(&self, finish: Lsn) -> bool {
        self.skip == Some(finish)
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The position up to which the stream has been received; none within a transaction.
    pub(crate) fn received(&self) -> Option<Lsn> {
        (self.receiving.is_none() && self.piece.is_none()).then_some(self.received)
    }

    /// Where the transaction that is being received finishes; none without one, or for one in progress.
    pub(crate) fn finishes_at(&self) -> Option<Lsn> {
        match self.receiving {
            Some(Receiving::Whole { begin, .. }) => Some(begin.final_lsn),
            Some(Receiving::InProgress { .. }) | None => None,
        }
    }

    /// Whether a transaction in progress is being received.
    pub(crate) fn is_in_progress(&self) -> bool {
        self.piece.is_some() || matches!(self.receiving, Some(Receiving::InProgress { .. }))
    }

    /// Notes the position of a Keepalive message. May only be called between transactions.
    pub(crate) fn note_idle(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
    }

    /// Takes the stream's next message.
    pub(crate) fn take(&mut self, message: Message, now: Duration) -> Result<Taken, End> {
        match message {
            Message::Insert(m) => {
                self.change(m.relation_oid, m.xid, RowChange::Insert { new: m.new }, Vec::new())
            }
            Message::Update(m) => {
                self.change(m.relation_oid, m.xid, RowChange::Update { old: m.old, new: m.new }, Vec::new())
            }
            Message::Delete(m) => {
                self.change(m.relation_oid, m.xid, RowChange::Delete { old: m.old.into() }, Vec::new())
            }
            Message::Truncate(m) => self.truncate(m, Vec::new()),
            Message::Begin(begin) => self.begin(begin),
            Message::Commit(commit) => {
                let Some(Receiving::Whole { changes, .. }) = self.receiving.take() else {
                    return Err(outside("COMMIT"));
                };
                self.received = self.received.max(commit.end_lsn);
                Ok(Taken::Event(Event::Commit { commit, changes }))
            }
            Message::Relation(relation) => Ok(Taken::Announced(self.tables.announce(relation, now)?)),
            Message::Type(message) => {
                self.tables.announce_type(message)?;
                Ok(Taken::Nothing)
            }
            // Neither belongs to a table: the origin of a transaction, and an application's logical message.
            Message::Origin(_) | Message::Logical(_) => Ok(Taken::Nothing),
            Message::StreamStart(start) => {
                if self.piece.replace(start.xid).is_some() || self.finishes_at().is_some() {
                    return Err(End::OutOfOrder("a stream start within something".to_owned()));
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

    fn begin(&mut self, begin: Begin) -> Result<Taken, End> {
        match self.receiving {
            None => {
                self.receiving = Some(Receiving::Whole { begin, changes: 0 });
                Ok(Taken::Event(Event::Begin(begin)))
            }
            Some(Receiving::InProgress { .. }) => Err(End::SendWhole),
            Some(Receiving::Whole { .. }) => Err(End::OutOfOrder("BEGIN within a transaction".to_owned())),
        }
    }

    fn stream_commit(&mut self, StreamCommit { xid, commit }: StreamCommit) -> Result<Taken, End> {
        match self.receiving {
            Some(Receiving::InProgress { xid: ours, changes }) if ours == xid => {
                self.receiving = None;
                self.received = self.received.max(commit.end_lsn);
                let (final_lsn, commit_time) = (commit.commit_lsn, commit.commit_time);
                let begin = Begin { final_lsn, commit_time, xid };
                Ok(Taken::Ended(begin, Event::Commit { commit, changes }))
            }
            // This transaction changed no table of the subscription.
            Some(Receiving::InProgress { .. }) => Ok(Taken::Nothing),
            None => {
                self.received = self.received.max(commit.end_lsn);
                Ok(Taken::Passed(commit.end_lsn))
            }
            Some(Receiving::Whole { .. }) => {
                Err(End::OutOfOrder("a stream commit within a transaction".to_owned()))
            }
        }
    }

    fn stream_abort(&mut self, abort: StreamAbort) -> Result<Taken, End> {
        match self.receiving {
            Some(Receiving::InProgress { xid, .. }) if xid == abort.xid => {
                if abort.subxid != abort.xid && mutation::is(Mutation::PiecesOfSubtransactions) {
                    return Ok(Taken::Nothing);
                }
                if abort.subxid != abort.xid {
                    return Err(End::SendWhole);
                }
                self.receiving = None;
                Ok(Taken::RolledBack)
            }
            _ => Ok(Taken::Nothing),
        }
    }

    /// Takes a row change. `described` are the relations that have been described for it.
    fn change(
        &mut self,
        relation: u32,
        made_by: Option<u32>,
        mut change: RowChange,
        described: Vec<u32>,
    ) -> Result<Taken, End> {
        let within = self.finish(change.operation())?;
        let Some(fit) = self.find(relation, change.as_set(), within)? else {
            self.pass_over(&[relation], within.1);
            return Ok(Taken::Nothing);
        };
        let Some(table) = fit.plan_for(change.as_set()).map(Arc::clone) else {
            let (relations, operation, command) = (vec![relation], change.as_set(), change.operation());
            let lacking = Lacking { relations, operation, command, within };
            let message = HeldMessage::Change { relation, made_by, change };
            return self.look_again(&lacking, Held { message, described });
        };
        self.is_of_top_level(made_by)?;
        table.project(&mut change).map_err(|misfit| refused(*misfit, change.operation(), within.1))?;
        if self.format == Format::Binary {
            change.binary_as_text(&table.text_columns);
        }
        let index = self.count()?;
        Ok(Taken::Event(Event::Change { table, change, index }))
    }

    fn truncate(&mut self, message: Truncate, described: Vec<u32>) -> Result<Taken, End> {
        let (command, operation) = ("TRUNCATE", Operations::TRUNCATE);
        let within = self.finish(command)?;
        let mut tables = Vec::with_capacity(message.relation_oids.len());
        let mut relations = Vec::new();
        for &relation in &message.relation_oids {
            match self.find(relation, operation, within)?.map(|fit| fit.plan_for(operation)) {
                None => {}
                Some(Some(table)) => tables.push(Arc::clone(table)),
                Some(None) => relations.push(relation),
            }
        }
        if !relations.is_empty() {
            let lacking = Lacking { relations, operation, command, within };
            return self.look_again(&lacking, Held { message: HeldMessage::Truncate(message), described });
        }
        if tables.is_empty() {
            self.pass_over(&message.relation_oids, within.1);
            return Ok(Taken::Nothing);
        }
        if tables.len() < message.relation_oids.len() {
            self.note_passed(&message.relation_oids, within.1);
        }
        self.is_of_top_level(message.xid)?;
        let index = self.count()?;
        Ok(Taken::Event(Event::Truncate { tables, restart_seqs: message.restart_seqs, index }))
    }

    /// Has the tables of a change described once more that it did not fit into, one after the other, and holds the
    /// change until then. Fails if that has been done for this change.
    fn look_again(&mut self, lacking: &Lacking, mut held: Held) -> Result<Taken, End> {
        let &Lacking { ref relations, operation, command, within } = lacking;
        let Some(&next) = relations.iter().find(|relation| !held.described.contains(relation)) else {
            // Whether a transaction in progress commits is known at its end only.
            let (_, Finish::At(at)) = within else { return Err(End::SendWhole) };
            let mut misfits = Vec::new();
            for &relation in relations {
                misfits.extend(self.find(relation, operation, within)?.map(|fit| fit.misfits_of(operation)));
            }
            let misfits = misfits.concat();
            return Err(End::Unfit(Unfit { misfits, command, finish: Some(at) }));
        };
        let Some(announced) = self.tables.look_again(next) else {
            return Err(End::Invariant("a table is looked at again that is not in the subscription"));
        };
        held.described.push(next);
        self.held = Some(held);
        Ok(Taken::Announced(announced))
    }

    /// Fails if a subtransaction made the change of a transaction in progress.
    fn is_of_top_level(&self, made_by: Option<u32>) -> Result<(), End> {
        let accepted = self.piece == made_by || mutation::is(Mutation::PiecesOfSubtransactions);
        if accepted { Ok(()) } else { Err(End::SendWhole) }
    }

    /// The transaction of a change, and where it commits.
    fn finish(&self, what: &str) -> Result<(u32, Finish), End> {
        match (self.piece, self.receiving) {
            // Transactions are sent in commit order, so it commits after everything received so far.
            (Some(xid), _) => Ok((xid, Finish::Beyond(self.received))),
            (None, Some(Receiving::Whole { begin, .. })) => Ok((begin.xid, Finish::At(begin.final_lsn))),
            (None, Some(Receiving::InProgress { .. }) | None) => Err(outside(what)),
        }
    }

    /// Notes the relations of a change that is not applied to all of them. Those that it is applied to are not held.
    fn note_passed(&mut self, relations: &[u32], finish: Finish) {
        for &relation in relations {
            self.tables.pass_over(relation, finish);
        }
    }

    /// Counts a change that is not applied.
    fn pass_over(&mut self, relations: &[u32], finish: Finish) {
        self.note_passed(relations, finish);
        match (self.piece, &mut self.receiving) {
            (None, Some(Receiving::Whole { changes, .. })) => *changes += 1,
            (Some(xid), Some(Receiving::InProgress { xid: ours, changes })) if *ours == xid => *changes += 1,
            _ => {}
        }
    }

    /// Counts a change that is applied, and returns its number in its transaction.
    fn count(&mut self) -> Result<u64, End> {
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
            (Some(_), Some(_)) => Err(End::SendWhole),
            (None, _) => Err(outside("a change")),
        }
    }

    /// Finds the table of a relation; none if the change does not apply.
    fn find(
        &self,
        relation: u32,
        operation: Operations,
        (xid, finish): (u32, Finish),
    ) -> Result<Option<&Fit>, End> {
        match (self.tables.lookup(relation), finish) {
            (Lookup::Unannounced, _) => Err(End::OutOfOrder(format!(
                "a change of relation {relation}, which no Relation message announced"
            ))),
            (Lookup::Foreign, _) => Ok(None),
            (Lookup::Member { .. }, Finish::At(commit)) if self.passes_over(commit) => Ok(None),
            (Lookup::Member { left_out, .. }, _) if left_out.meet(operation) => Ok(None),
            (Lookup::Member { applies, fit, .. }, _) => match applies.judge(xid, finish) {
                Verdict::Applies => Ok(Some(fit)),
                Verdict::PassedOver => Ok(None),
                Verdict::Unknown => Err(End::SendWhole),
            },
        }
    }
}

/// The end of the stream at a change that may not be left out, and cannot be applied.
fn refused(misfit: Misfit, command: &'static str, finish: Finish) -> End {
    match finish {
        Finish::At(at) => End::Unfit(Unfit { misfits: vec![misfit], command, finish: Some(at) }),
        // Whether a transaction in progress commits is known at its end only.
        Finish::Beyond(_) => End::SendWhole,
    }
}

fn outside(what: &str) -> End {
    End::OutOfOrder(format!("{what} outside a transaction"))
}
