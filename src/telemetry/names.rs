//! Every metric's name, labels and meaning.
//!
//! The recorder takes its descriptions from here; docker/'s rules and dashboard are tested against this
//! table. Labels hold names from the configuration and words from fixed lists. The one that could grow,
//! `table`, is given only while few tables are being copied (`metrics::TABLES_MAX`).

/// The type of a metric in Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric's entry in `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    pub name: &'static str,
    pub kind: Kind,
    /// What it counts or measures, with its unit.
    pub help: &'static str,
}

pub const LABEL_SUBSCRIPTION: &str = "subscription";
/// The row operation: `insert`, `update`, `delete`, `truncate`.
pub const LABEL_OPERATION: &str = "operation";
/// The type of a conflict.
pub const LABEL_TYPE: &str = "type";
/// A subscription's state, as `status` names it.
pub const LABEL_STATE: &str = "state";
/// The publisher's table, as `schema.table`.
pub const LABEL_TABLE: &str = "table";
/// The kind of position: `received`, `flushed`, `publisher`.
pub const LABEL_POSITION: &str = "position";
/// The kind of a gap.
pub const LABEL_KIND: &str = "kind";
pub const LABEL_VERSION: &str = "version";

pub const INFO: &str = "pgsluice_info";
pub const RECEIVED_TRANSACTIONS: &str = "pgsluice_received_transactions_total";
pub const RECEIVED_ROWS: &str = "pgsluice_received_rows_total";
pub const APPLIED_TRANSACTIONS: &str = "pgsluice_applied_transactions_total";
pub const APPLIED_ROWS: &str = "pgsluice_applied_rows_total";
pub const BATCHES: &str = "pgsluice_batches_total";
pub const BATCH_ROWS: &str = "pgsluice_batch_rows";
pub const APPLY_DURATION: &str = "pgsluice_apply_duration_seconds";
pub const FALLBACKS: &str = "pgsluice_fallbacks_total";
pub const CONFLICTS: &str = "pgsluice_conflicts_total";
pub const RECONNECTS: &str = "pgsluice_reconnects_total";
pub const STATE: &str = "pgsluice_state";
pub const GAPS: &str = "pgsluice_gaps";
pub const LAG_BYTES: &str = "pgsluice_lag_bytes";
pub const LAG_SECONDS: &str = "pgsluice_lag_seconds";
pub const POSITION_BYTES: &str = "pgsluice_position_bytes";
pub const SLOT_RETAINED_BYTES: &str = "pgsluice_slot_retained_bytes";
pub const PUBLISHER_UP: &str = "pgsluice_publisher_up";
pub const TARGET_UP: &str = "pgsluice_target_up";
pub const COPYING_TABLES: &str = "pgsluice_copying_tables";
pub const COPY_ROWS: &str = "pgsluice_copy_rows";
pub const COPY_ESTIMATED_ROWS: &str = "pgsluice_copy_estimated_rows";
pub const COPY_TABLE_ROWS: &str = "pgsluice_copy_table_rows";
pub const COPY_TABLE_ESTIMATED_ROWS: &str = "pgsluice_copy_table_estimated_rows";

/// Upper bounds of [`APPLY_DURATION`]'s buckets, seconds.
pub const APPLY_DURATION_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Upper bounds of [`BATCH_ROWS`]'s buckets, rows.
pub const BATCH_ROWS_BUCKETS: &[f64] = &[1.0, 10.0, 100.0, 500.0, 1e3, 5e3, 1e4, 1e5, 1e6];

const fn counter(name: &'static str, help: &'static str) -> Description {
    Description { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Description {
    Description { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Description {
    Description { name, kind: Kind::Histogram, help }
}

/// Every metric.
pub const ALL: &[Description] = &[
    gauge(INFO, "1; the label is the version that runs."),
    counter(RECEIVED_TRANSACTIONS, "Transactions received whole from the publisher."),
    counter(
        RECEIVED_ROWS,
        "Row changes received from the publisher, by operation; a truncation counts each of its tables.",
    ),
    counter(APPLIED_TRANSACTIONS, "Publisher transactions that are durable in the target."),
    counter(
        APPLIED_ROWS,
        "Row changes that are durable in the target, by operation; a truncation counts each of its tables.",
    ),
    counter(BATCHES, "Target transactions that applied one or more publisher transactions."),
    histogram(BATCH_ROWS, "Row changes applied by one target transaction."),
    histogram(APPLY_DURATION, "Time from a batch's first change to its commit in the target, in seconds."),
    counter(FALLBACKS, "Batches that were rolled back and replayed row by row."),
    counter(CONFLICTS, "Conflicts found, by type; one that is met again counts once."),
    counter(RECONNECTS, "Attempts that ended in a transient failure and are made again."),
    gauge(STATE, "1 for the state that the subscription is in, 0 for the others."),
    gauge(GAPS, "Open gaps, in which the target may lack changes, by kind."),
    gauge(
        LAG_BYTES,
        "WAL between the publisher's position and what is durable here, in bytes; absent if unknown.",
    ),
    gauge(
        LAG_SECONDS,
        "Age of the oldest publisher position not yet durable here, in seconds; absent if unknown.",
    ),
    gauge(
        POSITION_BYTES,
        "Positions in the publisher's WAL, in bytes from its beginning; absent if unknown.",
    ),
    gauge(SLOT_RETAINED_BYTES, "WAL that the slot makes the publisher keep, in bytes; absent if unknown."),
    gauge(PUBLISHER_UP, "1 if the publisher answered when last asked, 0 if not; absent if it is not asked."),
    gauge(TARGET_UP, "1 if the target answered when last asked, 0 if not; absent if it has not been asked."),
    gauge(COPYING_TABLES, "Tables whose initial copy is under way or waits its turn."),
    gauge(COPY_ROWS, "Rows copied so far by the copy under way, all tables together."),
    gauge(COPY_ESTIMATED_ROWS, "The planner's estimate of the rows to copy, all tables together."),
    gauge(COPY_TABLE_ROWS, "Rows copied so far, by table; only while few tables are copied."),
    gauge(
        COPY_TABLE_ESTIMATED_ROWS,
        "The planner's estimate of a table's rows; only while few tables are copied.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_prometheus_conventions() {
        for metric in ALL {
            assert!(metric.name.starts_with("pgsluice_"), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert_eq!(ALL.iter().filter(|other| other.name == metric.name).count(), 1, "{}", metric.name);
        }
    }
}
