//! Events that wait to be sent: whole transactions first, then what there is of the next.

use std::time::Duration;

use super::Moment;
use crate::apply::change::RowChange;
use crate::apply::incoming::event::Event;
use crate::apply::outcome::{Applied, How, unix_time_us};
use crate::pgoutput::{Begin, Commit, Tally};

/// How much may be gathered for one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Changes in a batch, at most. A transaction with more goes in slices.
    pub changes: usize,
    /// Bytes of rows in a batch, at most; one larger row goes alone.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { changes: 32_768, bytes: 2 << 20 }
    }
}

/// Whole transactions that have waited for this long are sent although the target is still busy.
pub(crate) const BATCH_AGE_MAX: Duration = Duration::from_millis(100);

/// Events in publisher order.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    events: Vec<Event>,
    bytes: usize,
    /// How many of the events, from the first on, belong to whole transactions.
    whole: usize,
    /// When the first event came.
    since: Moment,
}

impl Gathered {
    #[inline]
    pub(crate) fn push(&mut self, event: Event, now: Moment) {
        if self.events.is_empty() {
            self.since = now;
        }
        self.bytes += event.size_bytes();
        self.events.push(event);
    }

    /// Everything so far belongs to whole transactions.
    pub(crate) fn close(&mut self) {
        self.whole = self.events.len();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn is_full(&self, bounds: Bounds) -> bool {
        self.events.len() >= bounds.changes || self.bytes >= bounds.bytes
    }

    /// When whole transactions will have waited long enough for a target that is busy.
    pub(crate) fn is_old_at(&self) -> Option<Moment> {
        self.has_whole().then(|| self.since + BATCH_AGE_MAX)
    }

    pub(crate) fn has_whole(&self) -> bool {
        self.whole > 0
    }

    /// The last, unfinished transaction gets the beginning that it came without.
    pub(crate) fn begin_last(&mut self, begin: Begin) {
        self.events.insert(self.whole, Event::Begin(begin));
    }

    pub(crate) fn take_all(&mut self) -> Vec<Event> {
        self.bytes = 0;
        self.whole = 0;
        // As much will come again: growing step by step would move every event several times.
        let next = Vec::with_capacity(self.events.len());
        std::mem::replace(&mut self.events, next)
    }

    /// The whole transactions. What there is of the next one stays.
    pub(crate) fn take_whole(&mut self, now: Moment) -> Vec<Event> {
        let rest = self.events.split_off(self.whole);
        let whole = self.take_all();
        for event in rest {
            self.push(event, now);
        }
        whole
    }

    /// Drops the last, unfinished transaction.
    pub(crate) fn drop_unfinished(&mut self) {
        self.bytes -= self.events.drain(self.whole..).map(|event| event.size_bytes()).sum::<usize>();
    }
}

/// What there is to say of a transaction that has ended.
pub(crate) fn applied(commit: &Commit, changes: u64, how: How) -> Applied {
    Applied { commit_lsn: commit.commit_lsn, commit_time_us: unix_time_us(commit.commit_time), changes, how }
}

/// The last commit among the events.
pub(crate) fn last_commit(events: &[Event]) -> Option<(Commit, u64)> {
    events.iter().rev().find_map(|event| match event {
        Event::Commit { commit, changes } => Some((*commit, *changes)),
        Event::Begin(_) | Event::Change { .. } | Event::Truncate { .. } => None,
    })
}

/// Counts what the events hold, before compaction.
pub(crate) fn summarize(events: &[Event]) -> Tally {
    let mut tally = Tally::default();
    for event in events {
        match event {
            Event::Commit { .. } => tally.transactions += 1,
            Event::Change { change: RowChange::Insert { .. }, .. } => tally.inserts += 1,
            Event::Change { change: RowChange::Update { .. }, .. } => tally.updates += 1,
            Event::Change { change: RowChange::Delete { .. }, .. } => tally.deletes += 1,
            Event::Truncate { tables, .. } => tally.truncates += tables.len() as u64,
            Event::Begin(_) => {}
        }
    }
    tally
}
