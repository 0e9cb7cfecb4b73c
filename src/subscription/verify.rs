//! Compares the publisher with the target's record before anything is streamed.
//!
//! `trust` decides. Here the facts are read, a negative verdict becomes a pause, and the facts of a trusted
//! publisher are recorded. `check` reads the same facts by its own queries and shows the same texts.

use std::time::Duration;

use tracing::{debug, info};

use crate::apply::progress;
use crate::config::Subscription;
use crate::error::{Diagnosis, PauseReason};
use crate::gap::GapKind;
use crate::net::PgClient;
use crate::pg::{Lsn, TimelineHistory};
use crate::replication::{CommandErrorKind, ReplicationConnection, SystemIdentity};
use crate::schema::catalog;
use crate::store::{SubscriptionRow, TableRow, TableState, Walsender};
use crate::target::TargetSession;

use super::context::Context;
use super::failure::{Cause, Failure};
use super::findings;
use super::slot::{self, SlotInfo, SlotView};
use super::trust::{self, Divergence, Ground, Record, Seen, Verdict};

/// Time for recording the walsender before the stream is read.
const NOTE_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the target's record, with the progress row's current position as `applied`.
pub(crate) fn record(row: &SubscriptionRow, applied: Option<Lsn>) -> Record {
    let is_ready = |table: &&TableRow| table.state == TableState::Ready;
    Record {
        system_id: row.publisher_system_id.clone(),
        applied,
        applied_at: row.progress.as_ref().map(|progress| progress.updated_at),
        copied: row.tables.iter().filter(is_ready).filter_map(|table| table.synced_lsn).max(),
        publisher: row.publisher.clone(),
    }
}

/// Returns the publisher's timeline. A standby shows it on a replication connection only.
pub(crate) fn timeline(view: &SlotView, identity: &SystemIdentity) -> u32 {
    view.timeline.unwrap_or(identity.timeline)
}

/// Returns the publisher's facts.
pub(crate) fn seen(
    view: &SlotView,
    identity: &SystemIdentity,
    history: Option<TimelineHistory>,
    checkpoint: Option<Lsn>,
) -> Seen {
    Seen {
        system_id: identity.system_id.clone(),
        timeline: timeline(view, identity),
        history,
        role: view.role,
        started_at: view.started_at,
        database: view.database,
        // `check` reads the slot first, then the record of a service that goes on, and then the identity.
        wal: view.publisher_lsn.max(identity.xlog_position),
        next_xid: view.next_xid,
        checkpoint,
        slot: view.slot.as_ref().map(SlotInfo::seen),
    }
}

/// Returns the verdict, and a failure if the stream may not go on. `slot::plan` reports a missing or lost slot.
pub(crate) fn judged(record: &Record, seen: &Seen, subscription: &Subscription) -> Result<Ground, Failure> {
    let (name, slot) = (&subscription.name, &subscription.slot);
    match trust::judge(record, seen) {
        Verdict::Trusted(ground) => Ok(ground),
        Verdict::NotYet(wait) => Err(Failure::retry(wait.diagnosis(slot)).because_of(Cause::Slot)),
        Verdict::Diverged(divergence) => {
            let kind = match divergence {
                Divergence::SlotAhead { .. } => GapKind::SlotAhead,
                _ => GapKind::Diverged,
            };
            let (from, to) = divergence.gap().unzip();
            let failure = Failure::pause(PauseReason::Diverged, divergence.diagnosis(record, name, slot));
            Err(failure.with_gap(kind, from, to))
        }
        Verdict::OtherSystem | Verdict::SlotGone | Verdict::SlotLost => Ok(Ground::NothingRecorded),
    }
}

/// Reads the history of the publisher's timeline if it is needed; none also if the server has no history file.
pub(crate) async fn history(
    replication: &mut ReplicationConnection,
    record: &Record,
    view: &SlotView,
    identity: &SystemIdentity,
) -> Result<Option<TimelineHistory>, crate::replication::CommandError> {
    let timeline = timeline(view, identity);
    if !trust::needs_history(record, timeline, view.started_at) {
        return Ok(None);
    }
    match replication.timeline_history(timeline).await {
        Ok(history) => Ok(Some(history)),
        Err(error) => match &error.kind {
            CommandErrorKind::Server(server) if !server.is_transient() => Ok(None),
            CommandErrorKind::Timeline(_) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Checks the system identifier, because recorded positions mean nothing on another publisher.
pub(super) async fn check_identity(
    context: &Context,
    identity: &SystemIdentity,
    known: Option<&str>,
) -> Result<(), Failure> {
    match known {
        Some(known) if known != identity.system_id => Err(Failure::pause(
            PauseReason::PublisherError,
            findings::other_publisher(&identity.system_id, known, &context.subscription.name),
        )),
        Some(_) => Ok(()),
        None => Ok(context.store.set_publisher(&context.owner, &identity.system_id).await?),
    }
}

/// Checks the publisher, records the facts of a trusted one, and returns the position to go on from; none if
/// nothing is recorded.
pub(super) async fn verify(
    context: &Context,
    session: &TargetSession,
    client: &PgClient,
    replication: &mut ReplicationConnection,
    identity: &SystemIdentity,
    view: &SlotView,
    record: &Record,
) -> Result<Option<Lsn>, Failure> {
    let (history, checkpoint) =
        tokio::join!(history(replication, record, view, identity), catalog::last_checkpoint(&**client));
    let seen = seen(view, identity, history?, checkpoint?);
    if let Verdict::Diverged(divergence) = trust::judge(record, &seen)
        && divergence.is_of_this_run()
    {
        context.store.distrust_publisher(&context.owner, seen.started_at).await?;
    }
    let ground = judged(record, &seen, &context.subscription)?;
    let mut applied = record.applied;
    match ground {
        Ground::Promoted { from, at } => info!(
            subscription = context.name(), lsn = %at, from, to = seen.timeline,
            "the publisher was promoted, and has everything that the target has"
        ),
        Ground::NothingToCompare => applied = adopt_reported(context, session, applied, &seen).await?,
        Ground::NothingRecorded | Ground::SameTimeline => {}
    }
    let now = trust::recorded(record, ground, &seen);
    if record.publisher.as_ref() != Some(&now) {
        context.store.set_publisher_record(&context.owner, &now).await?;
    }
    Ok(applied)
}

/// Records the slot's confirmed position. An older version has reported idle positions as flushed without
/// recording them; from now on, a slot ahead of the record proves a gap.
async fn adopt_reported(
    context: &Context,
    session: &TargetSession,
    applied: Option<Lsn>,
    seen: &Seen,
) -> Result<Option<Lsn>, Failure> {
    let reported = seen.slot.and_then(|slot| slot.confirmed);
    let (Some(from), Some(to)) = (applied, reported.filter(|to| Some(*to) > applied)) else {
        return Ok(applied);
    };
    let (name, term) = (&context.subscription.name, context.owner.term());
    progress::record_idle(session.client(), name, term, from, to).await?;
    Ok(Some(to))
}

/// Records the walsender before the stream is read, so that the next owner can end it if this one hangs from now on. Where
/// the record cannot be written in time, the monitor goes on with it.
pub(super) async fn note_walsender(context: &Context, walsender: Option<Walsender>) {
    context.positions.send_modify(|positions| positions.walsender = walsender);
    let Some(walsender) = walsender else { return };
    let noted = context.store.note_walsender(&context.owner, walsender);
    if !matches!(tokio::time::timeout(NOTE_TIMEOUT, noted).await, Ok(Ok(()))) {
        debug!(subscription = context.name(), "the walsender is recorded later");
    }
}

/// Checks the slot again when the stream holds it, because from then on it cannot be dropped or advanced by
/// hand. That is done before the first status update, because older publishers set the slot back to the
/// position in it.
pub(super) async fn still_holds(
    client: &PgClient,
    subscription: &Subscription,
    before: &SlotView,
    from: Lsn,
) -> Result<Option<Walsender>, Failure> {
    let (now, walsender) = tokio::try_join!(
        slot::view(client, &subscription.slot),
        slot::walsender(client, &subscription.slot)
    )?;
    let same_run =
        (now.role, now.timeline, now.started_at) == (before.role, before.timeline, before.started_at);
    let slot = now.slot.as_ref().filter(|slot| slot.active_pid.is_some()).map(SlotInfo::seen);
    if same_run && slot.is_some_and(|slot| slot.confirmed.is_some_and(|confirmed| confirmed <= from)) {
        return Ok(walsender);
    }
    let diagnosis = Diagnosis::new(format!(
        "replication slot \"{}\" or its server changed while the stream was being started",
        subscription.slot
    ))
    .detail("nothing was streamed")
    .hint("both are compared again with what the target has recorded; that goes on by itself");
    Err(Failure::retry(diagnosis).because_of(Cause::Slot))
}
