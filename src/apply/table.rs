//! A table as apply works with it: compared, planned, and judged for sets.
//!
//! Pure data, shared by everything that plans. How it comes about (catalogs, Relation messages) is
//! `tables`' story.

use std::sync::Arc;

use crate::apply::change::RowChange;
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

/// Why a table's changes are applied row by row, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExactBecause {
    NoColumns,
    TriggersFire,
    TriggersAct,
    ForeignKeysAct,
    /// Only its updates and deletes: rows can be put in together, but not found by all they hold.
    NoKey,
}

impl ExactBecause {
    /// For `status` and `check`, after "exact apply because".
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoColumns => "it has no published columns",
            Self::TriggersFire => "triggers fire on its replicated rows",
            Self::TriggersAct => "its triggers cannot be suppressed",
            Self::ForeignKeysAct => "its foreign keys cannot be suppressed",
            Self::NoKey => {
                "it has no key, and its rows cannot be found in sets by all they hold (inserts go in sets)"
            }
        }
    }
}
