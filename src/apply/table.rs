//! A published table with its plan for the target.
//!
//! Pure data, used by sets and rows. `incoming::tables` makes it from Relation messages and catalogs.

use std::sync::Arc;

use crate::apply::change::RowChange;
use crate::error::ServerError;
use crate::pgoutput::{TextColumns, Tuple, Value};
use crate::schema::{
    BinaryForm, Misfit, MisfitKind, Operations, Projection, PublishedRelation, RowIdentity, RuleMisfit,
    TablePlan, TableRules,
};

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
    pub(crate) rules: Arc<TableRules>,
    /// Which values of its rows are applied; none if all are.
    pub(crate) projection: Option<Projection>,
    /// The operations that could not be applied when the plan was made.
    pub(crate) hindered: Operations,
    /// Why not.
    pub(crate) misfits: Vec<Misfit>,
    /// Why its changes are applied row by row; none if they can be applied as sets.
    pub exact_because: Option<ExactBecause>,
}

impl TableContext {
    /// Returns what keeps an operation from being applied.
    pub(crate) fn misfits_of(&self, operation: Operations) -> Vec<Misfit> {
        let misfits: Vec<Misfit> =
            self.misfits.iter().filter_map(|misfit| misfit.hindering(operation)).collect();
        if misfits.is_empty() && self.hindered.meet(operation) {
            return vec![self.misfit(MisfitKind::NoReplicaIdentity)];
        }
        misfits
    }

    /// Returns a misfit that only a change shows.
    pub(crate) fn misfit(&self, kind: MisfitKind) -> Misfit {
        Misfit {
            source: self.plan.source.clone(),
            target: self.plan.target.clone(),
            kind,
            root: self.plan.target_root.clone(),
            subscription: None,
        }
    }

    /// Leaves out of a change what is not applied.
    ///
    /// # Errors
    /// It has a value that may not be left out.
    pub(crate) fn project(&self, change: &mut RowChange) -> Result<(), Box<Misfit>> {
        let Some(projection) = &self.projection else { return Ok(()) };
        let projected = match change {
            RowChange::Insert { new } => projection.project_new(new),
            RowChange::Update { old, new } => {
                projection.project_old(old);
                projection.project_new(new)
            }
            RowChange::Delete { old } => {
                projection.project_old(old);
                Ok(())
            }
        };
        projected.map_err(|at| {
            let column = self.published.columns.get(at).map(|column| column.name.clone()).unwrap_or_default();
            Box::new(self.misfit(MisfitKind::Rule(RuleMisfit::IgnoredValue { column })))
        })
    }

    /// Whether triggers or foreign keys act on the table's rows, so that the order of changes matters.
    pub(crate) fn acts(&self) -> bool {
        !matches!(self.exact_because, None | Some(ExactBecause::NoKey))
    }

    /// Returns the refusal of the first value in a new row that the target would change silently.
    pub(crate) fn refusal(&self, new: &Tuple) -> Option<ServerError> {
        if !self.plan.is_guarded() {
            return None;
        }
        self.plan.columns.iter().zip(new).find_map(|(column, value)| {
            let Value::Text(value) = value else { return None };
            let guard = column.guard.filter(|guard| guard.refuses(value))?;
            Some(guard.refusal(&self.plan.target, &column.target))
        })
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

/// Returns the operations that a plan with these misfits cannot serve. Without a row identity, rows to be changed
/// cannot be found.
pub(crate) fn hindered(plan: &TablePlan, misfits: &[Misfit]) -> Operations {
    let unfound = match plan.row_identity {
        RowIdentity::None => Operations::OF_EXISTING_ROWS,
        RowIdentity::Key { .. } | RowIdentity::FullRow => Operations::NONE,
    };
    misfits.iter().fold(unfound, |all, misfit| all.or(misfit.kind.hinders()))
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
    /// Only its updates and deletes are: the table has no key, and its rows cannot be found in sets by all
    /// their columns. Inserts are applied as sets.
    NoKey,
}

impl ExactBecause {
    /// The reason as `status` and `check` show it, after "exact apply because".
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
