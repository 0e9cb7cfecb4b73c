//! One subscription's worker: takes events, changes the state, and carries out the resulting action.
//!
//! ```text
//! commands, monitor, attempt's end, timers ──Event──▶ state::step ──Action──▶ perform ──▶ …
//! ```
//! Only the worker has the subscription's state. Others read what it writes to the store, and submit
//! commands. The session that holds the lock is also the one that writes.
//!
//! `lock` takes the lock and the ownership; `waiting` handles the time between attempts; `report` shows the state.

mod beat;
mod lock;
mod report;
mod shared;
mod waiting;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::config::Subscription;
use crate::error::{Diagnosis, Disposition, PauseReason};
use crate::pg::Lsn;
use crate::pg::conninfo::Unacknowledged;
use crate::running::Running;
use crate::store::{Command, Ownership, StateChange, Store};
use crate::target::TargetSession;
use crate::telemetry::{AttemptFailed, ConflictFound, Encounter};

use self::beat::Beat;
use self::lock::{AskedFor, StoodBy};
pub(crate) use self::shared::Shared;
use self::waiting::commands_due;
use super::attempt::{self, Ahead};
use super::because::Because;
use super::context::{Context, Phase, Stalls};
use super::failure::{Cause, Failure, Restart, TargetLink};
use super::format::Whole;
use super::instances::Seat;
use super::monitor::MonitorEvent;
use super::positions::{Promptness, StreamPositions};
use super::publications::Publications;
use super::reader::Reader;
use super::reports::Reports;
use super::schema_watch::SchemaWatch;
use super::snapshot::{Link, Snapshot};
use super::state::{Action, Event, State, step};
use super::stream::StreamEnd;
use super::turns::{Turn, Turns};

/// Maximum number of phases and of monitor events in their channels.
const EVENTS_MAX: usize = 16;

/// Notifies a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    ShutDown,
}

/// One subscription's worker.
pub(crate) struct Worker {
    context: Context,
    store: Store,
    instance: String,
    wish: watch::Receiver<Wish>,
    /// Changes when commands may have come.
    signal: watch::Receiver<u64>,
    /// Commands that were taken up and are still to be carried out, oldest first.
    taken: VecDeque<Command>,
    phases: mpsc::Receiver<Phase>,
    monitor_events: mpsc::Receiver<MonitorEvent>,
    monitor_sender: mpsc::Sender<MonitorEvent>,
    monitor: JoinSet<()>,
    reports: Reports,
    turns: Turns,
    /// What the other instances are told of this worker, and what they want of it.
    seat: Seat,
    /// This worker's turn to start.
    turn: Option<Turn>,
    beat: Beat,
    session: Option<TargetSession>,
    link: Option<Reader>,
    /// Work that was started before the next attempt.
    ahead: Ahead,
    state: State,
    /// The reason of the current state.
    because: Option<Because>,
    held_back: Option<Diagnosis>,
    /// What the start waits for, with the reason that `status` shows: for whom the publisher makes the new slot wait, or a
    /// session on the target.
    start_waits: Option<(&'static str, Diagnosis)>,
    /// The target holds the stream up.
    stalled: Option<Diagnosis>,
    /// The owner of the lock, as far as is known.
    owner: Owner,
    /// The last conflict, so that it is recognised when it is met again.
    last_conflict: Option<i64>,
    schema: SchemaWatch,
    look: Look,
    reported: Option<StateChange>,
    /// The position at which a changed target table last caused a new attempt.
    restarted_at: Option<Lsn>,
    /// The process ID of the last target session.
    session_pid: Option<i32>,
    /// Those of former ones whose servers may not know that they have been given up: they may hold the lock.
    abandoned: Vec<i32>,
    stood_by: Option<StoodBy>,
    asked_for: AskedFor,
    /// The last removal of a subscription of this name when this worker began to ask for its lock.
    removal: Option<i64>,
    /// When the subscription that this instance last owned was created.
    created_at: Option<jiff::Timestamp>,
    /// The last conflict that was logged. A conflict that is met repeatedly is logged once, and once more
    /// after each resume by an operator.
    conflict_said: Option<i64>,
}

/// The owner of the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Us,
    Other,
}

/// Why an attempt compares the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It is a new attempt.
    First,
    /// Nobody has noticed a change since the pause began, so the state that is shown stays `paused` until the
    /// tables fit.
    Again,
}

/// An event for a waiting worker.
enum Wake {
    Wish,
    Commands,
    Monitor(MonitorEvent),
    Phase(Phase),
    Due,
    Attempt(Box<Result<StreamEnd, Failure>>),
    /// The session on the target shows no sign of life.
    TargetLost(Diagnosis),
}

impl Worker {
    pub(crate) fn new(
        subscription: Subscription,
        shared: Shared,
        wish: watch::Receiver<Wish>,
        signal: watch::Receiver<u64>,
        snapshot: watch::Sender<Snapshot>,
    ) -> Self {
        let Shared { target, store, instance, reports, turns, instances } = shared;
        let seat = instances.enter(subscription.name.clone());
        let (phase_sender, phases) = mpsc::channel(EVENTS_MAX);
        let (monitor_sender, monitor_events) = mpsc::channel(EVENTS_MAX);
        let context = Context {
            owner: Ownership::none(subscription.name.clone()),
            target: target.noticing_within(subscription.peer_timeout, Unacknowledged::Unbounded),
            subscription: Arc::new(subscription),
            store: store.clone(),
            positions: watch::Sender::new(StreamPositions::default()),
            promptness: watch::Sender::new(Promptness::default()),
            publications: watch::Sender::new(Publications::default()),
            phases: phase_sender,
            snapshot,
            exact_until: None,
            whole: None,
            stalls: Stalls::default(),
            silences: Stalls::default(),
            refused: Vec::new(),
            warned: watch::Sender::new(Vec::new()),
            passed_over: watch::Sender::default(),
            known_tables: watch::Sender::default(),
            asked: seat.asked(),
        };
        Self {
            context,
            store,
            instance,
            wish,
            signal,
            taken: VecDeque::new(),
            phases,
            monitor_events,
            monitor_sender,
            monitor: JoinSet::new(),
            reports,
            turns,
            seat,
            turn: None,
            beat: Beat::default(),
            session: None,
            link: None,
            ahead: Ahead::default(),
            state: State::Starting { failures: 0 },
            because: None,
            held_back: None,
            start_waits: None,
            stalled: None,
            owner: Owner::Other,
            last_conflict: None,
            schema: SchemaWatch::default(),
            look: Look::First,
            reported: None,
            restarted_at: None,
            session_pid: None,
            abandoned: Vec::new(),
            stood_by: None,
            asked_for: AskedFor::No,
            removal: None,
            created_at: None,
            conflict_said: None,
        }
    }

    /// Runs until asked to shut down.
    pub(crate) async fn run(self) {
        let beat = self.beat.clone();
        tokio::select! {
            () = Box::pin(self.work()) => {}
            () = beat.go_on() => {}
        }
    }

    async fn work(mut self) {
        let mut action = Action::AwaitLock;
        while action != Action::Finish {
            let event = match (self.report().await, action) {
                (Some(deposed), _) => deposed,
                (None, Action::AwaitLock) => self.await_lock().await,
                (None, Action::Attempt) => Box::pin(self.attempt()).await,
                (None, Action::BackOff { failures }) => self.back_off(failures).await,
                (None, Action::Hold) => self.hold().await,
                (None, Action::Continue | Action::Finish) => break,
            };
            action = self.take(event, action);
        }
        self.shut_down().await;
    }

    /// Changes the state. An event that cannot happen is a programming error: it is logged, and the
    /// subscription begins again.
    fn take(&mut self, event: Event, doing: Action) -> Action {
        match step(self.state, event) {
            Ok((state, action)) => {
                debug!(subscription = self.context.name(), ?event, ?state, ?action, "step");
                self.state = state;
                let action = if action == Action::Continue { doing } else { action };
                // An attempt needs the lock, so it is taken first if this worker does not have it.
                let ready = self.session.is_some() && self.owner == Owner::Us;
                if matches!(action, Action::Attempt) && !ready { Action::AwaitLock } else { action }
            }
            Err(illegal) => {
                error!(subscription = self.context.name(), error = %illegal, "the worker begins anew");
                self.state = State::Starting { failures: 0 };
                self.session = None;
                self.lose_target();
                Action::AwaitLock
            }
        }
    }

    async fn attempt(&mut self) -> Event {
        // What has been asked for while nothing was streamed is done before anything is: a table that is let go on
        // misses no change that was committed after that was asked for.
        if let Some(event) = self.on_commands().await {
            self.ahead = Ahead::default();
            return event;
        }
        if let Some(event) = self.take_turn().await {
            return event;
        }
        let Some(session) = self.session.take() else { return Event::LockHeldElsewhere };
        self.held_back = None;
        let event = Box::pin(self.attempt_with(&session)).await;
        (self.turn, self.start_waits, self.stalled, self.look) = (None, None, None, Look::First);
        self.context.snapshot.send_modify(|snapshot| snapshot.copies.clear());
        // The attempt may have been dropped within a transaction. If that cannot be rolled back in time, the
        // session is closed, which releases the lock.
        match session.reset().await {
            // The session may still hold the lock. Closing it releases the lock, which is then taken again.
            Ok(()) if self.owner != Owner::Us => {
                debug!(subscription = self.context.name(), "the target session is given up");
            }
            Ok(()) if !session.client().is_closed() => self.session = Some(session),
            Ok(()) => debug!(subscription = self.context.name(), "the target session has ended"),
            Err(error) => warn!(subscription = self.context.name(), %error, "the target session is given up"),
        }
        if self.session.is_none() {
            self.lose_target();
        }
        event
    }

    async fn attempt_with(&mut self, session: &TargetSession) -> Event {
        // Phases of an attempt that has ended are dropped.
        while self.phases.try_recv().is_ok() {}
        let context = self.context.clone();
        let mut link = self.link.take();
        let ahead = std::mem::take(&mut self.ahead);
        let event = {
            let mut attempt = Running::new(attempt::run(&context, session, ahead, &mut link));
            let mut lost = pin!(session.lost(context.subscription.peer_timeout));
            loop {
                let is_reported = self.is_reported();
                let wake = tokio::select! {
                    biased;
                    _ = self.wish.changed() => Wake::Wish,
                    () = commands_due(&mut self.signal, is_reported) => Wake::Commands,
                    Some(event) = self.monitor_events.recv() => Wake::Monitor(event),
                    Some(phase) = self.phases.recv() => Wake::Phase(phase),
                    end = attempt.end() => Wake::Attempt(Box::new(end)),
                    diagnosis = &mut lost => Wake::TargetLost(diagnosis),
                };
                // The attempt goes on meanwhile: it may hold the session of the store that the handler waits for.
                if let Some(event) = attempt.beside(Box::pin(self.on_wake(wake))).await {
                    break event;
                }
            }
        };
        self.link = link;
        event
    }

    /// Handles an event; returns none if the state does not change.
    async fn on_wake(&mut self, wake: Wake) -> Option<Event> {
        match wake {
            Wake::Wish => (*self.wish.borrow() == Wish::ShutDown).then_some(Event::ShutdownAsked),
            Wake::Commands => match self.report().await {
                Some(event) => Some(event),
                None => self.on_commands().await,
            },
            Wake::Monitor(MonitorEvent::PublisherLost) => {
                if matches!(self.state, State::Paused(_)) {
                    // A publisher that shuts down waits for a last confirmation, so the stream is closed.
                    self.link = None;
                }
                None
            }
            Wake::Monitor(MonitorEvent::PublisherWaits) => {
                let streams = matches!(self.state, State::Streaming);
                streams.then(|| self.fail(Failure::publisher_waits()))
            }
            Wake::Monitor(MonitorEvent::NotOwner) => (self.owner == Owner::Us).then(|| self.deposed()),
            Wake::Phase(phase) => self.on_phase(phase).await,
            Wake::Attempt(end) => Some(match *end {
                Ok(StreamEnd::Conflict(report)) => self.on_conflict(&report).await,
                Ok(StreamEnd::Restart(restart, failure)) => self.on_restart(restart, failure),
                Ok(StreamEnd::Stalled) => {
                    self.context.stalls.note(self.context.positions.borrow().applied);
                    Event::RestartAsked
                }
                Ok(StreamEnd::Silent(failure)) => {
                    self.context.silences.note(self.context.positions.borrow().applied);
                    self.fail(failure)
                }
                Ok(StreamEnd::PublicationsChanged | StreamEnd::AskForMore) => Event::RestartAsked,
                Ok(StreamEnd::HandOver) => self.hand_over(),
                Err(failure) => self.fail(failure),
            }),
            Wake::TargetLost(diagnosis) => Some(self.fail(Failure::target_lost(diagnosis))),
            Wake::Due => None,
        }
    }

    async fn on_phase(&mut self, phase: Phase) -> Option<Event> {
        self.turn = None;
        let event = match phase {
            Phase::SlotWaits(diagnosis) => {
                self.start_waits = Some((Cause::Slot.as_str(), diagnosis));
                return self.report().await;
            }
            Phase::SessionWaits(diagnosis) => {
                self.start_waits = Some(("sessions", diagnosis));
                return self.report().await;
            }
            Phase::Stalled(diagnosis) => {
                self.context.attention(None, &diagnosis);
                self.stalled = Some(diagnosis);
                return self.report().await;
            }
            Phase::Copying => Event::CopyStarted,
            Phase::Streaming => Event::StreamStarted,
            Phase::TableHeldBack(diagnosis) => {
                self.held_back = diagnosis;
                return self.report().await;
            }
        };
        (self.because, self.start_waits, self.look) = (None, None, Look::First);
        self.take(event, Action::Attempt);
        self.report().await
    }

    async fn on_conflict(&mut self, report: &crate::conflict::ConflictReport) -> Event {
        match self.store.open_conflict(&self.context.owner, report).await {
            Ok(id) => {
                let known = self.last_conflict.replace(id) == Some(id);
                let said = self.conflict_said.replace(id) == Some(id);
                let encounter = match (known, said) {
                    (_, true) => Encounter::Again,
                    (true, false) => Encounter::Asked,
                    (false, false) => Encounter::First,
                };
                ConflictFound { report, id, encounter }.emit();
                self.because = Some(Because {
                    reason: PauseReason::Conflict.as_str().to_owned(),
                    diagnosis: Diagnosis::new(report.summary()).hint(report.hint(id)),
                    conflict_id: Some(id),
                });
                Event::Failed(Disposition::Pause(PauseReason::Conflict))
            }
            // A conflict that cannot be recorded causes no pause; the next attempt meets it again.
            Err(error) => self.fail(error.into()),
        }
    }

    /// Begins a new attempt at once. If a table of the target changes repeatedly at one position, the worker
    /// backs off as after any failure.
    fn on_restart(&mut self, restart: Restart, failure: Failure) -> Event {
        match restart {
            Restart::SendAgain { until } => {
                info!(subscription = self.context.name(), lsn = %until, "streaming a transaction again, to apply it row by row");
                self.context.exact_until = Some(until);
            }
            Restart::SendWhole => {
                debug!(subscription = self.context.name(), "asking for whole transactions for some time");
                self.context.whole = Some(Whole::again(self.context.whole, Instant::now()));
            }
            Restart::PublicationMissing(message) => {
                let at = self.context.positions.borrow().applied.unwrap_or_default();
                let refused = &mut self.context.refused;
                refused.retain(|(position, _)| *position == at);
                let refusal = (at, message);
                if refused.contains(&refusal) {
                    return self.fail(failure);
                }
                info!(subscription = self.context.subscription.name.as_str(), lsn = %at, reason = refusal.1, "asking for the publications that existed");
                refused.push(refusal);
            }
            Restart::TargetChanged(table) => {
                self.context.known_tables.send_modify(|known| known.forget(&table));
                let at = self.context.positions.borrow().applied;
                if self.restarted_at == at {
                    return self.fail(failure);
                }
                self.restarted_at = at;
                info!(subscription = self.context.name(), relation = %table, "a target table has changed");
            }
        }
        Event::RestartAsked
    }

    fn fail(&mut self, failure: Failure) -> Event {
        if failure.cause == Cause::Owner {
            return self.deposed();
        }
        let reason = match failure.disposition {
            Disposition::Retry => failure.cause.as_str().to_owned(),
            Disposition::Pause(reason) => reason.as_str().to_owned(),
        };
        let same = self.because.as_ref().is_some_and(|because| because.diagnosis == failure.diagnosis);
        AttemptFailed {
            subscription: self.context.name(),
            disposition: failure.disposition,
            reason: &reason,
            diagnosis: &failure.diagnosis,
            encounter: if same { Encounter::Again } else { Encounter::First },
        }
        .emit();
        if failure.target == TargetLink::Lost {
            self.context.snapshot.send_modify(|snapshot| snapshot.target = Link::Down);
            self.session = None;
            self.lose_target();
        }
        self.because = Some(Because { reason, diagnosis: failure.diagnosis, conflict_id: None });
        Event::Failed(failure.disposition)
    }

    async fn shut_down(&mut self) {
        self.monitor.shutdown().await;
        self.link = None;
        self.session = None;
        debug!(subscription = self.context.name(), "worker stopped");
    }
}
