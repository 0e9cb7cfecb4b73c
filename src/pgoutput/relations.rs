//! Remembers the publisher's descriptions of its tables, with types by name instead of by OID.
//!
//! pgoutput describes a table once per session, and again after it changes: a Type message for each
//! column whose type is not built in, then the Relation message. Later changes carry only the
//! relation's OID. Only the OIDs of built-in types are the same on the target, so types are resolved to
//! names here, once per Relation message.
//!
//! # Invariants
//! - A cache belongs to one session: OIDs and descriptions of an earlier session may be stale. Drop it
//!   with the connection.
//! - There is at most one entry per OID *and* per name, so that memory is bounded by the tables that
//!   exist, even if tables are often dropped and created again. The number of types kept for a later
//!   Relation message is bounded too.
//!
//! # What it does not do
//!
//! It does not compare with the target, and it does not know transactions: the caller must keep
//! Relation messages of a streamed transaction (protocol version 2) apart until it commits.

use std::collections::HashMap;
use std::sync::Arc;

use super::builtin::builtin_type_name;
use super::message::{Relation, RelationColumn, Type};
use crate::error::{Diagnosis, Disposition, PauseReason};
use crate::pg::QualifiedName;
use crate::schema::{PublishedColumn, PublishedRelation, TypeName};

/// Largest number of type names kept between Relation messages. PostgreSQL sends a relation's types
/// before each of its Relation messages, so a type that no relation waits for can be forgotten.
const TYPES_KEPT_MAX: usize = 4096;
/// PostgreSQL's `MaxHeapAttributeNumber`: a table has at most so many columns, and therefore types.
const TYPES_PER_RELATION_MAX: usize = 1600;

/// A message about relations that contradicts earlier ones or the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// The type is neither built in nor named by a Type message.
    #[error("column \"{column}\" of relation {relation} has the unknown type OID {type_oid}")]
    UnknownType { relation: QualifiedName, column: String, type_oid: u32 },
    /// There are more Type messages in a row than a relation can have columns.
    #[error("more than {TYPES_KEPT_MAX} types are named, and no relation that uses them follows")]
    TooManyTypes,
    /// A change is for a relation that this session has not described.
    #[error("relation OID {oid} has not been described by a Relation message")]
    UnknownRelation { oid: u32 },
}

/// The tables and types that the publisher has described in this session.
#[derive(Debug, Default)]
pub struct RelationCache {
    relations: HashMap<u32, Arc<PublishedRelation>>,
    /// OID by name, to detect a table that was dropped and created again.
    oids: HashMap<QualifiedName, u32>,
    types: HashMap<u32, TypeName>,
}

impl RelationCache {
    /// Returns an empty cache for a new session.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a Type message.
    ///
    /// # Errors
    ///
    /// [`RelationError::TooManyTypes`] if too many come without a Relation message.
    pub fn note_type(&mut self, described: Type) -> Result<(), RelationError> {
        if self.types.len() >= TYPES_KEPT_MAX + TYPES_PER_RELATION_MAX {
            return Err(RelationError::TooManyTypes);
        }
        self.types.insert(described.oid, TypeName { schema: described.schema, name: described.name });
        Ok(())
    }

    /// Records a Relation message, which replaces the relation's former description.
    ///
    /// If nothing changed, it returns the same `Arc` as [`get`](Self::get), so that `Arc::ptr_eq` tells
    /// whether anything has to be compared or prepared again.
    ///
    /// # Errors
    ///
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

    /// Returns the description of the relation with this OID.
    ///
    /// # Errors
    ///
    /// [`RelationError::UnknownRelation`]: pgoutput describes every relation before its first change.
    pub fn get(&self, oid: u32) -> Result<&Arc<PublishedRelation>, RelationError> {
        self.relations.get(&oid).ok_or(RelationError::UnknownRelation { oid })
    }

    /// Makes `name` belong only to `oid`: forgets the name that `oid` had, and the OID that had the
    /// name.
    ///
    /// The former OID's table was dropped or renamed; if it was renamed, pgoutput describes it again
    /// before its next change.
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

    /// Resolves a column's type: by Type messages first, then by built-in types, in the order that
    /// `protocol.sgml` advises.
    fn resolve_column(
        &self,
        relation: &QualifiedName,
        column: RelationColumn,
    ) -> Result<PublishedColumn, RelationError> {
        let RelationColumn { key, name, type_oid, typmod } = column;
        let builtin = |name: &str| TypeName { schema: "pg_catalog".to_owned(), name: name.to_owned() };
        let named = self.types.get(&type_oid).cloned();
        let own = named.is_some();
        match named.or_else(|| builtin_type_name(type_oid).map(builtin)) {
            Some(ty) => Ok(PublishedColumn {
                name,
                target: None,
                ty,
                domain: own.then_some(type_oid),
                typmod,
                key,
                inner_types: Vec::new(),
            }),
            None => Err(RelationError::UnknownType { relation: relation.clone(), column: name, type_oid }),
        }
    }
}

impl RelationError {
    /// Text for the operator.
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

    /// Returns what the service does about it. A new session describes relations again, so a missing
    /// description may be retried; a type without a name has none then either.
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
