//! Takes the subscription's lock, waits for it as a standby, and takes the subscription over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::super::attempt::Ahead;
use super::super::balance::Promise;
use super::super::because::Because;
use super::super::failure::{Cause, Failure};
use super::super::findings;
use super::super::monitor::Monitor;
use super::super::publisher::{Reaching, monitor_options};
use super::super::removal::remove;
use super::super::snapshot::Link;
use super::super::state::{Event, State};
use super::{Owner, Worker};
use crate::config::SynchronousCommit;
use crate::error::{Diagnosis, PauseReason};
use crate::net;
use crate::pg::SubscriptionName;
use crate::store::{self, Claim, Desired, Registration};
use crate::target::{LEASE, Lock, OriginUse, TargetError, TargetSession, application_name, no_answer};

/// For how long the lock is left to who has asked for it.
const LET_GO: Duration = Duration::from_secs(3);
/// How often a standby tries to take the lock.
const LOCK_POLL: Duration = Duration::from_secs(1);
/// The same of one that the owner hands the subscription over to.
const PROMISED_POLL: Duration = Duration::from_millis(100);
/// How often the session of an owner that is silent is told to end before the next poll, and the time between.
const SILENT_ENDINGS_MAX: u32 = 5;
const SILENT_ENDING_POLL: Duration = Duration::from_millis(50);
const NOT_LOCKED: &str = "the request for the lock on the subscription waits";

/// The subscription that another instance applies.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoodBy {
    /// When that subscription was created; none where it was not known yet.
    created_at: Option<jiff::Timestamp>,
}

/// Whether somebody else is to take the lock: a `drop`, or another instance that owns less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum AskedFor {
    Yes,
    #[default]
    No,
}

impl Worker {
    pub(super) async fn await_lock(&mut self) -> Event {
        if std::mem::take(&mut self.asked_for) == AskedFor::Yes {
            // Who asked takes the lock now. If it does not go on, the subscription does. The stream is closed first, so that
            // its slot is free when the lock is.
            (self.link, self.session) = (None, None);
            self.stand_by().await;
            if let Some(event) = self.wait(LET_GO).await {
                return event;
            }
        }
        loop {
            let promise = self.seat.promise();
            if promise == Promise::ToAnother && self.stood_by.is_some() {
                if let Some(event) = self.wait(LOCK_POLL).await {
                    return event;
                }
                continue;
            }
            if self.session.is_none()
                && let Some(event) = self.take_turn().await
            {
                return event;
            }
            match self.try_lock().await {
                Ok(Some(event)) => return event,
                Ok(None) => {
                    self.turn = None;
                    self.show_role();
                    if self.stood_by.is_none() {
                        info!(subscription = self.context.name(), "standby: another instance applies");
                        self.stand_by().await;
                    }
                    if self.state != State::Standby {
                        return Event::LockHeldElsewhere;
                    }
                }
                Err(failure) => {
                    // The take-over is incomplete, so it begins again with a new session.
                    (self.session, self.turn) = (None, None);
                    return self.fail(failure);
                }
            }
            let poll = if promise == Promise::ToUs { PROMISED_POLL } else { LOCK_POLL };
            if let Some(event) = self.wait(poll).await {
                return event;
            }
        }
    }

    /// Lets go of the subscription, which another instance waits for.
    pub(super) fn hand_over(&mut self) -> Event {
        info!(subscription = self.context.name(), "handed over to another instance, which owns less");
        self.asked_for = AskedFor::Yes;
        Event::LockHeldElsewhere
    }

    /// Becomes a standby: stops the monitor and closes the stream, which are the owner's.
    async fn stand_by(&mut self) {
        self.lose_target();
        self.monitor.shutdown().await;
        // It is kept so that a subscription that is removed meanwhile is not created again.
        let row = self.store.subscription(self.context.name()).await;
        self.stood_by = Some(StoodBy { created_at: row.ok().flatten().map(|row| row.created_at) });
    }

    /// Opens the session if there is none, and tries to take the lock. With the lock, takes the subscription
    /// over.
    async fn try_lock(&mut self) -> Result<Option<Event>, Failure> {
        let subscription = Arc::clone(&self.context.subscription);
        if self.session.is_none() {
            let name = application_name(&subscription.name);
            let mut session = TargetSession::open(&self.context.target, &name).await?;
            session.time_round_trip().await?;
            // The session's settings have "on".
            if subscription.synchronous_commit != SynchronousCommit::On {
                session.set_synchronous_commit(subscription.synchronous_commit.as_str()).await?;
            }
            self.abandoned.extend(self.session_pid.replace(session.pid()));
            self.session = Some(session);
        }
        if self.removal.is_none() {
            self.removal = Some(self.store.last_removal(subscription.name.as_str()).await?);
        }
        let Some(session) = &mut self.session else { return Ok(None) };
        let within = subscription.peer_timeout;
        let tried = timeout(within, try_lock(session, &subscription.name, &mut self.abandoned)).await;
        let lock = tried.map_err(|_elapsed| Failure::target_lost(no_answer(within, NOT_LOCKED)))??;
        self.context.snapshot.send_modify(|snapshot| snapshot.target = Link::Up);
        if let (Lock::HeldElsewhere, Some(pid)) = (&lock, self.abandoned.first()) {
            return Err(Failure::target_lost(findings::former_session(*pid)));
        }
        match lock {
            Lock::Held => {}
            Lock::HeldElsewhere => return Ok(None),
            Lock::Obstructed(outsider) => {
                return Err(Failure::retry(findings::obstructed(&outsider)).because_of(Cause::Target));
            }
        }
        let removal = self.store.last_removal(subscription.name.as_str()).await?;
        if self.removal.is_some_and(|known| removal > known) {
            return Ok(Some(self.dropped()));
        }
        if let Some(known) = self.stood_by.and_then(|stood_by| stood_by.created_at).or(self.created_at) {
            let row = self.store.subscription(subscription.name.as_str()).await?;
            if row.is_none_or(|row| row.created_at != known) {
                return Ok(Some(self.dropped()));
            }
        }
        // An attempt usually follows, so connecting to the publisher begins while the record is read.
        let reaching = Reaching::begin(Arc::clone(&subscription), session);
        session.set_origin(&subscription.name, OriginUse::Apply).await?;
        let row = self.claim().await?;
        if row.is_being_removed {
            self.remove().await?;
            return Ok(Some(self.dropped()));
        }
        if let Some(session) = &self.session {
            let ended = session.end_copies(&subscription.name).await?;
            debug!(subscription = %subscription.name, ended, "copies of former owners are ended");
        }
        let event = self.left_to(&row);
        if event == Event::Locked {
            self.ahead = Ahead { reaching, recorded: Some(row) };
        }
        Ok(Some(event))
    }

    /// Closes the session, because another instance has taken the subscription over, or the target is in another run,
    /// and tries to take the lock again.
    pub(super) fn deposed(&mut self) -> Event {
        info!(
            subscription = self.context.name(),
            "this instance no longer owns the subscription, letting go"
        );
        self.session = None;
        self.lose_target();
        Event::LockHeldElsewhere
    }

    /// Closes the session and the stream: without the target nothing can be confirmed to the publisher.
    pub(super) fn lose_target(&mut self) {
        self.owner = Owner::Other;
        self.link = None;
        // The next owner finds these commands unanswered.
        self.taken.clear();
    }

    /// Goes on with a removal that somebody has begun and not finished.
    async fn remove(&mut self) -> Result<(), Failure> {
        let subscription = Arc::clone(&self.context.subscription);
        info!(subscription = %subscription.name, "a drop that was begun is carried on");
        self.monitor.shutdown().await;
        let publisher = net::client(&subscription.publisher, &monitor_options(&subscription)).await?;
        let Some(session) = &mut self.session else { return Ok(()) };
        session.release_origin().await?;
        remove(&self.store, &subscription, &publisher, session).await
    }

    fn dropped(&self) -> Event {
        info!(subscription = self.context.name(), "dropped while standing by; restart to start over");
        Event::ShutdownAsked
    }

    /// Records this instance as the owner, and returns the subscription's record.
    async fn claim(&mut self) -> Result<store::SubscriptionRow, Failure> {
        let subscription = Arc::clone(&self.context.subscription);
        let registration = Registration {
            name: &subscription.name,
            slot: &subscription.slot,
            publications: &subscription.publications,
        };
        let Claim { owner, row, walsender } =
            self.store.claim_subscription(registration, &self.instance).await?;
        self.context.owner = owner;
        if walsender.is_some() {
            self.context.positions.send_modify(|positions| positions.walsender = walsender);
        }
        self.created_at = Some(row.created_at);
        if self.stood_by.take().is_some() {
            info!(subscription = self.context.name(), "the other instance has gone, taking over");
        }
        self.owner = Owner::Us;
        // Another instance may have written the state meanwhile.
        self.reported = None;
        // A running monitor writes with the former term.
        self.monitor.shutdown().await;
        self.start_monitor();
        Ok(row)
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
                reports: self.reports.clone(),
                worker: self.beat.subscribe(),
            };
            self.monitor.spawn(monitor.run());
        }
    }

    /// Returns the event that the record causes for its new owner.
    fn left_to(&mut self, row: &store::SubscriptionRow) -> Event {
        if row.desired == Desired::Pause {
            let before = (row.state == store::State::Paused).then(|| recorded(row));
            self.because = Some(Because::operator(before.as_ref()));
            self.last_conflict = row.conflict_id;
            Event::LockedWhilePaused(PauseReason::Operator)
        } else if row.state == store::State::Paused {
            self.left_paused(row)
        } else {
            Event::Locked
        }
    }

    /// A pause on a conflict lasts through restarts. After other pauses a new attempt begins, which finds the
    /// cause again.
    fn left_paused(&mut self, row: &store::SubscriptionRow) -> Event {
        if row.reason.as_deref() != Some(PauseReason::Conflict.as_str()) || row.skip_lsn.is_some() {
            return Event::Locked;
        }
        self.last_conflict = row.conflict_id;
        self.because = Some(recorded(row));
        Event::LockedWhilePaused(PauseReason::Conflict)
    }
}

/// The reason for a pause, as the record has it.
fn recorded(row: &store::SubscriptionRow) -> Because {
    Because {
        reason: row.reason.clone().unwrap_or_default(),
        diagnosis: Diagnosis {
            hint: row.hint.clone(),
            ..Diagnosis::new(row.detail.clone().unwrap_or_default())
        },
        conflict_id: row.conflict_id,
    }
}

/// Ends what is left of the worker's former sessions and of an owner that is silent, and tries to take the lock. `former`
/// keeps those that have not ended yet.
async fn try_lock(
    session: &TargetSession,
    name: &SubscriptionName,
    former: &mut Vec<i32>,
) -> Result<Lock, TargetError> {
    let mut left = Vec::new();
    for &pid in former.iter() {
        if session.end_former(pid).await? > 0 {
            info!(subscription = %name, pid, "a former session was still there on the target, and has been told to end");
            left.push(pid);
        }
    }
    *former = left;
    for _ in 0..SILENT_ENDINGS_MAX {
        let lock = session.try_lock(name).await?;
        if lock != Lock::HeldElsewhere {
            return Ok(lock);
        }
        let Some(pid) = session.end_silent_owner(name).await? else { break };
        warn!(
            subscription = %name, pid,
            "the owner has shown no sign of life for {} s, so its session on the target has been ended", LEASE.as_secs()
        );
        sleep(SILENT_ENDING_POLL).await;
    }
    Ok(Lock::HeldElsewhere)
}
