//! The subscription's tables, and the plans that are made from Relation messages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::ahead::{Ahead, Description, Reading};
use crate::apply::end::LargeRow;
use crate::apply::sets::suitability::exact_because;
use crate::apply::table::{ExactBecause, TableContext, hindered, text_columns};
use crate::mutation::{self, Mutation};
use crate::pg::{Lsn, QualifiedName};
use crate::pgoutput::{LargeMessage, Relation, RelationCache, RelationError, Type};
use crate::schema::binary::takes_binary;
use crate::schema::{
    self, Comparison, Misfit, Operations, Pairing, PublishedRelation, Surroundings, TableRules, TargetTable,
    Warning,
};

/// A table of the subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its OID on the publisher. None where an older version recorded the table: it is then found by its name.
    pub oid: Option<u32>,
    /// The table as the publisher's catalog described it when the attempt began. It has the type modifiers of
    /// domains, which a Relation message lacks.
    pub catalog: Arc<PublishedRelation>,
    pub target: QualifiedName,
    /// Columns whose values the target's type may change.
    pub rules: Arc<TableRules>,
    pub applies: Applies,
}

/// Which changes of a table apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applies {
    /// A change applies if its transaction commits at or beyond this position. None while the table is not
    /// synchronised: its changes are then applied by its synchronisation.
    pub position: Option<Lsn>,
    /// The table is held by a gap: changes that commit at or beyond this position do not apply.
    pub held_from: Option<Lsn>,
    /// The table has left the publications: changes of this transaction and of younger ones do not apply.
    pub left_xid: Option<u32>,
}

/// Where the transaction of a change commits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Finish {
    At(Lsn),
    /// At an unknown position beyond this one.
    Beyond(Lsn),
}

/// Whether a change applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Applies,
    PassedOver,
    /// It depends on where the transaction commits.
    Unknown,
}

impl Applies {
    /// Every change that commits from this position on applies.
    #[must_use]
    pub const fn from(position: Lsn) -> Self {
        Self { position: Some(position), held_from: None, left_xid: None }
    }

    /// Where a change commits that is passed over because a gap holds the table; none if that is not why.
    fn held_at(self, finish: Finish) -> Option<Lsn> {
        let held = self.held_from?;
        match finish {
            Finish::At(commit) => Some(commit).filter(|commit| *commit >= held),
            // It may commit anywhere.
            Finish::Beyond(_) => Some(Lsn::MAX),
        }
    }

    /// Judges a change of the transaction `xid`.
    pub(crate) fn judge(self, xid: u32, finish: Finish) -> Verdict {
        if self.left_xid.is_some_and(|left| !is_older(xid, left)) {
            return Verdict::PassedOver;
        }
        match (finish, self.position, self.held_from) {
            (Finish::At(_), None, _) => Verdict::PassedOver,
            (Finish::At(commit), Some(position), held) => {
                let held = held.is_some_and(|held| commit >= held);
                let applies = position <= commit || mutation::is(Mutation::IgnorePositions);
                if applies && !held { Verdict::Applies } else { Verdict::PassedOver }
            }
            (Finish::Beyond(received), _, Some(held)) if held <= received => Verdict::PassedOver,
            (Finish::Beyond(received), Some(position), None)
                if position <= received || mutation::is(Mutation::PiecesIgnorePositions) =>
            {
                Verdict::Applies
            }
            (Finish::Beyond(_), ..) => Verdict::Unknown,
        }
    }
}

/// Whether transaction `xid` was given its identifier before `other`. Identifiers are compared in a circle, as the
/// server does (`TransactionIdPrecedes` in `transam.c`).
const fn is_older(xid: u32, other: u32) -> bool {
    xid.wrapping_sub(other).cast_signed() < 0
}

/// The subscription's tables by their names on the publisher. A table that exists on both sides
/// but is not listed here is never written.
pub type Membership = HashMap<QualifiedName, Member>;

/// Compares a published table with the target's current table, for every operation: which ones come is known
/// only when they come.
pub(crate) fn compare(
    surroundings: &Surroundings,
    published: &PublishedRelation,
    target_name: &QualifiedName,
    target: Option<&TargetTable>,
    rules: &TableRules,
) -> Comparison {
    let actions = Operations::ALL;
    schema::compare(&Pairing { published, actions, target_name, target, surroundings, rules })
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
    pub(crate) description: schema::Description,
    pub(crate) warnings: Vec<Warning>,
}

/// The tables of the stream's relation OIDs.
#[derive(Debug)]
pub struct Tables {
    members: Membership,
    /// The names of those members whose OIDs are known.
    by_oid: HashMap<u32, QualifiedName>,
    surroundings: Surroundings,
    cache: RelationCache,
    relations: HashMap<u32, Known, RandomState>,
    /// A table with a new Relation message whose target table is being described.
    awaited: Option<Awaited>,
    ahead: Ahead,
    next_id: u64,
    /// Where the latest changes commit that were passed over because gaps hold their tables.
    passed_over: HashMap<QualifiedName, Lsn>,
}

/// What a Relation message calls for.
#[derive(Debug)]
pub(crate) enum Announced {
    /// The relation is not in the subscription.
    Nothing,
    /// The publisher describes a table once more, as before.
    Again(QualifiedName),
    /// The relation is not in the subscription, and has not been announced before.
    Stranger(QualifiedName),
    Planned(Described),
    /// These tables of the target are to be described next ([`Tables::describe`]).
    Describe {
        tables: Vec<QualifiedName>,
        reading: Reading,
    },
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
        applies: Applies,
        /// Operations that the mapping leaves out.
        left_out: Operations,
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
        applies: Applies,
        /// Operations that the mapping leaves out.
        left_out: Operations,
        fit: &'a Fit,
    },
    /// Not in the subscription.
    Foreign,
    /// The publisher never announced this relation.
    Unannounced,
}

impl Tables {
    pub(crate) fn new(members: Membership, surroundings: Surroundings) -> Self {
        let by_oid = |(name, member): (&QualifiedName, &Member)| Some((member.oid?, name.clone()));
        Self {
            by_oid: members.iter().filter_map(by_oid).collect(),
            ahead: Ahead::new(members.values().map(|member| member.target.clone())),
            members,
            surroundings,
            cache: RelationCache::default(),
            relations: HashMap::default(),
            awaited: None,
            next_id: 0,
            passed_over: HashMap::new(),
        }
    }

    /// Sets a table's position: changes that commit at or beyond it apply.
    pub(crate) fn set_position(&mut self, source: &QualifiedName, at: Lsn) {
        if let Some(member) = self.members.get_mut(source) {
            member.applies.position = Some(at);
        }
        for known in self.relations.values_mut() {
            if let Known::Member { name, applies, .. } = known
                && name == source
            {
                applies.position = Some(at);
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

    /// The member that a Relation message is about, under its recorded name. A table is its OID: it may have had
    /// another name when the change was made, and another table may have had its name.
    fn member_of(&self, oid: u32, name: &QualifiedName) -> Option<(&QualifiedName, &Member)> {
        let recorded = self.by_oid.get(&oid).unwrap_or(name);
        let (name, member) = self.members.get_key_value(recorded)?;
        member.oid.is_none_or(|known| known == oid).then_some((name, member))
    }

    /// Takes a Relation message, and plans its table if the target's table has been described.
    pub(crate) fn announce(&mut self, message: Relation, now: Duration) -> Result<Announced, RelationError> {
        let oid = message.oid;
        let name = QualifiedName::new(&message.schema, &message.name);
        let Some((name, member)) = self.member_of(oid, &name) else {
            let known = self.relations.insert(oid, Known::Foreign);
            return Ok(if known.is_none() { Announced::Stranger(name) } else { Announced::Nothing });
        };
        let (name, target, catalog) = (name.clone(), member.target.clone(), Arc::clone(&member.catalog));
        let published = self.cache.note_relation(message)?;
        if let Some(Known::Member { published: known, .. }) = self.relations.get(&oid)
            && Arc::ptr_eq(known, &published)
        {
            return Ok(Announced::Again(name));
        }
        // DDL may have come since a description was read. If a change does not fit, a new one decides. Where the
        // publisher's table has changed, the target's has probably changed, too, and older rows are judged by both.
        let read = self.ahead.take(&target, now).filter(|_| published.has_columns_of(&catalog));
        let awaited = Awaited { oid, name, published };
        if let Some(read) = read {
            return Ok(self.plan(awaited, read.as_deref()).map_or(Announced::Nothing, Announced::Planned));
        }
        self.awaited = Some(awaited);
        let tables = self.ahead.together_with(&target, now);
        Ok(Announced::Describe { tables, reading: Reading::Changed })
    }

    /// Notes that everything has been received, and no transaction is open.
    pub(crate) fn caught_up(&mut self, now: Duration) {
        self.ahead.caught_up(now);
    }

    /// Whether a table has been announced whose target has not been described yet.
    pub(crate) fn awaits_description(&self) -> bool {
        self.awaited.is_some()
    }

    /// Has the target's table described again, because it did not fit. Returns none if the relation is not in the
    /// subscription.
    pub(crate) fn look_again(&mut self, oid: u32) -> Option<Announced> {
        let Some(Known::Member { name, published, .. }) = self.relations.get(&oid) else { return None };
        let target = self.members.get(name)?.target.clone();
        self.awaited = Some(Awaited { oid, name: name.clone(), published: Arc::clone(published) });
        self.ahead.forget();
        Some(Announced::Describe { tables: vec![target], reading: Reading::All })
    }

    /// Plans the awaited table for the target's table as it is now. Returns none if no description was awaited, or
    /// another one.
    pub(crate) fn describe(&mut self, description: Description, now: Duration) -> Option<Described> {
        self.ahead.note(description, now);
        let awaited = self.awaited.take()?;
        let target = &self.members.get(&awaited.name)?.target;
        let read = self.ahead.take(target, now)?;
        self.plan(awaited, read.as_deref())
    }

    /// Compares an announced table with the target's, and plans it. Whether it fits matters to the changes that come,
    /// and only to them. Returns none if it is not in the subscription.
    fn plan(&mut self, awaited: Awaited, target: Option<&TargetTable>) -> Option<Described> {
        let Awaited { oid, name, published } = awaited;
        let member = self.members.get(&name)?;
        let described = PublishedRelation::clone(&published).with_domains_of(&member.catalog);
        let comparison = compare(&self.surroundings, &described, &member.target, target, &member.rules);
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
                let warnings = of_values.collect();
                let description = target.map(|target| {
                    schema::Description::of(&member.rules.described(described.clone()), target)
                })?;
                let context = TableContext {
                    id: self.next_id,
                    published: Arc::clone(&published),
                    text_columns: text_columns(&plan),
                    hindered: hindered(&plan, &comparison.misfits),
                    misfits: comparison.misfits,
                    plan,
                    described,
                    projection: member.rules.projection(&published),
                    rules: Arc::clone(&member.rules),
                    exact_because,
                };
                let source = name.clone();
                let planned = PlannedTable { source, exact_because, takes_binary, description, warnings };
                (Fit::Planned(Arc::new(context)), Some(planned))
            }
            None => (Fit::Unfit(comparison.misfits), None),
        };
        let (applies, left_out) = (member.applies, member.rules.left_out);
        self.relations.insert(oid, Known::Member { name, applies, left_out, published, fit });
        Some(Described { replaced, planned })
    }

    /// Finds out which row a message is about that is too large.
    pub(crate) fn large_row(&self, message: LargeMessage) -> LargeRow {
        let known = message.value.and_then(|value| Some((value, self.relations.get(&value.relation_oid)?)));
        match known {
            Some((value, Known::Member { name, published, .. })) => LargeRow {
                message,
                table: Some(name.clone()),
                column: published.columns.get(value.column).map(|column| column.name.clone()),
            },
            Some((_, Known::Foreign)) | None => LargeRow { message, table: None, column: None },
        }
    }

    /// Notes that a change of a relation was passed over.
    pub(crate) fn pass_over(&mut self, oid: u32, finish: Finish) {
        let Some(Known::Member { name, applies, .. }) = self.relations.get(&oid) else { return };
        let Some(commit) = applies.held_at(finish) else { return };
        match self.passed_over.get_mut(name) {
            Some(latest) => *latest = commit.max(*latest),
            None => drop(self.passed_over.insert(name.clone(), commit)),
        }
    }

    /// Where the latest changes commit that were passed over because gaps hold their tables.
    pub(crate) const fn passed_over(&self) -> &HashMap<QualifiedName, Lsn> {
        &self.passed_over
    }

    /// Finds the table of relation `oid`.
    pub(crate) fn lookup(&self, oid: u32) -> Lookup<'_> {
        match self.relations.get(&oid) {
            None => Lookup::Unannounced,
            Some(Known::Member { applies, left_out, fit, .. }) => {
                Lookup::Member { applies: *applies, left_out: *left_out, fit }
            }
            Some(Known::Foreign) => Lookup::Foreign,
        }
    }
}

#[cfg(test)]
mod tests;
