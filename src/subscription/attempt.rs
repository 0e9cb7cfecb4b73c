//! One attempt: connects to the publisher, compares the tables, finds or creates the slot, copies and streams
//! until something ends it.
//!
//! ```text
//! connect ─▶ slot ─▶ tables ─compare─▶ copy (new slot) ─▶ stream ◀─── table syncs (later tables)
//! ```
//!
//! An attempt can be dropped at any await: what is committed is recorded in the target, everything else is
//! rolled back with its session, and the next attempt begins from the record.

use std::time::Duration;

use tracing::{info, warn};

use crate::apply::{Applier, Membership, Start, progress};
use crate::config::SynchronousCommit;
use crate::error::{Diagnosis, Disposition};
use crate::gap::Gap;
use crate::pg::Lsn;
use crate::replication::{ReplicationConnection, ReplicationStream, StreamError, SystemIdentity};
use crate::schema::catalog::{self, CatalogError};
use crate::store::SubscriptionRow;
use crate::target::TargetSession;

use super::announced::Announced;
use super::context::{Context, Phase};
use super::failure::{Cause, Failure};
use super::findings;
use super::first_rows::{self, first_rows};
use super::format::{self, Choice, Possible, Ready, Transactions};
use super::gaps;
use super::misfits::with_facts;
use super::publication_record::Named;
use super::publications::Publications;
use super::publisher::{Published, Publisher, Reached, Reaching, Wanted};
use super::reader::{Patience, ReadError, Reader};
use super::sharing;
use super::slot::{self, OnMissing, SlotPlan, SlotView};
use super::slot_wait;
use super::stream::{self, Begun, StreamEnd};
use super::table_sync::TableSyncs;
use super::take_up::{
    self, Ground, Known, PreparedTable, compare_pending, membership, record_described, still_pending,
    take_up_tables, warn_of_unlogged,
};
use super::trust;
use super::verify::{self, check_identity, still_holds, verify};

/// Maximum time of a look at the publications before a pause.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time of waiting for the error of a stream that the publisher has ended.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Work that was started before the attempt, which does what is missing.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) reaching: Reaching,
    /// The subscription's record, read after its lock was taken.
    pub(super) recorded: Option<SubscriptionRow>,
}

impl Ahead {
    /// Does what is missing. If several things fail, the publisher's error is returned first.
    async fn complete(
        self,
        context: &Context,
        session: &TargetSession,
    ) -> Result<(Reached, Recorded), Failure> {
        let recorded = async {
            match self.recorded {
                Some(row) => Ok(Some(row)),
                None => context.store.subscription(context.name()).await,
            }
        };
        let (reached, recorded) = tokio::join!(self.reaching.done(&context.subscription, session), recorded);
        Ok((reached?, Recorded::of(recorded?)))
    }
}

/// Runs one attempt. `link` holds the stream's reader, so that it outlives an attempt that is dropped for a
/// pause, and still answers the publisher.
pub(super) async fn run(
    context: &Context,
    session: &TargetSession,
    ahead: Ahead,
    link: &mut Option<Reader>,
) -> Result<StreamEnd, Failure> {
    let end = tokio::select! {
        // A failed statement tells more than that the session has ended.
        biased;
        end = Box::pin(prepare_and_stream(context, session, ahead, link)) => end,
        // The lock has gone with the session: nothing may be copied or streamed without it.
        ended = session.client().closed() => Err(Failure::target_ended(&ended)),
    };
    match end {
        Err(failure) => match failure.restart.clone() {
            Some(restart) => Ok(StreamEnd::Restart(*restart, failure)),
            None => Err(gaps::record(context, failure).await?),
        },
        end => end,
    }
}

/// Everything up to the stream, and the stream.
async fn prepare_and_stream(
    context: &Context,
    session: &TargetSession,
    ahead: Ahead,
    link: &mut Option<Reader>,
) -> Result<StreamEnd, Failure> {
    *link = None;
    context.publications.send_replace(Publications::default());
    let (reached, known) = ahead.complete(context, session).await?;
    gaps::note(context, &known.members.gaps);
    let Reached { publisher, replication, identity, published } = reached;
    if let Some(diagnosis) = findings::wal_level(&publisher.settings.wal_level) {
        return Err(Failure::retry(diagnosis).because_of(Cause::WalLevel));
    }
    let found = Found { replication, identity, published, known };
    match Box::pin(follow(context, session, &publisher, found, link)).await {
        Err(failure) if failure.has_misfits() => Err(with_facts(context, session, &publisher, failure).await),
        end => end,
    }
}

/// What an attempt has read before it decides.
struct Found {
    replication: ReplicationConnection,
    identity: SystemIdentity,
    published: Result<Published, CatalogError>,
    known: Recorded,
}

/// Everything between the first queries and the end of the stream.
async fn follow(
    context: &Context,
    session: &TargetSession,
    publisher: &Publisher,
    found: Found,
    link: &mut Option<Reader>,
) -> Result<StreamEnd, Failure> {
    let Found { mut replication, identity, published, known } = found;
    let subscription = &context.subscription;
    let placed = place_in_stream(context, session, publisher, &mut replication, &identity, &known).await;
    let (plan, view) = placed.map_err(|failure| failure.with_gap_since(known.record.applied_at))?;
    let former = context.positions.borrow().walsender;
    slot::end_former_walsender(&publisher.client, &subscription.slot, &view, former).await?;
    let term = context.owner.term();
    let mut warnings = Vec::new();
    let published = published?;
    let refused = context.refused_at(plan);
    let refused = take_up::refused(&refused, &known.members.publications);
    let ground = Ground { publisher, plan, view: &view, refused: &refused };
    let taken_up = take_up_tables(context, session, &ground, published, known.members, &mut warnings).await?;
    let tables = &taken_up.tables;
    let mut pending = compare_pending(session, tables, &mut warnings).await?;
    let copied_as = record_described(context, publisher, &pending).await?;
    let possible = survey(context, session, publisher, tables, &mut warnings).await?;
    let (from, copied) = match plan {
        SlotPlan::Continue { from } => {
            report_warnings(context, session, warnings, &known.warnings).await?;
            (from, Vec::new())
        }
        SlotPlan::Adopt { from } => {
            report_warnings(context, session, warnings, &known.warnings).await?;
            progress::create(session.client(), &subscription.name, term, from).await?;
            (from, Vec::new())
        }
        SlotPlan::Create => {
            let place = first_rows::place(context, &pending).await;
            let slot = slot_wait::create(context, publisher, &mut replication).await?;
            // Warnings are reported after the slot exists, so that attempts that fail before do not repeat
            // them.
            report_warnings(context, session, warnings, &known.warnings).await?;
            progress::create(session.client(), &subscription.name, term, slot.consistent_point).await?;
            let copied = first_rows(context, publisher, &slot, tables, &mut pending, place).await?;
            (slot.consistent_point, copied)
        }
    };
    let members = membership(tables, &copied);
    let pending = still_pending(pending, &members);
    let ready = if pending.is_empty() { Ready::All } else { Ready::NotAll };
    let (from, named) = named(context, session, publisher, &taken_up, from, &refused).await?;
    // Without a publication that exists, neither a table's synchronisation nor the stream behind it would be sent
    // everything. The next attempt asks for all of them.
    let pending = if named.left_out.is_empty() { pending } else { Vec::new() };
    let syncs = TableSyncs::new(context, publisher, named.names.clone(), pending);
    let stream_tables = stream::Tables { syncs, announced: Announced::new(publisher, tables, &copied_as) };
    let skip = skip_ahead(context, known.skip, from).await?;
    if known.has_passed_conflict {
        context.store.resolve_applied(&context.owner, from).await?;
    }
    let choice = possible.choose(context, from, skip.max(known_at_end(&members)), ready);
    let look_at = taken_up.let_go_at.max(named.again_at).filter(|at| *at > from);
    let begin = Begin {
        from,
        skip,
        choice,
        members,
        tables: stream_tables,
        view,
        publications: named.names,
        look_at,
    };
    Box::pin(stream_on(context, session, publisher, replication, begin, link)).await
}

/// Up to this position, only the end of a transaction tells whether its changes apply.
fn known_at_end(members: &Membership) -> Option<Lsn> {
    let positions = members.values().flat_map(|member| [member.applies.position, member.applies.held_from]);
    positions.flatten().max()
}

/// Finds out which options of the stream the tables allow, and adds the warnings of the target tables.
async fn survey(
    context: &Context,
    session: &TargetSession,
    publisher: &Publisher,
    tables: &[PreparedTable],
    warnings: &mut Vec<Diagnosis>,
) -> Result<Possible, Failure> {
    let relations: Vec<_> = tables.iter().map(|table| (&*table.relation, &table.target)).collect();
    let (possible, unlogged, shared) = tokio::join!(
        format::survey(context, publisher, session, &relations, warnings),
        warn_of_unlogged(session, tables),
        sharing::warn(context, session, tables)
    );
    let possible = possible?;
    warnings.extend(unlogged?);
    warnings.extend(shared?);
    Ok(possible)
}

/// Chooses the publications of the stream. If none of them existed for a while, the stream goes on behind that.
async fn named(
    context: &Context,
    session: &TargetSession,
    publisher: &Publisher,
    taken_up: &take_up::TakenUp,
    from: Lsn,
    refused: &[String],
) -> Result<(Lsn, Named), Failure> {
    let version = publisher.client.server_version_num();
    let named = take_up::publications(context, taken_up, version, from, refused);
    match named.skip_to {
        None if named.names.is_empty() => {
            Err(Failure::retry(findings::no_publication(from)).because_of(Cause::Publications))
        }
        None => Ok((from, named)),
        Some(to) => {
            // The tables of these publications are held by gaps, or have left.
            let (name, term) = (&context.subscription.name, context.owner.term());
            progress::record_idle(session.client(), name, term, from, to).await?;
            warn!(subscription = %name, %from, %to, "the publications did not exist, so the stream goes on behind that");
            Ok((to, take_up::publications(context, taken_up, version, to, &[])))
        }
    }
}

/// Reads how far the target is, and judges whether the publisher's slot goes on from there.
async fn place_in_stream(
    context: &Context,
    session: &TargetSession,
    publisher: &Publisher,
    replication: &mut ReplicationConnection,
    identity: &SystemIdentity,
    known: &Recorded,
) -> Result<(SlotPlan, SlotView), Failure> {
    let (subscription, mut record) = (&context.subscription, known.record.clone());
    check_identity(context, identity, record.system_id.as_deref()).await?;
    let term = context.owner.term();
    let (position, view) = tokio::join!(
        progress::take_over(session.client(), &subscription.name, term),
        slot::settled_view(&publisher.client, &subscription.slot)
    );
    let (position, view) = (position?, view?);
    if subscription.synchronous_commit == SynchronousCommit::Off {
        // The recorded position is reported to the publisher as flushed.
        progress::flush(session.client(), &subscription.name, term).await?;
    }
    record.applied = position;
    gaps::begin_at(context, position);
    context.positions.send_modify(|positions| positions.applied = position.or(positions.applied));
    let accepted = gaps::accepted(&known.members.gaps).zip(position);
    let view = match accepted {
        Some(_) => gaps::renew_slot(context, publisher, replication, view).await?,
        None => view,
    };
    let on_missing = if subscription.create_slot { OnMissing::Create } else { OnMissing::Refuse };
    let plan = slot::plan(
        &subscription.slot,
        &subscription.name,
        position,
        view.slot.as_ref(),
        on_missing,
        &subscription.publisher.dbname,
    )?;
    // That the slot is ahead of an accepted gap is no contradiction; everything else is judged as ever.
    let judged = match accepted {
        Some((_, position)) => view.clone().not_ahead_of(position),
        None => view.clone(),
    };
    let mut applied =
        verify(context, session, &publisher.client, replication, identity, &judged, &record).await?;
    if let Some((accepted, position)) = accepted {
        applied = Some(gaps::pass(context, session, &view, position, accepted).await?);
    }
    if known.members.gaps.iter().any(Gap::holds_all) {
        context.store.heal_gaps(&context.owner).await?;
        gaps::show(context).await?;
    }
    Ok((plan.from(applied), view))
}

/// The stream's start position and options.
struct Begin<'a> {
    from: Lsn,
    skip: Option<Lsn>,
    choice: Choice,
    members: Membership,
    tables: stream::Tables<'a>,
    /// The slot as it was when it was found to be trusted.
    view: SlotView,
    /// The publications that the stream is asked for.
    publications: Vec<String>,
    /// Once the stream has passed this position, the publications are to be looked at again.
    look_at: Option<Lsn>,
}

/// Starts the stream, and applies it until something ends it.
async fn stream_on(
    context: &Context,
    session: &TargetSession,
    publisher: &Publisher,
    mut replication: ReplicationConnection,
    begin: Begin<'_>,
    link: &mut Option<Reader>,
) -> Result<StreamEnd, Failure> {
    let Begin { from, skip, choice, members, tables, view, publications, look_at } = begin;
    let (subscription, term) = (&context.subscription, context.owner.term());
    if choice.transactions == Transactions::InProgress {
        replication.simple_query(format::STREAM_EARLY).await?;
    }
    let wanted = Wanted { publications, format: choice.format, transactions: choice.transactions };
    let mut stream = publisher.start(subscription, replication, &subscription.slot, from, wanted).await?;
    match still_holds(&publisher.client, subscription, &view, from).await {
        Ok(walsender) => context.positions.send_modify(|positions| positions.walsender = walsender),
        // The walsender may have ended at the first change, and then it has said why.
        Err(failure) => return Err(refusal(&mut stream).await.unwrap_or(failure)),
    }
    info!(subscription = %subscription.name, lsn = %from, values = ?choice.format, transactions = ?choice.transactions, "streaming");
    context.tell(Phase::Streaming).await;
    let reader = link.insert(Reader::start(
        stream,
        from,
        publisher.wal_sender_timeout(),
        Patience {
            stall: context.stalls.patience(subscription.stall_timeout, from),
            silence: context.silences.patience(subscription.peer_timeout, from),
        },
    ));
    let exact_until = context.exact_until;
    let start = Start { recorded: from, term, skip, exact_until, format: choice.format };
    let known = context.known_tables.clone();
    known.send_modify(|known| known.retain(members.values().map(|member| &member.target)));
    let applier = Applier::new(session, subscription.name.clone(), members, start, known);
    let begun = Begun { from, choice, look_at };
    let end = Box::pin(stream::run(context, applier, reader, tables, begun)).await;
    let needs_a_person = match &end {
        Ok(StreamEnd::Conflict(_)) => true,
        Err(failure) => matches!(failure.disposition, Disposition::Pause(_)) && failure.restart.is_none(),
        Ok(_) => false,
    };
    // A table that has left and come back, or was replaced, may be the reason.
    if needs_a_person && publications_have_changed(context, publisher).await {
        return Ok(StreamEnd::PublicationsChanged);
    }
    end
}

/// The error by which the publisher has ended the stream; none if it has not, or without an error.
async fn refusal(stream: &mut ReplicationStream) -> Option<Failure> {
    let ended = async {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    };
    match tokio::time::timeout(REFUSAL_TIMEOUT, ended).await {
        Ok(error @ StreamError::Server(_)) => Some(ReadError::Stream(error).into()),
        Ok(_) | Err(_) => None,
    }
}

/// Looks at the publications once more. If that is not possible, they count as unchanged.
async fn publications_have_changed(context: &Context, publisher: &Publisher) -> bool {
    let client = &publisher.client;
    let look = catalog::look_at_publications(
        &**client,
        client.server_version_num(),
        &context.subscription.publications,
    );
    let Ok(Ok(look)) = tokio::time::timeout(LOOK_TIMEOUT, look).await else { return false };
    context.publications.borrow().taken_up.as_ref().is_some_and(|taken_up| *taken_up != look.fingerprint)
}

/// Returns the armed skip, unless its transaction has been passed. If a skip is armed during the attempt, a
/// new attempt begins.
async fn skip_ahead(context: &Context, armed: Option<Lsn>, from: Lsn) -> Result<Option<Lsn>, Failure> {
    let Some(skip) = armed else { return Ok(None) };
    if skip >= from {
        return Ok(Some(skip));
    }
    // The progress row has moved past the skipped transaction; a crash may have come before the skip was
    // settled.
    if context.store.has_open_conflict(context.name(), skip).await? {
        info!(subscription = context.name(), lsn = %skip, "the transaction was passed over before the service ended");
        context.store.finish_skip(&context.owner, skip).await?;
    } else {
        warn!(
            subscription = context.name(), lsn = %skip,
            "the skip is over: the stream is past its position, and a transaction that finished there was passed over"
        );
        context.store.clear_skip(&context.owner, skip).await?;
    }
    Ok(None)
}

/// The parts of the subscription's record that an attempt needs.
#[derive(Default)]
struct Recorded {
    /// The facts that are compared with the publisher; the position is read again.
    record: trust::Record,
    members: Known,
    skip: Option<Lsn>,
    has_passed_conflict: bool,
    warnings: Vec<String>,
}

impl Recorded {
    fn of(row: Option<SubscriptionRow>) -> Self {
        row.map_or_else(Self::default, |mut row| Self {
            record: verify::record(&row, None),
            members: Known::of(&mut row),
            skip: row.skip_lsn,
            has_passed_conflict: row.has_passed_conflict,
            warnings: row.warnings,
        })
    }
}

/// Reports warnings.
async fn report_warnings(
    context: &Context,
    session: &TargetSession,
    warnings: Vec<Diagnosis>,
    recorded: &[String],
) -> Result<(), Failure> {
    let warnings: Vec<&Diagnosis> = session.warnings().iter().chain(&warnings).collect();
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    // Warnings are logged once, not at every attempt.
    let mut said = true;
    context.warned.send_if_modified(|warned| {
        said = *warned == texts;
        warned.clone_from(&texts);
        false
    });
    for warning in warnings.iter().filter(|_| !said) {
        context.attention(None, warning);
    }
    if texts == recorded {
        return Ok(());
    }
    Ok(context.store.set_warnings(&context.owner, &texts).await?)
}
