//! Keeps facts that the publisher shows until they are certain to survive its crash.
//!
//! A transaction's record may not be flushed when the transaction has completed (an abort, or a commit with
//! `synchronous_commit = off`), and a slot may show a `restart_lsn` that is not on disk. So each observation
//! is kept until the WAL that was inserted before it is flushed, that of a slot also for some time.

use std::time::Duration;

use jiff::Timestamp;

use crate::pg::Lsn;

use super::slot::{SlotInfo, SlotView};
use super::trust::{RESTART_LSN_AGE, Role, Witnesses};

/// Observations that are not yet certain to survive a crash.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The timeline and the postmaster's start time that they belong to.
    run: Option<(u32, Timestamp)>,
    /// The end of WAL and the next transaction identifier.
    wal: Option<(Lsn, u64)>,
    /// The slot's `restart_lsn`, and since when the slot has shown it.
    restart_lsn: Option<(Lsn, Duration)>,
    proven: Witnesses,
}

impl Waiting {
    /// Takes an observation; returns the values that are certain now, if they have changed. `now` is a
    /// monotonic time.
    pub(super) fn take(&mut self, now: Duration, view: &SlotView) -> Option<((u32, Timestamp), Witnesses)> {
        let (Role::Primary, Some(timeline), Some(inserted)) = (view.role, view.timeline, view.inserted)
        else {
            *self = Self::default();
            return None;
        };
        let run = (timeline, view.started_at);
        // The first observation of a primary counts as a change: the server may have been promoted while it
        // streamed.
        let first = self.run != Some(run);
        if first {
            *self = Self { run: Some(run), ..Self::default() };
        }
        let before = self.proven;
        match self.wal {
            Some((end, next_xid)) if view.publisher_lsn >= end => {
                self.proven.wal = Some(end);
                self.proven.next_xid = Some(next_xid);
                self.wal = Some((inserted, view.next_xid));
            }
            Some(_) => {}
            None => self.wal = Some((inserted, view.next_xid)),
        }
        let restart_lsn = view.slot.as_ref().and_then(SlotInfo::restart_lsn);
        match (self.restart_lsn, restart_lsn) {
            (Some((shown, since)), Some(_)) if now.saturating_sub(since) < RESTART_LSN_AGE => {
                self.restart_lsn = Some((shown, since));
            }
            (shown, Some(restart_lsn)) => {
                self.proven.restart_lsn = shown.map(|(shown, _)| shown).or(self.proven.restart_lsn);
                self.restart_lsn = Some((restart_lsn, now));
            }
            (_, None) => self.restart_lsn = None,
        }
        (first || self.proven != before).then_some((run, self.proven))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(flushed: u64, inserted: u64, next_xid: u64, restart_lsn: &str) -> SlotView {
        let slot = serde_json::json!({ "slot_type": "logical", "restart_lsn": restart_lsn });
        SlotView {
            publisher_lsn: Lsn::new(flushed),
            role: Role::Primary,
            inserted: Some(Lsn::new(inserted)),
            timeline: Some(1),
            next_xid,
            unused_xid: next_xid,
            database: 5,
            started_at: Timestamp::UNIX_EPOCH,
            slot: Some(serde_json::from_value(slot).unwrap()),
        }
    }

    #[test]
    fn a_sight_counts_once_its_wal_is_flushed() {
        let mut waiting = Waiting::default();
        let mut check = |second, view: SlotView, expected: Option<(u64, u64)>| {
            let news = waiting.take(Duration::from_secs(second), &view).map(|(_, proven)| proven);
            let proven = news.and_then(|proven| proven.wal.map(Lsn::as_u64).zip(proven.next_xid));
            assert_eq!(proven, expected, "at {second}");
        };
        check(0, view(10, 20, 5, "0/1"), None);
        check(1, view(19, 30, 6, "0/1"), None);
        check(2, view(20, 30, 7, "0/1"), Some((20, 5)));
        check(3, view(30, 30, 7, "0/1"), Some((30, 7)));
        check(4, view(30, 30, 7, "0/1"), None);
    }

    #[test]
    fn a_restart_lsn_counts_after_some_time() {
        let mut waiting = Waiting::default();
        let mut check = |second, restart_lsn: &str, expected: Option<u64>| {
            waiting.take(Duration::from_secs(second), &view(10, 20, 5, restart_lsn));
            assert_eq!(waiting.proven.restart_lsn.map(Lsn::as_u64), expected, "at {second}");
        };
        check(0, "0/1", None);
        check(9, "0/2", None);
        check(10, "0/3", Some(1));
        check(19, "0/4", Some(1));
        check(20, "0/4", Some(3));
    }

    #[test]
    fn another_run_begins_anew() {
        let mut waiting = Waiting::default();
        waiting.take(Duration::ZERO, &view(10, 20, 5, "0/1"));
        let restarted = SlotView { started_at: Timestamp::from_second(1).unwrap(), ..view(30, 40, 9, "0/1") };
        let run = (1, Timestamp::from_second(1).unwrap());
        assert_eq!(waiting.take(Duration::from_secs(1), &restarted), Some((run, Witnesses::default())));
        assert_eq!(
            waiting.take(Duration::from_secs(2), &SlotView { publisher_lsn: Lsn::new(31), ..restarted }),
            None
        );
        let standby = SlotView { role: Role::Standby, ..view(50, 50, 9, "0/1") };
        assert_eq!(waiting.take(Duration::from_secs(20), &standby), None);
        assert_eq!(waiting.run, None);
    }
}
