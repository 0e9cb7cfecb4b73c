//! Neighbouring changes of one kind, for tables where order means something.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{Company, Keyed, SetKind, SetRow, Step};
use crate::apply::planned::TableContext;

/// Neighbouring changes of one kind, no key twice.
#[derive(Default)]
pub(super) struct Run {
    kind: Option<SetKind>,
    keys: HashSet<Bytes>,
    rows: Vec<SetRow>,
}

impl Run {
    pub(super) fn push(&mut self, table: &Arc<TableContext>, change: Keyed<'_>, steps: &mut Vec<Step>) {
        let fits = self.kind.as_ref() == Some(&change.kind)
            && change.company == Company::Any
            && change.key.as_ref().is_none_or(|key| !self.keys.contains(key));
        if !fits {
            self.close(table, steps);
        }
        if change.company == Company::None {
            steps.push(change.alone(table));
            return;
        }
        self.rows.push(change.row());
        self.keys.extend(change.key);
        self.kind = Some(change.kind);
    }

    pub(super) fn close(&mut self, table: &Arc<TableContext>, steps: &mut Vec<Step>) {
        self.keys.clear();
        if let Some(kind) = self.kind.take() {
            steps.push(Step::Set { table: Arc::clone(table), kind, rows: std::mem::take(&mut self.rows) });
        }
    }
}
