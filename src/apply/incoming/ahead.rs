//! Which target tables are described together, and the descriptions that were read before they were needed.
//!
//! Describing one table takes nearly as long as describing a hundred, so others are read along with a table that
//! has been announced. They are tables that have not been announced yet, in the order of their names. As long as
//! announcements follow each other closely, four times as many are read each time.
//!
//! # Invariants
//! - A description is used at most once, and only while it is younger than [`AGE_MAX`]. DDL that comes between
//!   is found by the stamp that every transaction compares before its COMMIT (`apply::stamp`).
//! - Every table is described at most once before its announcement, unless its description has become too old.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::pg::QualifiedName;
use crate::schema::TargetTable;

/// Descriptions of target tables; none where the target has no such table.
pub type Description = Vec<(QualifiedName, Option<Arc<TargetTable>>)>;

/// Maximum age of a description that is used.
const AGE_MAX: Duration = Duration::from_secs(10);
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
}

impl Ahead {
    pub(crate) fn new(targets: impl Iterator<Item = QualifiedName>) -> Self {
        Self { unannounced: targets.collect(), read: HashMap::new(), together: TABLES_MIN, last: None }
    }

    /// Takes the description of a table that has been announced, if there is one that can be used.
    pub(crate) fn take(&mut self, target: &QualifiedName, now: Duration) -> Option<Option<Arc<TargetTable>>> {
        self.unannounced.remove(target);
        let (came, description) = self.read.remove(target)?;
        (now <= came + AGE_MAX).then_some(description)
    }

    /// Returns the tables to be described now: this one first.
    pub(crate) fn together_with(&mut self, target: &QualifiedName, now: Duration) -> Vec<QualifiedName> {
        self.read.retain(|_, (came, _)| now <= *came + AGE_MAX);
        let closely = self.last.is_some_and(|last| now <= last + AGE_MAX);
        self.together = if closely { (self.together * 4).min(TABLES_MAX) } else { TABLES_MIN };
        self.last = Some(now);
        let others = self.unannounced.iter().filter(|other| *other != target);
        let others = others.filter(|other| !self.read.contains_key(*other)).take(self.together - 1);
        std::iter::once(target).chain(others).cloned().collect()
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
        let mut ahead = Ahead::new((0..2).map(table));
        let names = ahead.together_with(&table(0), seconds(0));
        assert_eq!(names, [table(0), table(1)]);
        ahead.note(absent(names), seconds(1));
        assert!(ahead.take(&table(0), seconds(11)).is_some());
        assert!(ahead.take(&table(0), seconds(11)).is_none(), "it has been used");
        assert!(ahead.take(&table(1), seconds(12)).is_none());
        assert_eq!(ahead.together_with(&table(1), seconds(12)), [table(1)]);
    }

    #[test]
    fn announcements_that_come_now_and_then_read_few_others() {
        let mut ahead = Ahead::new((0..4000).map(table));
        for number in 0..100 {
            let now = seconds(11 * number as u64);
            assert!(ahead.take(&table(number), now).is_none());
            let names = ahead.together_with(&table(number), now);
            assert_eq!(names.len(), TABLES_MIN);
            ahead.note(absent(names), now);
        }
    }
}
