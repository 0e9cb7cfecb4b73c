//! The owner's work while nothing is applied: it backs off or waits, and answers commands.

use std::time::Duration;

use backon::BackoffBuilder as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

use super::super::because::Because;
use super::super::commands;
use super::super::failure::Failure;
use super::super::reader::Reader;
use super::super::schema_watch::SCHEMA_FINGERPRINT;
use super::super::snapshot::Link;
use super::super::state::{Event, State};
use super::lock::AskedFor;
use super::{Look, Owner, Wake, Worker};
use crate::error::{Diagnosis, Disposition, PauseReason};
use crate::store::{self, Answer, Command, StateChange, StoreError, Verb};
/// How often a state is reported again that the target has not taken.
const REPORT_AGAIN: Duration = Duration::from_secs(1);
/// Maximum time of waiting for the store. Meanwhile the worker does not hear the monitor. Commands that were taken
/// without our knowing are taken again by a later look.
pub(super) const STORE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a paused subscription checks its session and the target's catalog.
const HOLD_POLL: Duration = Duration::from_secs(2);
/// Minimum delay between attempts. It is doubled up to the maximum, with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Number of doublings that reach [`BACKOFF_MAX`].
const MAX_DOUBLINGS: u32 = 8;

impl Worker {
    pub(super) async fn back_off(&mut self, failures: u32) -> Event {
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

    /// Waits while the subscription is paused: answers commands, keeps the lock, and checks whether the
    /// reason has passed.
    pub(super) async fn hold(&mut self) -> Event {
        self.turn = None;
        let retry_at = match self.state {
            State::Paused(PauseReason::Conflict) => {
                self.context.subscription.retry_conflict_interval.map(|every| Instant::now() + every)
            }
            _ => None,
        };
        if self.state == State::Paused(PauseReason::Schema) {
            let difference = self.because.as_ref().map(|because| &because.diagnosis);
            self.schema.pause(difference, Instant::now());
        }
        loop {
            if self.session.is_none() {
                // Without the session the lock is lost, and another instance may have gone on. So the lock is
                // taken again before the state is read.
                return Event::LockHeldElsewhere;
            }
            if let Some(event) = self.wait(HOLD_POLL).await {
                return event;
            }
            if self.link.as_ref().is_some_and(Reader::has_stalled) {
                info!(
                    subscription = self.context.name(),
                    "the stream is closed while the subscription is paused, so that the publisher does not wait in a write"
                );
                self.link = None;
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

    /// Checks that the session that holds the lock still works.
    async fn keep_lock(&self) -> Result<(), Failure> {
        match &self.session {
            Some(session) => Ok(session.answers().await?),
            None => Err(Failure::retry(Diagnosis::new("the target session has ended"))),
        }
    }

    /// Whether either side has changed since the pause began, so that the tables may fit, or may no longer be
    /// published. The next attempt compares them.
    async fn may_fit_now(&mut self) -> bool {
        let what = if self.target_has_changed().await {
            "the target's tables"
        } else if self.context.publications.borrow().have_changed() {
            "the publications"
        } else if self.schema.is_due(Instant::now()) {
            debug!(subscription = self.context.name(), "comparing the tables again");
            self.look = Look::Again;
            return true;
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

    /// Waits for this worker's turn to start, or until an event ends the wait.
    pub(super) async fn take_turn(&mut self) -> Option<Event> {
        let turns = self.turns.clone();
        while self.turn.is_none() {
            let wake = tokio::select! {
                biased;
                turn = turns.take() => {
                    self.turn = Some(turn);
                    return None;
                }
                _ = self.wish.changed() => Wake::Wish,
            };
            if let Some(event) = self.on_wake(wake).await {
                return Some(event);
            }
        }
        None
    }

    /// Waits for `delay`, or until an event ends the wait.
    pub(super) async fn wait(&mut self, delay: Duration) -> Option<Event> {
        let due = Instant::now() + delay;
        loop {
            let is_reported = self.is_reported();
            let wake = tokio::select! {
                biased;
                _ = self.wish.changed() => Wake::Wish,
                () = commands_due(&mut self.signal, is_reported) => Wake::Commands,
                Some(event) = self.monitor_events.recv() => Wake::Monitor(event),
                // Phases of an attempt that has ended are dropped.
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

    pub(super) async fn on_commands(&mut self) -> Option<Event> {
        // The owner answers the commands; a standby does not.
        if self.owner != Owner::Us {
            return None;
        }
        if self.taken.is_empty() {
            let taken = self.store.take_commands(&self.context.owner);
            match tokio::time::timeout(STORE_TIMEOUT, taken).await {
                Ok(Ok(commands)) => self.taken.extend(commands),
                Ok(Err(error)) if error.is_not_owner() => return Some(self.deposed()),
                Ok(Err(error)) => {
                    debug!(subscription = self.context.name(), %error, "commands not read");
                    return None;
                }
                Err(_elapsed) => {
                    debug!(subscription = self.context.name(), "commands not read in time");
                    return None;
                }
            }
        }
        while let Some(command) = self.taken.pop_front() {
            let event = self.carry_out(&command).await;
            if event.is_some() {
                // What a command means depends on the state that the one before it leads to.
                if !self.taken.is_empty() {
                    self.signal.mark_changed();
                }
                return event;
            }
        }
        None
    }

    /// Carries a command out, and answers it once what it asked for would survive a crash.
    async fn carry_out(&mut self, command: &Command) -> Option<Event> {
        let (answer, event) = self.on_command(command).await;
        let recorded = match event {
            Some(Event::ResumeAsked) => self.record_resumption().await,
            _ => Ok(()),
        };
        let answered = match recorded {
            Ok(()) => self.store.answer(&self.context.owner, command.id, &answer).await,
            unrecorded => unrecorded,
        };
        match answered {
            // It is the new owner's to carry out and to answer.
            Err(error) if error.is_not_owner() => return Some(self.deposed()),
            Err(error) => debug!(subscription = self.context.name(), %error, "answer not recorded"),
            Ok(()) => {}
        }
        event
    }

    /// A subscription that is recorded as paused on a conflict stays so when it is taken over: that somebody
    /// has asked to go on is recorded before it is answered.
    async fn record_resumption(&mut self) -> Result<(), StoreError> {
        if self.state != State::Paused(PauseReason::Conflict) {
            return Ok(());
        }
        let change = StateChange::new(store::State::Starting);
        self.store.set_state(&self.context.owner, &change).await?;
        self.reported = Some(change);
        Ok(())
    }

    async fn on_command(&mut self, command: &Command) -> (Answer, Option<Event>) {
        info!(subscription = self.context.name(), command = %command.verb, by = command.created_by, "command");
        match command.verb {
            Verb::Pause => {
                let paused = matches!(self.state, State::Paused(_));
                self.because = Some(Because::operator(self.because.as_ref().filter(|_| paused)));
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
            Verb::Refresh | Verb::Resync | Verb::Accept => self.on_intervention(command).await,
            // The command line takes the lock next, and removes the slot and the state.
            Verb::Drop => {
                self.asked_for = AskedFor::Yes;
                (Answer::done("let go"), Some(Event::LockHeldElsewhere))
            }
        }
    }

    /// Records what tables are to be taken up, synchronised again, or let go on; the next attempt does it.
    async fn on_intervention(&self, command: &Command) -> (Answer, Option<Event>) {
        let done = match command.verb {
            Verb::Resync => commands::resync(&self.context, command).await,
            Verb::Accept => commands::accept(&self.context, command).await,
            _ => commands::refresh(&self.context, command).await,
        };
        match done {
            Ok(answer) => (answer, Some(self.go_on())),
            // It may have been recorded and answered all the same. The next attempt reads the record.
            Err(failure) if failure.disposition == Disposition::Retry => {
                (Answer::refused(failure.diagnosis), Some(self.go_on()))
            }
            Err(failure) => (Answer::refused(failure.diagnosis), None),
        }
    }

    /// The event after which an attempt does what has been recorded. A pause for which it is no remedy stays.
    fn go_on(&self) -> Event {
        match self.state {
            State::Paused(PauseReason::SlotLost | PauseReason::Diverged) => Event::ResumeAsked,
            _ => Event::RestartAsked,
        }
    }

    /// Goes on after a skip has been armed. If the subscription is paused on a conflict, the skip is for its
    /// transaction, because any other is refused when it is armed. A pause for the schema names its transaction, too;
    /// if the skip is for another one, the subscription pauses again.
    fn on_skip(&self) -> (Answer, Option<Event>) {
        let event = match self.state {
            State::Paused(PauseReason::Conflict | PauseReason::Schema) => Event::ResumeAsked,
            State::Paused(_) => return (Answer::done("the transaction will be passed over"), None),
            _ => Event::RestartAsked,
        };
        (Answer::done("the transaction will be passed over"), Some(event))
    }

    async fn on_resolve(&self, args: &Value, by: &str) -> (Answer, Option<Event>) {
        match commands::resolve(&self.store, &self.context.owner, args, by).await {
            Ok(answer) => (answer, Some(Event::ResumeAsked)),
            Err(refusal) => (Answer::refused(refusal), None),
        }
    }
}

/// Waits until commands should be looked for, or a state that the target has not taken is to be reported again.
pub(super) async fn commands_due(signal: &mut watch::Receiver<u64>, is_reported: bool) {
    let signalled = async {
        if signal.changed().await.is_err() {
            // The sender has been dropped, which happens at the end of the process.
            std::future::pending::<()>().await;
        }
    };
    if is_reported {
        signalled.await;
    } else {
        drop(tokio::time::timeout(REPORT_AGAIN, signalled).await);
    }
}
