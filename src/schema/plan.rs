//! The result of a comparison without misfits: how rows of one published table are applied to one
//! target table.
//!
//! Plain data, valid as long as neither side's table changes.

use crate::pg::QualifiedName;

use super::{ArrayInput, BinaryForm, FiringTriggers, TableKind, TypeName, UniqueKey, ValueGuard};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePlan {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub target_oid: u32,
    /// The [`TargetTable::stamp`](super::TargetTable::stamp) at the time of planning.
    pub target_stamp: i64,
    /// The target's [`TargetTable::family_oid`](super::TargetTable::family_oid).
    pub target_family_oid: u32,
    /// The target's [`TargetTable::root`](super::TargetTable::root).
    pub target_root: Option<QualifiedName>,
    pub kind: TableKind,
    /// The role that the session takes (`SET ROLE`) to write to the table; none if it stays what it is.
    pub run_as: Option<String>,
    /// One for each published column, in the order of the publisher's tuples.
    pub columns: Vec<ColumnPlan>,
    /// Every column of the target, including those that are not published.
    pub target_columns: Vec<String>,
    pub row_identity: RowIdentity,
    pub fires: FiringTriggers,
    pub has_foreign_keys: bool,
    pub has_ordinary_triggers: bool,
    /// Whether different rows may change in any order: only the row identity's key relates rows to each
    /// other, and equal bytes of that key mean equal values on the target.
    pub order_free: bool,
    /// Whether something evaluates each row as a whole and may refuse it: a CHECK constraint, a
    /// partition's bounds, the expression of a generated column or of an index.
    pub judges_rows: bool,
    /// Whether there are other indexes, which limit the length of values.
    pub other_indexes: bool,
    /// Whether there is a unique index of any kind, including one that is not a key (partial, on
    /// expressions, deferrable).
    pub has_unique_index: bool,
    /// Whether an INSERT needs OVERRIDING SYSTEM VALUE, which COPY does not.
    pub identity_always: bool,
    /// The target's unique keys by target column names; the primary key comes first.
    pub unique_keys: Vec<UniqueKey>,
}

impl TablePlan {
    /// Whether values of a column have to be looked at before they are sent ([`ColumnPlan::guard`]).
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.columns.iter().any(|column| column.guard.is_some())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnPlan {
    pub source: String,
    pub target: String,
    /// The target column's own type, which may be a domain.
    pub ty: TypeName,
    pub type_oid: u32,
    /// The type below the domains of `ty`.
    pub base_type: TypeName,
    pub array_input: ArrayInput,
    pub binary: BinaryForm,
    /// The operator for `OPERATOR(schema.name)`; none if the type has no equality.
    pub equality: Option<TypeName>,
    /// Whether values that are equal may differ all the same, as `0` and `-0` of `float8`, or `1.0` and `1.00` of
    /// `numeric`.
    pub equal_may_differ: bool,
    pub not_null: bool,
    /// Whether the target's type may refuse a value of the publisher's type, as far as that is known.
    pub refuses_values: bool,
    /// Which values the target would change silently, so that they are refused before they are sent. Values of
    /// such a column have text form.
    pub guard: Option<ValueGuard>,
    /// Whether the column is part of the publisher's replica identity.
    pub key: bool,
    /// Whether it is GENERATED ALWAYS AS IDENTITY, so that an UPDATE may not set it.
    pub identity_always: bool,
}

impl TablePlan {
    /// Returns the columns outside the row identity whose value an update may not change: GENERATED ALWAYS AS
    /// IDENTITY ones. The old value of such a column is not known, so an update is applied only to a row that
    /// already has the new one.
    pub fn kept_columns(&self) -> impl Iterator<Item = usize> + '_ {
        let outside = move |&at: &usize| match &self.row_identity {
            RowIdentity::Key { columns, .. } => !columns.contains(&at),
            RowIdentity::FullRow | RowIdentity::None => false,
        };
        let count = if self.identity_always { self.columns.len() } else { 0 };
        (0..count).filter(|&at| self.columns[at].identity_always).filter(outside)
    }
}

/// How the target row of an update or delete is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowIdentity {
    /// By a unique key of the target: indexes into the plan's columns in the key's order. The old row
    /// (or the new one, if the key did not change) has a value for each.
    Key { columns: Vec<usize>, scope: KeyScope },
    /// By all published columns, where NULL equals NULL. Several rows may match, and one of them is
    /// changed.
    FullRow,
    /// Not at all: the publisher marks no replica identity, or the target has no key for it. Updates and
    /// deletes cannot be applied.
    None,
}

/// Where a key is unique. Except for `Table`, more than one row may match; executing such a change is
/// an error and never changes them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyScope {
    Table,
    /// Unique by another equality than that of the operators that find the rows
    /// ([`KeyEquality::Other`](super::KeyEquality::Other)).
    OtherEquality,
    /// Unique only within each partition.
    Leaves,
}
