//! The texts of a verdict for operators, which the service and `check` share.

use crate::error::Diagnosis;
use crate::pg::{Lsn, SlotName, SubscriptionName};

use super::{Divergence, Record, Wait};

impl Divergence {
    /// Describes what is missing or doubtful, since when, and what an operator can do.
    #[must_use]
    pub fn diagnosis(&self, record: &Record, subscription: &SubscriptionName, slot: &SlotName) -> Diagnosis {
        let recorded = recorded(record);
        let (primary, detail, hint) = match *self {
            Self::SlotAhead { recorded: from, confirmed: to } => (
                format!("replication slot \"{slot}\" is ahead of the target"),
                format!(
                    "changes that were committed from {from} to {to} are missing: {recorded}, and the slot's \
                     confirmed_flush_lsn is {to}, so the publisher no longer sends them; the slot was made again or \
                     advanced by hand, or the target was restored or failed over to a server that lacks its last commits"
                ),
                format!(
                    "if another server or backup of the target has everything up to {to}, point [target] url at it, \
                     then \"pgsluice resume {subscription}\"; otherwise {}",
                    start_over(subscription)
                ),
            ),
            Self::UnknownTimeline { timeline, now } => (
                format!("the publisher is on timeline {now} and cannot tell where that came from"),
                format!(
                    "{recorded}, on timeline {timeline}; whether the publisher has the same WAL up to there is in \
                     the history file of timeline {now}, which it could not read"
                ),
                format!(
                    "restore {now:08X}.history into the publisher's pg_wal, then \"pgsluice resume {subscription}\"; \
                     or {}",
                    start_over(subscription)
                ),
            ),
            _ => (self.of_publisher(), self.doubt(record, &recorded), other_publisher(record, subscription)),
        };
        Diagnosis::new(primary).detail(detail).hint(hint)
    }

    /// Describes a publisher that contradicts the record.
    fn of_publisher(&self) -> String {
        match self {
            Self::LeftEarlier { .. } => "the publisher was promoted without all that the target has",
            Self::OtherDatabase { .. } => {
                "the publisher's database is not the one that the target comes from"
            }
            Self::OtherTimeline { .. } => "the publisher's history is not the one that the target comes from",
            Self::BeyondWal { .. } => "the target is ahead of the publisher",
            _ => "the publisher has gone back to an older state",
        }
        .to_owned()
    }

    fn doubt(&self, record: &Record, recorded: &str) -> String {
        let doubtful = match self.gap() {
            Some((from, to)) => {
                // The histories may have diverged before the oldest position that the publisher still shows.
                let earlier = if matches!(self, Self::LeftEarlier { .. }) { "" } else { " or earlier" };
                format!(
                    "what the target has from {from}{earlier} to {to} is not what the publisher has there, and what \
                     the publisher has there instead is missing from the target"
                )
            }
            None => "what the target has last is not what the publisher has there; from which position on cannot be \
                     told"
                .to_owned(),
        };
        let fact = match *self {
            Self::LeftEarlier { timeline, now, at, .. } => {
                format!("the publisher's timeline {now} left timeline {timeline} at {at}; {recorded}")
            }
            Self::OtherDatabase { recorded: known, now } => format!(
                "the server is the same, but the database has OID {now}, and the recorded one has {known}: a copy of \
                 it, perhaps; {recorded}"
            ),
            Self::OtherTimeline { timeline, now } if timeline == now => {
                format!("it is on another timeline {now} than before: it began elsewhere; {recorded}")
            }
            Self::OtherTimeline { timeline, now } => format!(
                "timeline {timeline}, which the target followed, is no ancestor of the publisher's timeline {now}; \
                 {recorded}"
            ),
            Self::BeyondWal { wal, .. } => format!("the publisher's WAL ends at {wal}; {recorded}"),
            Self::StartedEarlier { checkpoint, .. } => format!(
                "the publisher was started again, and its last checkpoint is at {checkpoint}, before what it had \
                 sent; {recorded}"
            ),
            Self::WalWentBack { seen, now } => {
                format!(
                    "the publisher's WAL ends at {now}, and ended at {seen}{}; {recorded}",
                    seen_at(record)
                )
            }
            Self::XidWentBack { seen, now } => format!(
                "the publisher's next transaction identifier is {now}, and was {seen}{}; {recorded}",
                seen_at(record)
            ),
            Self::SlotWentBack { seen, now } => {
                format!("the slot's restart_lsn is {now}, and was {seen}{}; {recorded}", seen_at(record))
            }
            Self::FoundBefore { .. } => format!(
                "this publisher was found to have been started from an older state, and still runs; {recorded}"
            ),
            Self::SlotAhead { .. } | Self::UnknownTimeline { .. } => return doubtful,
        };
        format!("{doubtful}: {fact}")
    }
}

impl Wait {
    /// Describes what has to happen.
    #[must_use]
    pub fn diagnosis(&self, slot: &SlotName) -> Diagnosis {
        match *self {
            Self::Replay { recorded, replayed } => {
                Diagnosis::new("the publisher is a standby that has not come as far as the target")
                    .detail(format!("the target has everything up to {recorded}, the standby has replayed {replayed}"))
                    .hint("streaming goes on by itself once the standby has caught up with its primary")
            }
            Self::Promotion => Diagnosis::new(format!(
                "replication slot \"{slot}\" on this standby follows its primary's, and cannot be streamed from"
            ))
            .detail("it is synchronised (sync_replication_slots) until the standby is promoted")
            .hint("promote the standby, or point \"publisher\" at the primary; streaming goes on by itself then"),
        }
    }
}

/// Describes how to start over, which remains if changes are lost.
pub(crate) fn start_over(subscription: &SubscriptionName) -> String {
    format!(
        "start over: \"pgsluice drop {subscription}\", empty the target's tables, and let pgsluice create the \
         subscription again"
    )
}

fn other_publisher(record: &Record, subscription: &SubscriptionName) -> String {
    let furthest = record.applied.max(record.copied).unwrap_or(Lsn::ZERO);
    format!(
        "if another server has the publisher's WAL up to {furthest}, point \"publisher\" at it, then \"pgsluice \
         resume {subscription}\"; otherwise {}",
        start_over(subscription)
    )
}

fn recorded(record: &Record) -> String {
    let applied = record.applied.unwrap_or(Lsn::ZERO);
    match record.applied_at {
        Some(at) => format!("the target has recorded everything up to {applied} at {at:.0}"),
        None => format!("the target has recorded everything up to {applied}"),
    }
}

fn seen_at(record: &Record) -> String {
    let seen_at = record.publisher.as_ref().and_then(|known| known.witnesses.seen_at);
    seen_at.map(|at| format!(" at {at:.0}")).unwrap_or_default()
}
