//! Remembers what the publisher has said of its tables, with types by name instead of by OID.
//!
//! pgoutput describes a table once per session (and again after it changes): a Type message for each
//! column whose type is not built in, then the Relation message. Changes afterwards carry the
//! relation's OID only. OIDs of anything but built-in types mean nothing on the target, so types are
//! resolved to names here, once per Relation message.
//!
//! # Invariants
//! - One cache belongs to one session: OIDs and descriptions of an earlier one may be stale. Drop it
//!   with the connection.
//! - At most one entry per OID *and* per name, so that memory is bounded by the tables that exist,
//!   even if they are dropped and created again all day. What may wait for its Relation message is
//!   bounded too.
//!
//! # What it does not do
//! It does not compare with the target, and it does not know transactions: Relation messages inside
//! a streamed transaction (protocol version 2) must be kept apart by the caller until it commits.

use std::collections::HashMap;
use std::sync::Arc;

use super::builtin::builtin_type_name;
use super::message::{Relation, RelationColumn, Type};
use crate::error::{Diagnosis, Disposition, PauseReason};
use crate::pg::QualifiedName;
use crate::schema::{PublishedColumn, PublishedRelation, TypeName};

/// Names of types kept between Relation messages. PostgreSQL sends a relation's types again with
/// each of its Relation messages, so forgetting one that nothing waits for costs nothing.
const TYPES_KEPT_MAX: usize = 4096;
/// PostgreSQL's `MaxHeapAttributeNumber`: a table has no more columns, so no more types either.
const TYPES_PER_RELATION_MAX: usize = 1600;

/// A message about relations that does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// Neither built in nor named by a Type message.
    #[error("column \"{column}\" of relation {relation} has the unknown type OID {type_oid}")]
    UnknownType { relation: QualifiedName, column: String, type_oid: u32 },
    /// More Type messages in a row than any relation has columns.
    #[error("more than {TYPES_KEPT_MAX} types are named, and no relation that uses them follows")]
    TooManyTypes,
    /// A change for a relation that this session has not described.
    #[error("relation OID {oid} has not been described by a Relation message")]
    UnknownRelation { oid: u32 },
}

/// The tables and types that the publisher has described in this session.
#[derive(Debug, Default)]
pub struct RelationCache {
    relations: HashMap<u32, Arc<PublishedRelation>>,
    /// Which OID holds a name, to notice a table that was dropped and created again.
    oids: HashMap<QualifiedName, u32>,
    types: HashMap<u32, TypeName>,
}

impl RelationCache {
    /// An empty cache, for a new session.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of a Type message.
    ///
    /// # Errors
    /// [`RelationError::TooManyTypes`] if they come without end.
    pub fn note_type(&mut self, described: Type) -> Result<(), RelationError> {
        if self.types.len() >= TYPES_KEPT_MAX + TYPES_PER_RELATION_MAX {
            return Err(RelationError::TooManyTypes);
        }
        self.types.insert(described.oid, TypeName { schema: described.schema, name: described.name });
        Ok(())
    }

    /// Takes note of a Relation message; it replaces what was known of the relation.
    ///
    /// If nothing changed, this is the very `Arc` that [`get`](Self::get) has given before, so that
    /// `Arc::ptr_eq` tells whether anything has to be compared or prepared again.
    ///
    /// # Errors
    /// [`RelationError::UnknownType`]; the relation's former description, if any, stays.
    pub fn note_relation(&mut self, described: Relation) -> Result<Arc<PublishedRelation>, RelationError> {
        let oid = described.oid;
        let relation = self.resolve(described)?;
        if self.types.len() > TYPES_KEPT_MAX {
            self.types.clear();
        }
        if let Some(known) = self.relations.get(&oid)
            && **known == relation
        {
            return Ok(Arc::clone(known));
        }
        self.release_name(oid, &relation.name);
        let relation = Arc::new(relation);
        self.relations.insert(oid, Arc::clone(&relation));
        Ok(relation)
    }

    /// What is known of the relation with this OID.
    ///
    /// # Errors
    /// [`RelationError::UnknownRelation`]: pgoutput describes every relation before its first change.
    pub fn get(&self, oid: u32) -> Result<&Arc<PublishedRelation>, RelationError> {
        self.relations.get(&oid).ok_or(RelationError::UnknownRelation { oid })
    }

    /// Makes `name` belong to `oid` alone: forgets the name that `oid` had, and the OID that had it.
    ///
    /// Such an OID is of a table that is gone, or that has since been renamed: then pgoutput
    /// describes it again before its next change.
    fn release_name(&mut self, oid: u32, name: &QualifiedName) {
        if let Some(former) = self.relations.get(&oid)
            && self.oids.get(&former.name) == Some(&oid)
        {
            self.oids.remove(&former.name);
        }
        if let Some(former) = self.oids.insert(name.clone(), oid)
            && former != oid
        {
            self.relations.remove(&former);
        }
    }

    fn resolve(&self, described: Relation) -> Result<PublishedRelation, RelationError> {
        let name = QualifiedName::new(described.schema, described.name);
        let columns = described
            .columns
            .into_iter()
            .map(|column| self.resolve_column(&name, column))
            .collect::<Result<_, _>>()?;
        Ok(PublishedRelation { name, identity: described.replica_identity, columns })
    }

    /// Type messages first, built-in types second, in the order that `protocol.sgml` advises.
    fn resolve_column(
        &self,
        relation: &QualifiedName,
        column: RelationColumn,
    ) -> Result<PublishedColumn, RelationError> {
        let RelationColumn { key, name, type_oid, typmod } = column;
        let builtin = |name: &str| TypeName { schema: "pg_catalog".to_owned(), name: name.to_owned() };
        let named = self.types.get(&type_oid).cloned();
        match named.or_else(|| builtin_type_name(type_oid).map(builtin)) {
            Some(ty) => Ok(PublishedColumn { name, ty, domain: false, typmod, key }),
            None => Err(RelationError::UnknownType { relation: relation.clone(), column: name, type_oid }),
        }
    }
}

impl RelationError {
    /// What to tell the operator.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        match self {
            Self::UnknownType { type_oid, .. } => Diagnosis::new(self.to_string())
                .detail("The publisher names every type that is not built in, but has not named this one.")
                .hint(format!(
                    "Look the type up on the publisher (SELECT {type_oid}::regtype) and run a pgsluice release \
                     that knows it: only types that are built into a newer PostgreSQL come without a name.",
                )),
            Self::TooManyTypes | Self::UnknownRelation { .. } => {
                Diagnosis::new("the publisher's stream does not describe its relations as pgoutput does")
                    .detail(self.to_string())
                    .hint(
                        "Resume to start a new session, in which the publisher describes every relation \
                         again; if it comes back, report it together with the publisher's version \
                         (SELECT version()).",
                    )
            }
        }
    }

    /// What the service does about it. A fresh session describes relations anew, so a missing
    /// description is worth another try; a type that has no name will have none then either.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::UnknownType { .. } | Self::TooManyTypes => Disposition::Pause(PauseReason::Protocol),
            Self::UnknownRelation { .. } => Disposition::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::schema::ReplicaIdentity;

    fn described(oid: u32, name: &str, type_oid: u32) -> Relation {
        let column = RelationColumn { key: true, name: "id".to_owned(), type_oid, typmod: -1 };
        Relation {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column],
        }
    }

    fn named(oid: u32, name: &str) -> Type {
        Type { oid, schema: "public".to_owned(), name: name.to_owned() }
    }

    fn type_of(relation: &PublishedRelation) -> String {
        format!("{}.{}", relation.columns[0].ty.schema, relation.columns[0].ty.name)
    }

    #[test]
    fn types_resolve_by_message_first_and_as_built_in_second() {
        let mut cache = RelationCache::new();
        assert_eq!(type_of(&cache.note_relation(described(1, "a", 23)).unwrap()), "pg_catalog.int4");
        cache.note_type(named(16_400, "mood")).unwrap();
        assert_eq!(type_of(&cache.note_relation(described(2, "b", 16_400)).unwrap()), "public.mood");
        assert_eq!(type_of(cache.get(1).unwrap()), "pg_catalog.int4");
    }

    #[test]
    fn a_type_without_a_name_is_an_error_and_the_former_description_stays() {
        let mut cache = RelationCache::new();
        let known = cache.note_relation(described(1, "widgets", 23)).unwrap();
        let error = cache.note_relation(described(1, "widgets", 16_400)).unwrap_err();
        assert_snapshot!(error.diagnosis(), @r#"
            column "id" of relation public.widgets has the unknown type OID 16400
              detail: The publisher names every type that is not built in, but has not named this one.
              hint: Look the type up on the publisher (SELECT 16400::regtype) and run a pgsluice release that knows it: only types that are built into a newer PostgreSQL come without a name.
        "#);
        assert!(Arc::ptr_eq(cache.get(1).unwrap(), &known));
    }

    #[test]
    fn an_unknown_relation_is_worth_a_new_session() {
        let error = RelationCache::new().get(7).unwrap_err();
        assert_snapshot!(error.diagnosis(), @r"
            the publisher's stream does not describe its relations as pgoutput does
              detail: relation OID 7 has not been described by a Relation message
              hint: Resume to start a new session, in which the publisher describes every relation again; if it comes back, report it together with the publisher's version (SELECT version()).
        ");
        assert_eq!(error.disposition(), Disposition::Retry);
    }

    #[test]
    fn the_same_description_is_the_same_arc() {
        let mut cache = RelationCache::new();
        let first = cache.note_relation(described(1, "widgets", 23)).unwrap();
        let again = cache.note_relation(described(1, "widgets", 23)).unwrap();
        let altered = cache.note_relation(described(1, "widgets", 20)).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(type_of(&altered), "pg_catalog.int8");
    }

    #[test]
    fn a_table_created_again_replaces_the_dropped_one() {
        let mut cache = RelationCache::new();
        for oid in 1..=1000 {
            cache.note_relation(described(oid, "widgets", 23)).unwrap();
        }
        assert!(cache.get(1000).is_ok());
        assert_eq!((cache.relations.len(), cache.oids.len()), (1, 1));
    }

    #[test]
    fn tables_that_swap_names_are_both_known() {
        let mut cache = RelationCache::new();
        cache.note_relation(described(1, "a", 23)).unwrap();
        cache.note_relation(described(2, "b", 20)).unwrap();
        cache.note_relation(described(1, "b", 23)).unwrap();
        assert!(cache.get(2).is_err(), "stale until it is described again");
        cache.note_relation(described(2, "a", 20)).unwrap();
        assert_eq!(cache.get(1).unwrap().name.name, "b");
        assert_eq!(cache.get(2).unwrap().name.name, "a");
        assert_eq!((cache.relations.len(), cache.oids.len()), (2, 2));
    }

    #[test]
    fn type_messages_without_end_are_refused_and_long_sessions_are_not() {
        let mut cache = RelationCache::new();
        let mut oid = 16_384;
        for _ in 0..20 {
            for _ in 0..TYPES_PER_RELATION_MAX {
                oid += 1;
                cache.note_type(named(oid, "mood")).unwrap();
            }
            cache.note_relation(described(1, "widgets", oid)).unwrap();
        }
        let error = (0..10_000).find_map(|oid| cache.note_type(named(oid, "mood")).err());
        assert_eq!(error, Some(RelationError::TooManyTypes));
    }
}
