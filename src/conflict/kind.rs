//! The names of conflicts and of the operations that meet them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Why a change cannot be applied as it was published.
///
/// The first seven are PostgreSQL's conflict types (`ConflictType` in `replication/conflict.h`), under
/// the names that its log and `pg_stat_subscription_stats` use. The others are failures that also stop
/// apply. The names are part of the interface (JSON, metrics, configuration).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConflictKind {
    /// The row to insert violates one unique constraint: a row with that key is there already.
    InsertExists,
    /// The row as updated violates one unique constraint.
    UpdateExists,
    /// The row to update is not there.
    UpdateMissing,
    /// The row to delete is not there.
    DeleteMissing,
    /// The row to update was last written by another origin.
    UpdateOriginDiffers,
    /// The row to delete was last written by another origin.
    DeleteOriginDiffers,
    /// The row to insert, or the updated row, violates several unique constraints at once.
    MultipleUniqueConflicts,
    /// A NOT NULL, CHECK, foreign-key or exclusion constraint is violated.
    ConstraintViolation,
    /// The target's type does not accept the value: cast, range, length or encoding.
    ValueError,
    /// The applying role lacks a privilege.
    PermissionDenied,
    /// The target's schema, table or column does not exist any more.
    TableMissing,
}

/// A word that is none of the accepted names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{word}\" is not {what}: expected {expected}")]
pub struct ParseConflictNameError {
    word: String,
    what: &'static str,
    expected: String,
}

impl ParseConflictNameError {
    pub(super) fn new(word: &str, what: &'static str, names: impl Iterator<Item = &'static str>) -> Self {
        Self { word: word.to_owned(), what, expected: names.collect::<Vec<_>>().join(", ") }
    }
}

impl ConflictKind {
    pub const ALL: [Self; 11] = [
        Self::InsertExists,
        Self::UpdateExists,
        Self::UpdateMissing,
        Self::DeleteMissing,
        Self::UpdateOriginDiffers,
        Self::DeleteOriginDiffers,
        Self::MultipleUniqueConflicts,
        Self::ConstraintViolation,
        Self::ValueError,
        Self::PermissionDenied,
        Self::TableMissing,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateExists => "update_exists",
            Self::UpdateMissing => "update_missing",
            Self::DeleteMissing => "delete_missing",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::DeleteOriginDiffers => "delete_origin_differs",
            Self::MultipleUniqueConflicts => "multiple_unique_conflicts",
            Self::ConstraintViolation => "constraint_violation",
            Self::ValueError => "value_error",
            Self::PermissionDenied => "permission_denied",
            Self::TableMissing => "table_missing",
        }
    }

    /// Returns what a person does in the target so that a retry succeeds, as the middle of a sentence.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::InsertExists | Self::UpdateExists | Self::MultipleUniqueConflicts => {
                "remove or change the target's row that holds the key"
            }
            Self::UpdateMissing => "put the missing row back into the target",
            Self::DeleteMissing => "put the missing row back into the target, or skip the transaction",
            Self::UpdateOriginDiffers | Self::DeleteOriginDiffers => {
                "decide which side's row is right and make the target's row agree"
            }
            Self::ConstraintViolation => "fix the rows or relax the constraint in the target",
            Self::ValueError => "change the target column's type so that it takes the value",
            Self::PermissionDenied => {
                "grant the missing privilege to the target's role, or BYPASSRLS if the table's row-level security is in its way"
            }
            Self::TableMissing => "create what is missing in the target",
        }
    }
}

impl fmt::Display for ConflictKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ConflictKind {
    type Err = ParseConflictNameError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or_else(|| {
            ParseConflictNameError::new(word, "a conflict type", Self::ALL.iter().map(|kind| kind.as_str()))
        })
    }
}

impl Serialize for ConflictKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What the publisher did to the row or, for TRUNCATE, to the table. COMMIT is included because
/// deferred constraints are checked there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
    Commit,
}

impl Operation {
    pub const ALL: [Self; 5] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate, Self::Commit];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Commit => "commit",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Operation {
    type Err = ParseConflictNameError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == word).ok_or_else(|| {
            ParseConflictNameError::new(word, "an operation", Self::ALL.iter().map(|op| op.as_str()))
        })
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_themselves() {
        for kind in ConflictKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for operation in Operation::ALL {
            assert_eq!(operation.as_str().parse(), Ok(operation));
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_what_is_known() {
        insta::assert_snapshot!(
            "upsert".parse::<Operation>().unwrap_err(),
            @r#""upsert" is not an operation: expected insert, update, delete, truncate, commit"#
        );
        assert!("INSERT_EXISTS".parse::<ConflictKind>().is_err());
    }
}
