//! What everybody may see of a subscription without asking its worker or the target.
//!
//! ```text
//! worker ── state, reason ──┐
//! monitor ── positions ─────┼─▶ Snapshot (watch) ─▶ Board ─▶ View: http, metrics, progress bars
//! copies ── rows so far ────┘
//! ```
//! # Why not the store
//! The store lives in the target. While that is down, readiness and metrics matter most.
//!
//! # Invariants
//! - Each part has one writer; whoever reads gets a copy and can hold nobody up.
//! - A snapshot is of this process: a standby's says `standby`, whatever the owner is doing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::failure::Cause;
use crate::copy::CopyJob;
use crate::error::Diagnosis;
use crate::pg::{QualifiedName, SubscriptionName};
use crate::store::{Positions, State, StateChange};
use crate::telemetry::{CopyGauges, Gauges};

/// One subscription, as this process sees it now.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// State, reason, detail, hint, conflict.
    pub shown: StateChange,
    pub positions: Positions,
    pub publisher: Link,
    pub target: Link,
    /// The copy under way, tables that it has finished included.
    pub copies: Vec<CopyView>,
}

/// Whether a server answered when it was last asked.
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
    /// As a metric has it.
    const fn is_up(self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Up => Some(true),
            Self::Down => Some(false),
        }
    }

    /// What an attempt to ask says.
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
    /// Of a subscription that nothing is known of yet but its state.
    #[must_use]
    pub fn new(state: State) -> Self {
        Self {
            shown: StateChange::new(state),
            positions: Positions::default(),
            publisher: Link::Unknown,
            target: Link::Unknown,
            copies: Vec::new(),
        }
    }

    /// Whether it does what it should: streams, copies, stands by, or is switched off.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        match self.shown.state {
            State::Copying | State::Streaming | State::Standby | State::Disabled => true,
            State::Starting | State::Retrying | State::Paused => false,
        }
    }

    /// The copies under way, for whoever shows them.
    #[must_use]
    pub fn copies(&self) -> Vec<CopyGauges> {
        self.copies.iter().map(CopyView::gauges).collect()
    }

    /// What the metrics say.
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
        }
    }

    /// A copy begins. What an earlier one has finished is forgotten.
    pub(super) fn copies_begin(&mut self, jobs: &[CopyJob]) {
        self.copies.retain(|copy| copy.stage == CopyStage::UnderWay);
        self.copies.extend(jobs.iter().map(|job| CopyView {
            source: job.source.clone(),
            rows: Arc::clone(&job.copied),
            estimated: job.estimated,
            stage: CopyStage::UnderWay,
        }));
    }

    /// A table's copy has ended, well or not.
    pub(super) fn copy_ends(&mut self, source: &QualifiedName) {
        for copy in self.copies.iter_mut().filter(|copy| copy.source == *source) {
            copy.stage = CopyStage::Ended;
        }
    }
}

type Entries = BTreeMap<SubscriptionName, watch::Receiver<Snapshot>>;

/// Every subscription's snapshot. The runtime owns it; workers get their own subscription's end.
#[derive(Debug, Default)]
pub struct Board {
    entries: watch::Sender<Entries>,
}

impl Board {
    /// Puts a subscription on the board, in place of what was there under its name. Whoever gets
    /// the sender writes; once it is dropped, the last word stays.
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

/// The board, to be looked at.
#[derive(Debug, Clone)]
pub struct View {
    entries: watch::Receiver<Entries>,
}

impl View {
    /// Every subscription as it is now, by name.
    #[must_use]
    pub fn snapshots(&self) -> BTreeMap<SubscriptionName, Snapshot> {
        self.entries.borrow().iter().map(|(name, entry)| (name.clone(), entry.borrow().clone())).collect()
    }
}

/// A target whose state cannot be opened: what each subscription says until it can.
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
    use crate::copy::CopyCommands;

    fn job(table: &str) -> CopyJob {
        CopyJob {
            source: QualifiedName::new("public", table),
            commands: CopyCommands::default(),
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
