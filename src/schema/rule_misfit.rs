//! What the mapping's rules for a table keep from being applied.

use serde::Serialize;

use super::Operations;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleMisfit {
    /// Two published columns go to the same column of the target.
    SameColumn { columns: [String; 2], target: String },
    /// A column of the replica identity is ignored.
    IgnoredKey { column: String },
    /// A value came that is not NULL, in a column that is ignored only if it is. Only such a change shows it.
    IgnoredValue { column: String },
    /// A TRUNCATE came, and the rule has it pause.
    TruncatePauses,
}

impl RuleMisfit {
    pub(super) fn hinders(&self) -> Operations {
        match self {
            Self::SameColumn { .. } | Self::IgnoredKey { .. } => Operations::ALL,
            Self::IgnoredValue { .. } => Operations::INSERT.or(Operations::UPDATE),
            Self::TruncatePauses => Operations::TRUNCATE,
        }
    }

    pub(super) fn is_structural(&self) -> bool {
        matches!(self, Self::SameColumn { .. } | Self::IgnoredKey { .. })
    }

    pub(super) fn primary(&self, source: &str, target: &str) -> String {
        match self {
            Self::SameColumn { columns: [a, b], target: column } => {
                format!(
                    "columns \"{a}\" and \"{b}\" of {source} both go to column \"{column}\" of target table {target}"
                )
            }
            Self::IgnoredKey { column } => {
                format!("column \"{column}\" of {source} is ignored, but it is part of the replica identity")
            }
            Self::IgnoredValue { column } => {
                format!(
                    "column \"{column}\" of {source} has a value, and is to be ignored only while it is NULL"
                )
            }
            Self::TruncatePauses => format!("{source} was truncated, and its rule pauses on that"),
        }
    }

    /// Whether it is about this column of the publisher or the target.
    #[must_use]
    pub fn is_about(&self, name: &str) -> bool {
        match self {
            Self::SameColumn { columns, target } => {
                target == name || columns.iter().any(|column| column == name)
            }
            Self::IgnoredKey { column } | Self::IgnoredValue { column } => column == name,
            Self::TruncatePauses => false,
        }
    }

    #[must_use]
    pub fn why(&self) -> &'static str {
        match self {
            Self::SameColumn { .. } => "one of the values would be lost",
            Self::IgnoredKey { .. } => "rows that differ in it would be taken for one row",
            Self::IgnoredValue { .. } => "the value would be lost",
            Self::TruncatePauses => "all rows of the target table would be removed",
        }
    }

    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::SameColumn { .. } => {
                "give one of them another column, or ignore it, in [[subscriptions.tables]]"
            }
            Self::IgnoredKey { .. } => {
                "take ignore out of the column's rule, or give the publisher's table another REPLICA IDENTITY"
            }
            Self::IgnoredValue { .. } => {
                "let the column go to one of the target (to), or ignore its values (ignore = true), in \
                 [[subscriptions.tables]], then reload the configuration"
            }
            Self::TruncatePauses => {
                "set on_truncate to \"apply\" or \"ignore\" in [[subscriptions.tables]] and reload the configuration, or \
                 pass the transaction over with \"pgsluice skip\""
            }
        }
    }
}
