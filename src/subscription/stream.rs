//! The streaming part of an attempt: passes messages from the reader to the applier and durable positions
//! back, and takes in tables whose synchronisation has ended between two transactions.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use crate::apply::{Applied, Applier, ApplyError, How, Next, Outcome};
use crate::config::SynchronousCommit;
use crate::conflict::ConflictReport;
use crate::error::{Diagnosis, PauseReason};
use crate::pg::{Lsn, QualifiedName};
use crate::replication::Reply;
use crate::store::{StoreError, TableState, TableStep};
use crate::telemetry::{BatchApplied, FellBack, Received};

use super::announced::Announced;
use super::context::{Context, Phase};
use super::failure::{Cause, Failure, Restart};
use super::findings;
use super::flushes::Flushes;
use super::format::Choice;
use super::gaps;
use super::instances::Asked;
use super::publications::{Look, Publications};
use super::reader::{Chunk, Done, ReadError, Reader, StreamEvent};
use super::table_sync::{SyncEvent, TableSyncs};

/// How a stream ended without a failure.
#[derive(Debug)]
pub(super) enum StreamEnd {
    /// A transaction was rolled back on a conflict.
    Conflict(Box<ConflictReport>),
    /// A new attempt begins at once, and streams again what could not be applied.
    Restart(Restart, Failure),
    /// The publications have changed, or the stream has passed a change, and a new attempt takes that up.
    PublicationsChanged,
    /// The target kept the publisher waiting, so the stream was closed; the target has answered since.
    Stalled,
    /// The publisher has sent nothing for too long.
    Silent(Failure),
    /// Better options of the stream can be requested now, by a new attempt.
    AskForMore,
    /// Another instance is to go on.
    HandOver,
}

/// What the stream keeps of its tables.
pub(super) struct Tables<'a> {
    pub(super) syncs: TableSyncs,
    pub(super) announced: Announced<'a>,
}

/// An event of the stream's loop.
enum Event {
    Chunk(Chunk),
    /// The last chunk has more messages.
    Rest,
    /// The time of waiting for a table's synchronisation is over.
    Resume,
    /// Descriptions of tables are to be judged.
    Look,
    /// The target has answered, or time has passed.
    Applied(Result<Next, ApplyError>),
    /// The reader has stopped, and its last chunk has been taken.
    Ended,
    /// The stream was closed, because the publisher waited for so long.
    Stalled(Duration),
    Sync(SyncEvent),
    /// The target has flushed commits that did not wait for that.
    Flushed(Result<Lsn, StoreError>),
    /// The subscription is to be handed over, or no more.
    Asked,
}

/// Where and how a stream begins.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    pub(super) from: Lsn,
    pub(super) choice: Choice,
    /// Once everything up to here is recorded, the publications are to be looked at again.
    pub(super) look_at: Option<Lsn>,
}

/// Applies the stream, until a conflict, a failure or a reason for a new attempt.
pub(super) async fn run(
    context: &Context,
    applier: Applier<'_>,
    reader: &mut Reader,
    tables: Tables<'_>,
    begun: Begun,
) -> Result<StreamEnd, Failure> {
    let mut stream = Stream::new(context, applier, tables, begun);
    stream.publish(reader);
    let mut publications = context.publications.subscribe();
    let (mut stall, mut asked) = (reader.stalled(), context.asked.clone());
    loop {
        let may_end = stream.may_begin_anew();
        let promptness = *context.promptness.borrow();
        stream.applier.set_idle_record_interval(promptness.idle_record_interval());
        // A new attempt begins only after everything sent to the target has been answered.
        let more_to_ask = may_end && stream.may_ask_for_more();
        let passed = may_end && stream.has_passed_a_look();
        stream.note_asked(*asked.borrow_and_update(), reader);
        let handing = stream.hands_over;
        let ending = handing || more_to_ask || passed || (may_end && publications.borrow().have_changed());
        let resume = stream.waits_for_sync();
        let busy = stream.applier.is_busy();
        let open = !ending && !stream.stalled && resume.is_none() && stream.applier.takes_messages();
        let more = !stream.rest.as_slice().is_empty();
        let look = stream.announced.due();
        if open && !more {
            stream.hold = None;
        }
        let event = tokio::select! {
            // Hand-overs come first, because they are rare and a synchronisation waits for them. Answers come
            // before messages, because they make room.
            biased;
            event = stream.syncs.next() => Event::Sync(event),
            flushed = next_flush(&mut stream.flushes) => Event::Flushed(flushed),
            applied = stream.applier.next() => Event::Applied(applied),
            Ok(_) = publications.wait_for(Publications::have_changed), if may_end && !busy => {
                return Ok(StreamEnd::PublicationsChanged);
            }
            () = std::future::ready(()), if passed && !busy => return Ok(StreamEnd::PublicationsChanged),
            () = std::future::ready(()), if more_to_ask && !busy => return Ok(StreamEnd::AskForMore),
            () = std::future::ready(()), if handing && !busy => return Ok(StreamEnd::HandOver),
            Ok(()) = asked.changed(), if !handing => Event::Asked,
            () = std::future::ready(()), if stream.stalled && !busy => return Ok(StreamEnd::Stalled),
            () = sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => Event::Resume,
            () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => Event::Look,
            () = std::future::ready(()), if open && more => Event::Rest,
            chunk = reader.chunks.recv(), if open && !more => chunk.map_or(Event::Ended, Event::Chunk),
            Ok(waited) = stall.wait_for(Option::is_some), if !stream.stalled => Event::Stalled(waited.unwrap_or_default()),
        };
        let done = match event {
            Event::Chunk(chunk) => {
                Received { subscription: context.name(), tally: chunk.received }.emit();
                stream.rest = chunk.events.into_iter();
                stream.hold = chunk.hold;
                stream.take(reader).await
            }
            Event::Rest => stream.take(reader).await,
            Event::Resume | Event::Look | Event::Asked => Ok(()),
            Event::Applied(applied) => on_applied(applied, reader),
            Event::Stalled(waited) => stream.on_stalled(waited).await,
            Event::Ended => match reader.end().await {
                ReadError::TooLarge(message) => stream.applier.refuse(message).map_err(Failure::from),
                silent @ ReadError::Silent(_) => return Ok(StreamEnd::Silent(silent.into())),
                error => return Err(error.into()),
            },
            Event::Sync(event) => stream.on_sync(event).await,
            Event::Flushed(flushed) => stream.on_flushed(flushed, reader),
        };
        if let Some(end) = stream.outcomes(reader).await? {
            return Ok(end);
        }
        done?;
    }
}

async fn next_flush(flushes: &mut Option<Flushes>) -> Result<Lsn, StoreError> {
    match flushes {
        Some(flushes) => flushes.next().await,
        None => std::future::pending().await,
    }
}

fn on_applied(applied: Result<Next, ApplyError>, reader: &Reader) -> Result<(), Failure> {
    if applied? == Next::Answered {
        reader.note_progress();
    }
    Ok(())
}

struct Stream<'a> {
    context: &'a Context,
    applier: Applier<'a>,
    syncs: TableSyncs,
    /// Received messages that have not been taken yet.
    rest: std::vec::IntoIter<StreamEvent>,
    /// The stream was closed. What has been received is not taken any more, but streamed again.
    stalled: bool,
    /// What was sent to the target is waited for, then another instance goes on.
    hands_over: bool,
    /// Of a large chunk: the reader goes on when this is dropped.
    hold: Option<oneshot::Sender<()>>,
    /// The target's positions.
    done: Done,
    /// With `synchronous_commit = off`: finds out when commits are durable.
    flushes: Option<Flushes>,
    /// This attempt has not applied a transaction yet.
    first: bool,
    /// The last error that was logged of each table whose copy fails.
    said: HashMap<QualifiedName, Diagnosis>,
    announced: Announced<'a>,
    choice: Choice,
    /// As [`Begun::look_at`].
    look_at: Option<Lsn>,
}

impl<'a> Stream<'a> {
    fn new(context: &'a Context, applier: Applier<'a>, tables: Tables<'a>, begun: Begun) -> Self {
        let Tables { syncs, announced } = tables;
        let Begun { from, choice, look_at } = begun;
        Self {
            context,
            applier,
            syncs,
            rest: Vec::new().into_iter(),
            stalled: false,
            hands_over: false,
            hold: None,
            done: Done::all(from),
            flushes: (context.subscription.synchronous_commit == SynchronousCommit::Off)
                .then(|| Flushes::new(context.store.clone(), from)),
            first: true,
            said: HashMap::new(),
            announced,
            choice,
            look_at,
        }
    }

    /// What was sent to the target is waited for, and nothing more is taken.
    async fn on_stalled(&mut self, waited: Duration) -> Result<(), Failure> {
        self.stalled = true;
        self.context.tell(Phase::Stalled(findings::stalled(waited))).await;
        Ok(())
    }

    /// Takes the chunk's messages, up to the end of a transaction after which something else is to be done. A
    /// hand-over must not wait for a chunk that happens to end between two transactions.
    async fn take(&mut self, reader: &Reader) -> Result<(), Failure> {
        while self.applier.takes_messages()
            && let Some(event) = self.rest.next()
        {
            match event {
                StreamEvent::Message(message) => self.applier.take(message)?,
                StreamEvent::Keepalive { wal_end, reply } => {
                    self.applier.keepalive(wal_end, reply == Reply::Requested);
                }
            }
            if self.applier.received().is_some() && self.is_something_due() {
                break;
            }
        }
        self.applier.quiet()?;
        if self.rest.as_slice().is_empty() && reader.chunks.is_empty() {
            self.applier.caught_up();
        }
        self.hand_over().await?;
        self.publish(reader);
        Ok(())
    }

    /// Processes the applier's outcomes: reports durable positions, and returns the end of the stream if
    /// there is one.
    async fn outcomes(&mut self, reader: &Reader) -> Result<Option<StreamEnd>, Failure> {
        while let Some(outcome) = self.applier.outcome() {
            match outcome {
                Outcome::Durable { lsn, skipped } => {
                    self.advance(lsn, reader);
                    if let Some(skipped) = skipped {
                        self.note(lsn, skipped).await?;
                    }
                }
                Outcome::Batch { lsn, last, tally, took } => {
                    self.advance(lsn, reader);
                    BatchApplied { subscription: self.context.name(), tally, duration: took }.emit();
                    self.note(lsn, last).await?;
                }
                Outcome::Planned { source, exact_because, description, warnings } => {
                    let (context, described) = (self.context, (description, exact_because));
                    let received = reader.received();
                    self.announced.planned(context, &source, described, &warnings, received).await?;
                }
                Outcome::Again(source) => self.announced.again(&source, reader.received()),
                Outcome::Stranger(relation) => {
                    debug!(subscription = self.context.name(), %relation, "changes of a table that is not followed");
                    self.context.publications.send_if_modified(|publications| {
                        std::mem::replace(&mut publications.look, Look::AtOnce) != Look::AtOnce
                    });
                }
                Outcome::FellBack { cause } => {
                    FellBack { subscription: self.context.name(), cause: &cause }.emit();
                }
                Outcome::Conflict(report) => return Ok(Some(StreamEnd::Conflict(report))),
            }
            self.publish(reader);
        }
        self.announced.settle(self.context).await?;
        Ok(None)
    }

    fn advance(&mut self, lsn: Lsn, reader: &Reader) {
        self.done.applied = lsn.max(self.done.applied);
        match &mut self.flushes {
            Some(flushes) => flushes.note_applied(self.done.applied),
            None => self.done.durable = self.done.applied,
        }
        reader.report(self.done);
    }

    fn on_flushed(&mut self, flushed: Result<Lsn, StoreError>, reader: &Reader) -> Result<(), Failure> {
        self.done.durable = flushed?.max(self.done.durable);
        reader.report(self.done);
        self.publish(reader);
        Ok(())
    }

    /// Publishes positions for status and metrics.
    fn publish(&self, reader: &Reader) {
        self.context.positions.send_modify(|positions| {
            positions.received = Some(reader.received().max(self.done.applied));
            positions.applied = Some(self.done.applied);
            positions.flushed = Some(self.done.durable);
        });
        let latest = self.applier.passed_over();
        if !latest.is_empty() {
            gaps::note_passed(self.context, latest);
        }
    }

    /// Settles a conflict that was retried with success, and an armed skip, at the end of a transaction.
    async fn note(&mut self, lsn: Lsn, applied: Applied) -> Result<(), Failure> {
        let (store, name, owner) = (&self.context.store, self.context.name(), &self.context.owner);
        match applied.how {
            How::Skipped => {
                let lsn = applied.commit_lsn;
                info!(subscription = name, %lsn, changes = applied.changes, "transaction passed over");
                store.finish_skip(owner, lsn).await?;
            }
            How::Committed if self.first => {
                let settled = store.resolve_applied(owner, lsn).await?;
                debug!(subscription = name, %lsn, ?settled, "first transaction applied");
            }
            How::Committed => {}
        }
        self.first = false;
        Ok(())
    }

    /// Whether a new attempt would lose no work: neither a part of a transaction nor a table's
    /// synchronisation, which may take hours. (A table that joins waits for a running one in any case.)
    fn may_begin_anew(&self) -> bool {
        self.applier.received().is_some() && !self.syncs.is_running()
    }

    /// Hands over once nothing is under way but what was sent to the target: no transaction, no message, no table's
    /// synchronisation.
    fn note_asked(&mut self, asked: Asked, reader: &Reader) {
        self.hands_over |= asked == Asked::LetGo
            && self.applier.received().is_some()
            && self.syncs.is_empty()
            && !self.stalled
            && self.rest.as_slice().is_empty()
            && reader.chunks.is_empty();
    }

    /// Whether the stream is beyond a position at which tables are let go, or publications can be asked for.
    fn has_passed_a_look(&self) -> bool {
        self.look_at.is_some_and(|look_at| self.done.applied >= look_at)
    }

    /// Whether a new attempt would get better options.
    fn may_ask_for_more(&self) -> bool {
        let better = self.choice.better_after.filter(|_| self.syncs.is_empty());
        better.is_some_and(|better| better.is_due(Instant::now(), self.done.applied))
    }

    /// Until when the stream waits for a table's synchronisation that is about to reach it; none if it does
    /// not wait.
    fn waits_for_sync(&mut self) -> Option<Instant> {
        self.applier.received().and_then(|received| self.syncs.worth_waiting_until(received))
    }

    /// Whether the stream has something else to do at the end of this transaction.
    fn is_something_due(&mut self) -> bool {
        self.waits_for_sync().is_some()
            || (self.may_begin_anew() && self.context.publications.borrow().have_changed())
    }

    /// Takes in a table whose synchronisation has reached the stream's received position. May only be called
    /// between transactions.
    async fn hand_over(&mut self) -> Result<(), Failure> {
        if !self.applier.received().is_some_and(|received| self.syncs.is_waiting_at(received)) {
            return Ok(());
        }
        let event = self.syncs.finish().await;
        self.on_sync(event).await
    }

    async fn on_sync(&mut self, event: SyncEvent) -> Result<(), Failure> {
        let (store, owner) = (&self.context.store, &self.context.owner);
        match event {
            SyncEvent::CaughtUp => return Box::pin(self.hand_over()).await,
            SyncEvent::State { source, attempt, state } => {
                // If the table is `ready` by now, another event says so.
                store.set_table_state(owner, &source, attempt, state, None).await?;
            }
            SyncEvent::Done { source, position } => self.take_in(source, position).await?,
            SyncEvent::Failed { source, attempt, diagnosis } => {
                // It is tried again every few seconds, so each error is logged once.
                if self.said.get(&source) != Some(&diagnosis) {
                    self.context.attention(Some(&source), &diagnosis);
                    self.said.insert(source.clone(), diagnosis.clone());
                }
                let pending = TableState::Pending;
                match store.set_table_state(owner, &source, attempt, pending, Some(&diagnosis)).await? {
                    TableStep::Taken { .. } => self.report_held_back(Some(diagnosis)).await,
                    // The copy has been committed nevertheless, so no more of its changes may be passed over.
                    TableStep::Ready { .. } => {
                        return Err(Failure::retry(diagnosis).because_of(Cause::Record));
                    }
                }
            }
            SyncEvent::Ended(failure) => return Err(failure),
        }
        Ok(())
    }

    /// Takes the table into the stream, which applies its changes from the position on. Before, they were
    /// passed over.
    async fn take_in(&mut self, source: QualifiedName, position: Lsn) -> Result<(), Failure> {
        let name = self.context.name();
        if self.applier.received().is_none_or(|received| received > position) {
            return Err(Failure::pause(
                PauseReason::TargetError,
                findings::passed_over(&source, position, &self.context.subscription.name),
            ));
        }
        info!(subscription = name, relation = %source, lsn = %position, "table synchronised");
        self.applier.set_position(&source, position);
        gaps::show(self.context).await?;
        self.report_held_back(None).await;
        Ok(())
    }

    async fn report_held_back(&mut self, failed: Option<Diagnosis>) {
        if failed.is_some() || self.syncs.is_empty() {
            self.context.tell(Phase::TableHeldBack(failed)).await;
        }
    }
}
