//! Whether publisher, slot and target still belong together: facts in, verdict out. Pure.
//!
//! A slot, a publisher or a target that was made again, restored or replaced answers as the old one did,
//! and a stream that goes on between them passes rows over without a word. So each attempt compares what
//! the target has recorded with what the publisher shows now, before anything is streamed.
//!
//! # What the rules rest on
//! - A position is reported to the publisher as flushed only after it has been recorded in the target. So
//!   the slot's `confirmed_flush_lsn` never lies beyond the recorded position, unless the slot was made
//!   again or moved by hand, or the target was restored or failed over to a server that lacked the last
//!   commits. (It may lie before: the publisher writes it to disk late.)
//! - What is decoded is flushed at the publisher. So a recorded position never lies beyond its WAL.
//! - A promoted standby begins a new timeline, and its history file tells where the old one was left.
//! - A publisher that starts again on the same timeline has a checkpoint beyond everything that was
//!   flushed before: a shutdown checkpoint, or the one that ends crash recovery (`CreateCheckPoint` in
//!   `xlog.c`). One that started from an older copy of its data directory has not, until its next one.
//! - WAL positions and transaction identifiers that are in flushed WAL never go back on a timeline. The
//!   monitor records them ([`Witnesses`]) once the WAL that proves them is flushed; a flushed position
//!   alone proves nothing, since it may lie within a record that a crash leaves incomplete.
//! - The slot's `restart_lsn` never goes back either, once it is on disk. It shows up to a moment before
//!   (`LogicalConfirmReceivedLocation` in `logical.c` sets it, then saves the slot), so it counts only
//!   after [`RESTART_LSN_AGE`], and only when the publisher was started again since.
//!
//! # What is no reason to stop
//! A crash, an immediate stop or a clean restart of either server; a failover to a standby that had
//! everything; slots that the publisher's standbys keep synchronised (`sync_replication_slots`); a slot
//! advanced by hand to no later than the recorded position; publications or names that changed. `pg_upgrade`
//! makes another system identifier: that is another publisher.
//!
//! # What cannot be told
//! - A publisher that came back from an older copy on the same timeline, if meanwhile it has had a
//!   checkpoint, its WAL and its transaction identifiers have passed all that was seen before, and either
//!   the slot's `restart_lsn` had not moved between the copy and the loss or the slot was made again. One
//!   that was told stays distrusted until it is started once more.
//! - The same for a role that may not execute `pg_control_checkpoint()`, without the checkpoint.
//! - Two servers that were promoted at the same position of the same timeline: both have the same number
//!   and the same history. What holds for a restored publisher holds for the second one.
//! - Whether a standby that was promoted while it streamed, and crashed within the second that the monitor
//!   takes to see that, has all that it sent: that stops, though nothing is lost.
//! - A standby as the publisher shows no witnesses: only its timeline, its WAL and its slot are compared.
//! - A target whose rows were changed by hand, or restored without the schema `pgsluice`.
//! - Whether anything of ours was committed in a gap: the publisher no longer tells. A failover to a
//!   standby that lacked nothing but an idle stretch of WAL which the target had recorded stops, too; with
//!   `synchronized_standby_slots` (17 and later) the publisher sends nothing that the standby lacks.

mod told;

pub(crate) use told::start_over;

use std::time::Duration;

use jiff::Timestamp;

use crate::pg::{Lsn, TimelineHistory};

/// How long a slot's `restart_lsn` has shown before it is taken to be on the publisher's disk.
pub const RESTART_LSN_AGE: Duration = Duration::from_secs(10);

/// The length of a checkpoint's record at most, bytes, page headers included. A position may lie that far
/// beyond the start of a shutdown checkpoint: the walsender sends its record, too.
const CHECKPOINT_RECORD_BYTES_MAX: u64 = 256;

/// What the target has recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The publisher's system identifier; none before the first start.
    pub system_id: Option<String>,
    /// Everything up to here is in the target.
    pub applied: Option<Lsn>,
    /// When that was recorded.
    pub applied_at: Option<Timestamp>,
    /// The last position that a table was copied at. It may lie beyond `applied`.
    pub copied: Option<Lsn>,
    /// None if a version recorded it that did not look.
    pub publisher: Option<PublisherRecord>,
}

/// What was seen of the publisher when it was last trusted, and since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherRecord {
    pub timeline: u32,
    /// Where that timeline began; none for the first one, or if the server had no history file.
    pub timeline_start: Option<Lsn>,
    /// Whether it was a standby.
    pub role: Role,
    /// When the postmaster started.
    pub started_at: Option<Timestamp>,
    pub witnesses: Witnesses,
    /// When the postmaster started that was found to have been started from an older state. It stays
    /// distrusted, though its WAL and its transactions may pass all that was seen before.
    pub distrusted: Option<Timestamp>,
}

/// The highest values seen on a primary's timeline that are known to survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Witnesses {
    /// An end of WAL, at a record's boundary.
    pub wal: Option<Lsn>,
    /// With its epoch: it does not wrap.
    pub next_xid: Option<u64>,
    /// The slot's.
    pub restart_lsn: Option<Lsn>,
    /// When they last changed.
    pub seen_at: Option<Timestamp>,
}

/// What the publisher shows now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub system_id: String,
    pub timeline: u32,
    /// None if it has not been read: the server has no history file of its timeline.
    pub history: Option<TimelineHistory>,
    pub role: Role,
    pub started_at: Timestamp,
    /// The end of WAL that is flushed; on a standby, that is replayed. Read after the record.
    pub wal: Lsn,
    pub next_xid: u64,
    /// Where the last checkpoint's record begins; none if the role may not ask.
    pub checkpoint: Option<Lsn>,
    pub slot: Option<SlotSeen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Primary,
    Standby,
}

/// The subscription's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotSeen {
    pub confirmed: Option<Lsn>,
    pub restart_lsn: Option<Lsn>,
    pub health: SlotHealth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotHealth {
    Good,
    /// The publisher has invalidated it, or removed WAL that it needs.
    Lost,
    /// A primary's, kept up to date on this standby: of use once that is promoted.
    Synchronised,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The stream may go on from the recorded position.
    Trusted(Ground),
    /// Nothing is wrong, but not there yet: it passes by itself.
    NotYet(Wait),
    /// Positions of one system mean nothing on another.
    OtherSystem,
    SlotGone,
    SlotLost,
    /// The positions contradict each other.
    Diverged(Divergence),
}

/// Why the stream may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// There is no position that could be wrong.
    NothingRecorded,
    /// An older version recorded the position, and reported idle positions without recording them.
    NothingToCompare,
    /// The publisher is what it was.
    SameTimeline,
    /// A standby was promoted that had everything up to the recorded position.
    Promoted { from: u32, at: Lsn },
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The standby has not replayed the recorded position.
    Replay { recorded: Lsn, replayed: Lsn },
    /// The slot is of use once the standby has been promoted.
    Promotion,
}

/// What contradicts what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// The slot has let go of changes that the target does not have.
    SlotAhead { recorded: Lsn, confirmed: Lsn },
    /// The target has what the publisher has not written.
    BeyondWal { recorded: Lsn, wal: Lsn },
    /// The publisher was started from a state older than what it has shown before.
    StartedEarlier { seen: Lsn, checkpoint: Lsn },
    /// The publisher's WAL ended later when it was last seen.
    WalWentBack { seen: Lsn, now: Lsn },
    /// The publisher had given out more transaction identifiers.
    XidWentBack { seen: u64, now: u64 },
    /// The slot had come further.
    SlotWentBack { seen: Lsn, now: Lsn },
    /// It was found before that the publisher was started from an older state, and it has not been started
    /// again since.
    FoundBefore { recorded: Lsn },
    /// The publisher's timeline left ours before the recorded position.
    LeftEarlier { timeline: u32, now: u32, at: Lsn, recorded: Lsn },
    /// Ours is no ancestor of the publisher's timeline.
    OtherTimeline { timeline: u32, now: u32 },
    /// The publisher cannot tell where its timeline comes from.
    UnknownTimeline { timeline: u32, now: u32 },
}

impl Divergence {
    /// From where to where changes are missing or doubtful, as far as that can be told.
    #[must_use]
    pub const fn gap(&self) -> Option<(Lsn, Lsn)> {
        match *self {
            Self::SlotAhead { recorded, confirmed } => Some((recorded, confirmed)),
            Self::BeyondWal { recorded, wal } => Some((wal, recorded)),
            Self::StartedEarlier { seen, checkpoint } => Some((checkpoint, seen)),
            Self::WalWentBack { seen, now } => Some((now, seen)),
            Self::LeftEarlier { at, recorded, .. } => Some((at, recorded)),
            Self::XidWentBack { .. }
            | Self::SlotWentBack { .. }
            | Self::FoundBefore { .. }
            | Self::OtherTimeline { .. }
            | Self::UnknownTimeline { .. } => None,
        }
    }
}

impl Divergence {
    /// Whether the publisher was started from an older state: nothing that it does later makes that good.
    #[must_use]
    pub const fn is_of_this_run(&self) -> bool {
        match self {
            Self::BeyondWal { .. }
            | Self::StartedEarlier { .. }
            | Self::WalWentBack { .. }
            | Self::XidWentBack { .. }
            | Self::SlotWentBack { .. }
            | Self::FoundBefore { .. } => true,
            Self::SlotAhead { .. }
            | Self::LeftEarlier { .. }
            | Self::OtherTimeline { .. }
            | Self::UnknownTimeline { .. } => false,
        }
    }
}

/// Whether the timeline's history has to be read for a judgement: it cannot have changed while the same
/// postmaster runs on the same timeline.
#[must_use]
pub fn needs_history(record: &Record, timeline: u32, started_at: Timestamp) -> bool {
    let known = record.publisher.as_ref();
    known.is_none_or(|known| known.timeline != timeline || known.started_at != Some(started_at))
}

/// Judges.
#[must_use]
pub fn judge(record: &Record, seen: &Seen) -> Verdict {
    if record.system_id.as_ref().is_some_and(|known| *known != seen.system_id) {
        return Verdict::OtherSystem;
    }
    let Some(applied) = record.applied else { return Verdict::Trusted(Ground::NothingRecorded) };
    let Some(slot) = seen.slot else { return Verdict::SlotGone };
    match (slot.health, seen.role) {
        (SlotHealth::Lost, _) => return Verdict::SlotLost,
        (SlotHealth::Synchronised, Role::Standby) => return Verdict::NotYet(Wait::Promotion),
        (SlotHealth::Good, _) | (SlotHealth::Synchronised, Role::Primary) => {}
    }
    let furthest = record.copied.map_or(applied, |copied| copied.max(applied));
    match compare(record.publisher.as_ref(), furthest, applied, seen, slot) {
        Ok(ground) => Verdict::Trusted(ground),
        Err(verdict) => verdict,
    }
}

fn compare(
    known: Option<&PublisherRecord>,
    furthest: Lsn,
    applied: Lsn,
    seen: &Seen,
    slot: SlotSeen,
) -> Result<Ground, Verdict> {
    let behind = Verdict::NotYet(Wait::Replay { recorded: furthest, replayed: seen.wal });
    let switched = match known {
        // It follows its primary onto the later timeline.
        Some(known) if seen.role == Role::Standby && seen.timeline < known.timeline => return Err(behind),
        Some(known) => switch(known, furthest, seen).map_err(Verdict::Diverged)?,
        None => None,
    };
    if seen.wal < furthest {
        return Err(match seen.role {
            Role::Standby => behind,
            Role::Primary => Verdict::Diverged(Divergence::BeyondWal { recorded: furthest, wal: seen.wal }),
        });
    }
    let Some(known) = known else { return Ok(Ground::NothingToCompare) };
    if seen.role == Role::Primary && switched.is_none() {
        went_back(known, furthest, seen, slot).map_err(Verdict::Diverged)?;
    }
    match slot.confirmed {
        Some(confirmed) if confirmed > applied => {
            Err(Verdict::Diverged(Divergence::SlotAhead { recorded: applied, confirmed }))
        }
        _ => Ok(switched.unwrap_or(Ground::SameTimeline)),
    }
}

/// Whether the publisher's timeline is ours, or one that came from ours.
fn switch(known: &PublisherRecord, furthest: Lsn, seen: &Seen) -> Result<Option<Ground>, Divergence> {
    let (timeline, now) = (known.timeline, seen.timeline);
    let Some(history) = &seen.history else {
        // Not read where it cannot have changed.
        return if timeline == now { Ok(None) } else { Err(Divergence::UnknownTimeline { timeline, now }) };
    };
    // A number says little: each server that is promoted takes the next one.
    let other_start = known.timeline_start.is_some() && history.began_at(timeline) != known.timeline_start;
    if other_start {
        return Err(Divergence::OtherTimeline { timeline, now });
    }
    if timeline == now {
        return Ok(None);
    }
    match history.left_at(timeline) {
        // Promoted while it ran, and may have streamed: whatever it sent is its own history.
        Some(at) if known.started_at == Some(seen.started_at) => {
            Ok(Some(Ground::Promoted { from: timeline, at }))
        }
        None => Err(Divergence::OtherTimeline { timeline, now }),
        Some(at) if at < furthest => Err(Divergence::LeftEarlier { timeline, now, at, recorded: furthest }),
        Some(at) => Ok(Some(Ground::Promoted { from: timeline, at })),
    }
}

/// Whether a primary on our timeline shows less than it did.
fn went_back(known: &PublisherRecord, furthest: Lsn, seen: &Seen, slot: SlotSeen) -> Result<(), Divergence> {
    let Witnesses { wal, next_xid, restart_lsn, .. } = known.witnesses;
    let wal_seen = wal.map_or(furthest, |wal| wal.max(furthest));
    if seen.wal < wal_seen {
        return Err(Divergence::WalWentBack { seen: wal_seen, now: seen.wal });
    }
    if let Some(next_xid) = next_xid.filter(|known| seen.next_xid < *known) {
        return Err(Divergence::XidWentBack { seen: next_xid, now: seen.next_xid });
    }
    // The same postmaster has the same memory: what follows is about what it was started from.
    if known.role == Role::Standby || known.started_at.is_none_or(|known| known == seen.started_at) {
        return Ok(());
    }
    if let Some(checkpoint) = seen.checkpoint
        && wal_seen.bytes_since(checkpoint) > CHECKPOINT_RECORD_BYTES_MAX
    {
        return Err(Divergence::StartedEarlier { seen: wal_seen, checkpoint });
    }
    if let (Some(known), Some(now)) = (restart_lsn, slot.restart_lsn)
        && now < known
    {
        return Err(Divergence::SlotWentBack { seen: known, now });
    }
    if known.distrusted == Some(seen.started_at) {
        return Err(Divergence::FoundBefore { recorded: furthest });
    }
    Ok(())
}

/// What is to be recorded of a publisher that is trusted. Witnesses are kept on the same primary timeline,
/// and start anew on another one. A standby has none: it may fall back to where its last restartpoint was.
#[must_use]
pub fn recorded(record: &Record, ground: Ground, seen: &Seen) -> PublisherRecord {
    let known = record.publisher.as_ref().filter(|_| ground == Ground::SameTimeline);
    let start = seen.history.as_ref().and_then(|history| history.began_at(seen.timeline));
    let witnesses = match seen.role {
        Role::Primary => known.map(|known| known.witnesses).unwrap_or_default(),
        Role::Standby => Witnesses::default(),
    };
    PublisherRecord {
        timeline: seen.timeline,
        timeline_start: start.or_else(|| known.and_then(|known| known.timeline_start)),
        role: seen.role,
        started_at: Some(seen.started_at),
        witnesses,
        distrusted: None,
    }
}

#[cfg(test)]
mod tests;
