//! Events of the service: each one has a log line, metrics, or both.
//!
//! An event borrows its data; `emit` writes the log line, if there is one, and updates the metrics. No
//! event carries a row's values: a conflict's evidence stays in the target.

use std::time::Duration;

use metrics::{counter, histogram};
use tracing::{debug, warn};

use super::names::{
    APPLIED_ROWS, APPLIED_TRANSACTIONS, APPLY_DURATION, BATCH_ROWS, BATCHES, CONFLICTS, FALLBACKS,
    LABEL_OPERATION, LABEL_SUBSCRIPTION, LABEL_TYPE, RECEIVED_ROWS, RECEIVED_TRANSACTIONS, RECONNECTS,
};
use crate::conflict::ConflictReport;
use crate::error::{Diagnosis, Disposition};
use crate::gap::Gap;
use crate::pgoutput::Tally;

/// Part of the stream was received.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    pub subscription: &'a str,
    pub tally: Tally,
}

impl Received<'_> {
    pub fn emit(&self) {
        add(&self.tally, self.subscription, RECEIVED_TRANSACTIONS, RECEIVED_ROWS);
    }
}

/// A target transaction has committed.
#[derive(Debug, Clone, Copy)]
pub struct BatchApplied<'a> {
    pub subscription: &'a str,
    /// The rows that it applied, and the publisher's transactions that it made durable (0 for a slice
    /// of a larger one).
    pub tally: Tally,
    /// Time from its first change to its commit.
    pub duration: Duration,
}

impl BatchApplied<'_> {
    pub fn emit(&self) {
        add(&self.tally, self.subscription, APPLIED_TRANSACTIONS, APPLIED_ROWS);
        let labels = [(LABEL_SUBSCRIPTION, self.subscription.to_owned())];
        counter!(BATCHES, &labels).increment(1);
        #[expect(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^53 rows")]
        histogram!(BATCH_ROWS, &labels).record(self.tally.rows() as f64);
        histogram!(APPLY_DURATION, &labels).record(self.duration.as_secs_f64());
    }
}

/// A batch could not be applied as sets and is replayed row by row.
#[derive(Debug, Clone, Copy)]
pub struct FellBack<'a> {
    pub subscription: &'a str,
    /// The cause without values: a fixed word or a SQLSTATE.
    pub cause: &'a str,
}

impl FellBack<'_> {
    pub fn emit(&self) {
        let Self { subscription, cause } = self;
        debug!(subscription, cause, "batch rolled back, replayed row by row");
        counter!(FALLBACKS, LABEL_SUBSCRIPTION => (*subscription).to_owned()).increment(1);
    }
}

/// Whether a conflict has been met before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encounter {
    First,
    /// The transaction was tried again on request and met the same conflict.
    Asked,
    /// The transaction was tried again automatically and met the same conflict, which is not logged
    /// again.
    Again,
}

/// A conflict stops the subscription.
#[derive(Debug, Clone, Copy)]
pub struct ConflictFound<'a> {
    pub report: &'a ConflictReport,
    /// The number under which it is recorded.
    pub id: i64,
    pub encounter: Encounter,
}

impl ConflictFound<'_> {
    pub fn emit(&self) {
        let Self { report, id, encounter } = self;
        if *encounter == Encounter::Again {
            debug!(subscription = report.subscription, conflict = id, "the same conflict again");
            return;
        }
        warn!(
            subscription = report.subscription,
            conflict = id,
            kind = %report.kind,
            relation = %report.target,
            lsn = %report.commit_lsn,
            xid = report.xid,
            hint = format!("pgsluice conflicts show {id}"),
            "paused on a conflict"
        );
        if *encounter == Encounter::First {
            counter!(
                CONFLICTS,
                LABEL_SUBSCRIPTION => report.subscription.clone(),
                LABEL_TYPE => report.kind.as_str()
            )
            .increment(1);
        }
    }
}

/// A gap was recorded for the first time.
#[derive(Debug, Clone, Copy)]
pub struct GapFound<'a> {
    pub gap: &'a Gap,
}

impl GapFound<'_> {
    pub fn emit(&self) {
        let Gap { id, subscription, table, kind, from, to, .. } = self.gap;
        let diagnosis = self.gap.diagnosis();
        let (detail, hint) = (diagnosis.detail.as_deref(), diagnosis.hint.as_deref());
        let relation = table.as_ref().map(tracing::field::display);
        let (from, to) =
            (from.as_ref().map(tracing::field::display), to.as_ref().map(tracing::field::display));
        warn!(subscription, gap = id, %kind, relation, from, to, detail, hint, "{}", diagnosis.primary);
    }
}

/// An attempt has failed: it is repeated, or the subscription waits for a person.
#[derive(Debug, Clone, Copy)]
pub struct AttemptFailed<'a> {
    pub subscription: &'a str,
    pub disposition: Disposition,
    pub reason: &'a str,
    pub diagnosis: &'a Diagnosis,
    pub encounter: Encounter,
}

impl AttemptFailed<'_> {
    /// Logs the failure unless the previous attempt failed for the same reason; counts it each time.
    pub fn emit(&self) {
        let Self { subscription, disposition, reason, diagnosis, encounter } = self;
        let told = diagnosis.told_to_log();
        let (error, detail, hint) = (told.primary, told.detail, told.hint);
        match disposition {
            Disposition::Retry => {
                if *encounter == Encounter::Again {
                    debug!(subscription, reason, error, "will try again");
                } else {
                    warn!(subscription, reason, error, detail, hint, "will try again");
                }
                counter!(RECONNECTS, LABEL_SUBSCRIPTION => (*subscription).to_owned()).increment(1);
            }
            Disposition::Pause(_) if *encounter == Encounter::Again => {
                debug!(subscription, reason, error, "paused");
            }
            Disposition::Pause(_) => warn!(subscription, reason, error, detail, hint, "paused"),
        }
    }
}

/// Something that an operator should see: a warning, or a partial failure while the rest goes on.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    pub subscription: Option<&'a str>,
    pub relation: Option<&'a crate::pg::QualifiedName>,
    pub diagnosis: &'a Diagnosis,
}

impl Attention<'_> {
    pub fn emit(&self) {
        let relation = self.relation.map(ToString::to_string);
        let told = self.diagnosis.told_to_log();
        warn!(
            subscription = self.subscription,
            relation,
            detail = told.detail,
            hint = told.hint,
            "{}",
            one_line(told.primary)
        );
    }
}

/// Puts a message into one line of the log; fields are quoted in any case.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Adds `tally` to a subscription's counters.
fn add(tally: &Tally, subscription: &str, transactions: &'static str, rows: &'static str) {
    counter!(transactions, LABEL_SUBSCRIPTION => subscription.to_owned()).increment(tally.transactions);
    for (operation, count) in tally.by_operation() {
        if count > 0 {
            counter!(rows, LABEL_SUBSCRIPTION => subscription.to_owned(), LABEL_OPERATION => operation)
                .increment(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(one_line("two problems:\n  a\r\n  b\n"), "two problems:; a; b");
    }
}
