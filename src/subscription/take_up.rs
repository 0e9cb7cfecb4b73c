//! The tables that an attempt follows: judged by their history, recorded, and compared with their targets.
//!
//! `membership` and `publication_record` decide. Gaps are recorded before the tables are: after a crash in between,
//! the same gaps are found again.

mod newcomers;
mod other_targets;
mod pending;
mod record;

use std::sync::Arc;

use crate::apply::{Applies, Member, Membership};
use crate::config::Subscription;
use crate::error::Diagnosis;
use crate::gap::Gap;
use crate::pg::{Lsn, QualifiedName};
use crate::schema::catalog::{self, ExistingTable};
use crate::schema::{PublishedRelation, PublishedTable, ReplicaIdentity, TableRules};
use crate::store::{NewTables, Refresh, SubscriptionRow, TableRow, TableState};
use crate::target::TargetSession;

use super::context::Context;
use super::failure::Failure;
use super::findings;
use super::first_rows::mark_all_ready;
use super::followed::{self, applies, recorded};
use super::gaps;
use super::membership::{self, Observed, Seen, judge};
use super::publication_record::{self, Named, PublicationRecord, Sight};
use super::publisher::{Published, Publisher};
use super::slot::{SlotInfo, SlotPlan, SlotView};

pub(super) use pending::{PendingTable, compare_again, compare_pending, record_described, still_pending};

use self::newcomers::Newcomers;

/// A table with everything that applying and copying need.
pub(super) struct PreparedTable {
    /// None if it is not published any more.
    pub(super) published: Option<PublishedTable>,
    /// The table as the publisher's catalog describes it; without columns if it does not exist any more.
    pub(super) relation: Arc<PublishedRelation>,
    pub(super) target: QualifiedName,
    /// Columns whose values the target's type may change.
    pub(super) rules: Arc<TableRules>,
    pub(super) row: TableRow,
    pub(super) applies: Applies,
}

/// The parts of the record that tables are taken up from.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) tables: Vec<TableRow>,
    /// The open gaps.
    pub(super) gaps: Vec<Gap>,
    pub(super) publications: Vec<PublicationRecord>,
    /// As [`SubscriptionRow::is_same_database`].
    pub(super) is_same_database: Option<bool>,
    /// Up to here the publications are known to have been as recorded.
    pub(super) seen: Option<Lsn>,
    /// An operator asked for the published tables to be taken up, by the command with this number.
    pub(super) refresh: Option<(Refresh, i64)>,
}

impl Known {
    pub(super) fn of(row: &mut SubscriptionRow) -> Self {
        Self {
            tables: std::mem::take(&mut row.tables),
            gaps: std::mem::take(&mut row.gaps),
            publications: std::mem::take(&mut row.publication_record),
            is_same_database: row.is_same_database,
            seen: row.positions.publications_seen,
            refresh: row.refresh,
        }
    }

    async fn read(context: &Context) -> Result<Self, Failure> {
        let row = context.store.subscription(context.name()).await?;
        Ok(row.map(|mut row| Self::of(&mut row)).unwrap_or_default())
    }
}

/// What an attempt follows.
pub(super) struct TakenUp {
    pub(super) tables: Vec<PreparedTable>,
    pub(super) publications: Vec<PublicationRecord>,
    /// Once the stream has passed this position, tables are let go.
    pub(super) let_go_at: Option<Lsn>,
}

/// What an attempt has found out before it takes up tables.
pub(super) struct Ground<'a> {
    pub(super) publisher: &'a Publisher,
    pub(super) plan: SlotPlan,
    /// The slot, read after the publications.
    pub(super) view: &'a SlotView,
    /// Publications that the walsender has found missing at the recorded position.
    pub(super) refused: &'a [String],
}

impl Ground<'_> {
    fn version(&self) -> u32 {
        self.publisher.client.server_version_num()
    }

    /// The position from which on the stream goes on; none before the slot exists.
    fn applied(&self) -> Option<Lsn> {
        match self.plan {
            SlotPlan::Adopt { from } | SlotPlan::Continue { from } => Some(from),
            SlotPlan::Create => None,
        }
    }
}

/// Judges the recorded tables by what is published now, and records what has changed. Without `auto_refresh`,
/// tables join only when an operator asks for it.
pub(super) async fn take_up_tables(
    context: &Context,
    session: &TargetSession,
    ground: &Ground<'_>,
    published: Published,
    known: Known,
    warnings: &mut Vec<Diagnosis>,
) -> Result<TakenUp, Failure> {
    let subscription = &context.subscription;
    let Published { found, fingerprint } = published;
    context.publications.send_modify(|publications| publications.taken_up = Some(fingerprint.clone()));
    let seen: Vec<Seen> = found.tables.iter().map(seen).collect();
    let others = tables_that_left(ground, &known.tables, &seen).await?;
    let names: Vec<(u32, QualifiedName)> =
        others.iter().map(|table| (table.oid, table.relation.name.clone())).collect();
    let Newcomers { heirs, occupied } = newcomers::find(context, session, ground, &known, &seen).await?;
    let mut recorded: Vec<_> = known.tables.iter().map(|row| recorded(row, &known.gaps)).collect();
    other_targets::note(context, session, &known, &seen, &mut recorded).await?;
    let publications = sighted(subscription, ground, &known, &found);
    let unsent = publication_record::unsent(&known.publications, ground.applied(), ground.refused);
    let configured = &subscription.publications;
    let unasked = publication_record::unasked(&publications, configured, ground.version(), ground.applied());
    let observed = Observed {
        published: &seen,
        others: &names,
        heirs: &heirs,
        occupied: &occupied,
        end: ground.view.end(),
        unused_xid: ground.view.unused_xid,
        seen: unsent.bound(known.seen),
        applied: ground.applied(),
        refused: &unsent.names,
        unasked: &unasked,
        restart: ground.view.slot.as_ref().and_then(SlotInfo::restart_lsn),
    };
    let continues = matches!(ground.plan, SlotPlan::Continue { .. });
    let judged = judge(
        &recorded,
        &observed,
        followed::new_tables(continues, subscription.auto_refresh, known.refresh.is_some()),
    );
    // Those of new tables are recorded with them.
    let recorded_before = judged.tables.iter().filter(|table| table.recorded.is_some());
    for gap in recorded_before.flat_map(|table| &table.gaps) {
        gaps::open(context, gap).await?;
    }
    if found.tables.is_empty() {
        warnings.push(findings::nothing_published(&subscription.publications));
    }
    warnings.extend(found.missing.as_ref().map(findings::missing_publications));
    warnings.extend(judged.strangers.iter().map(|table| findings::not_followed(table, &subscription.name)));
    let new = new_tables(context, ground.plan, known.refresh);
    let written = record::write(context, session, &judged, &known, &publications, new, warnings).await?;
    if let Some((_, command)) = known.refresh {
        context.store.end_refresh(&context.owner, command).await?;
    }
    // Only now may the monitor find that nothing has changed since.
    context.publications.send_modify(|publications| publications.recorded = Some(fingerprint));
    let had_gaps = judged.tables.iter().any(|table| !table.gaps.is_empty());
    if had_gaps {
        gaps::show(context).await?;
    }
    let known = settle(context, ground, known, new, had_gaps || written == record::Written::Changed).await?;
    let let_go =
        known.tables.iter().filter_map(|row| row.left).filter(|left| left.gone == membership::LetGo::NotYet);
    Ok(TakenUp {
        let_go_at: let_go.map(|left| left.lsn).max(),
        tables: prepare(&context.subscription, &known, found.tables, &others, ground.view.unused_xid),
        publications,
    })
}

/// The record of the publications after this look.
fn sighted(
    subscription: &Subscription,
    ground: &Ground<'_>,
    known: &Known,
    found: &catalog::Published,
) -> Vec<PublicationRecord> {
    let sights: Vec<Sight<'_>> =
        found.publications.iter().map(|one| (one.oid, one.name.as_str(), one.version.as_str())).collect();
    publication_record::update(
        &known.publications,
        &subscription.publications,
        &sights,
        ground.view.end(),
        ground.applied(),
        ground.refused,
        ground.version(),
    )
}

fn new_tables(context: &Context, plan: SlotPlan, refresh: Option<(Refresh, i64)>) -> NewTables {
    let copied = context.subscription.copy_data && !matches!(refresh, Some((Refresh::NoCopy, _)));
    match (copied, plan) {
        (true, _) | (false, SlotPlan::Create) => NewTables::Copy,
        (false, SlotPlan::Adopt { from } | SlotPlan::Continue { from }) => {
            NewTables::Ready { synced_lsn: from }
        }
    }
}

fn seen(table: &PublishedTable) -> Seen {
    Seen { oid: table.oid, name: table.relation.name.clone(), marks: table.marks.clone() }
}

/// Reads the recorded tables that are not published, as far as they exist. Usually there are none.
async fn tables_that_left(
    ground: &Ground<'_>,
    rows: &[TableRow],
    seen: &[Seen],
) -> Result<Vec<ExistingTable>, Failure> {
    let (mut oids, mut names) = (Vec::new(), Vec::new());
    for row in rows {
        match row.source_oid {
            Some(oid) if !seen.iter().any(|seen| seen.oid == oid) => oids.push(oid),
            None if !seen.iter().any(|seen| seen.name == row.source) => names.push(row.source.clone()),
            _ => {}
        }
    }
    if oids.is_empty() && names.is_empty() {
        return Ok(Vec::new());
    }
    let client = &ground.publisher.client;
    Ok(catalog::existing_tables(&**client, client.server_version_num(), &oids, &names).await?)
}

/// Ends what an earlier attempt has left, and reads the record as it is then.
async fn settle(
    context: &Context,
    ground: &Ground<'_>,
    mut known: Known,
    new: NewTables,
    changed: bool,
) -> Result<Known, Failure> {
    let copied = |row: &TableRow| matches!(row.state, TableState::Ready | TableState::Paused);
    // An abandoned copy may have been committed since the record was read, or may be committed soon. The
    // stream passes over the changes of a table that is not synchronised, and must not do that for one that
    // is.
    if known.tables.iter().any(|row| !copied(row) && row.attempt > 0) {
        context.store.end_copies(&context.owner).await?;
    }
    if changed || known.tables.iter().any(|row| !copied(row)) {
        known = Known::read(context).await?;
    }
    if let (NewTables::Ready { synced_lsn }, false) = (new, context.subscription.copy_data) {
        known = ready_without_copy(context, known, synced_lsn).await?;
    }
    if let Some(applied) = ground.applied()
        && followed::is_any_released(&known.tables, &known.gaps, ground.refused)
    {
        gaps::release(context, applied).await?;
        known = Known::read(context).await?;
    }
    Ok(known)
}

/// Marks tables `ready` without a copy. An attempt that ended after it had created the slot has left tables
/// `pending`, but with `copy_data = false` they are not copied. None of their changes have been streamed.
async fn ready_without_copy(context: &Context, known: Known, position: Lsn) -> Result<Known, Failure> {
    let left = |row: &&TableRow| row.state == TableState::Pending && row.attempt == 0;
    let left: Vec<&TableRow> = known.tables.iter().filter(left).collect();
    if left.is_empty() {
        return Ok(known);
    }
    mark_all_ready(context, &left, position).await?;
    Known::read(context).await
}

fn prepare(
    subscription: &Subscription,
    known: &Known,
    published: Vec<PublishedTable>,
    others: &[ExistingTable],
    unused_xid: u64,
) -> Vec<PreparedTable> {
    let mut published: Vec<Option<PublishedTable>> = published.into_iter().map(Some).collect();
    let mut take = |row: &TableRow| {
        let same = |table: &PublishedTable| match row.source_oid {
            Some(oid) => table.oid == oid,
            None => table.relation.name == row.source,
        };
        published.iter_mut().find(|table| table.as_ref().is_some_and(same)).and_then(Option::take)
    };
    let mut prepared = Vec::with_capacity(known.tables.len());
    for row in &known.tables {
        let published = if row.left.is_none() { take(row) } else { None };
        let known_as = others.iter().find(|table| Some(table.oid) == row.source_oid);
        let relation = match (&published, known_as) {
            (Some(table), _) => table.relation.clone(),
            (None, Some(table)) => table.relation.clone(),
            (None, None) => PublishedRelation {
                name: row.source.clone(),
                identity: ReplicaIdentity::Default,
                columns: Vec::new(),
            },
        };
        prepared.push(PreparedTable {
            published,
            relation: Arc::new(relation),
            target: row.target.clone(),
            rules: subscription.rules(&row.source),
            applies: applies(row, &known.gaps, unused_xid),
            row: row.clone(),
        });
    }
    prepared
}

/// Returns the warning of target tables that a crash of the target empties; none if there are none.
pub(super) async fn warn_of_unlogged(
    session: &TargetSession,
    tables: &[PreparedTable],
) -> Result<Option<Diagnosis>, Failure> {
    let names: Vec<QualifiedName> = tables.iter().map(|table| table.target.clone()).collect();
    Ok(catalog::unlogged(&catalog::unlogged_tables(&***session.client(), &names).await?))
}

fn member(table: &PreparedTable) -> Member {
    Member {
        oid: table.row.source_oid,
        catalog: Arc::clone(&table.relation),
        target: table.target.clone(),
        rules: Arc::clone(&table.rules),
        applies: table.applies,
    }
}

pub(super) fn membership(tables: &[PreparedTable], copied: &[(QualifiedName, Lsn)]) -> Membership {
    tables
        .iter()
        .map(|table| {
            let source = &table.row.source;
            let mut member = member(table);
            if let Some(&(_, lsn)) = copied.iter().find(|(name, _)| name == source) {
                member.applies = Applies::from(lsn);
            }
            (source.clone(), member)
        })
        .collect()
}

/// Chooses the publications that the stream is asked for.
pub(super) fn publications(
    context: &Context,
    taken_up: &TakenUp,
    version: u32,
    from: Lsn,
    refused: &[String],
) -> Named {
    publication_record::named(
        &taken_up.publications,
        &context.subscription.publications,
        version,
        from,
        refused,
    )
}

/// The publications that messages of the walsender name. The server may write them in another language.
pub(super) fn refused(messages: &[&str], records: &[PublicationRecord]) -> Vec<String> {
    let named = |message: &&str| {
        let names = records.iter().map(|record| &record.name).filter(|name| message.contains(name.as_str()));
        names.max_by_key(|name| name.len()).cloned()
    };
    messages.iter().filter_map(named).collect()
}
