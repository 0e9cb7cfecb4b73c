//! How the target finds the rows of a set.
//!
//! Pure. Compaction decides whether a range of the key's index is read, and which one (`compact::neighbours`).

use crate::apply::sets::compact::{KeyRange, SetKind};

/// How a set's statement finds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RowSearch {
    /// By looking up each row in the key's index. The session's settings lead to this plan.
    ByKey,
    /// By reading a range of the key's index.
    InRange,
    /// By reading the table.
    ByScan,
}

impl RowSearch {
    pub(crate) const fn of(kind: &SetKind, range: Option<KeyRange>) -> Self {
        match kind {
            SetKind::DeleteFullRow { .. } | SetKind::UpdateFullRow { .. } => Self::ByScan,
            _ if range.is_some() => Self::InRange,
            _ => Self::ByKey,
        }
    }

    /// Planner settings that the statement needs; [`PLAN_BY_KEY`] resets them after it. The planner estimates
    /// ten rows for the arrays, but they have thousands, so it must not choose a plan that searches once for
    /// each.
    pub(crate) const fn settings(self) -> Option<&'static str> {
        match self {
            Self::ByKey => None,
            Self::InRange => Some("SET LOCAL enable_mergejoin = on; SET LOCAL enable_nestloop = off"),
            Self::ByScan => Some(
                "SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; \
                 SET LOCAL enable_mergejoin = on; SET LOCAL enable_nestloop = off",
            ),
        }
    }
}

/// Resets the planner settings to the session's own.
pub(crate) const PLAN_BY_KEY: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
    SET LOCAL enable_mergejoin = off; SET LOCAL enable_nestloop = on";
