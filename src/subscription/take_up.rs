//! The tables that an attempt follows: taken up from the publications, recorded, and compared with their
//! targets.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::apply::{Member, Membership};
use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName};
use crate::schema::{
    self, Comparison, Mapping, Misfit, Pairing, PublishedTable, TablePlan, TargetTable, catalog,
};
use crate::store::{NewTables, TableMapping, TableRow, TableState};
use crate::target::TargetSession;

use super::attempt::{Context, TakeUp};
use super::failure::{Failure, schema_failure};
use super::findings;
use super::first_rows::mark_ready;
use super::publisher::Published;
use super::slot::SlotPlan;
use super::table_sync::SyncJob;

/// A table with everything that applying and copying need.
pub(super) struct PreparedTable {
    pub(super) published: PublishedTable,
    pub(super) target: QualifiedName,
    /// Columns whose values the target's type may change.
    pub(super) coerced: BTreeSet<String>,
    pub(super) row: TableRow,
}

/// A table that has to be copied, with its comparison.
pub(super) struct PendingTable {
    pub(super) published: PublishedTable,
    pub(super) member: Member,
    pub(super) plan: TablePlan,
    /// The number of its latest copy.
    pub(super) attempt: i32,
}

/// Updates the recorded tables to those that are published. Without `auto_refresh`, tables join and leave
/// only when an operator asks for it.
pub(super) async fn take_up_tables(
    context: &Context,
    published: Published,
    mut rows: Vec<TableRow>,
    plan: SlotPlan,
    warnings: &mut Vec<Diagnosis>,
) -> Result<Vec<PreparedTable>, Failure> {
    let subscription = &context.subscription;
    let Published { tables: published, fingerprint } = published;
    context.publications.send_modify(|publications| publications.taken_up = Some(fingerprint));
    let fixed = matches!(plan, SlotPlan::Continue { .. })
        && !subscription.auto_refresh
        && context.take_up == TakeUp::AsConfigured;
    let names: Vec<&QualifiedName> = if fixed {
        rows.iter().map(|row| &row.source).collect()
    } else {
        published.iter().map(|table| &table.relation.name).collect()
    };
    let (mapping, notes) = Mapping::new(&subscription.tables, names);
    warnings.extend(notes.iter().map(|note| note.diagnosis(&subscription.publications)));
    if published.is_empty() {
        warnings.push(findings::nothing_published(&subscription.publications));
    }
    let mappings: Vec<TableMapping> = mapping
        .iter()
        .map(|(source, target)| TableMapping { source: source.clone(), target: target.clone() })
        .collect();
    let new = match (subscription.copy_data, plan) {
        (true, _) | (false, SlotPlan::Create) => NewTables::Copy,
        (false, SlotPlan::Adopt { from } | SlotPlan::Continue { from }) => {
            NewTables::Ready { synced_lsn: from }
        }
    };
    let agree = are_recorded(&mappings, &rows);
    if !agree {
        context.store.sync_tables(&context.owner, &mappings, new).await?;
    }
    // An abandoned copy may have been committed since the record was read, or may be committed soon. The
    // stream passes over the changes of a table that is not synchronised, and must not do that for one that
    // is.
    if rows.iter().any(|row| row.state != TableState::Ready && row.attempt > 0) {
        context.store.end_copies(&context.owner).await?;
    }
    if !agree || rows.iter().any(|row| row.state != TableState::Ready) {
        rows = recorded_tables(context).await?;
    }
    if let NewTables::Ready { synced_lsn } = new {
        rows = ready_without_copy(context, rows, synced_lsn).await?;
    }
    let mut prepared = Vec::with_capacity(published.len());
    for published in published {
        if let Some(row) = rows.iter().find(|row| row.source == published.relation.name) {
            let coerced = subscription.coerced(&row.source).clone();
            prepared.push(PreparedTable { target: row.target.clone(), coerced, published, row: row.clone() });
        }
    }
    Ok(prepared)
}

/// Whether the record has exactly these tables with these targets, which is the usual case.
fn are_recorded(mappings: &[TableMapping], rows: &[TableRow]) -> bool {
    let is_recorded = |mapping: &TableMapping| {
        rows.iter().any(|row| row.source == mapping.source && row.target == mapping.target)
    };
    mappings.len() == rows.len() && mappings.iter().all(is_recorded)
}

async fn recorded_tables(context: &Context) -> Result<Vec<TableRow>, Failure> {
    let row = context.store.subscription(context.name()).await?;
    Ok(row.map(|row| row.tables).unwrap_or_default())
}

/// Marks tables `ready` without a copy. An attempt that ended after it had created the slot has left tables
/// `pending`, but with `copy_data = false` they are not copied. None of their changes have been streamed.
async fn ready_without_copy(
    context: &Context,
    rows: Vec<TableRow>,
    position: Lsn,
) -> Result<Vec<TableRow>, Failure> {
    let left = |row: &&TableRow| row.state == TableState::Pending && row.attempt == 0;
    if !rows.iter().any(|row| left(&row)) {
        return Ok(rows);
    }
    for row in rows.iter().filter(left) {
        mark_ready(context, row, position).await?;
    }
    recorded_tables(context).await
}

/// Compares every table that is to be copied with its target, before anything is copied.
pub(super) async fn compare_pending(
    session: &TargetSession,
    tables: &[PreparedTable],
    warnings: &mut Vec<Diagnosis>,
) -> Result<Vec<PendingTable>, Failure> {
    let waiting: Vec<&PreparedTable> =
        tables.iter().filter(|table| table.row.state != TableState::Ready).collect();
    let names: Vec<QualifiedName> = waiting.iter().map(|table| table.target.clone()).collect();
    let targets = catalog::target_tables(&***session.client(), &names).await?;
    let (mut pending, mut misfits) = (Vec::new(), Vec::<Misfit>::new());
    for (table, target) in waiting.into_iter().zip(&targets) {
        let relation = &table.published.relation;
        let (target_name, coerced) = (&table.target, &table.coerced);
        let compared = compare_for_copy(session, &table.published, target_name, target.as_ref(), coerced);
        warnings.extend(compared.warnings.iter().map(schema::Warning::diagnosis));
        let fits = compared.misfits.is_empty();
        misfits.extend(compared.misfits);
        if let Some(plan) = compared.plan.filter(|_| fits) {
            let catalog = Arc::new(relation.clone());
            let (target, coerced) = (table.target.clone(), table.coerced.clone());
            let member = Member { catalog, target, coerced, position: None };
            let (published, attempt) = (table.published.clone(), table.row.attempt);
            pending.push(PendingTable { published, member, plan, attempt });
        }
    }
    if misfits.is_empty() { Ok(pending) } else { Err(schema_failure(&misfits)) }
}

/// Compares a table with its target as it is now, because a copy that failed may have led to a change of the target.
pub(super) async fn compare_again(session: &TargetSession, table: &mut PendingTable) -> Result<(), Failure> {
    let name = &table.member.target;
    let targets = catalog::target_tables(&***session.client(), std::slice::from_ref(name)).await?;
    let target = targets.first().and_then(Option::as_ref);
    let compared = compare_for_copy(session, &table.published, name, target, &table.member.coerced);
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
    coerced: &BTreeSet<String>,
) -> Comparison {
    schema::compare(&Pairing {
        published: &published.relation,
        actions: published.actions,
        target_name,
        target,
        session: session.replication_role(),
        role: session.role(),
        coerced,
    })
}

/// Returns the warning of target tables that a crash of the target empties; none if there are none.
pub(super) async fn warn_of_unlogged(
    session: &TargetSession,
    tables: &[PreparedTable],
) -> Result<Option<Diagnosis>, Failure> {
    let names: Vec<QualifiedName> = tables.iter().map(|table| table.target.clone()).collect();
    Ok(catalog::unlogged(&catalog::unlogged_tables(&***session.client(), &names).await?))
}

/// Records what the tables are like that are about to be copied. Later descriptions are compared with that.
pub(super) async fn record_described(context: &Context, pending: &[PendingTable]) -> Result<(), Failure> {
    if pending.is_empty() {
        return Ok(());
    }
    let seen = |table: &PendingTable| (table.published.relation.name.clone(), table.published.seen());
    let described: Vec<_> = pending.iter().map(seen).collect();
    Ok(context.store.set_described(&context.owner, &described).await?)
}

pub(super) fn membership(tables: &[PreparedTable], copied: &[(QualifiedName, Lsn)]) -> Membership {
    tables
        .iter()
        .map(|table| {
            let source = &table.row.source;
            let just_copied = copied.iter().find(|(name, _)| name == source).map(|&(_, lsn)| lsn);
            let recorded = if table.row.state == TableState::Ready { table.row.synced_lsn } else { None };
            let member = Member {
                catalog: Arc::new(table.published.relation.clone()),
                target: table.target.clone(),
                coerced: table.coerced.clone(),
                position: just_copied.or(recorded),
            };
            (source.clone(), member)
        })
        .collect()
}

pub(super) fn still_pending(pending: Vec<PendingTable>, members: &Membership) -> Vec<SyncJob> {
    pending
        .into_iter()
        .filter(|table| {
            members.get(&table.published.relation.name).is_none_or(|member| member.position.is_none())
        })
        .map(SyncJob::new)
        .collect()
}
