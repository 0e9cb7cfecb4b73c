//! Which tables belong to the subscription, and what a Relation message means for the target.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::apply::table::{TableContext, text_columns};
use crate::apply::{ApplyError, ExactBecause};
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::{Relation, RelationCache, RelationError, Type};
use crate::schema::binary::takes_binary;
use crate::schema::{
    self, Comparison, Misfit, MisfitKind, Pairing, PublishedActions, PublishedRelation, catalog,
};
use crate::target::TargetSession;

/// A table of the subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The table as the publisher's catalog described it when the attempt began. It knows what a
    /// Relation message hides: the type modifiers of domains.
    pub catalog: Arc<PublishedRelation>,
    pub target: QualifiedName,
    pub actions: PublishedActions,
    /// Where its copy stands: a change applies if its commit lies at or beyond. None while the
    /// table is not synchronised; its changes are then somebody else's business.
    pub position: Option<Lsn>,
}

/// The subscription's tables by their names on the publisher. A table that exists on both sides
/// but is not listed here is never written (EDGE_CASES 19).
pub type Membership = HashMap<QualifiedName, Member>;

/// A table that has just been planned.
#[derive(Debug)]
pub(crate) struct Announced {
    /// The id of the plan that it replaces.
    pub(crate) replaced: Option<u64>,
    pub(crate) source: QualifiedName,
    pub(crate) exact_because: Option<ExactBecause>,
    pub(crate) takes_binary: bool,
}

impl TableContext {
    /// Fails if the table would be planned otherwise now, or not at all: what went wrong with its
    /// changes is then the plan's fault, and theirs only if it happens again under a fresh one.
    /// The session must not be within a transaction.
    pub(crate) async fn check_current(&self, session: &TargetSession) -> Result<(), ApplyError> {
        let now = compare(&self.described, self.actions, &self.plan.target, session).await?;
        // A privilege that was taken away is no change of the table: the refusal itself tells it all.
        let refused = |misfit: &Misfit| {
            matches!(misfit.kind, MisfitKind::MissingPrivilege { .. } | MisfitKind::NoSchemaUsage { .. })
        };
        let only_refused = !now.misfits.is_empty() && now.misfits.iter().all(refused);
        if only_refused || now.plan.as_ref() == Some(&self.plan) {
            return Ok(());
        }
        Err(ApplyError::TargetChanged(self.plan.target.clone()))
    }
}

/// What the stream's relation ids stand for, in this session.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    members: Membership,
    cache: RelationCache,
    relations: HashMap<u32, Known, RandomState>,
    next_id: u64,
}

#[derive(Debug)]
enum Known {
    /// Not part of the subscription.
    Foreign,
    Member {
        name: QualifiedName,
        /// As the member's.
        position: Option<Lsn>,
        context: Arc<TableContext>,
    },
}

/// What to do with a change of a relation.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    Apply(&'a Arc<TableContext>),
    /// Not in the subscription, or already part of the table's copy.
    PassOver,
    /// The publisher never announced this relation.
    Unannounced,
}

impl Tables {
    pub(crate) fn new(members: Membership) -> Self {
        Self { members, ..Self::default() }
    }

    /// The table is synchronised: changes that commit from here on apply.
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

    /// Takes a Relation message: compares it with the target as it is now. None if that is nothing
    /// new, or of a table outside the subscription.
    pub(crate) async fn announce(
        &mut self,
        message: Relation,
        session: &TargetSession,
    ) -> Result<Option<Announced>, ApplyError> {
        let oid = message.oid;
        let name = QualifiedName::new(&message.schema, &message.name);
        let Some(member) = self.members.get(&name) else {
            self.relations.insert(oid, Known::Foreign);
            return Ok(None);
        };
        let published = self.cache.note_relation(message)?;
        let replaced = match self.relations.get(&oid) {
            Some(Known::Member { context, .. }) if Arc::ptr_eq(&context.published, &published) => {
                return Ok(None);
            }
            Some(Known::Member { context, .. }) => Some(context.id),
            Some(Known::Foreign) | None => None,
        };
        let described = PublishedRelation::clone(&published).with_domains_of(&member.catalog);
        let actions = member.actions;
        let comparison = compare(&described, actions, &member.target, session).await?;
        let Some(plan) = comparison.plan else { return Err(ApplyError::Unfit(comparison.misfits)) };
        self.next_id += 1;
        let exact_because = crate::apply::exact_because(&plan, session.replication_role());
        let takes_binary = takes_binary(&plan.columns);
        let announced = Announced { replaced, source: name.clone(), exact_because, takes_binary };
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
        self.relations.insert(oid, Known::Member { name, position, context });
        Ok(Some(announced))
    }

    /// Finds what a change of relation `oid`, committed at `commit_lsn`, is to be applied to.
    pub(crate) fn lookup(&self, oid: u32, commit_lsn: Lsn) -> Lookup<'_> {
        match self.relations.get(&oid) {
            None => Lookup::Unannounced,
            Some(Known::Member { position: Some(position), context, .. }) if *position <= commit_lsn => {
                Lookup::Apply(context)
            }
            Some(Known::Member { .. } | Known::Foreign) => Lookup::PassOver,
        }
    }
}

/// Compares a published table with its target as that is now.
async fn compare(
    published: &PublishedRelation,
    actions: PublishedActions,
    target_name: &QualifiedName,
    session: &TargetSession,
) -> Result<Comparison, ApplyError> {
    let target = catalog::target_tables(&***session.client(), std::slice::from_ref(target_name)).await?;
    Ok(schema::compare(&Pairing {
        published,
        actions,
        target_name,
        target: target.first().and_then(Option::as_ref),
        session: session.replication_role(),
        role: session.role(),
    }))
}
