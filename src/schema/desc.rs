//! Descriptions of tables from the two sides' catalogs and from Relation messages.

use serde::Serialize;

use super::older_rows::MissingValue;
use super::{Marks, Operations};
use crate::pg::QualifiedName;

use super::LengthUnit;

/// A type by name, because only built-in types have the same OID on every server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct TypeName {
    pub schema: String,
    pub name: String,
}

/// The replica identity (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

/// What the publisher sends of one table, read from its catalog before the copy and from the Relation
/// message while streaming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedRelation {
    pub name: QualifiedName,
    pub identity: ReplicaIdentity,
    /// The columns in the order in which tuples carry their values.
    pub columns: Vec<PublishedColumn>,
}

impl PublishedRelation {
    /// Completes the description in a Relation message with that from the catalog.
    ///
    /// A Type message names a domain's base type (`logicalrep_write_typ` in PostgreSQL's `proto.c`),
    /// and a domain column's own typmod is -1, so the message does not show that a `price` is
    /// `numeric(12,2)`. Where the catalog knows a column of the same domain, its typmod is used; everything
    /// else is the message's. A domain is known by its OID, because the column may have had another type when
    /// the change was made; the type below a domain never changes. What is inside a type of the same name is the
    /// catalog's, too.
    #[must_use]
    pub fn with_domains_of(mut self, catalog: &Self) -> Self {
        for column in &mut self.columns {
            let same = |known: &&PublishedColumn| known.domain == column.domain && known.ty == column.ty;
            if column.domain.is_some()
                && let Some(known) = catalog.columns.iter().find(same)
            {
                column.typmod = known.typmod;
            }
            if let Some(known) = catalog.columns.iter().find(|known| known.ty == column.ty) {
                column.inner_types.clone_from(&known.inner_types);
            }
        }
        self
    }

    /// Whether its columns have the names and types of those in the catalog.
    #[must_use]
    pub fn has_columns_of(&self, catalog: &Self) -> bool {
        self.columns.len() == catalog.columns.len()
            && self.columns.iter().zip(&catalog.columns).all(|(column, known)| {
                let typmod = column.domain.is_some() || column.typmod == known.typmod;
                column.name == known.name && column.ty == known.ty && typmod
            })
    }
}

impl PublishedColumn {
    /// The name of the target's column that its values go to.
    #[must_use]
    pub fn goes_to(&self) -> &str {
        self.target.as_ref().unwrap_or(&self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedColumn {
    pub name: String,
    /// The target's column that its values go to; none if that has its name.
    pub target: Option<String>,
    /// The type below all domains, which Type messages name as well.
    pub ty: TypeName,
    /// The type modifier of the column or its domain (`pg_attribute.atttypmod`), -1 if there is none.
    pub typmod: i32,
    /// Whether it is part of the replica identity, and so in the old row of an update or delete.
    pub key: bool,
    /// The OID of the column's type if that is a domain over `ty`. A Relation message does not tell domains
    /// from other types that are not built in, so there it is the OID of any such type.
    pub domain: Option<u32>,
    /// What is inside the type. A Relation message does not tell.
    pub inner_types: Vec<InnerType>,
}

/// A type inside a composite type, a range or an array of domains, below all domains, ranges and arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerType {
    /// The names of the composite types' columns that lead to it.
    pub path: Vec<String>,
    pub ty: TypeName,
    pub typmod: i32,
}

/// A table in the publisher's catalog, with everything that the initial copy and the first comparison
/// need. There is one for each relation that the stream will name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedTable {
    pub oid: u32,
    /// `Table`, or `Partitioned` if it is published via its root.
    pub kind: TableKind,
    pub relation: PublishedRelation,
    /// The published operations, combined over the publications that contain the table.
    pub actions: Operations,
    /// Publications that publish it under this name, in the order in which they were requested.
    pub publications: Vec<String>,
    /// The catalog rows by which it is published.
    pub marks: Marks,
    /// A row is copied if it satisfies any of these expressions; none means every row.
    pub row_filters: Vec<String>,
    /// The numbers and names of its columns, including those that are not published, in the order of the numbers.
    pub all_columns: Vec<(i16, String)>,
    /// Whether stored generated columns are published (18+), which `COPY table` would refuse.
    pub has_generated: bool,
    /// The planner's estimate before row filters; `None` if the table was never analyzed.
    pub rows_estimated: Option<u64>,
}

/// A table of the target, with everything that comparing, planning and applying need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    pub oid: u32,
    /// Changes whenever DDL changes the table's columns, indexes, triggers or rules; the value has no
    /// other meaning. It is read before everything else here.
    pub stamp: i64,
    pub name: QualifiedName,
    pub kind: TableKind,
    /// OID of the topmost partitioned table that this one is part of; its own OID if there is none.
    pub family_oid: u32,
    /// The topmost partitioned table that this one is part of: DDL for columns is refused on a partition.
    pub root: Option<QualifiedName>,
    pub columns: Vec<TargetColumn>,
    /// Every valid, immediate, non-partial unique index without expressions; the primary key comes
    /// first.
    pub unique_keys: Vec<UniqueKey>,
    /// Triggers and rules that act on replicated rows even in a replica session.
    pub fires: FiringTriggers,
    /// Whether there are foreign keys from or to this table. They act only if the session is not a
    /// replica.
    pub has_foreign_keys: bool,
    /// Whether there are ordinary triggers (or those of foreign keys), which act only if the session is
    /// not a replica.
    pub has_ordinary_triggers: bool,
    /// Whether ordinary triggers or rules may suppress a row ([`FiringTriggers::before_row`]).
    pub ordinary_before_row: bool,
    /// Whether row-level security is on and the applying role does not bypass it.
    pub row_security: bool,
    pub privileges: TablePrivileges,
    /// The table's owner; none if that is the applying role.
    pub owner: Option<TableOwner>,
    /// Constraints that replicated rows are not held to.
    pub not_enforced: Vec<NotEnforced>,
    /// CHECK and exclusion constraints. Those that are not validated bind new rows as well.
    pub checks: Vec<CheckConstraint>,
    pub indexes: Indexes,
    /// Whether the database's encoding is UTF8, which is that of the incoming values.
    pub utf8: bool,
    /// What a declared length counts in the database's encoding.
    pub length_unit: LengthUnit,
    /// Set only for a partitioned table.
    pub partitioning: Option<Partitioning>,
}

/// A DEFERRABLE unique or exclusion constraint whose trigger does not fire in a replica session.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NotEnforced {
    pub constraint: String,
    pub trigger: String,
}

/// What matters of a table's indexes besides its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexes {
    /// Number of unique indexes and exclusion constraints, including those that are not keys (partial,
    /// on expressions, deferrable).
    pub unique: u32,
    /// Number of all indexes.
    pub all: u32,
    /// Whether one of them has an expression or a predicate, whose evaluation may fail for a row.
    pub computing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckConstraint {
    pub name: String,
    pub columns: Vec<String>,
    /// The text of `pg_get_constraintdef`, such as `CHECK ((note IS NOT NULL))`.
    pub definition: String,
}

/// The partition key and the partitions of a partitioned table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitioning {
    /// Columns of the partition key; `None` if it contains an expression.
    pub key: Option<Vec<String>>,
    /// Names of the partitions that hold rows.
    pub leaves: Vec<QualifiedName>,
    /// Unique keys that every leaf has, even if the table itself has none. They do not relate rows of
    /// different leaves.
    pub leaf_keys: Vec<UniqueKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    Table,
    Partitioned,
    /// Another relation (view, foreign table, sequence…) by its `relkind`, which cannot be a target.
    Other(char),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetColumn {
    pub name: String,
    /// The attribute number (`pg_attribute.attnum`).
    pub attnum: i16,
    /// The column's own type, which may be a domain.
    pub ty: TypeName,
    pub type_oid: u32,
    /// The typmod that limits values: the column's or, below a domain, the domain's; -1 if there is
    /// none.
    pub typmod: i32,
    /// How an array of its values is passed as a parameter.
    pub array_input: ArrayInput,
    /// The type below the domains of `ty`; `ty` itself if it is not a domain.
    pub base_type: TypeName,
    /// The type as `format_type` writes it, for messages and DDL: `numeric(12,2)`.
    pub display_type: String,
    /// Whether the column or its domain refuses NULL.
    pub not_null: bool,
    /// The domain that refuses NULL, if one does.
    pub not_null_domain: Option<TypeName>,
    pub default: ColumnDefault,
    /// The default or generation expression of the column or its domain.
    pub default_sql: Option<String>,
    /// The value that the catalog notes for rows which are older than the column.
    pub missing: MissingValue,
    /// Whether it was created together with its table, and has had the same default ever since.
    pub is_as_created: bool,
    /// Whether it is a virtual generated column, which is not stored (18+).
    pub is_virtual: bool,
    /// The type's equality operator as `schema` and name, for `OPERATOR(schema.=)`; none if the type
    /// has no equality (json, point…).
    pub equality: Option<TypeName>,
    /// Whether the column's collation is deterministic, or there is none: texts are equal only if their bytes are.
    pub deterministic: bool,
    /// What is inside the type below the domains of `ty`.
    pub inner_types: Vec<InnerType>,
}

/// How an array of a type's values is passed as a parameter to `unnest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayInput {
    /// As an array of the base type, so that each element passes through that type's own input
    /// function.
    OfType,
    /// As an array of text that is cast row by row: for arrays, which `unnest` would flatten, for
    /// composites, and for types without an array type that uses a comma between elements.
    OfText,
}

/// Source of a column's value if an INSERT does not name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnDefault {
    None,
    /// A `DEFAULT` of the column or of its domain.
    Expression,
    IdentityAlways,
    IdentityByDefault,
    Generated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueKey {
    /// The index's name, which is also that of its constraint, if it has one.
    pub name: String,
    pub primary: bool,
    /// Column names in index order.
    pub columns: Vec<String>,
    pub equality: KeyEquality,
}

/// How a unique index compares values, relative to the columns' own equality operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEquality {
    /// As the operators do; texts are compared by their bytes.
    Deterministic,
    /// As the operators do, but a collation makes some texts equal whose bytes differ.
    Nondeterministic,
    /// By an operator class or collation of its own, so that several rows may equal one key.
    Other,
}

/// Triggers with ENABLE REPLICA or ENABLE ALWAYS on the table or, for a partitioned table, on any of
/// its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FiringTriggers {
    /// Whether there are BEFORE or INSTEAD OF row triggers or INSTEAD rules: they may change or
    /// suppress a row, so that a count of 0 does not prove that the row is missing.
    pub before_row: bool,
    /// Whether there are any.
    pub any: bool,
}

/// The owner of a table, which is not the applying role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOwner {
    pub name: String,
    pub is_superuser: bool,
    /// Whether the applying session may become this role (`SET ROLE`).
    pub may_be_taken: bool,
    /// Whether the owner is subject to row-level security, which is forced.
    pub row_security: bool,
    pub privileges: TablePrivileges,
}

/// A role's privileges on the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TablePrivileges {
    /// USAGE of the table's schema, without which the other privileges have no effect.
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
        let column = |name: &str, typmod, domain: u32| PublishedColumn {
            target: None,
            name: name.to_owned(),
            ty: TypeName { schema: "pg_catalog".to_owned(), name: "numeric".to_owned() },
            typmod,
            key: false,
            domain: (domain > 0).then_some(domain),
            inner_types: Vec::new(),
        };
        let relation = |columns| PublishedRelation {
            name: QualifiedName::new("public", "widgets"),
            identity: ReplicaIdentity::Default,
            columns,
        };
        let catalog = relation(vec![column("price", 100, 7), column("plain", 100, 0)]);
        let check = |message, expected| {
            assert_eq!(relation(message).with_domains_of(&catalog), relation(expected));
        };
        check(
            vec![column("price", -1, 7), column("plain", -1, 0)],
            vec![column("price", 100, 7), column("plain", -1, 0)],
        );
        check(vec![column("cost", -1, 7)], vec![column("cost", 100, 7)]);
        // When the change was made, the column had another type.
        check(vec![column("price", -1, 0)], vec![column("price", -1, 0)]);
        check(vec![column("price", -1, 8)], vec![column("price", -1, 8)]);
    }
}
