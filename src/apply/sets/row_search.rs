//! How the target is to find the rows of a set.
//!
//! Pure. Whether a range of the key's index is read, and which, compaction decides (`compact::neighbours`).

use crate::apply::sets::compact::{KeyRange, SetKind};

/// How a statement is to be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RowSearch {
    /// Row by row by the key's index, as the session plans unless told otherwise.
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

    /// Planner settings that the statement needs, and which are to be taken back behind it
    /// ([`PLAN_BY_KEY`]): the arrays' rows, which the planner takes for ten, are thousands, so nothing may be done
    /// once for each.
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

/// The session's own settings again.
pub(crate) const PLAN_BY_KEY: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
    SET LOCAL enable_mergejoin = off; SET LOCAL enable_nestloop = on";
