//! One subscription's owner: takes events, steps the state, performs what the step asks for.
//!
//! ```text
//! commands, monitor, attempt's end, timers ──Event──▶ state::step ──Action──▶ perform ──▶ …
//! ```
//! The worker alone knows the subscription's state; others read what it reports to the store and
//! ask by commands. The session that holds the lock is also the one that writes.

use std::sync::Arc;
use std::time::Duration;

use backon::BackoffBuilder as _;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::apply::{Lock, TargetSession, origin_name};
use crate::config::Subscription;
use crate::error::{Diagnosis, Disposition, PauseReason};
use crate::pg::Lsn;
use crate::pg::conninfo::ConnInfo;
use crate::store::{self, Answer, Command, Desired, Registration, StateChange, Store, Verb, lock_key};
use crate::telemetry::{AttemptFailed, ConflictFound, Encounter};

use super::attempt::{self, Context, Phase, TakeUp};
use super::because::Because;
use super::commands;
use super::failure::{Failure, Restart, TargetLink};
use super::format::Whole;
use super::monitor::{Monitor, MonitorEvent};
use super::positions::StreamPositions;
use super::publications::Publications;
use super::reader::Reader;
use super::schema_watch::{SCHEMA_FINGERPRINT, SchemaWatch};
use super::snapshot::{Link, Snapshot};
use super::state::{Action, Event, State, step};
use super::stream::StreamEnd;

/// How often a standby asks for the lock.
const LOCK_POLL: Duration = Duration::from_secs(1);
/// How often commands are looked for in case their notification got lost.
const COMMAND_POLL: Duration = Duration::from_secs(1);
/// How often a held subscription looks whether its session is alive and its schema fits.
const HOLD_POLL: Duration = Duration::from_secs(2);
/// Back-off between attempts: from here, doubling, with jitter, to there.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
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
    phases: mpsc::Receiver<Phase>,
    monitor_events: mpsc::Receiver<MonitorEvent>,
    monitor_sender: mpsc::Sender<MonitorEvent>,
    monitor: JoinSet<()>,
    session: Option<TargetSession>,
    link: Option<Reader>,
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
            subscription: Arc::new(subscription),
            target,
            store: store.clone(),
            positions: watch::Sender::new(StreamPositions::default()),
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
            phases,
            monitor_events,
            monitor_sender,
            monitor: JoinSet::new(),
            session: None,
            link: None,
            state: State::Starting { failures: 0 },
            because: None,
            held_back: None,
            owner: Owner::Other,
            last_conflict: None,
            schema: SchemaWatch::default(),
            reported: None,
            restarted_at: None,
            stood_by: None,
            conflict_said: None,
        }
    }

    /// Runs until asked to shut down.
    pub(crate) async fn run(mut self) {
        let mut action = Action::AwaitLock;
        while action != Action::Finish {
            self.report().await;
            let event = match action {
                Action::AwaitLock => self.await_lock().await,
                Action::Attempt => Box::pin(self.attempt()).await,
                Action::BackOff { failures } => self.back_off(failures).await,
                Action::Hold => self.hold().await,
                Action::Continue | Action::Finish => break,
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

    // --- the lock -------------------------------------------------------------------------

    async fn await_lock(&mut self) -> Event {
        loop {
            match self.try_lock().await {
                Ok(Some(event)) => return event,
                Ok(None) => {
                    if self.stood_by.is_none() {
                        info!(subscription = self.context.name(), "standby: another instance applies");
                        self.stand_by().await;
                    }
                    if self.state != State::Standby {
                        return Event::LockHeldElsewhere;
                    }
                }
                Err(failure) => {
                    // Half-way to being the owner is not being it: begin with a new session.
                    self.session = None;
                    return self.fail(failure);
                }
            }
            if let Some(event) = self.wait(LOCK_POLL).await {
                return event;
            }
        }
    }

    /// What the owner reports is the owner's to report, and its stream the owner's to hold.
    async fn stand_by(&mut self) {
        self.lose_target();
        self.monitor.shutdown().await;
        // Remembered, so that a subscription that is dropped meanwhile is not made anew.
        let row = self.store.subscription(self.context.name()).await;
        self.stood_by = Some(StoodBy { created_at: row.ok().flatten().map(|row| row.created_at) });
    }

    /// Opens the session if need be and tries for the lock; with it, reads where we stand.
    async fn try_lock(&mut self) -> Result<Option<Event>, Failure> {
        let subscription = Arc::clone(&self.context.subscription);
        if self.session.is_none() {
            let name = format!("pgsluice {}", subscription.name);
            let session = TargetSession::open(&self.context.target, &name).await?;
            session.set_synchronous_commit(subscription.synchronous_commit.as_str()).await?;
            self.session = Some(session);
        }
        let Some(session) = &mut self.session else { return Ok(None) };
        let lock = session.try_lock(lock_key(subscription.name.as_str())).await?;
        self.context.snapshot.send_modify(|snapshot| snapshot.target = Link::Up);
        if lock == Lock::HeldElsewhere {
            return Ok(None);
        }
        if let Some(StoodBy { created_at: Some(known) }) = self.stood_by {
            let row = self.store.subscription(subscription.name.as_str()).await?;
            if row.is_none_or(|row| row.created_at != known) {
                info!(subscription = %subscription.name, "dropped while standing by; restart to start over");
                return Ok(Some(Event::ShutdownAsked));
            }
        }
        session.set_origin(&origin_name(&subscription.name)).await?;
        self.claim().await.map(Some)
    }

    /// The lock is ours: says so, and reads what was left.
    async fn claim(&mut self) -> Result<Event, Failure> {
        let subscription = Arc::clone(&self.context.subscription);
        self.store
            .register_subscription(Registration {
                name: &subscription.name,
                slot: &subscription.slot,
                publications: &subscription.publications,
            })
            .await?;
        self.store.claim_subscription(self.context.name(), &self.instance).await?;
        if self.stood_by.take().is_some() {
            info!(subscription = self.context.name(), "the other instance has gone, taking over");
        }
        self.owner = Owner::Us;
        // Another instance may have reported in between.
        self.reported = None;
        self.start_monitor();
        let row = self.store.subscription(self.context.name()).await?;
        Ok(match row {
            Some(row) if row.desired == Desired::Pause => {
                self.because = Some(Because::operator());
                Event::LockedWhilePaused(PauseReason::Operator)
            }
            Some(row) if row.state == store::State::Paused => self.left_paused(row),
            _ => Event::Locked,
        })
    }

    /// A conflict waits for a person through restarts; other causes are simply looked at again.
    fn left_paused(&mut self, row: store::SubscriptionRow) -> Event {
        if row.reason.as_deref() != Some(PauseReason::Conflict.as_str()) || row.skip_lsn.is_some() {
            return Event::Locked;
        }
        self.last_conflict = row.conflict_id;
        self.because = Some(Because {
            reason: PauseReason::Conflict.as_str().to_owned(),
            diagnosis: Diagnosis { hint: row.hint, ..Diagnosis::new(row.detail.unwrap_or_default()) },
            conflict_id: row.conflict_id,
        });
        Event::LockedWhilePaused(PauseReason::Conflict)
    }

    fn start_monitor(&mut self) {
        if self.monitor.is_empty() {
            let monitor = Monitor {
                subscription: Arc::clone(&self.context.subscription),
                store: self.store.clone(),
                positions: self.context.positions.subscribe(),
                publications: self.context.publications.clone(),
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
        let event = {
            let mut attempt = std::pin::pin!(attempt::run(&context, session, &mut link));
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
                self.report().await;
                return None;
            }
        };
        self.because = None;
        self.take(event, Action::Attempt);
        self.report().await;
        None
    }

    async fn on_conflict(&mut self, report: &crate::conflict::ConflictReport) -> Event {
        match self.store.open_conflict(report).await {
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

    /// Without the target nothing can be acknowledged: let go of the publisher, too.
    fn lose_target(&mut self) {
        self.owner = Owner::Other;
        self.link = None;
    }

    // --- waiting --------------------------------------------------------------------------

    async fn back_off(&mut self, failures: u32) -> Event {
        self.link = None;
        let delay = backon::ExponentialBuilder::default()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .with_jitter()
            .without_max_times()
            .build()
            .nth(failures.saturating_sub(1).min(MAX_DOUBLINGS) as usize)
            .unwrap_or(BACKOFF_MAX);
        self.wait(delay).await.unwrap_or(Event::RetryDue)
    }

    /// Keeps still: answers commands, keeps the lock, and looks whether the reason has gone.
    async fn hold(&mut self) -> Event {
        let retry_at = match self.state {
            State::Paused(PauseReason::Conflict) => {
                self.context.subscription.retry_conflict_interval.map(|every| Instant::now() + every)
            }
            _ => None,
        };
        loop {
            if self.session.is_none() {
                // Whoever has the lock next may have gone on from here: ask for it, then look.
                return Event::LockHeldElsewhere;
            }
            if let Some(event) = self.wait(HOLD_POLL).await {
                return event;
            }
            if retry_at.is_some_and(|at| Instant::now() >= at) {
                return Event::RetryDue;
            }
            if let Err(failure) = self.keep_lock().await {
                debug!(
                    subscription = self.context.name(),
                    error = failure.diagnosis.told_to_log().primary,
                    "lock lost"
                );
                self.context.snapshot.send_modify(|snapshot| snapshot.target = Link::Down);
                self.session = None;
                self.lose_target();
            }
            if self.state == State::Paused(PauseReason::Schema) && self.may_fit_now().await {
                return Event::TargetFits;
            }
        }
    }

    /// The session that holds the lock is still there.
    async fn keep_lock(&self) -> Result<(), Failure> {
        match &self.session {
            Some(session) => Ok(session.reset().await?),
            None => Err(Failure::retry(Diagnosis::new("the target session has ended"))),
        }
    }

    /// Whether either side has changed since the pause began: what does not fit may fit now, or may
    /// no longer be published. The attempt that follows judges.
    async fn may_fit_now(&mut self) -> bool {
        let what = if self.target_has_changed().await {
            "the target's tables"
        } else if self.context.publications.borrow().have_changed() {
            "the publications"
        } else {
            return false;
        };
        info!(subscription = self.context.name(), "{what} have changed, looking again");
        true
    }

    async fn target_has_changed(&mut self) -> bool {
        let Some(session) = &self.session else { return false };
        let read = session.client().query_one(SCHEMA_FINGERPRINT, &[]).await;
        match read.and_then(|row| row.try_get::<_, String>(0)) {
            Ok(now) => self.schema.changed(now),
            Err(_) => false,
        }
    }

    /// Waits so long, or until something happens that ends the waiting.
    async fn wait(&mut self, delay: Duration) -> Option<Event> {
        let due = Instant::now() + delay;
        loop {
            let wake = tokio::select! {
                biased;
                _ = self.wish.changed() => Wake::Wish,
                () = commands_due(&mut self.signal) => Wake::Commands,
                Some(event) = self.monitor_events.recv() => Wake::Monitor(event),
                // Left over from an attempt that has ended.
                Some(_) = self.phases.recv() => continue,
                () = tokio::time::sleep_until(due) => Wake::Due,
            };
            if matches!(wake, Wake::Due) {
                return None;
            }
            if let Some(event) = self.on_wake(wake).await {
                return Some(event);
            }
        }
    }

    // --- commands -------------------------------------------------------------------------

    async fn on_commands(&mut self) -> Option<Event> {
        // A standby's commands are its owner's.
        if self.owner != Owner::Us {
            return None;
        }
        let commands = match self.store.take_commands(self.context.name()).await {
            Ok(commands) => commands,
            Err(error) => {
                debug!(subscription = self.context.name(), %error, "commands not read");
                return None;
            }
        };
        let mut event = None;
        for command in commands {
            let (answer, next) = self.on_command(&command).await;
            if let Err(error) = self.store.answer(command.id, &answer).await {
                debug!(subscription = self.context.name(), %error, "answer not recorded");
            }
            event = next.or(event);
        }
        event
    }

    async fn on_command(&mut self, command: &Command) -> (Answer, Option<Event>) {
        info!(subscription = self.context.name(), command = %command.verb, by = command.created_by, "command");
        match command.verb {
            Verb::Pause => {
                self.because = Some(Because::operator());
                (Answer::done("paused"), Some(Event::PauseAsked))
            }
            Verb::Resume => match self.state {
                State::Paused(_) | State::Retrying { .. } => {
                    self.conflict_said = None;
                    (Answer::done("goes on from where it stopped"), Some(Event::ResumeAsked))
                }
                _ => (Answer::done("is running already"), None),
            },
            Verb::Skip => self.on_skip(),
            Verb::Resolve => self.on_resolve(&command.args, &command.created_by).await,
            Verb::Refresh => {
                self.context.take_up = TakeUp::WhatIsPublished;
                (Answer::done("takes up its publications"), Some(Event::RestartAsked))
            }
            Verb::Resync => (commands::not_supported(command.verb), None),
            // Whoever asked takes the lock next, removes the slot and the state.
            Verb::Drop => (Answer::done("let go"), Some(Event::ShutdownAsked)),
        }
    }

    /// A skip has been armed. If the subscription waits on a conflict, that is the transaction
    /// meant (any other is refused when arming), so it goes on.
    fn on_skip(&self) -> (Answer, Option<Event>) {
        let event = match self.state {
            State::Paused(PauseReason::Conflict) => Event::ResumeAsked,
            State::Paused(_) => return (Answer::done("the transaction will be passed over"), None),
            _ => Event::RestartAsked,
        };
        (Answer::done("the transaction will be passed over"), Some(event))
    }

    async fn on_resolve(&self, args: &Value, by: &str) -> (Answer, Option<Event>) {
        match commands::resolve(&self.store, self.context.name(), args, by).await {
            Ok(answer) => (answer, Some(Event::ResumeAsked)),
            Err(refusal) => (Answer::refused(refusal), None),
        }
    }

    // --- reporting ------------------------------------------------------------------------

    async fn report(&mut self) {
        let Some(change) = self.state_change() else { return };
        // First what everybody sees: it must not wait for a target that is down.
        self.context.snapshot.send_modify(|snapshot| snapshot.shown.clone_from(&change));
        if self.owner != Owner::Us {
            // What the target records is its owner's word.
            return;
        }
        if self.reported.as_ref() == Some(&change) {
            return;
        }
        match self.store.set_state(self.context.name(), &change).await {
            Ok(_) => self.reported = Some(change),
            Err(error) => debug!(subscription = self.context.name(), %error, "state not reported"),
        }
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

/// Enough doublings to reach [`BACKOFF_MAX`].
const MAX_DOUBLINGS: u32 = 8;

/// The next time commands should be looked for: told so, or just in case.
async fn commands_due(signal: &mut watch::Receiver<u64>) {
    if let Ok(Err(_)) = tokio::time::timeout(COMMAND_POLL, signal.changed()).await {
        // The sender has gone, which only happens at the very end: poll on.
        tokio::time::sleep(COMMAND_POLL).await;
    }
}
