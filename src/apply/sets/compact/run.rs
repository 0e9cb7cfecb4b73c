//! Consecutive changes of one kind, for tables where the order of changes matters.

use std::collections::HashSet;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{Company, Key, Keyed, Planned, SetKind, SetRow, SetStep, Uncompactable, bytes_of};
use crate::pgoutput::Tuple;

/// Consecutive changes of one kind, without a key that comes twice.
#[derive(Default)]
pub(super) struct Run<'a> {
    kind: Option<SetKind>,
    keys: HashSet<Key<'a>, RandomState>,
    /// The rows that its updates of whole rows leave. A later change of one of them belongs to the next run.
    made: HashSet<Vec<u8>, RandomState>,
    rows: Vec<SetRow>,
}

impl<'a> Run<'a> {
    pub(super) fn push(
        &mut self,
        table: &Planned,
        change: Keyed<'a>,
        steps: &mut Vec<SetStep>,
    ) -> Result<(), Uncompactable> {
        let key = change.key(table.plan())?;
        let full_row = matches!(change.kind, SetKind::UpdateFullRow { .. });
        let follows = |old: &Tuple| full_row && self.made.contains(&bytes_of(old, None));
        let fits = self.kind.as_ref() == Some(&change.kind)
            && change.company == Company::Any
            && !change.identity.is_some_and(follows)
            && key.as_ref().is_none_or(|key| !self.keys.contains(key));
        if !fits {
            self.close(table, steps);
        }
        if change.company == Company::None {
            steps.push(change.alone(table));
            return Ok(());
        }
        if let (true, Some(image)) = (full_row, change.image) {
            self.made.insert(bytes_of(image, change.identity));
        }
        self.rows.push(change.row());
        self.keys.extend(key);
        self.kind = Some(change.kind);
        Ok(())
    }

    pub(super) fn close(&mut self, table: &Planned, steps: &mut Vec<SetStep>) {
        self.keys.clear();
        self.made.clear();
        if let Some(kind) = self.kind.take() {
            steps.push(SetStep::Set {
                table: Arc::clone(&table.context),
                kind,
                rows: std::mem::take(&mut self.rows),
                range: None,
            });
        }
    }
}
