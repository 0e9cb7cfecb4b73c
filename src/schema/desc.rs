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

impl PublishedRelation {
    /// Completes what a Relation message says with what the catalog said.
    ///
    /// A Type message names a domain's base type (`logicalrep_write_typ` in PostgreSQL's `proto.c`),
    /// and a domain column's own typmod is -1, so the message hides that a `price` is
    /// `numeric(12,2)`. Where the catalog knows the column as a domain over the same type, its
    /// typmod holds; everything else stays as the message has it.
    #[must_use]
    pub fn with_domains_of(mut self, catalog: &Self) -> Self {
        for column in &mut self.columns {
            let known = catalog.columns.iter().find(|known| known.name == column.name);
            if let Some(known) = known.filter(|known| known.domain && known.ty == column.ty) {
                column.typmod = known.typmod;
                column.domain = true;
            }
        }
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedColumn {
    pub name: String,
    /// The type below all domains, which is what Type messages name, too.
    pub ty: TypeName,
    /// `pg_attribute.atttypmod` or the domain's, -1 where there is none.
    pub typmod: i32,
    /// Part of the replica identity: present in the old row of an update or delete.
    pub key: bool,
    /// The column is of a domain over `ty`. Only the catalog knows; false in a Relation message.
    pub domain: bool,
}

/// A table as the publisher's catalog describes it: all that the initial copy and the first
/// comparison need. One for each relation that the stream will name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedTable {
    pub oid: u32,
    /// `Table` or, published via its root, `Partitioned`.
    pub kind: TableKind,
    pub relation: PublishedRelation,
    pub actions: PublishedActions,
    /// Publications through which it is published under this name, in the order they were asked for.
    pub publications: Vec<String>,
    /// Rows to copy satisfy any of these expressions; none means every row.
    pub row_filters: Vec<String>,
    /// Stored generated columns are among the columns (18+), which `COPY table` would refuse.
    pub has_generated: bool,
    /// The planner's estimate before row filters; `None` if the table was never analyzed.
    pub rows_estimated: Option<u64>,
}

/// Which operations are published, OR-ed over the publications that contain the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublishedActions {
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
}

impl PublishedActions {
    /// A publication's default: everything.
    pub const ALL: Self = Self { insert: true, update: true, delete: true, truncate: true };

    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            insert: self.insert || other.insert,
            update: self.update || other.update,
            delete: self.delete || other.delete,
            truncate: self.truncate || other.truncate,
        }
    }

    /// Whether existing rows are to be found by their identity.
    #[must_use]
    pub const fn changes_rows(self) -> bool {
        self.update || self.delete
    }
}

/// A table of the target, all that comparing, planning and applying need to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    pub oid: u32,
    /// Differs as soon as DDL has touched the table's columns, indexes, triggers or rules. Means nothing
    /// else; read before everything else here.
    pub stamp: i64,
    pub name: QualifiedName,
    pub kind: TableKind,
    /// The partitioned table at the top of those that this one is part of; its own OID if none.
    pub family_oid: u32,
    pub columns: Vec<TargetColumn>,
    /// Every valid, immediate, non-partial unique index without expressions; the primary key first.
    pub unique_keys: Vec<UniqueKey>,
    /// Triggers and rules that act on replicated rows although the session is a replica.
    pub fires: FiringTriggers,
    /// Foreign keys from this table or to it. They act only if the session is not a replica.
    pub has_foreign_keys: bool,
    /// Ordinary triggers (also foreign keys'), which act only if the session is not a replica.
    pub has_ordinary_triggers: bool,
    /// Ordinary triggers or rules among them that may make a row vanish ([`FiringTriggers::before_row`]).
    pub ordinary_before_row: bool,
    /// Row-level security is on, and the applying role does not bypass it.
    pub row_security: bool,
    pub privileges: TablePrivileges,
    /// CHECK and exclusion constraints, validated or not: both bind new rows.
    pub checks: Vec<CheckConstraint>,
    pub indexes: Indexes,
    /// The database's encoding is UTF8, as the values are that come.
    pub utf8: bool,
    /// Only of a partitioned table.
    pub partitioning: Option<Partitioning>,
}

/// What there is to know of a table's indexes beside its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexes {
    /// Unique indexes and exclusion constraints of any kind, those that are no key (partial, on
    /// expressions, deferrable) included.
    pub unique: u32,
    /// Indexes of any kind, the unique ones included.
    pub all: u32,
    /// One of them has an expression or a predicate, which a row may fail in.
    pub computing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckConstraint {
    pub name: String,
    pub columns: Vec<String>,
    /// `CHECK ((note IS NOT NULL))`, as `pg_get_constraintdef` has it.
    pub definition: String,
}

/// What a partitioned table is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitioning {
    /// Columns of the partition key; `None` if an expression is part of it.
    pub key: Option<Vec<String>>,
    /// The partitions that hold rows, by name.
    pub leaves: Vec<QualifiedName>,
    /// Unique keys that every leaf has, although the table itself may not. They say nothing about
    /// rows in different leaves.
    pub leaf_keys: Vec<UniqueKey>,
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
    /// The typmod that binds values: the column's or, below a domain, the domain's; -1 if none.
    pub typmod: i32,
    /// How many of its values at once become a parameter.
    pub array_input: ArrayInput,
    /// What `ty` is below its domains; `ty` itself if it is no domain.
    pub base_type: TypeName,
    /// The type in PostgreSQL's words (`format_type`), for messages and DDL: `numeric(12,2)`.
    pub display_type: String,
    /// NULL is refused, by the column or by its domain.
    pub not_null: bool,
    /// The domain that refuses NULL, if one does.
    pub not_null_domain: Option<TypeName>,
    pub default: ColumnDefault,
    /// The default or generation expression, of the column or its domain.
    pub default_sql: Option<String>,
    /// Generated and never stored (18+).
    pub is_virtual: bool,
    /// The type's equality operator, as `schema` and name, for `OPERATOR(schema.=)`; none where
    /// the type has no equality (json, point…).
    pub equality: Option<TypeName>,
}

/// How an array of a type's values is written as a parameter for `unnest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayInput {
    /// As an array of the base type: each element goes through that type's own input function.
    OfType,
    /// As an array of text, cast row by row: for arrays, composites and types that have no array
    /// type with a comma between elements, which `unnest` would take apart.
    OfText,
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
    pub equality: KeyEquality,
}

/// How a unique index tells values apart, beside the columns' own equality operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEquality {
    /// As they do; texts by their bytes.
    Deterministic,
    /// As they do; some texts by a collation that takes different bytes for equal ones.
    Nondeterministic,
    /// Otherwise, by an operator class or a collation of its own: several rows may equal one key.
    Other,
}

/// Triggers marked ENABLE REPLICA or ENABLE ALWAYS on the table (or, for a partitioned table, on
/// any of its partitions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FiringTriggers {
    /// BEFORE or INSTEAD OF row triggers and INSTEAD rules: they may change a row or make it vanish, so that a
    /// count of 0 proves nothing.
    pub before_row: bool,
    /// Any at all.
    pub any: bool,
}

/// What the applying role may do to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TablePrivileges {
    /// USAGE of the table's schema, without which the others are worth nothing.
    pub schema_usage: bool,
    pub select: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_keeps_its_typmod_through_a_relation_message() {
        let column = |name: &str, typmod, domain| PublishedColumn {
            name: name.to_owned(),
            ty: TypeName { schema: "pg_catalog".to_owned(), name: "numeric".to_owned() },
            typmod,
            key: false,
            domain,
        };
        let relation = |columns| PublishedRelation {
            name: QualifiedName::new("public", "widgets"),
            identity: ReplicaIdentity::Default,
            columns,
        };
        let catalog = relation(vec![column("price", 100, true), column("plain", 100, false)]);
        let message = relation(vec![column("price", -1, false), column("plain", -1, false)]);
        let expected = relation(vec![column("price", 100, true), column("plain", -1, false)]);
        assert_eq!(message.with_domains_of(&catalog), expected);
    }
}
