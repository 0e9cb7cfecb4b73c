//! A published table with its plan for the target.
//!
//! Pure data, used by sets and rows. `incoming::tables` makes it from Relation messages and catalogs.

use std::sync::Arc;

use crate::apply::change::RowChange;
use crate::apply::sets::sql::ExactBecause;
use crate::pgoutput::TextColumns;
use crate::schema::{BinaryForm, PublishedActions, PublishedRelation, TablePlan};

/// One published relation, compared with its target and planned.
#[derive(Debug)]
pub struct TableContext {
    /// Distinguishes this plan from earlier plans of the same table.
    pub id: u64,
    pub published: Arc<PublishedRelation>,
    pub plan: TablePlan,
    /// The columns whose binary form is their text ([`text_columns`]).
    pub(crate) text_columns: TextColumns,
    /// The published relation from which the plan was made.
    pub(crate) described: PublishedRelation,
    pub(crate) actions: PublishedActions,
    /// Why its changes are applied row by row; none if they can be applied as sets.
    pub exact_because: Option<ExactBecause>,
}

impl TableContext {
    /// Whether triggers or foreign keys act on the table's rows, so that the order of changes matters.
    pub(crate) fn acts(&self) -> bool {
        !matches!(self.exact_because, None | Some(ExactBecause::NoKey))
    }

    /// Whether the change can be part of a set. Rows without a key can be inserted as a set, but not be found
    /// as one.
    pub(crate) fn suits_sets(&self, change: &RowChange) -> bool {
        match self.exact_because {
            None => true,
            Some(ExactBecause::NoKey) => matches!(change, RowChange::Insert { .. }),
            Some(_) => false,
        }
    }
}

pub(crate) fn text_columns(plan: &TablePlan) -> TextColumns {
    plan.columns.iter().map(|column| column.binary == BinaryForm::Text).collect()
}
