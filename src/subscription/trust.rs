//! Whether publisher, slot and target still belong together: facts in, verdict out. Pure.
//!
//! A slot that was created again, or a publisher or target that was restored or replaced, accepts connections
//! as the old one did, and a stream that goes on would leave out rows without an error. So each attempt
//! compares the target's record with the publisher's current facts before anything is streamed.
//!
//! # Why the rules hold
//! - A position is reported to the publisher as flushed only after it has been recorded in the target. So the
//!   slot's `confirmed_flush_lsn` never lies beyond the recorded position, unless the slot was created again
//!   or advanced by hand, or the target was restored or failed over to a server that lacked the last commits.
//!   (It may lie before the recorded position, because the publisher writes it to disk late.)
//! - The publisher decodes flushed WAL only. So a recorded position never lies beyond its flushed WAL.
//! - A promoted standby begins a new timeline, and its history file says where it left the old one.
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
//! # What is trusted
//! A crash, an immediate shutdown or a clean restart of either server; a failover to a standby that had
//! everything; slots that the publisher's standbys synchronise (`sync_replication_slots`); a slot that was
//! advanced by hand, but not beyond the recorded position; changed publications or names. After `pg_upgrade`
//! the system identifier is another one, so that is another publisher.
//!
//! # What cannot be detected
//! - A publisher that came back from an older copy on the same timeline, if meanwhile it has had a
//!   checkpoint, its WAL and its transaction identifiers have passed all that was seen before, and either
//!   the slot's `restart_lsn` had not moved between the copy and the loss or the slot was made again. One
//!   that was told stays distrusted until it is started once more.
//! - If the role may not execute `pg_control_checkpoint()`, such a publisher even without a checkpoint.
//! - Two servers that were promoted at the same position of the same timeline: both have the same number
//!   and the same history. What holds for a restored publisher holds for the second one.
//! - Whether a standby that was promoted while it streamed, and crashed within the second that the monitor
//!   takes to see that, has all that it sent: that stops, though nothing is lost.
//! - A standby as the publisher shows no witnesses: only its timeline, its WAL and its slot are compared.
//! - A target whose rows were changed by hand, or restored without the schema `pgsluice`.
//! - Whether a gap has changes of the subscription's tables: the publisher no longer has them. A failover to
//!   a standby that lacked only WAL without such changes, which the target had recorded, is not trusted,
//!   either; with `synchronized_standby_slots` (17 and later) the publisher sends nothing that the standby
//!   lacks.

mod told;

pub(crate) use told::start_over;

use std::time::Duration;

use jiff::Timestamp;

use crate::pg::{Lsn, TimelineHistory};

/// Time after which a slot's `restart_lsn` counts as written to the publisher's disk.
pub const RESTART_LSN_AGE: Duration = Duration::from_secs(10);

/// Maximum length of a checkpoint record in bytes, with page headers. A position may lie that far beyond the
/// start of a shutdown checkpoint, because the walsender reports the position after its record.
const CHECKPOINT_RECORD_BYTES_MAX: u64 = 256;

/// The target's record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The publisher's system identifier; none before the first start.
    pub system_id: Option<String>,
    /// The recorded position: everything up to here has been applied.
    pub applied: Option<Lsn>,
    /// When that was recorded.
    pub applied_at: Option<Timestamp>,
    /// The last position that a table was copied at. It may lie beyond `applied`.
    pub copied: Option<Lsn>,
    /// The record of the publisher; none if an older version has written the record.
    pub publisher: Option<PublisherRecord>,
}

/// Facts about the publisher from when it was last trusted, and since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherRecord {
    pub timeline: u32,
    /// Where the timeline began; none for the first one, or if the server had no history file.
    pub timeline_start: Option<Lsn>,
    /// Whether it was a standby.
    pub role: Role,
    /// The OID of its database; none if an older version has written the record.
    pub database: Option<u32>,
    /// When the postmaster started.
    pub started_at: Option<Timestamp>,
    pub witnesses: Witnesses,
    /// Start time of a postmaster that was found to run on an older state of its data. It stays distrusted,
    /// also after its WAL and its transaction identifiers have passed the recorded ones.
    pub distrusted: Option<Timestamp>,
}

/// The highest values seen on a primary's timeline that are known to survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Witnesses {
    /// An end of WAL, at a record's boundary.
    pub wal: Option<Lsn>,
    /// The next transaction identifier with its epoch, so that it does not wrap around.
    pub next_xid: Option<u64>,
    /// The slot's `restart_lsn`.
    pub restart_lsn: Option<Lsn>,
    /// When one of them last changed.
    pub seen_at: Option<Timestamp>,
}

/// The publisher's current facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub system_id: String,
    pub timeline: u32,
    /// The timeline's history; none if it has not been read or the server has no history file.
    pub history: Option<TimelineHistory>,
    pub role: Role,
    pub started_at: Timestamp,
    /// The OID of the database.
    pub database: u32,
    /// The end of flushed WAL; on a standby, of replayed WAL. It is read after the record.
    pub wal: Lsn,
    pub next_xid: u64,
    /// Where the last checkpoint's record begins; none if the role may not read it.
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
    /// The standby synchronises it from its primary. It can be used once the standby has been promoted.
    Synchronised,
}

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The stream may go on from the recorded position.
    Trusted(Ground),
    /// Streaming is not possible yet, but will be without an operator.
    NotYet(Wait),
    /// The publisher is another system, on which the recorded positions mean nothing.
    OtherSystem,
    SlotGone,
    SlotLost,
    /// The positions contradict each other.
    Diverged(Divergence),
}

/// Why the stream may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// No position is recorded.
    NothingRecorded,
    /// An older version recorded the position, and reported idle positions without recording them.
    NothingToCompare,
    /// The publisher is on the recorded timeline, and nothing contradicts the record.
    SameTimeline,
    /// The publisher is a promoted standby that had everything up to the recorded position.
    Promoted { from: u32, at: Lsn },
}

/// What has to happen before the stream can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The standby has to replay WAL up to the recorded position.
    Replay { recorded: Lsn, replayed: Lsn },
    /// The standby has to be promoted before its synchronised slot can be used.
    Promotion,
}

/// The contradiction between the record and the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divergence {
    /// The slot's confirmed position lies beyond the recorded one, so the slot no longer sends the changes
    /// between.
    SlotAhead { recorded: Lsn, confirmed: Lsn },
    /// The recorded position lies beyond the publisher's WAL.
    BeyondWal { recorded: Lsn, wal: Lsn },
    /// The publisher was started on a state of its data that is older than positions that it has shown.
    StartedEarlier { seen: Lsn, checkpoint: Lsn },
    /// The publisher's WAL ends before a position that it has shown.
    WalWentBack { seen: Lsn, now: Lsn },
    /// The publisher's next transaction identifier is smaller than one that it has shown.
    XidWentBack { seen: u64, now: u64 },
    /// The slot's `restart_lsn` lies before one that it has shown.
    SlotWentBack { seen: Lsn, now: Lsn },
    /// The publisher was found before to run on an older state of its data, and has not been restarted since.
    FoundBefore { recorded: Lsn },
    /// It is the same server, and another database of it: a copy, for example.
    OtherDatabase { recorded: u32, now: u32 },
    /// The publisher's timeline left the recorded one before the recorded position.
    LeftEarlier { timeline: u32, now: u32, at: Lsn, recorded: Lsn },
    /// The recorded timeline is no ancestor of the publisher's timeline.
    OtherTimeline { timeline: u32, now: u32 },
    /// The publisher has no history file of its timeline.
    UnknownTimeline { timeline: u32, now: u32 },
}

impl Divergence {
    /// The range in which changes are missing or doubtful, if it is known.
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
            | Self::OtherDatabase { .. }
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
            | Self::OtherDatabase { .. }
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

/// Returns the verdict.
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
    let recorded = record.publisher.as_ref().and_then(|publisher| publisher.database);
    if let Some(recorded) = recorded.filter(|recorded| *recorded != seen.database) {
        return Verdict::Diverged(Divergence::OtherDatabase { recorded, now: seen.database });
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
        // A standby follows its primary to the later timeline.
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

/// Checks that the publisher's timeline is the recorded one, or a descendant that left it late enough.
fn switch(known: &PublisherRecord, furthest: Lsn, seen: &Seen) -> Result<Option<Ground>, Divergence> {
    let (timeline, now) = (known.timeline, seen.timeline);
    let Some(history) = &seen.history else {
        // The history is not read if it cannot have changed.
        return if timeline == now { Ok(None) } else { Err(Divergence::UnknownTimeline { timeline, now }) };
    };
    // Two servers may have the same timeline number, because each promoted one takes the next.
    let other_start = known.timeline_start.is_some() && history.began_at(timeline) != known.timeline_start;
    if other_start {
        return Err(Divergence::OtherTimeline { timeline, now });
    }
    if timeline == now {
        return Ok(None);
    }
    match history.left_at(timeline) {
        // The standby was promoted while it ran, so everything that it sent belongs to its own history.
        Some(at) if known.started_at == Some(seen.started_at) => {
            Ok(Some(Ground::Promoted { from: timeline, at }))
        }
        None => Err(Divergence::OtherTimeline { timeline, now }),
        Some(at) if at < furthest => Err(Divergence::LeftEarlier { timeline, now, at, recorded: furthest }),
        Some(at) => Ok(Some(Ground::Promoted { from: timeline, at })),
    }
}

/// Checks that a primary on the recorded timeline does not show smaller values than before.
fn went_back(known: &PublisherRecord, furthest: Lsn, seen: &Seen, slot: SlotSeen) -> Result<(), Divergence> {
    let Witnesses { wal, next_xid, restart_lsn, .. } = known.witnesses;
    let wal_seen = wal.map_or(furthest, |wal| wal.max(furthest));
    if seen.wal < wal_seen {
        return Err(Divergence::WalWentBack { seen: wal_seen, now: seen.wal });
    }
    if let Some(next_xid) = next_xid.filter(|known| seen.next_xid < *known) {
        return Err(Divergence::XidWentBack { seen: next_xid, now: seen.next_xid });
    }
    // The following checks are about the data on which the postmaster was started, so they need a restart
    // since.
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

/// Returns what is recorded about a trusted publisher. Witnesses are kept on the same timeline of a primary,
/// and begin again on another one. A standby has none, because after a crash it may be back at its last
/// restartpoint.
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
        database: Some(seen.database),
        started_at: Some(seen.started_at),
        witnesses,
        distrusted: None,
    }
}

#[cfg(test)]
mod tests;
