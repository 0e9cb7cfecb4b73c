//! Records the gaps that an attempt finds, and tells about each one once.

use std::collections::HashMap;

use tracing::{info, warn};

use crate::apply::progress;
use crate::gap::{Accepted, Gap, GapKind, NewGap, WayOut};
use crate::pg::{Lsn, QualifiedName, Term};
use crate::replication::ReplicationConnection;
use crate::store::{OpenedGap, PassedOver};
use crate::target::TargetSession;
use crate::telemetry::GapFound;

use super::context::Context;
use super::failure::{About, Failure};
use super::publisher::Publisher;
use super::slot::{self, SlotView};
use super::slot_wait;

/// Records a gap, and pauses its table if it holds it. Returns none if the table is still to be copied, or not
/// one of the subscription's: there is no gap then.
///
/// The stream must not run: it would go on to apply the table's changes.
pub(super) async fn open(context: &Context, gap: &NewGap) -> Result<Option<Gap>, Failure> {
    Ok(match context.store.open_gap(&context.owner, gap).await? {
        Some(OpenedGap::New(gap)) => {
            GapFound { gap: &gap }.emit();
            Some(gap)
        }
        Some(OpenedGap::Known(gap)) => Some(gap),
        None => None,
    })
}

/// Shows recorded gaps in the metrics.
pub(super) fn note(context: &Context, gaps: &[Gap]) {
    let kinds = gaps.iter().map(|gap| gap.kind).collect();
    context.snapshot.send_modify(|snapshot| snapshot.gaps = kinds);
}

/// What was passed over of held tables within one term of this instance.
#[derive(Debug, Clone, Default)]
pub(super) struct PassedInTerm {
    term: Option<Term>,
    over: PassedOver,
}

/// Notes where the stream goes on. In a new term, nothing is known of what was passed over before.
pub(super) fn begin_at(context: &Context, recorded: Option<Lsn>) {
    let term = Some(context.owner.term());
    context.passed_over.send_if_modified(|passed| {
        let is_new = passed.term != term;
        if is_new {
            *passed = PassedInTerm {
                term,
                over: PassedOver { known_from: Some(recorded.unwrap_or_default()), latest: HashMap::new() },
            };
        }
        is_new
    });
}

/// Notes where the latest changes commit that were passed over because gaps hold their tables.
pub(super) fn note_passed(context: &Context, latest: &HashMap<QualifiedName, Lsn>) {
    context.passed_over.send_if_modified(|passed| {
        let mut changed = false;
        for (table, lsn) in latest {
            if passed.over.latest.get(table).is_none_or(|known| known < lsn) {
                passed.over.latest.insert(table.clone(), *lsn);
                changed = true;
            }
        }
        changed
    });
}

/// Lets held tables go on from the recorded position, if nothing holds them any more.
pub(super) async fn release(context: &Context, applied: Lsn) -> Result<(), Failure> {
    let passed = context.passed_over.borrow().over.clone();
    for table in context.store.release_tables(&context.owner, applied, &passed).await? {
        let (name, relation) = (context.name(), &table.source);
        info!(subscription = name, %relation, lsn = %applied, "the table goes on from here");
        if let Some((from, to)) = table.passed_over {
            warn!(
                subscription = name, %relation, %from, %to,
                "changes that were committed after the table's gap had been accepted were passed over"
            );
        }
    }
    show(context).await
}

/// Reads the open gaps, and shows them in the metrics.
pub(super) async fn show(context: &Context) -> Result<(), Failure> {
    let kinds = context.store.open_gap_kinds(context.name()).await?;
    context.snapshot.send_modify(|snapshot| snapshot.gaps = kinds);
    Ok(())
}

/// Records the gap that a failure of an attempt leaves, and returns the failure with the ways out.
///
/// # Errors
/// The gap could not be recorded. The next attempt finds it again.
pub(super) async fn record(context: &Context, mut failure: Failure) -> Result<Failure, Failure> {
    let Some(About::Gap(mut gap)) = failure.about.as_deref().cloned() else { return Ok(failure) };
    failure.about = None;
    let Some(recorded) = context.positions.borrow().applied else { return Ok(failure) };
    gap.from = gap.from.or_else(|| (gap.kind != GapKind::Diverged).then_some(recorded));
    if let Some(gap) = open(context, &gap).await?
        && gap.ways_out().contains(&WayOut::Accept)
    {
        let accept = format!("or {}", gap.way(WayOut::Accept));
        let hint = failure.diagnosis.hint.take();
        failure.diagnosis.hint = Some(hint.map_or(accept.clone(), |hint| format!("{hint}; {accept}")));
    }
    show(context).await?;
    Ok(failure)
}

/// Who accepted a gap of the slot that the stream has not passed yet; none if nobody has.
pub(super) fn accepted(gaps: &[Gap]) -> Option<&Accepted> {
    gaps.iter().filter(|gap| gap.holds_all()).find_map(|gap| gap.accepted.as_ref())
}

/// Creates the slot again if it is gone or lost, because its gap has been accepted. A slot that an interrupted
/// attempt has left is used.
pub(super) async fn renew_slot(
    context: &Context,
    publisher: &Publisher,
    replication: &mut ReplicationConnection,
    view: SlotView,
) -> Result<SlotView, Failure> {
    let subscription = &context.subscription;
    match &view.slot {
        Some(slot) if slot.is_lost() => slot::drop_lost(&publisher.client, &subscription.slot).await?,
        Some(_) => return Ok(view),
        // The operator creates it.
        None if !subscription.create_slot => return Ok(view),
        None => {}
    }
    slot_wait::create(context, publisher, replication).await?;
    Ok(slot::settled_view(&publisher.client, &subscription.slot).await?)
}

/// Moves the recorded position behind the accepted gap: to the slot's confirmed position, from which on the slot
/// sends everything. Returns the position.
pub(super) async fn pass(
    context: &Context,
    session: &TargetSession,
    view: &SlotView,
    from: Lsn,
    accepted: &Accepted,
) -> Result<Lsn, Failure> {
    let Some(to) = view.confirmed().filter(|confirmed| *confirmed > from) else { return Ok(from) };
    let (name, term) = (&context.subscription.name, context.owner.term());
    progress::pass_gap(session.client(), name, term, (from, to), &accepted.by).await?;
    warn!(
        subscription = context.name(), by = accepted.by, from = %from, to = %to,
        "an accepted gap was passed: changes that were committed between these positions are not applied"
    );
    show(context).await?;
    Ok(to)
}
