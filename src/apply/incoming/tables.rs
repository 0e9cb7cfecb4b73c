//! The subscription's tables, and the plans that are made from Relation messages.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::apply::sets::suitability::exact_because;
use crate::apply::table::{ExactBecause, TableContext, text_columns};
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::{Relation, RelationCache, RelationError, Type};
use crate::schema::binary::takes_binary;
use crate::schema::{
    self, Comparison, Misfit, MisfitKind, Pairing, PublishedActions, PublishedRelation, ReplicationRole,
    SeenColumn, TargetTable, Warning,
};

/// A table of the subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The table as the publisher's catalog described it when the attempt began. It has the type modifiers of
    /// domains, which a Relation message lacks.
    pub catalog: Arc<PublishedRelation>,
    pub target: QualifiedName,
    pub actions: PublishedActions,
    /// A change applies if its transaction commits at or beyond this position. None while the table is not
    /// synchronised: its changes are then applied by its synchronisation.
    pub position: Option<Lsn>,
}

/// The subscription's tables by their names on the publisher. A table that exists on both sides
/// but is not listed here is never written.
pub type Membership = HashMap<QualifiedName, Member>;

/// What a comparison needs to know about the target session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    pub replication_role: ReplicationRole,
    /// The applying role, named in the GRANT that a misfit suggests.
    pub role: String,
}

impl Surroundings {
    /// Compares a published table with the target's current table.
    pub(crate) fn compare(
        &self,
        published: &PublishedRelation,
        actions: PublishedActions,
        target_name: &QualifiedName,
        target: Option<&TargetTable>,
    ) -> Comparison {
        let (session, role) = (self.replication_role, self.role.as_str());
        schema::compare(&Pairing { published, actions, target_name, target, session, role })
    }
}

/// Whether the current comparison gives the same plan as before.
pub(crate) fn is_still_planned_so(table: &TableContext, now: &Comparison) -> bool {
    // A revoked privilege is no change of the table, and the server's error names it.
    let refused = |misfit: &Misfit| {
        matches!(misfit.kind, MisfitKind::MissingPrivilege { .. } | MisfitKind::NoSchemaUsage { .. })
    };
    let only_refused = !now.misfits.is_empty() && now.misfits.iter().all(refused);
    only_refused || now.plan.as_ref() == Some(&table.plan)
}

/// A table that has just been planned.
#[derive(Debug)]
pub(crate) struct Described {
    /// The id of the plan that the new one replaces.
    pub(crate) replaced: Option<u64>,
    pub(crate) source: QualifiedName,
    pub(crate) exact_because: Option<ExactBecause>,
    pub(crate) takes_binary: bool,
    pub(crate) columns: Vec<SeenColumn>,
    pub(crate) warnings: Vec<Warning>,
}

/// The tables of the stream's relation OIDs.
#[derive(Debug)]
pub struct Tables {
    members: Membership,
    surroundings: Surroundings,
    cache: RelationCache,
    relations: HashMap<u32, Known, RandomState>,
    /// A table with a new Relation message whose target table is being described.
    awaited: Option<Awaited>,
    next_id: u64,
}

#[derive(Debug)]
struct Awaited {
    oid: u32,
    name: QualifiedName,
    published: Arc<PublishedRelation>,
}

#[derive(Debug)]
enum Known {
    /// Not part of the subscription.
    Foreign,
    Member {
        name: QualifiedName,
        /// As [`Member::position`].
        position: Option<Lsn>,
        context: Arc<TableContext>,
    },
}

/// Whether a relation belongs to the subscription.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    Member {
        position: Option<Lsn>,
        context: &'a Arc<TableContext>,
    },
    /// Not in the subscription.
    Foreign,
    /// The publisher never announced this relation.
    Unannounced,
}

impl Tables {
    pub(crate) fn new(members: Membership, surroundings: Surroundings) -> Self {
        Self {
            members,
            surroundings,
            cache: RelationCache::default(),
            relations: HashMap::default(),
            awaited: None,
            next_id: 0,
        }
    }

    /// Sets a table's position: changes that commit at or beyond it apply.
    pub(crate) fn set_position(&mut self, source: &QualifiedName, at: Lsn) {
        if let Some(member) = self.members.get_mut(source) {
            member.position = Some(at);
        }
        for known in self.relations.values_mut() {
            if let Known::Member { name, position, .. } = known
                && name == source
            {
                *position = Some(at);
            }
        }
    }

    /// The published table that is written to `target`.
    pub(crate) fn source_of(&self, target: &QualifiedName) -> Option<QualifiedName> {
        self.members.iter().find(|(_, member)| member.target == *target).map(|(source, _)| source.clone())
    }

    pub(crate) fn announce_type(&mut self, message: Type) -> Result<(), RelationError> {
        self.cache.note_type(message)
    }

    /// Takes a Relation message. Returns the target's table that it is compared with ([`Self::describe`]); none
    /// if the relation has not changed or is not in the subscription.
    pub(crate) fn announce(&mut self, message: Relation) -> Result<Option<QualifiedName>, RelationError> {
        let oid = message.oid;
        let name = QualifiedName::new(&message.schema, &message.name);
        let Some(member) = self.members.get(&name) else {
            self.relations.insert(oid, Known::Foreign);
            return Ok(None);
        };
        let published = self.cache.note_relation(message)?;
        if let Some(Known::Member { context, .. }) = self.relations.get(&oid)
            && Arc::ptr_eq(&context.published, &published)
        {
            return Ok(None);
        }
        let target = member.target.clone();
        self.awaited = Some(Awaited { oid, name, published });
        Ok(Some(target))
    }

    /// Whether a table has been announced whose target has not been described yet.
    pub(crate) fn awaits_description(&self) -> bool {
        self.awaited.is_some()
    }

    /// Plans the announced table for the target's table as it is now.
    ///
    /// # Errors
    /// The reasons why it does not fit.
    pub(crate) fn describe(
        &mut self,
        target: Option<&TargetTable>,
    ) -> Result<Option<Described>, Vec<Misfit>> {
        let Some(Awaited { oid, name, published }) = self.awaited.take() else { return Ok(None) };
        let Some(member) = self.members.get(&name) else { return Ok(None) };
        let described = PublishedRelation::clone(&published).with_domains_of(&member.catalog);
        let actions = member.actions;
        let comparison = self.surroundings.compare(&described, actions, &member.target, target);
        let Some(plan) = comparison.plan else { return Err(comparison.misfits) };
        let (columns, warnings) = (SeenColumn::all_of(&described), comparison.warnings);
        self.next_id += 1;
        let replaced = match self.relations.get(&oid) {
            Some(Known::Member { context, .. }) => Some(context.id),
            Some(Known::Foreign) | None => None,
        };
        let exact_because = exact_because(&plan, self.surroundings.replication_role);
        let takes_binary = takes_binary(&plan.columns);
        let context = Arc::new(TableContext {
            id: self.next_id,
            published,
            text_columns: text_columns(&plan),
            plan,
            described,
            actions,
            exact_because,
        });
        let position = member.position;
        self.relations.insert(oid, Known::Member { name: name.clone(), position, context });
        Ok(Some(Described { replaced, source: name, exact_because, takes_binary, columns, warnings }))
    }

    /// Finds the table of relation `oid`.
    pub(crate) fn lookup(&self, oid: u32) -> Lookup<'_> {
        match self.relations.get(&oid) {
            None => Lookup::Unannounced,
            Some(Known::Member { position, context, .. }) => Lookup::Member { position: *position, context },
            Some(Known::Foreign) => Lookup::Foreign,
        }
    }
}
