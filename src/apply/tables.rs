//! Which tables belong to the subscription, and what a Relation message means for the target.

use std::collections::HashMap;
use std::sync::Arc;

use super::plan::RowChange;
use super::{ApplyError, ExactBecause, Replica, TargetSession};
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::{Relation, RelationCache, RelationError, Type};
use crate::schema::{
    self, Comparison, Misfit, MisfitKind, Pairing, PublishedActions, PublishedRelation, Session, TablePlan,
    catalog,
};

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

/// One published relation, compared with its target and planned.
#[derive(Debug)]
pub struct TableContext {
    /// Distinguishes this plan from earlier plans of the same table.
    pub id: u64,
    pub published: Arc<PublishedRelation>,
    pub plan: TablePlan,
    /// What the plan was made from on the publisher's side.
    described: PublishedRelation,
    actions: PublishedActions,
    /// Why its changes are applied row by row; none if sets suit it.
    pub exact_because: Option<ExactBecause>,
}

/// A table that has just been planned.
#[derive(Debug)]
pub(super) struct Announced {
    /// The id of the plan that it replaces.
    pub(super) replaced: Option<u64>,
    pub(super) source: QualifiedName,
    pub(super) exact_because: Option<ExactBecause>,
}

impl TableContext {
    /// Fails if the table would be planned otherwise now, or not at all: what went wrong with its
    /// changes is then the plan's fault, and theirs only if it happens again under a fresh one.
    /// The session must not be within a transaction.
    pub(super) async fn check_current(&self, session: &TargetSession) -> Result<(), ApplyError> {
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

    /// Whether something acts on the table's rows by itself, so that order means something.
    pub(super) fn acts(&self) -> bool {
        !matches!(self.exact_because, None | Some(ExactBecause::NoKey))
    }

    /// Whether the change can be part of a set. Without a key, rows can be put in together, but
    /// not found together.
    pub(super) fn suits_sets(&self, change: &RowChange) -> bool {
        match self.exact_because {
            None => true,
            Some(ExactBecause::NoKey) => matches!(change, RowChange::Insert { .. }),
            Some(_) => false,
        }
    }
}

/// What the stream's relation ids stand for, in this session.
#[derive(Debug, Default)]
pub(super) struct Tables {
    members: Membership,
    cache: RelationCache,
    relations: HashMap<u32, Known>,
    next_id: u64,
}

#[derive(Debug)]
enum Known {
    /// Not part of the subscription.
    Foreign,
    Member {
        name: QualifiedName,
        context: Arc<TableContext>,
    },
}

/// What to do with a change of a relation.
#[derive(Debug)]
pub(super) enum Lookup<'a> {
    Apply(&'a Arc<TableContext>),
    /// Not in the subscription, or already part of the table's copy.
    PassOver,
    /// The publisher never announced this relation.
    Unannounced,
}

impl Tables {
    pub(super) fn new(members: Membership) -> Self {
        Self { members, ..Self::default() }
    }

    pub(super) fn members_mut(&mut self) -> &mut Membership {
        &mut self.members
    }

    /// The published table that is written to `target`.
    pub(super) fn source_of(&self, target: &QualifiedName) -> Option<QualifiedName> {
        self.members.iter().find(|(_, member)| member.target == *target).map(|(source, _)| source.clone())
    }

    pub(super) fn announce_type(&mut self, message: Type) -> Result<(), RelationError> {
        self.cache.note_type(message)
    }

    /// Takes a Relation message: compares it with the target as it is now. None if that is nothing
    /// new, or of a table outside the subscription.
    pub(super) async fn announce(
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
        let exact_because = super::exact_because(&plan, session.replica());
        let announced = Announced { replaced, source: name.clone(), exact_because };
        let context = TableContext { id: self.next_id, published, plan, described, actions, exact_because };
        let context = Arc::new(context);
        self.relations.insert(oid, Known::Member { name, context });
        Ok(Some(announced))
    }

    /// Finds what a change of relation `oid`, committed at `commit_lsn`, is to be applied to.
    pub(super) fn lookup(&self, oid: u32, commit_lsn: Lsn) -> Lookup<'_> {
        match self.relations.get(&oid) {
            None => Lookup::Unannounced,
            Some(Known::Foreign) => Lookup::PassOver,
            Some(Known::Member { name, context }) => {
                let position = self.members.get(name).and_then(|member| member.position);
                match position {
                    Some(position) if position <= commit_lsn => Lookup::Apply(context),
                    _ => Lookup::PassOver,
                }
            }
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
        session: session_role(session),
        role: session.role(),
    }))
}

/// What the comparison needs to know about the session.
fn session_role(session: &TargetSession) -> Session {
    match session.replica() {
        Replica::Yes => Session::Replica,
        Replica::No => Session::Origin,
    }
}
