//! A table as apply works with it: compared, planned, and judged for sets.
//!
//! Pure data, shared by everything that plans. How it comes about (catalogs, Relation messages) is
//! `tables`' story.

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
    /// What the plan was made from on the publisher's side.
    pub(crate) described: PublishedRelation,
    pub(crate) actions: PublishedActions,
    /// Why its changes are applied row by row; none if sets suit it.
    pub exact_because: Option<ExactBecause>,
}

impl TableContext {
    /// Whether something acts on the table's rows by itself, so that order means something.
    pub(crate) fn acts(&self) -> bool {
        !matches!(self.exact_because, None | Some(ExactBecause::NoKey))
    }

    /// Whether the change can be part of a set. Without a key, rows can be put in together, but
    /// not found together.
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
