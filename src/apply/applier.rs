//! Applies one subscription's stream through one session: connects the core with the performer.
//!
//! Messages go in ([`Applier::take`]), outcomes come out ([`Applier::outcome`]). [`Applier::next`] polls the
//! performer and watches the time.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::core::{Bounds, Core, Moment, Step};
use super::performer::{Heard, Performer};
use super::{ApplyError, Membership, Outcome, Start};
use crate::pg::{Lsn, QualifiedName, SubscriptionName};
use crate::pgoutput::{LargeMessage, Message};
use crate::schema::catalog::KnownTables;
use crate::target::TargetSession;

/// Why [`Applier::next`] has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The target has answered.
    Answered,
    TimePassed,
}

type Performing<'a> = Pin<Box<dyn Future<Output = Result<(), ApplyError>> + Send + 'a>>;

/// Applies one subscription's stream through one session. Dropping it leaves the session's transaction open;
/// [`TargetSession::reset`] ends it.
pub struct Applier<'a> {
    core: Core,
    performing: Performing<'a>,
    steps: mpsc::UnboundedSender<Step>,
    heard: mpsc::UnboundedReceiver<Heard>,
    outcomes: VecDeque<Outcome>,
    began: Instant,
}

impl std::fmt::Debug for Applier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").field("core", &self.core).finish_non_exhaustive()
    }
}

impl<'a> Applier<'a> {
    /// `known` has what is known of the target's tables, and is completed.
    pub fn new(
        session: &'a TargetSession,
        subscription: SubscriptionName,
        members: Membership,
        start: Start,
        known: watch::Sender<KnownTables>,
    ) -> Self {
        // Unbounded, because the core itself bounds what is under way.
        let (steps, steps_taken) = mpsc::unbounded_channel();
        let (answers, heard) = mpsc::unbounded_channel();
        let performer = Performer::new(session, subscription.clone(), start, known, answers);
        Self {
            core: Core::new(subscription, members, session.surroundings(), start, Bounds::default()),
            performing: Box::pin(performer.run(steps_taken)),
            steps,
            heard,
            outcomes: VecDeque::new(),
            began: Instant::now(),
        }
    }

    /// As [`Core::set_position`].
    pub fn set_position(&mut self, source: &QualifiedName, position: Lsn) {
        self.core.set_position(source, position);
    }

    /// As [`Core::set_idle_record_interval`].
    pub fn set_idle_record_interval(&mut self, interval: Duration) {
        self.core.set_idle_record_interval(interval);
    }

    /// As [`Core::received`].
    pub fn received(&self) -> Option<Lsn> {
        self.core.received()
    }

    /// As [`Core::passed_over`].
    pub fn passed_over(&self) -> &HashMap<QualifiedName, Lsn> {
        self.core.passed_over()
    }

    /// Whether the target still has to answer something that it was sent.
    pub fn is_busy(&self) -> bool {
        self.core.awaits_answers()
    }

    /// As [`Core::takes_messages`].
    pub fn takes_messages(&self) -> bool {
        self.core.takes_messages()
    }

    /// Returns the oldest outcome that has not been returned yet.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Takes the stream's next message. May only be called if [`Self::takes_messages`].
    ///
    /// # Errors
    /// Nothing more can be applied.
    pub fn take(&mut self, message: Message) -> Result<(), ApplyError> {
        self.core.take(message, self.now());
        self.forward()
    }

    /// As [`Core::refuse`].
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub fn refuse(&mut self, message: LargeMessage) -> Result<(), ApplyError> {
        self.core.refuse(message, self.now());
        self.forward()
    }

    /// As [`Core::keepalive`].
    pub fn keepalive(&mut self, wal_end: Lsn, wants_report: bool) {
        self.core.keepalive(wal_end, wants_report, self.now());
    }

    /// As [`Core::quiet`].
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub fn quiet(&mut self) -> Result<(), ApplyError> {
        self.core.quiet(self.now());
        self.forward()
    }

    /// As [`Core::caught_up`].
    pub fn caught_up(&mut self) {
        let now = self.now();
        self.core.caught_up(now);
    }

    /// Waits until the performer has answered or a time has come that the core waits for. Cancel-safe.
    ///
    /// # Errors
    /// As for [`Self::take`]; also if the connection is lost, or if the target refuses a statement for a reason
    /// that is no conflict.
    pub async fn next(&mut self) -> Result<Next, ApplyError> {
        let due = self.core.due().map(|due| self.began + due);
        tokio::select! {
            biased;
            heard = self.heard.recv() => match heard {
                Some(heard) => self.hear(heard),
                None => return (&mut self.performing).await.map(|()| Next::Answered),
            },
            ended = &mut self.performing => {
                // What it told at last comes first: a COPY that was refused closes the connection, and its answer says
                // why.
                while let Ok(heard) = self.heard.try_recv() {
                    self.hear(heard);
                    self.forward()?;
                }
                return ended.map(|()| Next::Answered);
            }
            () = sleep_until(due.unwrap_or(self.began)), if due.is_some() => {
                self.core.tick(self.now());
                return self.forward().map(|()| Next::TimePassed);
            }
        }
        self.forward().map(|()| Next::Answered)
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Answer(answer) => self.core.answered(answer, self.now()),
            Heard::Described(description) => self.core.described(description, self.now()),
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Passes the core's steps on to the performer, and keeps outcomes.
    fn forward(&mut self) -> Result<(), ApplyError> {
        while let Some(step) = self.core.next_step() {
            match step {
                Step::Tell(outcome) => self.outcomes.push_back(outcome),
                Step::End(end) => return Err(end.into()),
                step => {
                    // Sending fails only if the performer has ended with an error, which `next` returns.
                    let _ = self.steps.send(step);
                }
            }
        }
        Ok(())
    }
}
