//! Decides how the stream is applied: gathered into batches of sets, or exactly, row by row.
//!
//! ```text
//! message ─▶ event ─▶ gathered ─whole transactions─▶ compact ─▶ pipeline ─▶ Durable
//!                        │                                        │ any error, any count that differs
//!                        └── tables or moments that sets don't suit ┴──▶ exact ─▶ Durable | Conflict
//! ```
//! While the target works on one batch the next gathers; an idle target gets what there is at once.
//! Sets are an optimisation and nothing else: whatever goes wrong with one is rolled back and
//! applied again on the exact path, which commits everything before the offending change's
//! transaction and names the change.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::compact::compact;
use super::event::Event;
use super::exact::Exact;
use super::pipeline::{Batch, Open, Pipeline};
use super::plan::RowChange;
use super::progress;
use super::tables::{Lookup, Tables};
use super::{ApplyError, ExactBecause, Membership, TableContext, TargetSession, unix_time_us};
use crate::conflict::ConflictReport;
use crate::error::ServerError;
use crate::pg::{Lsn, QualifiedName, SubscriptionName};
use crate::pgoutput::{Begin, Message};
use crate::telemetry::Tally;

/// A batch holds at most so many changes…
const BATCH_CHANGES_MAX: usize = 8192;
/// …and bytes, roughly. A transaction larger than this goes in slices.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Applies one subscription's stream through one session.
#[derive(Debug)]
pub struct Applier<'a> {
    session: &'a TargetSession,
    tables: Tables,
    exact: Exact<'a>,
    pipeline: Pipeline,
    /// The progress row's position when everything that has been sent is through.
    recorded: Lsn,
    mode: Mode,
    gathered: Gathered,
    /// The publisher's transaction that is being received.
    receiving: Option<Receiving>,
    /// The end of the last transaction received.
    received: Lsn,
    /// The finish LSN of the last transaction that went in slices.
    sliced: Lsn,
    /// What the slices applied so far hold, of a transaction whose last one has not been.
    slices: Option<Tally>,
    outcomes: VecDeque<Outcome>,
}

/// How events are applied as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sets,
    /// Row by row, to the end of the transaction at least, and up to this finish LSN.
    Exact {
        until: Option<Lsn>,
    },
    /// A conflict was found: whatever comes after it must not be applied.
    Stopped,
}

#[derive(Debug, Clone, Copy)]
struct Receiving {
    begin: Begin,
    changes: u64,
}

/// Events that have not been sent yet.
#[derive(Debug, Default)]
struct Gathered {
    events: Vec<Event>,
    bytes: usize,
    /// How many of them, from the first on, are whole transactions.
    whole: usize,
}

/// What became of the stream so far.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing durable yet.
    Pending,
    /// Everything up to `lsn` is durable in the target, or needs nothing there.
    Durable { lsn: Lsn, transaction: Option<Applied> },
    /// A target transaction is durable: a batch of sets, or one transaction applied exactly.
    Batch { lsn: Lsn, last: Applied, tally: Tally, took: Duration },
    /// How changes of a table will be applied: row by row for this reason, or in sets.
    Planned { source: QualifiedName, exact_because: Option<ExactBecause> },
    /// A batch could not be applied as sets and goes row by row.
    FellBack {
        /// Without the server's words, which may quote a row's values.
        cause: String,
    },
    /// A transaction was rolled back; this is why.
    Conflict(Box<ConflictReport>),
}

/// A transaction (the last of several, for a batch) that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Where it finishes: its commit record.
    pub commit_lsn: Lsn,
    /// When it committed on the publisher, µs since the Unix epoch.
    pub commit_time_us: i64,
    /// Changes in it, those of other tables included.
    pub changes: u64,
    pub how: How,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Its rows are in the target.
    Committed,
    /// None of its rows concern the target.
    Empty,
    /// Passed over on an operator's word.
    Skipped,
}

/// Where an applier begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The progress row's position.
    pub recorded: Lsn,
    /// Pass over the transaction that finishes here.
    pub skip: Option<Lsn>,
    /// Apply exactly until the transaction that finishes here is through.
    pub exact_until: Option<Lsn>,
}

impl<'a> Applier<'a> {
    pub fn new(
        session: &'a TargetSession,
        subscription: SubscriptionName,
        members: Membership,
        start: Start,
    ) -> Self {
        let mode = match start.exact_until {
            Some(_) => Mode::Exact { until: start.exact_until },
            None => Mode::Sets,
        };
        Self {
            session,
            tables: Tables::new(members),
            exact: Exact::new(session, subscription.clone(), start.skip),
            pipeline: Pipeline::new(Arc::clone(session.client()), subscription),
            recorded: start.recorded,
            mode,
            gathered: Gathered::default(),
            receiving: None,
            received: start.recorded,
            sliced: Lsn::ZERO,
            slices: None,
            outcomes: VecDeque::new(),
        }
    }

    pub fn members_mut(&mut self) -> &mut Membership {
        self.tables.members_mut()
    }

    /// The position up to which the stream has been received, between two transactions; none within
    /// one. What belongs to which table has been decided up to here.
    pub fn received(&self) -> Option<Lsn> {
        self.receiving.is_none().then_some(self.received)
    }

    /// Whether everything received is applied, and the stream is between two transactions.
    fn is_at_rest(&self) -> bool {
        self.receiving.is_none() && self.gathered.events.is_empty() && self.pipeline.is_idle()
    }

    /// Whether batches are under way whose end [`Self::wait`] waits for.
    pub fn is_busy(&self) -> bool {
        !self.pipeline.is_idle()
    }

    /// What has happened since it was last asked.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Takes the stream's next message.
    ///
    /// # Errors
    /// After an error the applier is of no more use, and the session's transaction may be open
    /// ([`TargetSession::reset`]).
    pub async fn take(&mut self, message: Message) -> Result<(), ApplyError> {
        match message {
            Message::Begin(begin) => {
                if self.receiving.replace(Receiving { begin, changes: 0 }).is_some() {
                    return Err(ApplyError::OutOfOrder("BEGIN within a transaction".to_owned()));
                }
                self.event(Event::Begin(begin)).await
            }
            Message::Commit(commit) => {
                let receiving = self.receiving.take().ok_or_else(|| outside("COMMIT"))?;
                self.received = commit.end_lsn;
                self.event(Event::Commit { commit, changes: receiving.changes }).await
            }
            Message::Relation(relation) => {
                // Within an open target transaction a failed change would fail the look-up, too.
                while self.pipeline.open() == Open::Yes && self.is_busy() {
                    self.settle().await?;
                }
                self.exact.come_to_rest().await?;
                let Some(announced) = self.tables.announce(relation, self.session).await? else {
                    return Ok(());
                };
                if let Some(replaced) = announced.replaced {
                    self.exact.forget(replaced);
                    self.pipeline.forget(replaced);
                }
                let (source, exact_because) = (announced.source, announced.exact_because);
                self.outcomes.push_back(Outcome::Planned { source, exact_because });
                Ok(())
            }
            Message::Type(message) => Ok(self.tables.announce_type(message)?),
            Message::Insert(m) => self.change(m.relation_oid, RowChange::Insert { new: m.new }).await,
            Message::Update(m) => {
                self.change(m.relation_oid, RowChange::Update { old: m.old, new: m.new }).await
            }
            Message::Delete(m) => self.change(m.relation_oid, RowChange::Delete { old: m.old.into() }).await,
            Message::Truncate(m) => self.truncate(&m.relation_oids, m.restart_seqs).await,
            // Neither carries anything for a table: where a transaction first came from, and what
            // an application said beside its rows.
            Message::Origin(_) | Message::Logical(_) => Ok(()),
        }
    }

    /// The publisher's position while it has nothing to send: once everything before it is done,
    /// it is done with, too; unless a transaction is still being received.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if self.receiving.is_some() || self.mode == Mode::Stopped {
            return;
        }
        self.received = self.received.max(wal_end);
        if self.is_at_rest() {
            self.outcomes.push_back(Outcome::Durable { lsn: wal_end, transaction: None });
        } else if let Some(Event::Idle(lsn)) = self.gathered.events.last_mut() {
            *lsn = wal_end.max(*lsn);
        } else {
            self.gathered.push(Event::Idle(wal_end));
            self.gathered.whole = self.gathered.events.len();
        }
    }

    /// Nothing more has come for now: an idle target gets what there is.
    pub async fn flush(&mut self) -> Result<(), ApplyError> {
        if self.pipeline.is_idle() && self.pipeline.open() == Open::No && self.gathered.whole > 0 {
            self.send_whole().await?;
        }
        Ok(())
    }

    /// Waits until the oldest batch has been answered. Cancel safe; [`Self::settle`] takes it up.
    pub async fn wait(&mut self) {
        self.pipeline.wait_oldest().await;
    }

    /// Takes up the oldest batch's answers.
    pub async fn settle(&mut self) -> Result<(), ApplyError> {
        if self.pipeline.is_idle() {
            return Ok(());
        }
        self.pipeline.wait_oldest().await;
        match self.pipeline.take_oldest() {
            Ok(Some(done)) => {
                self.report(&done);
                self.flush().await
            }
            Ok(None) => Ok(()),
            Err(error) => self.fall_back(error).await,
        }
    }

    // --- events ---------------------------------------------------------------------------

    async fn change(&mut self, relation: u32, change: RowChange) -> Result<(), ApplyError> {
        let (commit_lsn, index) = self.count(change.operation())?;
        let Some(table) = self.find(relation, commit_lsn)? else { return Ok(()) };
        self.event(Event::Change { table, change, index }).await
    }

    async fn truncate(&mut self, relations: &[u32], restart_seqs: bool) -> Result<(), ApplyError> {
        let mut tables = Vec::with_capacity(relations.len());
        let (commit_lsn, index) = self.count("TRUNCATE")?;
        for &relation in relations {
            tables.extend(self.find(relation, commit_lsn)?);
        }
        if tables.is_empty() {
            Ok(())
        } else {
            self.event(Event::Truncate { tables, restart_seqs, index }).await
        }
    }

    /// Counts a change: where its transaction finishes, and the change's place in it.
    fn count(&mut self, what: &str) -> Result<(Lsn, u64), ApplyError> {
        let receiving = self.receiving.as_mut().ok_or_else(|| outside(what))?;
        receiving.changes += 1;
        Ok((receiving.begin.final_lsn, receiving.changes))
    }

    /// Finds the table of a relation; none if its changes are not to be applied.
    fn find(&self, relation: u32, commit_lsn: Lsn) -> Result<Option<Arc<TableContext>>, ApplyError> {
        match self.tables.lookup(relation, commit_lsn) {
            Lookup::Apply(table) => Ok(Some(Arc::clone(table))),
            Lookup::PassOver => Ok(None),
            Lookup::Unannounced => Err(ApplyError::OutOfOrder(format!(
                "a change of relation {relation}, which no Relation message announced"
            ))),
        }
    }

    async fn event(&mut self, event: Event) -> Result<(), ApplyError> {
        if self.mode == Mode::Sets && self.needs_exact(&event) {
            self.enter_exact().await?;
        }
        match self.mode {
            Mode::Stopped => return Ok(()),
            Mode::Exact { .. } => return self.apply_exactly(event).await,
            Mode::Sets => {}
        }
        let ends = matches!(event, Event::Commit { .. });
        self.gathered.push(event);
        if ends {
            self.gathered.whole = self.gathered.events.len();
            if self.pipeline.open() == Open::Yes {
                // The last slice of a transaction that the target has had open.
                return self.send_whole().await;
            }
        }
        if self.gathered.is_full() { self.send_full().await } else { Ok(()) }
    }

    fn needs_exact(&self, event: &Event) -> bool {
        match event {
            Event::Begin(begin) => self.exact.skips(begin.final_lsn),
            Event::Change { table, change, .. } => !table.suits_sets(change),
            Event::Truncate { tables, .. } => tables.iter().any(|table| table.acts()),
            Event::Commit { .. } | Event::Idle(_) => false,
        }
    }

    // --- the exact path -------------------------------------------------------------------

    async fn apply_exactly(&mut self, event: Event) -> Result<(), ApplyError> {
        let finished = match &event {
            Event::Commit { commit, .. } => Some(commit.commit_lsn),
            _ => None,
        };
        let outcome = self.exact.handle(event, &mut self.recorded, &self.tables).await?;
        if matches!(outcome, Outcome::Conflict(_)) {
            self.mode = Mode::Stopped;
        }
        if !matches!(outcome, Outcome::Pending) {
            self.outcomes.push_back(outcome);
        }
        if let (Some(finished), Mode::Exact { until }) = (finished, self.mode)
            && until.is_none_or(|until| finished >= until)
        {
            self.mode = Mode::Sets;
        }
        Ok(())
    }

    /// Finishes everything before the open transaction, and goes on with it row by row.
    async fn enter_exact(&mut self) -> Result<(), ApplyError> {
        if self.pipeline.open() == Open::Yes {
            return Err(self.send_again());
        }
        if self.gathered.whole > 0 {
            self.send_whole().await?;
        }
        while self.is_busy() {
            self.settle().await?;
        }
        if self.mode == Mode::Stopped {
            return Ok(());
        }
        self.mode = Mode::Exact { until: None };
        for event in self.gathered.take_all() {
            self.apply_exactly(event).await?;
        }
        Ok(())
    }

    /// A batch failed: rolls back, and applies what was under way and what has gathered since row
    /// by row. A conflict found there ends it.
    async fn fall_back(&mut self, error: ApplyError) -> Result<(), ApplyError> {
        if matches!(error, ApplyError::Connection(_)) {
            return Err(error);
        }
        let cause = error.server_error().map_or_else(|| error.to_string(), ServerError::to_code);
        let Some(mut events) = self.pipeline.abandon().await? else { return Err(self.send_again()) };
        self.outcomes.push_back(Outcome::FellBack { cause });
        let subscription = self.exact.subscription().clone();
        if let Some(recorded) = progress::load(self.session.client(), &subscription).await? {
            self.recorded = recorded;
        }
        events.extend(self.gathered.take_all());
        self.mode = Mode::Exact { until: None };
        for event in events {
            // Stays exact over all of them: they were one failure.
            self.mode = Mode::Exact { until: None };
            self.apply_exactly(event).await?;
            if self.mode == Mode::Stopped {
                return Ok(());
            }
        }
        self.mode =
            if self.exact.is_between_transactions() { Mode::Sets } else { Mode::Exact { until: None } };
        Ok(())
    }

    fn send_again(&self) -> ApplyError {
        ApplyError::SendAgain { until: self.sliced }
    }

    // --- batches --------------------------------------------------------------------------

    /// Sends all whole transactions.
    async fn send_whole(&mut self) -> Result<(), ApplyError> {
        let events = self.gathered.take_whole();
        self.send(events, Ends::Whole).await
    }

    /// The gathered events have reached their bound: sends whole transactions, or a slice of one.
    async fn send_full(&mut self) -> Result<(), ApplyError> {
        while self.pipeline.is_full() && self.mode == Mode::Sets {
            self.settle().await?;
        }
        // Settling may have sent or applied everything that was gathered.
        if !self.gathered.is_full() {
            return Ok(());
        }
        if self.gathered.whole > 0 {
            return self.send_whole().await;
        }
        self.sliced = self.receiving.map_or(self.sliced, |receiving| receiving.begin.final_lsn);
        let events = self.gathered.take_all();
        self.send(events, Ends::Within).await
    }

    async fn send(&mut self, events: Vec<Event>, ends: Ends) -> Result<(), ApplyError> {
        let open = self.pipeline.open();
        let Ok(steps) = compact(&events) else { return self.not_sent(ApplyError::NotASet, events).await };
        let writes = !steps.is_empty() || open == Open::Yes;
        let tally = summarize(&events);
        let last = last_applied(&events);
        let end = match (ends, last) {
            (Ends::Whole, Some((lsn, applied))) if writes => Some(progress::Step {
                from: self.recorded,
                to: lsn,
                commit_time_us: applied.commit_time_us,
                transactions: tally.transactions,
            }),
            _ => None,
        };
        let recorded = end.map_or(self.recorded, |end| end.to);
        let batch = Batch { steps, events, end, tally };
        match self.pipeline.send(batch).await {
            Ok(()) => {
                self.recorded = recorded;
                Ok(())
            }
            Err((error, batch)) => self.not_sent(error, batch.events).await,
        }
    }

    /// What could not be sent follows, row by row, what has been.
    async fn not_sent(&mut self, error: ApplyError, events: Vec<Event>) -> Result<(), ApplyError> {
        if matches!(error, ApplyError::Connection(_)) {
            return Err(error);
        }
        if self.pipeline.open() == Open::Yes {
            return Err(self.send_again());
        }
        if let Some(refused) = error.server_error() {
            tracing::warn!(
                error = refused.to_code(),
                "a set statement could not be prepared; rows go one by one"
            );
        }
        self.gathered.put_back(events);
        self.fall_back(error).await
    }

    fn report(&mut self, done: &super::pipeline::Settled) {
        if done.slice && done.end.is_none() {
            // Durable, and told of, with the last slice.
            self.slices = Some(self.slices.take().unwrap_or_default().plus(done.tally));
        }
        let Some((lsn, last)) = last_applied(&done.events).or_else(|| {
            // Slices keep no events; the last one of a transaction has its end.
            done.end.map(|end| {
                let applied = Applied {
                    commit_lsn: end.to,
                    commit_time_us: end.commit_time_us,
                    changes: 0,
                    how: How::Committed,
                };
                (end.to, applied)
            })
        }) else {
            let idle = done.events.iter().rev().find_map(Event::idle);
            self.outcomes.extend(idle.map(|lsn| Outcome::Durable { lsn, transaction: None }));
            return;
        };
        let lsn = done.events.iter().rev().find_map(Event::idle).unwrap_or(lsn).max(lsn);
        if done.end.is_some() {
            let tally = self.slices.take().unwrap_or_default().plus(done.tally);
            self.outcomes.push_back(Outcome::Batch { lsn, last, tally, took: done.took });
        } else {
            let last = Applied { how: How::Empty, ..last };
            self.outcomes.push_back(Outcome::Durable { lsn, transaction: Some(last) });
        }
    }
}

/// Whether a batch ends with a whole transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Whole,
    Within,
}

impl Gathered {
    fn push(&mut self, event: Event) {
        self.bytes += event.size_bytes();
        self.events.push(event);
    }

    fn is_full(&self) -> bool {
        self.events.len() >= BATCH_CHANGES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    fn take_all(&mut self) -> Vec<Event> {
        self.bytes = 0;
        self.whole = 0;
        std::mem::take(&mut self.events)
    }

    fn take_whole(&mut self) -> Vec<Event> {
        let rest = self.events.split_off(self.whole);
        let whole = self.take_all();
        for event in rest {
            self.push(event);
        }
        whole
    }

    fn put_back(&mut self, mut events: Vec<Event>) {
        events.append(&mut self.events);
        self.take_all();
        for event in events {
            self.push(event);
        }
    }
}

/// The last commit among the events: its end and what there is to say of it.
fn last_applied(events: &[Event]) -> Option<(Lsn, Applied)> {
    events.iter().rev().find_map(|event| match event {
        Event::Commit { commit, changes } => {
            let applied = Applied {
                commit_lsn: commit.commit_lsn,
                commit_time_us: unix_time_us(commit.commit_time),
                changes: *changes,
                how: How::Committed,
            };
            Some((commit.end_lsn, applied))
        }
        _ => None,
    })
}

/// Counts what the events hold, before compaction.
fn summarize(events: &[Event]) -> Tally {
    let mut tally = Tally::default();
    for event in events {
        match event {
            Event::Commit { .. } => tally.transactions += 1,
            Event::Change { change: RowChange::Insert { .. }, .. } => tally.inserts += 1,
            Event::Change { change: RowChange::Update { .. }, .. } => tally.updates += 1,
            Event::Change { change: RowChange::Delete { .. }, .. } => tally.deletes += 1,
            Event::Truncate { tables, .. } => tally.truncates += tables.len() as u64,
            Event::Begin(_) | Event::Idle(_) => {}
        }
    }
    tally
}

fn outside(what: &str) -> ApplyError {
    ApplyError::OutOfOrder(format!("{what} outside a transaction"))
}
