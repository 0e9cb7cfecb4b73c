//! Descriptions of tables as the two sides' catalogs and Relation messages give them.

use serde::Serialize;

use crate::pg::QualifiedName;

/// A type by name: OIDs of anything but built-in types differ between servers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct TypeName {
    pub schema: String,
    pub name: String,
}

/// `pg_class.relreplident`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

/// What the publisher sends of one table: from its catalog before the copy, from the Relation
/// message while streaming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedRelation {
    pub name: QualifiedName,
    pub identity: ReplicaIdentity,
    /// In the order in which tuples carry their values.
    pub columns: Vec<PublishedColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedColumn {
    pub name: String,
    pub ty: TypeName,
    /// `pg_attribute.atttypmod`, -1 where there is none.
    pub typmod: i32,
    /// Part of the replica identity: present in the old row of an update or delete.
    pub key: bool,
}

/// A table of the target, all that comparing, planning and applying need to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    pub oid: u32,
    pub name: QualifiedName,
    pub kind: TableKind,
    pub columns: Vec<TargetColumn>,
    /// Every valid, immediate, non-partial unique index without expressions; the primary key first.
    pub unique_keys: Vec<UniqueKey>,
    /// Triggers and rules that act on replicated rows although the session is a replica.
    pub fires: FiringTriggers,
    /// Foreign keys from this table or to it. They act only if the session is not a replica.
    pub has_foreign_keys: bool,
    /// Ordinary triggers (also foreign keys'), which act only if the session is not a replica.
    pub has_ordinary_triggers: bool,
    /// Row-level security is on, and the applying role does not bypass it.
    pub row_security: bool,
    pub privileges: TablePrivileges,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    Table,
    Partitioned,
    /// A view, foreign table, sequence…: its `relkind`. Not a target.
    Other(char),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetColumn {
    pub name: String,
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// The column's own type, a domain included.
    pub ty: TypeName,
    pub type_oid: u32,
    pub typmod: i32,
    /// What `ty` is below its domains; `ty` itself if it is no domain.
    pub base_type: TypeName,
    /// The type in PostgreSQL's words (`format_type`), for messages and DDL: `numeric(12,2)`.
    pub display_type: String,
    pub not_null: bool,
    pub default: ColumnDefault,
    /// The type's equality operator, as `schema` and name, for `OPERATOR(schema.=)`; none where
    /// the type has no equality (json, point…).
    pub equality: Option<TypeName>,
}

/// What gives a value to a column that an INSERT does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnDefault {
    None,
    /// A `DEFAULT`, of the column or of its domain.
    Expression,
    IdentityAlways,
    IdentityByDefault,
    Generated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueKey {
    /// The index's name (and the constraint's, if it has one).
    pub name: String,
    pub primary: bool,
    /// Column names in index order.
    pub columns: Vec<String>,
}

/// Triggers marked ENABLE REPLICA or ENABLE ALWAYS on the table (or, for a partitioned table, on
/// any of its partitions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FiringTriggers {
    /// BEFORE or INSTEAD OF row triggers: they may change a row or make it vanish, so that a
    /// count of 0 proves nothing.
    pub before_row: bool,
    /// Any at all.
    pub any: bool,
}

/// What the applying role may do to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TablePrivileges {
    pub select: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
}
