//! The current state of subscriptions in this process, readable without their workers and without the target.
//!
//! ```text
//! worker ── state, reason ──┐
//! monitor ── positions ─────┼─▶ Snapshot (watch) ─▶ Board ─▶ View: http, metrics, progress bars
//! copies ── rows so far ────┘
//! ```
//! # Why it is not read from the store
//! The store is in the target. Readiness and metrics are needed most while the target does not answer.
//!
//! # Invariants
//! - Each part has one writer. Readers get a copy and block nothing.
//! - A snapshot describes this process: on a standby it says `standby`, also while the owner streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::failure::Cause;
use crate::copy::CopyJob;
use crate::error::Diagnosis;
use crate::gap::GapKind;
use crate::pg::{QualifiedName, SubscriptionName};
use crate::store::{Positions, State, StateChange};
use crate::telemetry::{CopyGauges, Gauges};

/// The state of one subscription in this process.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// State, reason, detail, hint, conflict.
    pub shown: StateChange,
    pub positions: Positions,
    pub publisher: Link,
    pub target: Link,
    /// The tables of the running copy, finished ones included.
    pub copies: Vec<CopyView>,
    /// The kinds of the open gaps.
    pub gaps: Vec<GapKind>,
}

/// Whether a server answered the last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    /// Not asked so far.
    #[default]
    Unknown,
    Up,
    Down,
}

/// One table's copy.
#[derive(Debug, Clone)]
pub struct CopyView {
    source: QualifiedName,
    rows: Arc<AtomicU64>,
    estimated: Option<u64>,
    stage: CopyStage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyStage {
    UnderWay,
    Ended,
}

impl Link {
    /// The value of the metric; none if unknown.
    const fn is_up(self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Up => Some(true),
            Self::Down => Some(false),
        }
    }

    /// The result of a request.
    #[must_use]
    pub fn of<T, E>(asked: &Result<T, E>) -> Self {
        if asked.is_ok() { Self::Up } else { Self::Down }
    }
}

impl CopyView {
    fn gauges(&self) -> CopyGauges {
        CopyGauges {
            table: self.source.clone(),
            rows: self.rows.load(Ordering::Relaxed),
            rows_estimated: self.estimated,
            is_ended: self.stage == CopyStage::Ended,
        }
    }
}

impl Snapshot {
    /// The snapshot of a subscription of which only the state is known.
    #[must_use]
    pub fn new(state: State) -> Self {
        Self {
            shown: StateChange::new(state),
            positions: Positions::default(),
            publisher: Link::Unknown,
            target: Link::Unknown,
            copies: Vec::new(),
            gaps: Vec::new(),
        }
    }

    /// Whether the subscription works: it streams, copies, is a standby, or is disabled.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        match self.shown.state {
            State::Copying | State::Streaming | State::Standby | State::Disabled => true,
            State::Starting | State::Retrying | State::Paused => false,
        }
    }

    /// The running copies, for progress bars and metrics.
    #[must_use]
    pub fn copies(&self) -> Vec<CopyGauges> {
        self.copies.iter().map(CopyView::gauges).collect()
    }

    /// The values of the metrics.
    #[must_use]
    pub fn gauges<'a>(&self, subscription: &'a str) -> Gauges<'a> {
        let positions = &self.positions;
        Gauges {
            subscription,
            state: self.shown.state,
            lag_bytes: positions.lag_bytes,
            lag_seconds: positions.lag_seconds,
            received: positions.received_lsn,
            flushed: positions.flushed_lsn,
            publisher: positions.publisher_lsn,
            slot_retained_bytes: positions.retained_bytes,
            publisher_up: self.publisher.is_up(),
            target_up: self.target.is_up(),
            copies: self.copies(),
            gaps: self.gaps.clone(),
        }
    }

    /// Notes the tables of a copy that begins, in place of those of an earlier one.
    pub(super) fn copies_begin(&mut self, jobs: &[CopyJob]) {
        self.copies.retain(|copy| copy.stage == CopyStage::UnderWay);
        self.copies.extend(jobs.iter().map(|job| CopyView {
            source: job.source.clone(),
            rows: Arc::clone(&job.copied),
            estimated: job.estimated,
            stage: CopyStage::UnderWay,
        }));
    }

    /// Notes that a table's copy has ended, with or without success.
    pub(super) fn copy_ends(&mut self, source: &QualifiedName) {
        for copy in self.copies.iter_mut().filter(|copy| copy.source == *source) {
            copy.stage = CopyStage::Ended;
        }
    }
}

type Entries = BTreeMap<SubscriptionName, watch::Receiver<Snapshot>>;

/// Every subscription's snapshot. The runtime owns it; each worker gets the sender of its subscription.
#[derive(Debug, Default)]
pub struct Board {
    entries: watch::Sender<Entries>,
}

impl Board {
    /// Adds a subscription, or replaces the one with its name. Returns the sender that updates its snapshot;
    /// once that is dropped, the last snapshot stays.
    pub fn add(&self, name: &SubscriptionName, state: State) -> watch::Sender<Snapshot> {
        let sender = watch::Sender::new(Snapshot::new(state));
        self.entries.send_modify(|entries| {
            entries.insert(name.clone(), sender.subscribe());
        });
        sender
    }

    pub fn remove(&self, name: &SubscriptionName) {
        self.entries.send_modify(|entries| {
            entries.remove(name);
        });
    }

    #[must_use]
    pub fn view(&self) -> View {
        View { entries: self.entries.subscribe() }
    }
}

/// Read access to the board.
#[derive(Debug, Clone)]
pub struct View {
    entries: watch::Receiver<Entries>,
}

impl View {
    /// Returns every subscription's snapshot, sorted by name.
    #[must_use]
    pub fn snapshots(&self) -> BTreeMap<SubscriptionName, Snapshot> {
        self.entries.borrow().iter().map(|(name, entry)| (name.clone(), entry.borrow().clone())).collect()
    }
}

/// The state that each subscription shows while the store cannot be opened on the target.
#[must_use]
pub fn target_unavailable(diagnosis: &Diagnosis) -> Snapshot {
    Snapshot {
        shown: StateChange::new(State::Retrying).because(Cause::Target.as_str(), diagnosis),
        target: Link::Down,
        ..Snapshot::new(State::Retrying)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::SeenSource;
    use crate::copy::{CopyCommands, Existing};

    fn job(table: &str) -> CopyJob {
        CopyJob {
            seen: SeenSource::default(),
            source: QualifiedName::new("public", table),
            commands: CopyCommands::default(),
            run_as: None,
            existing: Existing::Keep,
            attempt: 1,
            estimated: None,
            copied: Arc::new(AtomicU64::new(7)),
        }
    }

    #[test]
    fn the_board_shows_the_last_word() {
        let board = Board::default();
        let view = board.view();
        let name: SubscriptionName = "a".parse().unwrap();
        let sender = board.add(&name, State::Starting);
        assert!(!view.snapshots()[&name].is_well());
        sender.send_modify(|snapshot| snapshot.shown = StateChange::new(State::Streaming));
        drop(sender);
        assert!(view.snapshots()[&name].is_well());
        board.remove(&name);
        assert!(view.snapshots().is_empty());
    }

    #[test]
    fn copies_are_seen_live_and_forgotten_when_the_next_begin() {
        let mut snapshot = Snapshot::new(State::Copying);
        let first = job("first");
        snapshot.copies_begin(std::slice::from_ref(&first));
        first.copied.store(9, Ordering::Relaxed);
        assert_eq!(snapshot.copies()[0].rows, 9);
        snapshot.copy_ends(&first.source);
        assert!(snapshot.copies()[0].is_ended);
        snapshot.copies_begin(&[job("second")]);
        assert_eq!(snapshot.copies().len(), 1);
    }
}
