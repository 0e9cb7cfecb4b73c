//! Which target tables are described together, and the descriptions that were read before they were needed.
//!
//! Describing one table takes nearly as long as describing a hundred, so others are read along with a table that
//! has been announced. They are tables that have not been announced yet, in the order of their names. As long as
//! announcements follow each other closely, four times as many are read each time.
//!
//! # Invariants
//! - A description is used at most once, only while it is young, and only for a table whose columns are those that
//!   the publisher's catalog had when the attempt began. DDL that comes between is found by the stamp that every
//!   transaction compares before its COMMIT (`apply::stamp`).
//! - Every table is described at most once before its announcement, unless its description has become too old.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crate::pg::QualifiedName;
use crate::schema::TargetTable;

/// Descriptions of target tables; none where the target has no such table.
pub type Description = Vec<(QualifiedName, Option<Arc<TargetTable>>)>;

/// Which of the wanted tables are read from the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Those that have changed since they were read last.
    Changed,
    /// All, because what is known of them does not fit what has come.
    All,
}

/// Maximum age of a description that is used while the stream has not caught up since it was read.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Maximum age of any other description. In that time, nobody alters a table and uses it, so plans hardly ever have to be
/// made again.
const AGE_MAX_CAUGHT_UP: Duration = Duration::from_millis(100);
/// Within this time after the last tables were described, announcements follow closely.
const CLOSELY: Duration = Duration::from_secs(1);
/// Number of tables that are described together at first.
const TABLES_MIN: usize = 32;
/// Maximum of that number.
const TABLES_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Ahead {
    /// The targets of tables that have not been announced.
    unannounced: BTreeSet<QualifiedName>,
    /// Descriptions, with the time at which they came.
    read: HashMap<QualifiedName, (Duration, Option<Arc<TargetTable>>)>,
    /// Number of tables that are described together next.
    together: usize,
    /// When tables were last described.
    last: Option<Duration>,
    /// When the stream last had caught up with the publisher.
    caught_up: Duration,
    /// The last table that was described along with another one. The next ones come after it.
    reached: Option<QualifiedName>,
}

impl Ahead {
    pub(crate) fn new(targets: impl Iterator<Item = QualifiedName>) -> Self {
        Self {
            unannounced: targets.collect(),
            read: HashMap::new(),
            together: TABLES_MIN,
            last: None,
            caught_up: Duration::ZERO,
            reached: None,
        }
    }

    /// Notes that everything has been received, and no transaction is open.
    pub(crate) fn caught_up(&mut self, now: Duration) {
        self.caught_up = now;
    }

    fn is_young(&self, came: Duration, now: Duration) -> bool {
        now <= came + if came >= self.caught_up { AGE_MAX } else { AGE_MAX_CAUGHT_UP }
    }

    /// Takes the description of a table that has been announced, if there is one that can be used.
    #[expect(clippy::option_option, reason = "none if it was not read, Some(None) if there is no such table")]
    pub(crate) fn take(&mut self, target: &QualifiedName, now: Duration) -> Option<Option<Arc<TargetTable>>> {
        self.unannounced.remove(target);
        let (came, description) = self.read.remove(target)?;
        self.is_young(came, now).then_some(description)
    }

    /// Returns the tables to be described now: this one first.
    pub(crate) fn together_with(&mut self, target: &QualifiedName, now: Duration) -> Vec<QualifiedName> {
        let mut read = std::mem::take(&mut self.read);
        read.retain(|_, (came, _)| self.is_young(*came, now));
        self.read = read;
        let closely = self.last.is_some_and(|last| now <= last + CLOSELY);
        self.together = if closely { (self.together * 4).min(TABLES_MAX) } else { TABLES_MIN };
        self.last = Some(now);
        let after = self.reached.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let until = self.reached.as_ref().map_or(Bound::Excluded(target), Bound::Included);
        let rest = self.unannounced.range((after, Bound::Unbounded));
        // All are in `rest` as long as none has been reached.
        let first = self.unannounced.range((Bound::Unbounded, until)).filter(|_| self.reached.is_some());
        let others = rest.chain(first).filter(|other| *other != target && !self.read.contains_key(*other));
        let names: Vec<QualifiedName> =
            std::iter::once(target).chain(others.take(self.together - 1)).cloned().collect();
        self.reached = names.last().filter(|last| *last != target).cloned().or(self.reached.take());
        names
    }

    /// Forgets what was read before it was needed, because there has been DDL since.
    pub(crate) fn forget(&mut self) {
        self.read.clear();
    }

    /// Notes descriptions that have come.
    pub(crate) fn note(&mut self, description: Description, now: Duration) {
        self.read.extend(description.into_iter().map(|(name, table)| (name, (now, table))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(number: usize) -> QualifiedName {
        QualifiedName::new("public", format!("t{number:04}"))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn absent(names: Vec<QualifiedName>) -> Description {
        names.into_iter().map(|name| (name, None)).collect()
    }

    #[test]
    fn many_tables_take_few_looks_and_none_is_described_twice() {
        let mut ahead = Ahead::new((0..4000).map(table));
        let mut looks = Vec::new();
        for number in (0..4000).rev() {
            if ahead.take(&table(number), seconds(0)).is_some() {
                continue;
            }
            let names = ahead.together_with(&table(number), seconds(0));
            assert_eq!(names[0], table(number));
            looks.push(names.len());
            ahead.note(absent(names), seconds(0));
            assert!(ahead.take(&table(number), seconds(0)).is_some());
        }
        assert_eq!(looks, [32, 128, 512, 1024, 1024, 1024, 256]);
        assert_eq!(looks.iter().sum::<usize>(), 4000);
    }

    #[test]
    fn an_old_description_is_not_used() {
        let mut ahead = Ahead::new((0..4).map(table));
        let names = ahead.together_with(&table(0), seconds(0));
        assert_eq!(names, [table(0), table(1), table(2), table(3)]);
        ahead.note(absent(names), seconds(1));
        assert!(ahead.take(&table(0), seconds(1) + AGE_MAX).is_some());
        assert!(ahead.take(&table(0), seconds(2)).is_none(), "it has been used");
        ahead.caught_up(seconds(1) + AGE_MAX_CAUGHT_UP);
        assert!(ahead.take(&table(3), seconds(1) + AGE_MAX_CAUGHT_UP).is_some());
        assert!(ahead.take(&table(1), seconds(2)).is_none());
        assert_eq!(ahead.together_with(&table(1), seconds(2)), [table(1), table(2)]);
    }

    /// Descriptions that become too old are read again, but only after those that have not been read at all.
    #[test]
    fn every_table_has_its_turn() {
        let mut ahead = Ahead::new((0..4000).map(table));
        let mut seen = BTreeSet::new();
        for look in 0..8 {
            let now = AGE_MAX_CAUGHT_UP * 2 * look;
            ahead.caught_up(now);
            let names = ahead.together_with(&table(4000), now);
            seen.extend(names.iter().cloned());
            ahead.note(absent(names), now);
        }
        assert_eq!(seen.len(), 4001);
    }

    #[test]
    fn announcements_that_come_now_and_then_read_few_others() {
        let mut ahead = Ahead::new((0..4000).map(table));
        for number in 0..100_u32 {
            let now = seconds(2 * u64::from(number));
            let number = number as usize;
            ahead.caught_up(now);
            assert!(ahead.take(&table(number), now).is_none());
            let names = ahead.together_with(&table(number), now);
            assert_eq!(names.len(), TABLES_MIN);
            ahead.note(absent(names), now);
        }
    }
}
