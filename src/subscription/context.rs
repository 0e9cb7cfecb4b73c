//! The context of an attempt: its subscription, the store, and the channels by which it reports to the worker.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config::Subscription;
use crate::error::Diagnosis;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{Lsn, QualifiedName};
use crate::schema::catalog::KnownTables;
use crate::store::{Ownership, Store};
use crate::telemetry::Attention;

use super::format::Whole;
use super::gaps::PassedInTerm;
use super::instances::Asked;
use super::positions::{Promptness, StreamPositions};
use super::publications::Publications;
use super::slot::SlotPlan;
use super::snapshot::Snapshot;

/// What an attempt needs, and the channels by which it reports.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) subscription: Arc<Subscription>,
    pub(super) target: ConnInfo,
    pub(super) store: Store,
    /// The term that every write to the store names.
    pub(super) owner: Ownership,
    pub(super) positions: watch::Sender<StreamPositions>,
    /// How soon the publisher needs the report of idle positions.
    pub(super) promptness: watch::Sender<Promptness>,
    /// What the publications contain, as the attempt took it up and as last seen.
    pub(super) publications: watch::Sender<Publications>,
    pub(super) phases: mpsc::Sender<Phase>,
    pub(super) snapshot: watch::Sender<Snapshot>,
    /// Apply row by row until the transaction that finishes here has been applied.
    pub(super) exact_until: Option<Lsn>,
    /// For how long transactions are sent after their commit.
    pub(super) whole: Option<Whole>,
    /// Where the target kept the publisher waiting.
    pub(super) stalls: Stalls,
    /// Where the publisher sent nothing.
    pub(super) silences: Stalls,
    /// Publications that the walsender has found missing, each with the position that had been applied.
    pub(super) refused: Vec<(Lsn, String)>,
    /// The warnings that were reported last.
    pub(super) warned: watch::Sender<Vec<String>>,
    /// What this instance has passed over of tables that gaps hold.
    pub(super) passed_over: watch::Sender<PassedInTerm>,
    /// What attempts have learned of the target's tables.
    pub(super) known_tables: watch::Sender<KnownTables>,
    /// Whether the subscription is to be handed over to another instance.
    pub(super) asked: watch::Receiver<Asked>,
}

/// Where streams were closed because the target kept the publisher waiting, or because nothing came. A transaction that is
/// streamed again and again has to get through in the end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stalls {
    at: Option<Lsn>,
    /// How often at this position, one after the other.
    times: u32,
}

impl Stalls {
    /// Notes that a stream was closed, while this position was recorded.
    pub(super) fn note(&mut self, at: Option<Lsn>) {
        self.times = if self.at == at { self.times + 1 } else { 1 };
        self.at = at;
    }

    /// How long one side may wait in a stream that begins at `from`: twice as long for each stream that has been
    /// closed there but the first.
    pub(super) fn patience(self, timeout: Duration, from: Lsn) -> Duration {
        const DOUBLINGS_MAX: u32 = 10;
        let again = if self.at == Some(from) { self.times.saturating_sub(1) } else { 0 };
        timeout * 2_u32.pow(again.min(DOUBLINGS_MAX))
    }
}

/// The progress of an attempt.
#[derive(Debug)]
pub(super) enum Phase {
    /// The publisher makes the new slot wait.
    SlotWaits(Diagnosis),
    /// All sessions that copies may have on the target are in use.
    SessionWaits(Diagnosis),
    Copying,
    Streaming,
    /// The target has got nothing done for so long that the stream was closed until it does.
    Stalled(Diagnosis),
    /// A table's copy failed, and the others go on; none if no table's copy fails any more.
    TableHeldBack(Option<Diagnosis>),
}

impl Context {
    pub(super) fn name(&self) -> &str {
        self.subscription.name.as_str()
    }

    /// Logs a warning for an operator.
    pub(super) fn attention(&self, relation: Option<&QualifiedName>, diagnosis: &Diagnosis) {
        Attention { subscription: Some(self.name()), relation, diagnosis }.emit();
    }

    /// The messages by which the walsender has refused publications at the position from which the stream goes on.
    pub(super) fn refused_at(&self, plan: SlotPlan) -> Vec<&str> {
        let at = |from: Lsn| self.refused.iter().filter(move |(at, _)| *at == from);
        match plan {
            SlotPlan::Continue { from } => at(from).map(|(_, message)| message.as_str()).collect(),
            SlotPlan::Adopt { .. } | SlotPlan::Create => Vec::new(),
        }
    }

    pub(super) async fn tell(&self, phase: Phase) {
        // The worker outlives its attempts. If the receiver has been dropped, no report is needed.
        let _ = self.phases.send(phase).await;
    }
}
