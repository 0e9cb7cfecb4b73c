//! One subscription's owner: takes events, steps the state, performs what the step asks for.
//!
//! ```text
//! commands, monitor, attempt's end, timers ──Event──▶ state::step ──Action──▶ perform ──▶ …
//! ```
//! The worker alone knows the subscription's state; others read what it reports to the store and
//! ask by commands. The session that holds the lock is also the one that writes.
//!
//! `lock` tells how a worker becomes the owner, `waiting` what it does between attempts.

mod lock;
mod waiting;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::config::Subscription;
use crate::error::{Diagnosis, Disposition, PauseReason};
use crate::pg::Lsn;
use crate::pg::conninfo::ConnInfo;
use crate::store::{self, Command, Ownership, StateChange, Store};
use crate::target::TargetSession;
use crate::telemetry::{AttemptFailed, ConflictFound, Encounter};

use self::waiting::commands_due;
use super::attempt::{self, Ahead, Context, Phase, TakeUp};
use super::because::Because;
use super::failure::{Cause, Failure, Restart, TargetLink};
use super::format::Whole;
use super::monitor::{Monitor, MonitorEvent};
use super::positions::{Promptness, StreamPositions};
use super::publications::Publications;
use super::reader::Reader;
use super::schema_watch::SchemaWatch;
use super::snapshot::{Link, Snapshot};
use super::state::{Action, Event, State, step};
use super::stream::StreamEnd;

/// Phases and monitor events waiting to be taken, at most.
const EVENTS_MAX: usize = 16;

/// Tells a worker that something may wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    ShutDown,
}

/// What a worker is made of.
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
    session: Option<TargetSession>,
    link: Option<Reader>,
    /// For the attempt that comes next.
    ahead: Ahead,
    state: State,
    /// Why it is where it is.
    because: Option<Because>,
    held_back: Option<Diagnosis>,
    /// The lock is ours, as far as we know.
    owner: Owner,
    /// The last conflict met, so that one met again is known.
    last_conflict: Option<i64>,
    schema: SchemaWatch,
    reported: Option<StateChange>,
    /// Where a changed target table last made it begin anew.
    restarted_at: Option<Lsn>,
    stood_by: Option<StoodBy>,
    /// The last removal of a subscription of this name when this worker began to ask for its lock.
    removal: Option<i64>,
    /// When the subscription that was last ours was created.
    created_at: Option<jiff::Timestamp>,
    /// The last conflict that was logged: one that is met again and again is said once, and once
    /// more for each person who asks to go on.
    conflict_said: Option<i64>,
}

/// What another instance has been seen to apply.
#[derive(Debug, Clone, Copy)]
struct StoodBy {
    /// When that subscription was created; none where it was not known yet.
    created_at: Option<jiff::Timestamp>,
}

/// Whose the subscription is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Us,
    Other,
}

/// What woke a worker that waits.
enum Wake {
    Wish,
    Commands,
    Monitor(MonitorEvent),
    Phase(Phase),
    Due,
    Attempt(Box<Result<StreamEnd, Failure>>),
}

impl Worker {
    pub(crate) fn new(
        subscription: Subscription,
        target: ConnInfo,
        store: Store,
        instance: String,
        wish: watch::Receiver<Wish>,
        signal: watch::Receiver<u64>,
        snapshot: watch::Sender<Snapshot>,
    ) -> Self {
        let (phase_sender, phases) = mpsc::channel(EVENTS_MAX);
        let (monitor_sender, monitor_events) = mpsc::channel(EVENTS_MAX);
        let context = Context {
            owner: Ownership::none(subscription.name.clone()),
            subscription: Arc::new(subscription),
            target,
            store: store.clone(),
            positions: watch::Sender::new(StreamPositions::default()),
            promptness: watch::Sender::new(Promptness::default()),
            publications: watch::Sender::new(Publications::default()),
            take_up: TakeUp::AsConfigured,
            phases: phase_sender,
            snapshot,
            exact_until: None,
            whole: None,
            warned: watch::Sender::new(Vec::new()),
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
            session: None,
            link: None,
            ahead: Ahead::default(),
            state: State::Starting { failures: 0 },
            because: None,
            held_back: None,
            owner: Owner::Other,
            last_conflict: None,
            schema: SchemaWatch::default(),
            reported: None,
            restarted_at: None,
            stood_by: None,
            removal: None,
            created_at: None,
            conflict_said: None,
        }
    }

    /// Runs until asked to shut down.
    pub(crate) async fn run(mut self) {
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

    /// Steps the state. An impossible event is our own mistake: said loudly, then tried again from
    /// the start rather than lost.
    fn take(&mut self, event: Event, doing: Action) -> Action {
        match step(self.state, event) {
            Ok((state, action)) => {
                debug!(subscription = self.context.name(), ?event, ?state, ?action, "step");
                self.state = state;
                let action = if action == Action::Continue { doing } else { action };
                // An attempt needs the lock; who does not have it, or no longer, asks for it first.
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

    fn start_monitor(&mut self) {
        if self.monitor.is_empty() {
            let monitor = Monitor {
                subscription: Arc::clone(&self.context.subscription),
                store: self.store.clone(),
                owner: self.context.owner.clone(),
                positions: self.context.positions.subscribe(),
                publications: self.context.publications.clone(),
                positions_wanted: self.context.promptness.clone(),
                events: self.monitor_sender.clone(),
                snapshot: self.context.snapshot.clone(),
            };
            self.monitor.spawn(monitor.run());
        }
    }

    // --- an attempt -----------------------------------------------------------------------

    async fn attempt(&mut self) -> Event {
        let Some(session) = self.session.take() else { return Event::LockHeldElsewhere };
        self.held_back = None;
        let event = Box::pin(self.attempt_with(&session)).await;
        self.context.snapshot.send_modify(|snapshot| snapshot.copies.clear());
        // The attempt may have been dropped within a transaction; a session that does not come
        // clean is given up, and the lock with it.
        match session.reset().await {
            // The lock may still be the session's: it goes with it, and is asked for anew.
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
        // Left over from an attempt that has ended.
        while self.phases.try_recv().is_ok() {}
        let context = self.context.clone();
        let mut link = self.link.take();
        let ahead = std::mem::take(&mut self.ahead);
        let event = {
            let mut attempt = std::pin::pin!(attempt::run(&context, session, ahead, &mut link));
            loop {
                let wake = tokio::select! {
                    biased;
                    _ = self.wish.changed() => Wake::Wish,
                    () = commands_due(&mut self.signal) => Wake::Commands,
                    Some(event) = self.monitor_events.recv() => Wake::Monitor(event),
                    Some(phase) = self.phases.recv() => Wake::Phase(phase),
                    end = &mut attempt => Wake::Attempt(Box::new(end)),
                };
                if let Some(event) = self.on_wake(wake).await {
                    break event;
                }
            }
        };
        self.link = link;
        event
    }

    /// What a wake means; none if things go on as they are.
    async fn on_wake(&mut self, wake: Wake) -> Option<Event> {
        match wake {
            Wake::Wish => (*self.wish.borrow() == Wish::ShutDown).then_some(Event::ShutdownAsked),
            Wake::Commands => self.on_commands().await,
            Wake::Monitor(MonitorEvent::PublisherLost) => {
                if matches!(self.state, State::Paused(_)) {
                    // A publisher that shuts down waits for our acknowledgement: let go of it.
                    self.link = None;
                }
                None
            }
            Wake::Monitor(MonitorEvent::NotOwner) => (self.owner == Owner::Us).then(|| self.deposed()),
            Wake::Phase(phase) => self.on_phase(phase).await,
            Wake::Attempt(end) => Some(match *end {
                Ok(StreamEnd::Conflict(report)) => self.on_conflict(&report).await,
                Ok(StreamEnd::Restart(restart, failure)) => self.on_restart(restart, failure),
                Ok(StreamEnd::PublicationsChanged | StreamEnd::AskForMore) => Event::RestartAsked,
                Err(failure) => self.fail(failure),
            }),
            Wake::Due => None,
        }
    }

    async fn on_phase(&mut self, phase: Phase) -> Option<Event> {
        let event = match phase {
            Phase::Copying => Event::CopyStarted,
            Phase::Streaming => {
                self.context.take_up = TakeUp::AsConfigured;
                Event::StreamStarted
            }
            Phase::TableHeldBack(diagnosis) => {
                self.held_back = diagnosis;
                return self.report().await;
            }
        };
        self.because = None;
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
            // Without its evidence there is no pause: it will be found again.
            Err(error) => self.fail(error.into()),
        }
    }

    /// Begins anew at once. A table that is being changed again and again at one position is waited
    /// for as any failure is.
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
            Restart::TargetChanged(table) => {
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

    /// Another instance has taken the subscription over: the session goes, with whatever it has open, and the
    /// lock is asked for again.
    fn deposed(&mut self) -> Event {
        info!(
            subscription = self.context.name(),
            "another instance has taken the subscription over, letting go"
        );
        self.session = None;
        self.lose_target();
        Event::LockHeldElsewhere
    }

    /// Without the target nothing can be acknowledged: let go of the publisher, too.
    fn lose_target(&mut self) {
        self.owner = Owner::Other;
        self.link = None;
        // Whoever takes the subscription over finds these unanswered.
        self.taken.clear();
    }

    // --- reporting ------------------------------------------------------------------------

    /// Tells the state; an event if the subscription turns out to be another instance's.
    async fn report(&mut self) -> Option<Event> {
        let change = self.state_change()?;
        // First what everybody sees: it must not wait for a target that is down.
        self.context.snapshot.send_modify(|snapshot| snapshot.shown.clone_from(&change));
        if self.owner != Owner::Us {
            // What the target records is its owner's word.
            return None;
        }
        if self.reported.as_ref() == Some(&change) {
            return None;
        }
        match self.store.set_state(&self.context.owner, &change).await {
            Ok(_) => self.reported = Some(change),
            Err(error) if error.is_not_owner() => return Some(self.deposed()),
            Err(error) => debug!(subscription = self.context.name(), %error, "state not reported"),
        }
        None
    }

    /// What the world is to see; none once the worker has stopped.
    fn state_change(&self) -> Option<StateChange> {
        let shown = match self.state {
            State::Stopped => return None,
            State::Standby => store::State::Standby,
            State::Starting { failures: 0 } => store::State::Starting,
            State::Starting { .. } | State::Retrying { .. } => store::State::Retrying,
            State::Copying { .. } => store::State::Copying,
            State::Streaming => store::State::Streaming,
            State::Paused(_) => store::State::Paused,
        };
        if let (store::State::Streaming, Some(diagnosis)) = (shown, &self.held_back) {
            return Some(StateChange::new(store::State::Retrying).because("copy", diagnosis));
        }
        let change = StateChange::new(shown);
        Some(match (&self.because, shown) {
            (Some(because), store::State::Retrying | store::State::Paused) => StateChange {
                conflict_id: because.conflict_id,
                ..change.because(because.reason.clone(), &because.diagnosis)
            },
            _ => change,
        })
    }

    async fn shut_down(&mut self) {
        self.monitor.shutdown().await;
        self.link = None;
        self.session = None;
        debug!(subscription = self.context.name(), "worker stopped");
    }
}
