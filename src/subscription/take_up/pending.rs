//! The tables that have to be copied: compared with their targets before anything is copied.

use std::collections::HashMap;

use crate::apply::{Applies, Member, Membership};
use crate::error::Diagnosis;
use crate::pg::QualifiedName;
use crate::schema::catalog;
use crate::schema::{
    self, Comparison, Misfit, Pairing, PublishedTable, SeenTable, TablePlan, TableRules, TargetTable,
};
use crate::store::Resync;
use crate::subscription::context::Context;
use crate::subscription::failure::{Failure, schema_failure};
use crate::subscription::publisher::Publisher;
use crate::subscription::table_sync::SyncJob;
use crate::target::TargetSession;

use super::{PreparedTable, member};

/// A table that has to be copied, with its comparison.
pub(in crate::subscription) struct PendingTable {
    pub(in crate::subscription) published: PublishedTable,
    pub(in crate::subscription) member: Member,
    pub(in crate::subscription) plan: TablePlan,
    /// The number of its latest copy.
    pub(in crate::subscription) attempt: i32,
    /// How the copy treats the rows that the target table has; none if the table joins.
    pub(in crate::subscription) resync: Option<Resync>,
    /// The target's table.
    compared: TargetTable,
}

/// Compares every table that is to be copied with its target, before anything is copied.
pub(in crate::subscription) async fn compare_pending(
    session: &TargetSession,
    tables: &[PreparedTable],
    warnings: &mut Vec<Diagnosis>,
) -> Result<Vec<PendingTable>, Failure> {
    let waiting: Vec<(&PreparedTable, &PublishedTable)> = tables
        .iter()
        .filter(|table| table.row.is_to_be_copied())
        .filter_map(|table| Some((table, table.published.as_ref()?)))
        .collect();
    let names: Vec<QualifiedName> = waiting.iter().map(|(table, _)| table.target.clone()).collect();
    let targets = catalog::target_tables(&***session.client(), &names).await?;
    let (mut pending, mut misfits) = (Vec::new(), Vec::<Misfit>::new());
    for ((table, published), target) in waiting.into_iter().zip(&targets) {
        let (target_name, rules) = (&table.target, &table.rules);
        let compared = compare_for_copy(session, published, target_name, target.as_ref(), rules);
        warnings.extend(compared.warnings.iter().map(schema::Warning::diagnosis));
        let fits = compared.misfits.is_empty();
        misfits.extend(compared.misfits);
        if let Some((plan, target)) = compared.plan.filter(|_| fits).zip(target.as_ref()) {
            let member = Member { applies: Applies::default(), ..member(table) };
            let (published, attempt) = (published.clone(), table.row.attempt);
            let (resync, compared) = (table.row.resync, target.clone());
            pending.push(PendingTable { published, member, plan, attempt, resync, compared });
        }
    }
    if misfits.is_empty() { Ok(pending) } else { Err(schema_failure(&misfits)) }
}

/// Compares a table with its target as it is now, because a copy that failed may have led to a change of the target.
pub(in crate::subscription) async fn compare_again(
    session: &TargetSession,
    table: &mut PendingTable,
) -> Result<(), Failure> {
    let name = &table.member.target;
    let targets = catalog::target_tables(&***session.client(), std::slice::from_ref(name)).await?;
    let target = targets.first().and_then(Option::as_ref);
    let compared = compare_for_copy(session, &table.published, name, target, &table.member.rules);
    match compared.plan {
        Some(plan) if compared.misfits.is_empty() => table.plan = plan,
        _ => return Err(schema_failure(&compared.misfits)),
    }
    Ok(())
}

fn compare_for_copy(
    session: &TargetSession,
    published: &PublishedTable,
    target_name: &QualifiedName,
    target: Option<&TargetTable>,
    rules: &TableRules,
) -> Comparison {
    schema::compare(&Pairing {
        published: &published.relation,
        actions: rules.copied(published.actions),
        target_name,
        target,
        surroundings: &session.surroundings(),
        rules,
    })
}

/// Records what the tables are like that are about to be copied, and returns it. Later descriptions are compared with
/// that.
pub(in crate::subscription) async fn record_described(
    context: &Context,
    publisher: &Publisher,
    pending: &[PendingTable],
) -> Result<HashMap<QualifiedName, SeenTable>, Failure> {
    if pending.is_empty() {
        return Ok(HashMap::new());
    }
    let oids: Vec<u32> = pending.iter().map(|table| table.published.oid).collect();
    let client = &publisher.client;
    let look = catalog::look_at_columns(&**client, client.server_version_num(), &oids).await?;
    let seen = |table: &PendingTable| {
        let PublishedTable { relation, all_columns, oid, .. } = &table.published;
        let look = look.tables.get(oid);
        let last_number = all_columns.last().map_or(0, |(number, _)| *number);
        (
            relation.name.clone(),
            SeenTable::to_be_copied(
                &table.member.rules.described(relation.clone()),
                last_number,
                look,
                &table.compared,
            ),
        )
    };
    let described: Vec<_> = pending.iter().map(seen).collect();
    context.store.set_described(&context.owner, &described).await?;
    Ok(described.into_iter().collect())
}

/// Returns the jobs for the tables that were not copied before the stream.
pub(in crate::subscription) fn still_pending(
    pending: Vec<PendingTable>,
    members: &Membership,
) -> Vec<SyncJob> {
    pending
        .into_iter()
        .filter(|table| {
            members.get(&table.published.relation.name).is_none_or(|member| member.applies.position.is_none())
        })
        .map(SyncJob::new)
        .collect()
}
