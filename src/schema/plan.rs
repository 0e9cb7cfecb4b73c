//! What a comparison that found nothing amiss hands to `apply`: how rows of one published table go
//! into one target table.
//!
//! Plain data, valid as long as neither side's table changes.

use crate::pg::QualifiedName;

use super::{ArrayInput, BinaryForm, FiringTriggers, TableKind, TypeName, UniqueKey};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePlan {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub target_oid: u32,
    /// [`TargetTable::stamp`](super::TargetTable::stamp) as it was when the plan was made.
    pub target_stamp: i64,
    /// [`TargetTable::family_oid`](super::TargetTable::family_oid).
    pub target_family_oid: u32,
    pub kind: TableKind,
    /// In the order of the publisher's tuples, one for each published column.
    pub columns: Vec<ColumnPlan>,
    /// Every column of the target, those that are not published included.
    pub target_columns: Vec<String>,
    pub row_identity: RowIdentity,
    pub fires: FiringTriggers,
    pub has_foreign_keys: bool,
    pub has_ordinary_triggers: bool,
    /// Only the row identity's key relates rows to each other, and its bytes tell rows apart as the
    /// target does: the order in which different rows change means nothing.
    pub order_free: bool,
    /// Something looks at each row as a whole and may refuse it: a CHECK constraint, a partition's
    /// bounds, the expression of a generated column or of an index.
    pub judges_rows: bool,
    /// There are indexes beside the row identity's key, which take no value of any length.
    pub other_indexes: bool,
    /// A unique index of any kind, one that is no key (partial, on expressions, deferrable) included.
    pub has_unique_index: bool,
    /// An INSERT needs OVERRIDING SYSTEM VALUE; COPY does not.
    pub identity_always: bool,
    /// The target's unique keys, in target column names, the primary key first.
    pub unique_keys: Vec<UniqueKey>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnPlan {
    pub source: String,
    pub target: String,
    /// The target column's own type, a domain included.
    pub ty: TypeName,
    pub type_oid: u32,
    /// `ty` below its domains.
    pub base_type: TypeName,
    pub array_input: ArrayInput,
    pub binary: BinaryForm,
    /// For `OPERATOR(schema.name)`; none where the type has no equality.
    pub equality: Option<TypeName>,
    pub not_null: bool,
    /// Some value of the publisher's type may be refused by the target's, or nobody here can tell.
    pub refuses_values: bool,
    /// Part of the publisher's replica identity.
    pub key: bool,
    /// GENERATED ALWAYS AS IDENTITY: an UPDATE may not name it. It is part of the row identity, so
    /// leaving it out of SET loses nothing unless the key itself changes.
    pub identity_always: bool,
}

/// How a row that an update or delete speaks of is found in the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowIdentity {
    /// By a unique key of the target: indexes into the plan's columns, in the key's order. The old
    /// row (or the new one, if the key did not change) has a value for each.
    Key { columns: Vec<usize>, scope: KeyScope },
    /// By all published columns, NULL matching NULL; several rows may match, one is meant.
    FullRow,
    /// Not at all: the publisher sends inserts (and truncates) only.
    None,
}

/// How far a key is unique. But for `Table`, more than one row may match, which is an error for
/// whoever executes, never a licence to change them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyScope {
    Table,
    /// By another equality than that of the operators which find the rows
    /// ([`KeyEquality::Other`](super::KeyEquality::Other)).
    OtherEquality,
    /// Within each partition only (EDGE_CASES 18).
    Leaves,
}
