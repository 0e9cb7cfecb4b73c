//! Events that wait to be sent: whole transactions first, then what there is of the next.

use std::time::Duration;

use tokio::time::Instant;

use crate::apply::change::RowChange;
use crate::apply::incoming::event::Event;
use crate::apply::{Applied, How, unix_time_us};
use crate::pg::Lsn;
use crate::pgoutput::Begin;
use crate::telemetry::Tally;

/// A batch holds at most so many changes…
const BATCH_CHANGES_MAX: usize = 32_768;
/// …and bytes of rows. A transaction larger than this goes in slices.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// What has waited so long is sent ahead, though the target is still busy with what came before.
const BATCH_AGE_MAX: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct Gathered {
    events: Vec<Event>,
    bytes: usize,
    /// How many of them, from the first on, are whole transactions.
    whole: usize,
    /// When the first of them came.
    since: Option<Instant>,
}

impl Gathered {
    #[inline]
    pub(crate) fn push(&mut self, event: Event) {
        if self.events.is_empty() {
            self.since = Some(Instant::now());
        }
        self.bytes += event.size_bytes();
        self.events.push(event);
    }

    /// Everything so far is whole transactions.
    pub(crate) fn close(&mut self) {
        self.whole = self.events.len();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.events.len() >= BATCH_CHANGES_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    /// Whether whole transactions have waited long enough for a target that is busy.
    pub(crate) fn is_old(&self) -> bool {
        self.has_whole() && self.since.is_some_and(|since| since.elapsed() >= BATCH_AGE_MAX)
    }

    pub(crate) fn has_whole(&self) -> bool {
        self.whole > 0
    }

    /// An idle publisher's position; only between transactions.
    pub(crate) fn note_idle(&mut self, wal_end: Lsn) {
        if let Some(Event::Idle(lsn)) = self.events.last_mut() {
            *lsn = wal_end.max(*lsn);
        } else {
            self.push(Event::Idle(wal_end));
        }
        self.close();
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

    pub(crate) fn take_whole(&mut self) -> Vec<Event> {
        let rest = self.events.split_off(self.whole);
        let whole = self.take_all();
        for event in rest {
            self.push(event);
        }
        whole
    }

    /// Lets go of the last, unfinished transaction.
    pub(crate) fn drop_unfinished(&mut self) {
        self.bytes -= self.events.drain(self.whole..).map(|event| event.size_bytes()).sum::<usize>();
    }

    pub(crate) fn put_back(&mut self, mut events: Vec<Event>) {
        events.append(&mut self.events);
        self.take_all();
        for event in events {
            self.push(event);
        }
    }
}

/// The last commit among the events: its end and what there is to say of it.
pub(crate) fn last_applied(events: &[Event]) -> Option<(Lsn, Applied)> {
    events.iter().rev().find_map(|event| match event {
        Event::Commit { commit, changes } => {
            let applied = Applied {
                commit_lsn: commit.commit_lsn,
                commit_time_us: unix_time_us(commit.commit_time),
                changes: *changes,
                how: How::Committed,
            };
            Some((commit.end_lsn, applied))
        }
        _ => None,
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
            Event::Begin(_) | Event::Idle(_) => {}
        }
    }
    tally
}
