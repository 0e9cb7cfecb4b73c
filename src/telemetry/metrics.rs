//! The recorders behind `/metrics`.
//!
//! ```text
//! events ──counters, histograms──▶ one recorder for the process ─┐
//! snapshots ──gauges──▶ a recorder for each request ─────────────┴─▶ exposition
//! ```
//! # Why there are two recorders
//!
//! A gauge is set from snapshots when it is asked for, in a recorder that exists only for this request.
//! So a subscription that was removed, or a lag that is unknown, leaves no stale series.
//!
//! `http` serves what [`render`] returns.

use std::sync::OnceLock;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::names::{self, Kind};
use crate::conflict::ConflictKind;
use crate::gap::GapKind;
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::Tally;
use crate::store::State;

/// Largest number of tables with gauges of their own; with more, only sums are given.
pub const TABLES_MAX: usize = 20;

/// The process's counters and histograms. None until [`start`], and in tests.
static EVENTS: OnceLock<PrometheusHandle> = OnceLock::new();

/// The current values of one subscription. `None` is unknown, and has no series.
#[derive(Debug, Clone, PartialEq)]
pub struct Gauges<'a> {
    pub subscription: &'a str,
    pub state: State,
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub received: Option<Lsn>,
    pub flushed: Option<Lsn>,
    pub publisher: Option<Lsn>,
    pub slot_retained_bytes: Option<u64>,
    pub publisher_up: Option<bool>,
    pub target_up: Option<bool>,
    /// Tables of the copy in progress, finished ones included; empty if there is none.
    pub copies: Vec<CopyGauges>,
    /// The kinds of the open gaps.
    pub gaps: Vec<GapKind>,
}

/// One table of the copy in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyGauges {
    pub table: QualifiedName,
    pub rows: u64,
    pub rows_estimated: Option<u64>,
    pub is_ended: bool,
}

/// Installs the process's recorder. A second call changes nothing.
pub fn start() {
    EVENTS.get_or_init(|| {
        let handle = events_builder().install_recorder();
        // This fails only if a recorder is installed already; then this one stays empty, which a test
        // would notice.
        let handle = handle.unwrap_or_else(|_| events_builder().build_recorder().handle());
        describe(|kind| kind != Kind::Gauge);
        handle
    });
}

fn events_builder() -> PrometheusBuilder {
    let buckets = [
        (names::APPLY_DURATION, names::APPLY_DURATION_BUCKETS),
        (names::BATCH_ROWS, names::BATCH_ROWS_BUCKETS),
    ];
    buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
        // Fails only for an empty list of bounds; then the crate's summaries are used.
        builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)
            .unwrap_or_else(|_| PrometheusBuilder::new())
    })
}

fn describe(wanted: impl Fn(Kind) -> bool) {
    for metric in names::ALL.iter().filter(|metric| wanted(metric.kind)) {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Creates a subscription's counters at 0, so that the first increase is visible as one.
pub fn register(subscription: &str) {
    for name in [
        names::RECEIVED_TRANSACTIONS,
        names::APPLIED_TRANSACTIONS,
        names::BATCHES,
        names::FALLBACKS,
        names::RECONNECTS,
    ] {
        counter!(name, names::LABEL_SUBSCRIPTION => subscription.to_owned()).absolute(0);
    }
    for name in [names::RECEIVED_ROWS, names::APPLIED_ROWS] {
        for (operation, _) in Tally::default().by_operation() {
            counter!(
                name,
                names::LABEL_SUBSCRIPTION => subscription.to_owned(),
                names::LABEL_OPERATION => operation
            )
            .absolute(0);
        }
    }
    for kind in ConflictKind::ALL {
        counter!(
            names::CONFLICTS,
            names::LABEL_SUBSCRIPTION => subscription.to_owned(),
            names::LABEL_TYPE => kind.as_str()
        )
        .absolute(0);
    }
}

/// Merges samples to bound the recorder's size; to be called every few seconds.
pub fn upkeep() {
    if let Some(events) = EVENTS.get() {
        events.run_upkeep();
    }
}

/// Renders all metrics in Prometheus' text format 0.0.4.
#[must_use]
pub fn render(subscriptions: &[Gauges<'_>]) -> String {
    let mut text = EVENTS.get().map(PrometheusHandle::render).unwrap_or_default();
    let moment = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&moment, || {
        describe(|kind| kind == Kind::Gauge);
        gauge!(names::INFO, names::LABEL_VERSION => env!("CARGO_PKG_VERSION")).set(1.0);
        for gauges in subscriptions {
            gauges.set();
        }
    });
    text.push_str(&moment.handle().render());
    text
}

impl Gauges<'_> {
    fn set(&self) {
        for state in State::ALL {
            let is_it = if state == self.state { 1.0 } else { 0.0 };
            gauge!(
                names::STATE,
                names::LABEL_SUBSCRIPTION => self.subscription.to_owned(),
                names::LABEL_STATE => state.as_str()
            )
            .set(is_it);
        }
        let known = [
            (names::LAG_BYTES, self.lag_bytes.map(float)),
            (names::LAG_SECONDS, self.lag_seconds),
            (names::SLOT_RETAINED_BYTES, self.slot_retained_bytes.map(float)),
            (names::PUBLISHER_UP, self.publisher_up.map(|up| float(up.into()))),
            (names::TARGET_UP, self.target_up.map(|up| float(up.into()))),
        ];
        for (name, value) in known {
            if let Some(value) = value {
                self.set_one(name, value);
            }
        }
        let positions =
            [("received", self.received), ("flushed", self.flushed), ("publisher", self.publisher)];
        for (position, lsn) in positions {
            if let Some(lsn) = lsn {
                gauge!(
                    names::POSITION_BYTES,
                    names::LABEL_SUBSCRIPTION => self.subscription.to_owned(),
                    names::LABEL_POSITION => position
                )
                .set(float(lsn.as_u64()));
            }
        }
        self.set_copies();
        for kind in GapKind::ALL {
            let open = self.gaps.iter().filter(|open| **open == kind).count();
            gauge!(
                names::GAPS,
                names::LABEL_SUBSCRIPTION => self.subscription.to_owned(),
                names::LABEL_KIND => kind.as_str()
            )
            .set(float(open as u64));
        }
    }

    fn set_copies(&self) {
        let under_way = self.copies.iter().filter(|copy| !copy.is_ended).count();
        self.set_one(names::COPYING_TABLES, float(under_way as u64));
        if self.copies.is_empty() {
            return;
        }
        let rows = self.copies.iter().map(|copy| copy.rows).sum();
        let estimated = self.copies.iter().filter_map(|copy| copy.rows_estimated).sum();
        self.set_one(names::COPY_ROWS, float(rows));
        self.set_one(names::COPY_ESTIMATED_ROWS, float(estimated));
        if self.copies.len() > TABLES_MAX {
            return;
        }
        for copy in &self.copies {
            let labels = [
                (names::LABEL_SUBSCRIPTION, self.subscription.to_owned()),
                (names::LABEL_TABLE, copy.table.to_string()),
            ];
            gauge!(names::COPY_TABLE_ROWS, &labels).set(float(copy.rows));
            if let Some(estimated) = copy.rows_estimated {
                gauge!(names::COPY_TABLE_ESTIMATED_ROWS, &labels).set(float(estimated));
            }
        }
    }

    fn set_one(&self, name: &'static str, value: f64) {
        gauge!(name, names::LABEL_SUBSCRIPTION => self.subscription.to_owned()).set(value);
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53: eight petabytes of WAL")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges(copies: usize) -> Gauges<'static> {
        let copy = |n| CopyGauges {
            table: QualifiedName::new("public", format!("t{n}")),
            rows: 10,
            rows_estimated: Some(100),
            is_ended: n == 0,
        };
        Gauges {
            subscription: "my \"subscription\"",
            state: State::Copying,
            lag_bytes: Some(72),
            lag_seconds: None,
            received: Some(Lsn::new(256)),
            flushed: None,
            publisher: None,
            slot_retained_bytes: None,
            publisher_up: Some(true),
            target_up: Some(false),
            copies: (0..copies).map(copy).collect(),
            gaps: vec![GapKind::Returned, GapKind::Returned, GapKind::SlotLost],
        }
    }

    #[test]
    fn what_is_unknown_has_no_series() {
        let text = render(&[gauges(2)]);
        let name = r#"subscription="my \"subscription\"""#;
        for line in [
            format!("pgsluice_state{{{name},state=\"copying\"}} 1"),
            format!("pgsluice_state{{{name},state=\"streaming\"}} 0"),
            format!("pgsluice_lag_bytes{{{name}}} 72"),
            format!("pgsluice_target_up{{{name}}} 0"),
            format!("pgsluice_gaps{{{name},kind=\"returned\"}} 2"),
            format!("pgsluice_gaps{{{name},kind=\"replaced\"}} 0"),
            format!("pgsluice_position_bytes{{{name},position=\"received\"}} 256"),
            format!("pgsluice_copying_tables{{{name}}} 1"),
            format!("pgsluice_copy_rows{{{name}}} 20"),
            format!("pgsluice_copy_table_rows{{{name},table=\"public.t1\"}} 10"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("pgsluice_lag_seconds{"), "{text}");
        assert!(!text.contains("position=\"flushed\""), "{text}");
    }

    #[test]
    fn many_tables_are_only_summed_up() {
        let text = render(&[gauges(TABLES_MAX + 1)]);
        assert!(text.contains("pgsluice_copy_rows{") && !text.contains("table="), "{text}");
    }

    #[test]
    fn nothing_outlives_its_subscription() {
        let text = render(&[]);
        assert!(text.contains("pgsluice_info{") && !text.contains("subscription="), "{text}");
    }
}
