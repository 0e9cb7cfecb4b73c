//! Events that wait to be sent: first whole transactions, then the received part of the next one.

use std::time::Duration;

use super::Moment;
use crate::apply::change::RowChange;
use crate::apply::incoming::event::Event;
use crate::apply::outcome::{Applied, How, unix_time_us};
use crate::pgoutput::{Begin, Commit, Tally};

/// The maximum size of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of changes. A larger transaction is sent in slices.
    pub changes: usize,
    /// Maximum bytes of rows. A larger row is a batch of its own.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { changes: 32_768, bytes: 2 << 20 }
    }
}

/// Whole transactions that have waited this long are sent although the target has not answered everything.
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

    /// Notes that all events so far belong to whole transactions.
    pub(crate) fn close(&mut self) {
        self.whole = self.events.len();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn is_full(&self, bounds: Bounds) -> bool {
        self.events.len() >= bounds.changes || self.bytes >= bounds.bytes
    }

    /// The time from which whole transactions are sent to a busy target; none if there are none.
    pub(crate) fn is_old_at(&self) -> Option<Moment> {
        self.has_whole().then(|| self.since + BATCH_AGE_MAX)
    }

    pub(crate) fn has_whole(&self) -> bool {
        self.whole > 0
    }

    /// Puts a Begin before the events of the last, unfinished transaction: a transaction in progress is
    /// received without one.
    pub(crate) fn begin_last(&mut self, begin: Begin) {
        self.events.insert(self.whole, Event::Begin(begin));
    }

    pub(crate) fn take_all(&mut self) -> Vec<Event> {
        self.bytes = 0;
        self.whole = 0;
        // About as many events will come again, and growing the vector step by step would move each several
        // times.
        let next = Vec::with_capacity(self.events.len());
        std::mem::replace(&mut self.events, next)
    }

    /// Takes the whole transactions. The events of the next one stay.
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

/// Describes a transaction that has ended.
pub(crate) fn applied(commit: &Commit, changes: u64, how: How) -> Applied {
    Applied { commit_lsn: commit.commit_lsn, commit_time_us: unix_time_us(commit.commit_time), changes, how }
}

/// Returns the last commit among the events and the number of the transaction's changes.
pub(crate) fn last_commit(events: &[Event]) -> Option<(Commit, u64)> {
    events.iter().rev().find_map(|event| match event {
        Event::Commit { commit, changes } => Some((*commit, *changes)),
        Event::Begin(_) | Event::Change { .. } | Event::Truncate { .. } => None,
    })
}

/// Counts transactions and changes, before compaction.
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
