//! The subscription's tables, and the plans that are made from Relation messages.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::apply::sets::suitability::exact_because;
use crate::apply::table::{ExactBecause, TableContext, hindered, text_columns};
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::{Relation, RelationCache, RelationError, Type};
use crate::schema::binary::takes_binary;
use crate::schema::{
    self, Comparison, Misfit, Operations, Pairing, PublishedRelation, ReplicationRole, SeenColumn,
    TargetTable, Warning,
};

/// A table of the subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The table as the publisher's catalog described it when the attempt began. It has the type modifiers of
    /// domains, which a Relation message lacks.
    pub catalog: Arc<PublishedRelation>,
    pub target: QualifiedName,
    /// Columns whose values the target's type may change.
    pub coerced: BTreeSet<String>,
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
    /// Compares a published table with the target's current table, for every operation: which ones come is known
    /// only when they come.
    pub(crate) fn compare(
        &self,
        published: &PublishedRelation,
        target_name: &QualifiedName,
        target: Option<&TargetTable>,
        coerced: &BTreeSet<String>,
    ) -> Comparison {
        let (session, role) = (self.replication_role, self.role.as_str());
        let actions = Operations::ALL;
        schema::compare(&Pairing { published, actions, target_name, target, session, role, coerced })
    }
}

/// Whether the current comparison gives the same plan as before. A revoked privilege is no change of the table, and
/// the server's error names it.
pub(crate) fn is_still_planned_so(table: &TableContext, now: &Comparison) -> bool {
    now.plan.as_ref() == Some(&table.plan)
}

/// A table that has just been described.
#[derive(Debug)]
pub(crate) struct Described {
    /// The id of the plan that is no longer valid.
    pub(crate) replaced: Option<u64>,
    /// None if the table cannot be planned.
    pub(crate) planned: Option<PlannedTable>,
}

#[derive(Debug)]
pub(crate) struct PlannedTable {
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
        published: Arc<PublishedRelation>,
        fit: Fit,
    },
}

/// How a published table and the target's fitted when the target's was described.
#[derive(Debug)]
pub(crate) enum Fit {
    Planned(Arc<TableContext>),
    /// No change of the table can be applied.
    Unfit(Vec<Misfit>),
}

impl Fit {
    /// Returns the plan, if the operation can be applied with it.
    #[inline]
    pub(crate) fn plan_for(&self, operation: Operations) -> Option<&Arc<TableContext>> {
        match self {
            Self::Planned(context) => (!context.hindered.meet(operation)).then_some(context),
            Self::Unfit(_) => None,
        }
    }

    /// Returns what keeps the operation from being applied.
    pub(crate) fn misfits_of(&self, operation: Operations) -> Vec<Misfit> {
        match self {
            Self::Planned(context) => context.misfits_of(operation),
            Self::Unfit(misfits) => misfits.iter().filter_map(|misfit| misfit.hindering(operation)).collect(),
        }
    }
}

/// Whether a relation belongs to the subscription.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    Member {
        position: Option<Lsn>,
        fit: &'a Fit,
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
        if let Some(Known::Member { published: known, .. }) = self.relations.get(&oid)
            && Arc::ptr_eq(known, &published)
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

    /// Has the target's table described again, because it did not fit. Returns its name; none if the relation is
    /// not in the subscription.
    pub(crate) fn look_again(&mut self, oid: u32) -> Option<QualifiedName> {
        let Some(Known::Member { name, published, .. }) = self.relations.get(&oid) else { return None };
        let target = self.members.get(name)?.target.clone();
        self.awaited = Some(Awaited { oid, name: name.clone(), published: Arc::clone(published) });
        Some(target)
    }

    /// Compares the announced table with the target's as it is now, and plans it. Whether it fits matters to the
    /// changes that come, and only to them. Returns none if no description was awaited.
    pub(crate) fn describe(&mut self, target: Option<&TargetTable>) -> Option<Described> {
        let Awaited { oid, name, published } = self.awaited.take()?;
        let member = self.members.get(&name)?;
        let described = PublishedRelation::clone(&published).with_domains_of(&member.catalog);
        let comparison = self.surroundings.compare(&described, &member.target, target, &member.coerced);
        let replaced = match self.relations.get(&oid) {
            Some(Known::Member { fit: Fit::Planned(context), .. }) => Some(context.id),
            Some(Known::Member { fit: Fit::Unfit(_), .. } | Known::Foreign) | None => None,
        };
        let (fit, planned) = match comparison.plan {
            Some(plan) => {
                self.next_id += 1;
                let exact_because = exact_because(&plan, self.surroundings.replication_role);
                let takes_binary = takes_binary(&plan.columns);
                // Which operations come is not known, so that warnings of those are the start's.
                let of_values = comparison.warnings.into_iter().filter(Warning::is_about_values);
                let (columns, warnings) = (SeenColumn::all_of(&described), of_values.collect());
                let context = TableContext {
                    id: self.next_id,
                    published: Arc::clone(&published),
                    text_columns: text_columns(&plan),
                    hindered: hindered(&plan, &comparison.misfits),
                    misfits: comparison.misfits,
                    plan,
                    described,
                    coerced: member.coerced.clone(),
                    exact_because,
                };
                let source = name.clone();
                let planned = PlannedTable { source, exact_because, takes_binary, columns, warnings };
                (Fit::Planned(Arc::new(context)), Some(planned))
            }
            None => (Fit::Unfit(comparison.misfits), None),
        };
        let position = member.position;
        self.relations.insert(oid, Known::Member { name, position, published, fit });
        Some(Described { replaced, planned })
    }

    /// Finds the table of relation `oid`.
    pub(crate) fn lookup(&self, oid: u32) -> Lookup<'_> {
        match self.relations.get(&oid) {
            None => Lookup::Unannounced,
            Some(Known::Member { position, fit, .. }) => Lookup::Member { position: *position, fit },
            Some(Known::Foreign) => Lookup::Foreign,
        }
    }
}
