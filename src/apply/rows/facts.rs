//! The facts of a conflict that are known before its transaction's end.
//!
//! Pure data. `evidence` collects them on the target.

use std::sync::Arc;

use jiff::Timestamp;

use crate::apply::outcome::unix_time_us;
use crate::apply::table::TableContext;
use crate::conflict::{ConflictKind, ConflictReport, Operation, RowImage};
use crate::error::ServerError;
use crate::pg::{QualifiedName, SubscriptionName};
use crate::pgoutput::Begin;

/// A conflict without what is known only at its transaction's end.
#[derive(Debug)]
pub struct ConflictFacts {
    pub(crate) kind: ConflictKind,
    pub(crate) operation: Operation,
    pub(crate) source: QualifiedName,
    pub(crate) target: QualifiedName,
    pub(crate) key: Option<RowImage>,
    pub(crate) incoming: Option<RowImage>,
    pub(crate) old: Option<RowImage>,
    pub(crate) local_rows: Vec<RowImage>,
    pub(crate) error: Option<ServerError>,
    pub(crate) message: String,
    /// Number of the refused change, from 1. It is 0 if no row was refused, until
    /// [`ConflictFacts::of_truncate`] or [`ConflictFacts::of_commit`] sets it.
    pub(crate) change_index: u64,
}

impl ConflictFacts {
    /// Facts without evidence, for the simulator.
    #[doc(hidden)]
    #[must_use]
    pub fn bare(kind: ConflictKind, operation: Operation, source: QualifiedName, change_index: u64) -> Self {
        Self {
            kind,
            operation,
            target: source.clone(),
            source,
            key: None,
            incoming: None,
            old: None,
            local_rows: Vec::new(),
            error: None,
            message: String::new(),
            change_index,
        }
    }

    /// Notes that the TRUNCATE of these tables was refused, unless an earlier row was.
    pub(crate) fn of_truncate(&mut self, tables: &[Arc<TableContext>], index: u64) {
        if self.change_index > 0 {
            return;
        }
        self.change_index = index;
        let named = tables.iter().find(|table| table.plan.target == self.target);
        if let Some(table) = named.or_else(|| tables.first()) {
            self.source = table.plan.source.clone();
            self.target = table.plan.target.clone();
        }
    }

    /// Notes that the COMMIT after this number of changes was refused, unless an earlier row was.
    pub(crate) fn of_commit(&mut self, source: Option<QualifiedName>, changes: u64) {
        if self.change_index > 0 {
            return;
        }
        self.operation = Operation::Commit;
        self.change_index = changes;
        if let Some(source) = source {
            self.source = source;
        }
    }

    /// The target's table.
    pub(crate) fn target(&self) -> &QualifiedName {
        &self.target
    }

    pub(crate) fn into_report(
        self,
        subscription: &SubscriptionName,
        begin: &Begin,
        change_count: u64,
    ) -> ConflictReport {
        let error = self.error.unwrap_or_default();
        ConflictReport {
            subscription: subscription.to_string(),
            kind: self.kind,
            operation: self.operation,
            source: self.source,
            target: self.target,
            key: self.key,
            incoming: self.incoming,
            old: self.old,
            local_rows: self.local_rows,
            sqlstate: Some(error.code.clone()).filter(|code| !code.is_empty()),
            message: self.message,
            server_detail: error.detail_with_context(),
            constraint: error.constraint,
            xid: begin.xid,
            commit_lsn: begin.final_lsn,
            commit_time: Timestamp::from_microsecond(unix_time_us(begin.commit_time)).ok(),
            change_count: Some(change_count),
            change_index: self.change_index,
        }
    }
}
