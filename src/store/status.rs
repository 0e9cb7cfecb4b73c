//! The document of `status --json` and the API. Its format is part of the interface.
//!
//! Pure: rows in, document out. If no service runs, the last report of lag, slot and publisher is left out,
//! because it may be outdated.

use jiff::Timestamp;
use serde::Serialize;

use crate::error::Diagnosis;
use crate::gap::{Gap, GapKind, Hold};
use crate::pg::{Lsn, QualifiedName};
use crate::subscription::membership::LetGo;

use super::codec::{serialize_time, serialize_time_option};
use super::{Resync, State, SubscriptionRow, TableRow, TableState};

/// The reason that is shown while no service runs.
const NOT_RUNNING: &str = "not_running";
/// The reason that is shown while the instance that has the lock reports nothing.
const SILENT: &str = "silent";
const SILENT_HINT: &str = "look at that process and its host, and restart it if it hangs; a second instance would take the \
    subscription over by itself";
const START_HINT: &str = "start it with \"pgsluice run\"";

/// Every subscription's status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusDocument {
    pub subscriptions: Vec<SubscriptionStatus>,
}

/// One subscription's status. Null means unknown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubscriptionStatus {
    pub name: String,
    pub state: State,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub received_lsn: Option<Lsn>,
    pub applied_lsn: Option<Lsn>,
    pub flushed_lsn: Option<Lsn>,
    pub publisher_lsn: Option<Lsn>,
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub slot: SlotStatus,
    pub tables: Vec<TableStatus>,
    /// The open gaps, oldest first.
    pub gaps: Vec<GapStatus>,
    pub conflict_id: Option<i64>,
    /// When the subscription entered this state.
    #[serde(serialize_with = "serialize_time_option")]
    pub since: Option<Timestamp>,
    /// Whether a service applies it now.
    pub running: bool,
    /// Host and process that applies, or last applied, it.
    pub instance: Option<String>,
    /// The armed skip.
    pub skip_lsn: Option<Lsn>,
    pub warnings: Vec<String>,
}

/// The slot on the publisher.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SlotStatus {
    pub wal_status: Option<String>,
    pub retained_bytes: Option<u64>,
}

/// One table's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableStatus {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub state: TableState,
    pub rows_copied: u64,
    pub rows_estimated: Option<u64>,
    /// Why its copy failed.
    pub error: Option<Diagnosis>,
    /// Why it is applied row by row.
    pub exact_because: Option<String>,
    /// How it is synchronised again; none if it joins, or is ready.
    pub resync: Option<Resync>,
    /// The gap that holds it.
    pub gap_id: Option<i64>,
}

/// An open gap: where the target may lack changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GapStatus {
    pub id: i64,
    pub kind: GapKind,
    /// The table on the publisher; null for the whole subscription.
    pub table: Option<QualifiedName>,
    /// Whether the table, or the subscription, waits until the gap is settled.
    pub holds: bool,
    pub from_lsn: Option<Lsn>,
    pub to_lsn: Option<Lsn>,
    #[serde(serialize_with = "serialize_time_option")]
    pub since: Option<Timestamp>,
    #[serde(serialize_with = "serialize_time")]
    pub opened_at: Timestamp,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl StatusDocument {
    /// Returns the status of the subscriptions in the database, and of those that only the configuration
    /// names. `absent` has the latter's names with [`State::Disabled`] or, if they have never run,
    /// [`State::Starting`].
    pub fn new<'a>(rows: &[SubscriptionRow], absent: impl IntoIterator<Item = (&'a str, State)>) -> Self {
        let mut subscriptions: Vec<_> = rows.iter().map(SubscriptionStatus::of).collect();
        let unseen = absent.into_iter().filter(|(name, _)| rows.iter().all(|row| row.name != *name));
        subscriptions.extend(unseen.map(|(name, state)| SubscriptionStatus::never_run(name, state)));
        subscriptions.sort_by(|a, b| a.name.cmp(&b.name));
        Self { subscriptions }
    }

    /// Whether nothing is paused, no table either, and every enabled subscription runs.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let held =
            |status: &SubscriptionStatus| status.tables.iter().any(|table| table.state == TableState::Paused);
        self.subscriptions.iter().all(|subscription| match subscription.state {
            State::Disabled => true,
            _ if held(subscription) => false,
            State::Paused => false,
            State::Starting | State::Copying | State::Streaming | State::Retrying | State::Standby => {
                subscription.running
            }
        })
    }
}

impl SubscriptionStatus {
    fn of(row: &SubscriptionRow) -> Self {
        let live = row.owned;
        let at_rest = matches!(row.state, State::Paused | State::Disabled);
        let positions = &row.positions;
        let mut status = Self {
            state: row.state,
            reason: row.reason.clone(),
            detail: row.detail.clone(),
            hint: row.hint.clone(),
            received_lsn: positions.received_lsn,
            applied_lsn: row.progress.as_ref().map(|progress| progress.applied_lsn),
            flushed_lsn: positions.flushed_lsn,
            publisher_lsn: positions.publisher_lsn.filter(|_| live),
            lag_bytes: positions.lag_bytes.filter(|_| live),
            lag_seconds: positions.lag_seconds.filter(|_| live),
            slot: SlotStatus {
                wal_status: positions.wal_status.clone().filter(|_| live),
                retained_bytes: positions.retained_bytes.filter(|_| live),
            },
            tables: row.tables.iter().map(|table| TableStatus::of(table, &row.gaps)).collect(),
            gaps: row.gaps.iter().map(GapStatus::of).collect(),
            conflict_id: row.conflict_id,
            since: Some(row.state_since),
            running: live,
            instance: row.instance.clone(),
            skip_lsn: row.skip_lsn,
            warnings: row.warnings.clone(),
            ..Self::never_run(&row.name, State::Starting)
        };
        if !live && !at_rest {
            status.not_running(row.reported_at);
        } else if live && row.is_silent {
            status.silent(row);
        }
        status
    }

    fn never_run(name: &str, state: State) -> Self {
        let mut status = Self {
            name: name.to_owned(),
            state,
            reason: None,
            detail: None,
            hint: None,
            received_lsn: None,
            applied_lsn: None,
            flushed_lsn: None,
            publisher_lsn: None,
            lag_bytes: None,
            lag_seconds: None,
            slot: SlotStatus::default(),
            tables: Vec::new(),
            gaps: Vec::new(),
            conflict_id: None,
            since: None,
            running: false,
            instance: None,
            skip_lsn: None,
            warnings: Vec::new(),
        };
        if state != State::Disabled {
            status.not_running(None);
        }
        status
    }

    fn not_running(&mut self, reported_at: Option<Timestamp>) {
        self.state = State::Starting;
        self.reason = Some(NOT_RUNNING.to_owned());
        self.detail = Some(match (reported_at, &self.instance) {
            (Some(at), Some(instance)) => format!("no service runs it; last seen {at:.0} on {instance}"),
            (Some(at), None) => format!("no service runs it; last seen {at:.0}"),
            (None, _) => "no service has run it yet".to_owned(),
        });
        self.hint = Some(START_HINT.to_owned());
        self.since = reported_at;
        self.conflict_id = None;
    }

    /// The instance that has the lock hangs, or is cut off. A pause stays what it is.
    fn silent(&mut self, row: &SubscriptionRow) {
        self.running = false;
        if self.state == State::Paused {
            return;
        }
        self.state = State::Retrying;
        self.reason = Some(SILENT.to_owned());
        let instance = row.instance.as_deref().unwrap_or("the instance");
        let since = row.reported_at.map(|at| format!(" since {at:.0}")).unwrap_or_default();
        self.detail =
            Some(format!("{instance} holds the subscription's lock, and has reported nothing{since}"));
        self.hint = Some(SILENT_HINT.to_owned());
        self.conflict_id = None;
    }
}

impl TableStatus {
    fn of(row: &TableRow, gaps: &[Gap]) -> Self {
        let held = gaps.iter().find(|gap| gap.holds_table(&row.source));
        Self {
            source: row.source.clone(),
            target: row.target.clone(),
            state: match row.left {
                Some(left) if left.gone == LetGo::Done => TableState::Left,
                _ => row.state,
            },
            rows_copied: row.rows_copied,
            rows_estimated: row.rows_estimated,
            error: row.error.clone(),
            exact_because: row.exact_because.clone(),
            resync: row.resync,
            gap_id: held.map(|gap| gap.id),
        }
    }
}

impl GapStatus {
    fn of(gap: &Gap) -> Self {
        let diagnosis = gap.diagnosis();
        Self {
            id: gap.id,
            kind: gap.kind,
            table: gap.table.clone(),
            holds: gap.hold == Hold::Until,
            from_lsn: gap.from,
            to_lsn: gap.to,
            since: gap.since,
            opened_at: gap.opened_at,
            message: diagnosis.primary,
            detail: diagnosis.detail,
            hint: diagnosis.hint,
        }
    }
}
