//! Monitors the publisher besides the stream: its position, the slot, the publications.
//!
//! It runs while this instance owns the subscription, also while that is paused, because lag and retained WAL
//! matter most while nothing is applied. It has its own session, opens it again when it is lost, and reports
//! the loss. A paused subscription then closes the stream, because a publisher that shuts down waits until
//! every walsender has sent everything and has heard that it is flushed. A stream that is being applied may
//! still get there; it is closed if it makes no progress, behind a lock on the target for example.
//!
//! What it finds is recorded in the target by a loop of its own, which takes the latest that there is. So a
//! target that does not answer never keeps the monitor from noticing that the publisher is lost or waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::debug;

use crate::config::Subscription;
use crate::net::{self, ClientOptions, PgClient};
use crate::pg::{Lsn, TimeLimits};
use crate::schema::catalog::{self, PublicationsLook};
use crate::store::{HEAD_START, Ownership, Positions, Store, Walsender};

use super::positions::{LagClock, Promptness, StreamPositions};
use super::publications::{Look as Asked, Proof, Publications};
use super::publisher::monitor_options;
use super::reports::{Reports, Told};
use super::slot::{self, SlotView};
use super::snapshot::{Link, Snapshot};
use super::trust::Witnesses;
use super::witnesses::Waiting;

/// How often positions are read and reported.
const INTERVAL: Duration = Duration::from_secs(1);
/// Minimum and maximum time between two looks at the publications.
const PUBLICATIONS_INTERVAL: Duration = Duration::from_secs(3);
const PUBLICATIONS_INTERVAL_MAX: Duration = Duration::from_secs(15);
/// The time between two looks is at least this number of times as long as a look takes: where many subscriptions look at
/// thousands of tables, all their looks together must not keep the publisher busy.
const LOOKS_APART: u32 = 20;
/// Maximum time of one round of queries.
const ROUND_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum delay after a failed round. The delay begins with the interval and is doubled each time, because
/// each refused connection is a line in the publisher's log.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Events from the monitor to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MonitorEvent {
    /// The publisher does not answer. It is sent again after each failed round.
    PublisherLost,
    /// The publisher is shutting down, and waits for a stream that makes no progress.
    PublisherWaits,
    /// Another instance owns the subscription.
    NotOwner,
}

pub(super) struct Monitor {
    pub(super) subscription: Arc<Subscription>,
    pub(super) store: Store,
    pub(super) owner: Ownership,
    pub(super) positions: watch::Receiver<StreamPositions>,
    /// Receives how the publications were last seen.
    pub(super) publications: watch::Sender<Publications>,
    /// Receives whether commits on the publisher may wait for reported positions.
    pub(super) positions_wanted: watch::Sender<Promptness>,
    pub(super) events: mpsc::Sender<MonitorEvent>,
    pub(super) snapshot: watch::Sender<Snapshot>,
    /// The reports of all subscriptions of this process.
    pub(super) reports: Reports,
    /// When the worker last got to run.
    pub(super) worker: watch::Receiver<Instant>,
}

/// What one round reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Positions,
    PublicationsToo,
}

/// What one round found.
struct Round {
    view: SlotView,
    published: Option<PublicationsLook>,
}

/// Why a round found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// The publisher takes no sessions because it is shutting down; or starting up, when it has no walsender either.
    Refused,
    Other,
}

/// What a round found, as far as the target is to know it.
#[derive(Debug, Clone, Default)]
struct Found {
    positions: Positions,
    /// Facts about the publisher that are certain to survive its crash, and the run that they belong to.
    proven: Option<Proven>,
}

type Proven = ((u32, jiff::Timestamp), Witnesses);

impl Monitor {
    /// Runs until dropped.
    pub(super) async fn run(self) {
        let (found, findings) = watch::channel(Found::default());
        tokio::join!(self.watch(found), self.record(findings));
    }

    /// Looks at the publisher, once every interval.
    async fn watch(&self, found: watch::Sender<Found>) {
        let started = Instant::now();
        let mut ticks = interval_at(started + HEAD_START, INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session: Option<PgClient> = None;
        let mut lag = LagClock::default();
        let mut waiting = Waiting::default();
        let (mut look_at, mut proof, mut proven_up_to) =
            (started + PUBLICATIONS_INTERVAL, Proof::default(), None);
        let (mut pause, mut not_before) = (INTERVAL, Instant::now());
        let mut reached = self.publications.subscribe();
        let mut asks = self.publications.subscribe();
        // How far the stream had been applied when the publisher last refused a session.
        let mut refused_at = None;
        loop {
            let asked = tokio::select! {
                // A look that was asked for is the larger one.
                biased;
                _ = asks.wait_for(|publications| publications.look == Asked::AtOnce) => true,
                _ = ticks.tick() => false,
            };
            self.publications.send_if_modified(|publications| {
                publications.look = Asked::WhenDue;
                false
            });
            // If an attempt has reached the publisher meanwhile, the delay ends.
            let again = reached.has_changed().unwrap_or(false) && reached.borrow().taken_up.is_some();
            if Instant::now() < not_before && !again {
                let stream = *self.positions.borrow();
                let positions = self.show(stream, None, proven_up_to, &mut lag, started.elapsed());
                found.send_modify(|found| found.positions = positions);
                continue;
            }
            let (due, began) = (asked || Instant::now() >= look_at, Instant::now());
            let look = if due { Look::PublicationsToo } else { Look::Positions };
            // They are read before the publisher's position, so that they do not lie beyond it.
            let stream = *self.positions.borrow();
            let round = tokio::time::timeout(ROUND_TIMEOUT, self.round(&mut session, look)).await;
            let round = match round.unwrap_or(Err(Lost::Other)) {
                Ok(round) => {
                    (pause, refused_at) = (INTERVAL, None);
                    Some(round)
                }
                Err(lost) => {
                    session = None;
                    not_before = Instant::now() + pause;
                    let first = lost == Lost::Refused && refused_at.is_none();
                    pause = if first { INTERVAL } else { (pause * 2).min(BACKOFF_MAX) };
                    reached.mark_unchanged();
                    self.tell_lost(lost, &mut refused_at).await;
                    None
                }
            };
            if let Some(now) = round.as_ref().and_then(|round| round.published.clone()) {
                look_at = Instant::now() + until_next_look(began.elapsed());
                proven_up_to = proof.take(&self.publications.borrow(), now.clone()).or(proven_up_to);
                self.publications.send_if_modified(|publications| {
                    let changed = publications.seen.replace(now.fingerprint);
                    changed != publications.seen
                });
            }
            let view = round.map(|round| round.view);
            let proven = view.as_ref().and_then(|view| waiting.take(started.elapsed(), view));
            let positions = self.show(stream, view.as_ref(), proven_up_to, &mut lag, started.elapsed());
            found.send_modify(|found| {
                found.positions = positions;
                found.proven = proven.or(found.proven.take());
            });
        }
    }

    /// Passes what was found on to the target. What the publisher has proven is recorded again only after it has changed, or
    /// if it could not be recorded.
    async fn record(&self, mut findings: watch::Receiver<Found>) {
        let (mut recorded, mut noted) = (None, None);
        let mut reporter = self.reports.enter(self.owner.clone(), self.worker.clone());
        loop {
            tokio::select! {
                told = reporter.told() => {
                    self.on_told(told).await;
                    continue;
                }
                changed = findings.changed() => if changed.is_err() { return },
            }
            let Found { positions, proven } = findings.borrow_and_update().clone();
            reporter.put(positions);
            self.note_walsender(&mut noted).await;
            let Some(proven) = proven.filter(|proven| recorded != Some(*proven)) else { continue };
            match self.store.raise_witnesses(&self.owner, proven.0, &proven.1).await {
                Ok(()) => recorded = Some(proven),
                Err(error) => {
                    let subscription = &self.subscription.name;
                    debug!(%subscription, %error, "what was seen of the publisher not recorded");
                }
            }
        }
    }

    async fn on_told(&self, told: Told) {
        let link = match told {
            Told::NotYet => return,
            Told::Written | Told::NotOwner => Link::Up,
            Told::Failed => Link::Down,
        };
        self.snapshot.send_modify(|snapshot| snapshot.target = link);
        if told == Told::NotOwner {
            let _ = self.events.send(MonitorEvent::NotOwner).await;
        }
    }

    /// Records the walsender of the stream for the next owner.
    async fn note_walsender(&self, noted: &mut Option<Walsender>) {
        let walsender = self.positions.borrow().walsender;
        let Some(walsender) = walsender.filter(|walsender| *noted != Some(*walsender)) else { return };
        match self.store.note_walsender(&self.owner, walsender).await {
            Ok(()) => *noted = Some(walsender),
            Err(error) => {
                debug!(subscription = %self.subscription.name, %error, "the walsender is not recorded");
            }
        }
    }

    /// Tells the worker. Also without a session to lose: the stream may be younger than our last attempt.
    async fn tell_lost(&self, lost: Lost, refused_at: &mut Option<Lsn>) {
        let _ = self.events.send(MonitorEvent::PublisherLost).await;
        if lost == Lost::Refused {
            let applied = self.positions.borrow().applied.unwrap_or_default();
            if refused_at.replace(applied) == Some(applied) {
                let _ = self.events.send(MonitorEvent::PublisherWaits).await;
            }
        }
    }

    async fn round(&self, session: &mut Option<PgClient>, look: Look) -> Result<Round, Lost> {
        let client = match session {
            Some(client) => client,
            None => session.insert(self.connect().await?),
        };
        let view = slot::view(client, &self.subscription.slot).await.map_err(|_| Lost::Other)?;
        let synchronous = catalog::has_synchronous_standbys(&**client).await.map_err(|_| Lost::Other)?;
        self.positions_wanted.send_if_modified(|wanted| {
            let now = if synchronous { Promptness::CommitsWait } else { Promptness::Relaxed };
            std::mem::replace(wanted, now) != now
        });
        let published = if look == Look::PublicationsToo {
            let publications = &self.subscription.publications;
            let read =
                catalog::look_at_publications(&**client, client.server_version_num(), publications).await;
            Some(read.map_err(|_| Lost::Other)?)
        } else {
            None
        };
        Ok(Round { view, published })
    }

    async fn connect(&self) -> Result<PgClient, Lost> {
        // A question that waits for somebody's lock ends by itself, after it has been given up here.
        let limits = TimeLimits { statement: Some(ROUND_TIMEOUT), idle_in_transaction: None };
        let options = ClientOptions { limits, ..monitor_options(&self.subscription) };
        net::client(&self.subscription.publisher, &options).await.map_err(|error| {
            match error.server_error() {
                Some(refused) if refused.code == net::CANNOT_CONNECT_NOW => Lost::Refused,
                _ => Lost::Other,
            }
        })
    }

    /// Shows in the snapshot how the stream and the publisher stand, and returns it for the target.
    fn show(
        &self,
        stream: StreamPositions,
        view: Option<&SlotView>,
        publications_seen: Option<Lsn>,
        lag: &mut LagClock,
        now: Duration,
    ) -> Positions {
        // A server that was restored, or promoted too early, may be behind what the stream has received.
        let publisher = view.map(|view| view.publisher_lsn);
        let slot = view.and_then(|view| view.slot.as_ref());
        let behind = publisher.zip(stream.flushed);
        let positions = Positions {
            received_lsn: stream.received,
            flushed_lsn: stream.flushed,
            publisher_lsn: publisher,
            lag_bytes: behind.map(|(publisher, flushed)| publisher.bytes_since(flushed)),
            lag_seconds: behind.map(|(publisher, flushed)| lag.lag_seconds(now, publisher, flushed)),
            wal_status: slot.and_then(|slot| slot.wal_status.clone()),
            retained_bytes: publisher.zip(slot).and_then(|(lsn, slot)| slot.retained_bytes(lsn)),
            publications_seen,
        };
        self.snapshot.send_modify(|snapshot| {
            snapshot.positions.clone_from(&positions);
            snapshot.publisher = if view.is_some() { Link::Up } else { Link::Down };
        });
        positions
    }
}

/// The time until the next look at the publications, after one that took so long.
fn until_next_look(took: Duration) -> Duration {
    (took * LOOKS_APART).clamp(PUBLICATIONS_INTERVAL, PUBLICATIONS_INTERVAL_MAX)
}
