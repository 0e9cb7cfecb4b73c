//! The catalog rows by which publications publish a table, and what two looks at them prove. Pure.
//!
//! A row of `pg_publication`, `pg_publication_rel` or `pg_publication_namespace` that is there at two looks was there
//! all the time between, because its OID is not given to another row. So a table that was a member by the same row
//! at both looks has not left meanwhile. Equal definitions prove nothing: a table may have left and come back.

use serde::{Deserialize, Serialize};

use super::Operations;
use crate::pg::Lsn;

/// How each publication publishes a table, in the order in which the subscription names the publications.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Marks(pub Vec<Mark>);

/// How one publication publishes a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// OID of the publication.
    pub publication: u32,
    pub name: String,
    /// The transaction that wrote the publication's row (`xmin`): ALTER PUBLICATION … SET (…), RENAME and OWNER
    /// change it.
    pub version: String,
    pub actions: Operations,
    /// The rows that make the table a member, each as a text that another row never has.
    pub rows: Vec<String>,
    /// The row filter; none if all rows are published.
    pub filter: Option<String>,
    /// The column list as attribute numbers; none if all columns are published.
    pub columns: Option<Vec<i16>>,
    /// It was seen first at the look that ended here; none if the table was synchronised after that.
    #[serde(default)]
    pub since: Option<Lsn>,
}

/// Something that has changed of what is published of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Redefined {
    /// The published operations have changed, or may have changed for some time.
    Operations,
    RowFilter,
    Columns,
}

/// What two looks at a table's marks prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuity {
    /// It was published all the time, and nothing of it has changed.
    Same,
    /// It was published all the time, but not in the same way.
    Redefined(Vec<Redefined>),
    /// It may have left in between.
    Broken,
    /// It was not published for some time, because this publication was dropped and made again.
    MadeAgain(String),
}

impl Marks {
    /// Compares what was recorded with what is seen now.
    #[must_use]
    pub fn since(&self, recorded: &Self) -> Continuity {
        let lasting: Vec<(&Mark, &Mark)> =
            recorded.pairs(self).filter(|(was, is)| was.shares_row(is)).collect();
        if lasting.is_empty() {
            return self.without_proof(recorded);
        }
        let (was, is) = (recorded.actions(), self.actions());
        // An operation that is published now has certainly been published all the time if one row proves that.
        let unaltered = lasting.iter().filter(|(was, is)| was.version == is.version);
        let certain: Operations = unaltered.map(|(was, is)| was.actions.and(is.actions)).collect();
        let mut changes = Vec::new();
        if was != is || certain != is {
            changes.push(Redefined::Operations);
        }
        // As with operations: rows of the table that only a new row publishes may have been left out for some time.
        let certain = filters(lasting.iter().map(|(_, is)| *is));
        if (recorded.filters() != self.filters() || certain != self.filters())
            && recorded.rows() != self.rows()
        {
            changes.push(Redefined::RowFilter);
        }
        if recorded.columns() != self.columns() && recorded.rows() != self.rows() {
            changes.push(Redefined::Columns);
        }
        if changes.is_empty() { Continuity::Same } else { Continuity::Redefined(changes) }
    }

    /// No row is left that proves anything. ALTER PUBLICATION … SET TABLE with another filter or column list makes
    /// a new row, too.
    fn without_proof(&self, recorded: &Self) -> Continuity {
        let by_name = |mark: &Mark| recorded.0.iter().find(|was| was.name == mark.name);
        let made_again =
            self.0.iter().find(|mark| by_name(mark).is_some_and(|was| was.publication != mark.publication));
        if let Some(mark) = made_again {
            return Continuity::MadeAgain(mark.name.clone());
        }
        let set = |(was, is): (&Mark, &Mark)| {
            was.version == is.version && (&was.filter, &was.columns) != (&is.filter, &is.columns)
        };
        if recorded.0.len() != self.0.len() || !recorded.pairs(self).any(set) {
            return Continuity::Broken;
        }
        let mut changes = Vec::new();
        if recorded.filters() != self.filters() {
            changes.push(Redefined::RowFilter);
        }
        if recorded.columns() != self.columns() {
            changes.push(Redefined::Columns);
        }
        if changes.is_empty() { Continuity::Broken } else { Continuity::Redefined(changes) }
    }

    /// These marks, which were seen at a look that ended at `end`, with what is recorded of when each was seen first.
    #[must_use]
    pub fn first_seen(mut self, recorded: &Self, end: Lsn) -> Self {
        for mark in &mut self.0 {
            let known =
                recorded.0.iter().find(|was| was.publication == mark.publication && was.shares_row(mark));
            mark.since = known.map_or(Some(end), |was| was.since);
        }
        self
    }

    /// Whether this, the earlier definition, leaves out something that the later one publishes, or may do so: then
    /// it has been missing for as long as the earlier one was in force.
    #[must_use]
    pub fn left_out(&self, what: Redefined, later: &Self) -> bool {
        match what {
            Redefined::Operations => later.actions().and(self.actions()) != later.actions(),
            Redefined::RowFilter => self.filters().is_some(),
            Redefined::Columns => self.columns().is_some(),
        }
    }

    /// In what this, the earlier definition, and the later one differ.
    pub fn differences(&self, later: &Self) -> impl Iterator<Item = Redefined> {
        let differ = [
            (self.actions() != later.actions()).then_some(Redefined::Operations),
            (self.filters() != later.filters()).then_some(Redefined::RowFilter),
            (self.columns() != later.columns()).then_some(Redefined::Columns),
        ];
        differ.into_iter().flatten()
    }

    /// Pairs each publication that was recorded with its mark as it is seen now, if it still exists by its name.
    fn pairs<'a>(&'a self, seen: &'a Self) -> impl Iterator<Item = (&'a Mark, &'a Mark)> {
        self.0.iter().filter_map(|was| {
            let is = seen.0.iter().find(|is| is.publication == was.publication && is.name == was.name)?;
            Some((was, is))
        })
    }

    /// The operations of all publications.
    #[must_use]
    pub fn actions(&self) -> Operations {
        self.0.iter().map(|mark| mark.actions).collect()
    }

    fn rows(&self) -> Vec<(u32, &str)> {
        let mut rows: Vec<_> = self
            .0
            .iter()
            .flat_map(|mark| mark.rows.iter().map(|row| (mark.publication, row.as_str())))
            .collect();
        rows.sort_unstable();
        rows
    }

    fn filters(&self) -> Option<Vec<&str>> {
        filters(&self.0)
    }

    /// The column list. The publisher refuses publications with different ones.
    fn columns(&self) -> Option<&Vec<i16>> {
        self.0.iter().find_map(|mark| mark.columns.as_ref())
    }
}

/// The distinct row filters; none as soon as one publication has no filter.
fn filters<'a>(marks: impl IntoIterator<Item = &'a Mark>) -> Option<Vec<&'a str>> {
    let mut filters = marks.into_iter().map(|mark| mark.filter.as_deref()).collect::<Option<Vec<_>>>()?;
    filters.sort_unstable();
    filters.dedup();
    Some(filters)
}

impl Mark {
    fn shares_row(&self, other: &Self) -> bool {
        self.rows.iter().any(|row| other.rows.contains(row))
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    const INSERT: Operations = Operations::INSERT;

    fn mark(publication: u32, version: &str, rows: &[&str]) -> Mark {
        Mark {
            publication,
            name: format!("p{publication}"),
            version: version.to_owned(),
            actions: Operations::ALL,
            rows: rows.iter().map(|&row| row.to_owned()).collect(),
            filter: None,
            columns: None,
            since: None,
        }
    }

    fn check(recorded: &[Mark], seen: &[Mark], expected: &Continuity) {
        let (recorded, seen) = (Marks(recorded.to_vec()), Marks(seen.to_vec()));
        assert_eq!(seen.since(&recorded), *expected, "{recorded:?}\n{seen:?}");
    }

    #[test]
    fn a_row_that_stayed_proves_that_the_table_stayed() {
        use Continuity::{Broken, Same};
        let (one, two) = (mark(1, "7", &["table 10"]), mark(2, "7", &["all"]));
        check(from_ref(&one), from_ref(&one), &Same);
        check(from_ref(&one), &[mark(1, "7", &["table 11"])], &Broken);
        check(from_ref(&one), &[mark(1, "7", &["schema 5 80"])], &Broken);
        check(&[mark(1, "7", &["table 10", "schema 5 80"])], &[mark(1, "7", &["schema 5 80"])], &Same);
        check(&[mark(1, "7", &["schema 5 80"])], &[mark(1, "7", &["schema 5 81"])], &Broken);
        check(&[one.clone(), two.clone()], from_ref(&two), &Same);
        check(&[one.clone(), two.clone()], &[mark(1, "7", &["table 11"]), two.clone()], &Same);
        check(&[one], &[two], &Broken);
    }

    #[test]
    fn a_publication_that_was_made_again_is_another_one() {
        let recorded = mark(1, "7", &["all"]);
        let again = Mark { name: "p1".to_owned(), ..mark(2, "9", &["all"]) };
        check(from_ref(&recorded), from_ref(&again), &Continuity::MadeAgain("p1".to_owned()));
        let other = mark(3, "7", &["all"]);
        check(&[recorded.clone(), other.clone()], &[again, other], &Continuity::Same);
        // Another name has not been asked for all the time.
        check(from_ref(&recorded), &[Mark { name: "q".to_owned(), ..recorded.clone() }], &Continuity::Broken);
    }

    #[test]
    fn operations_are_compared_one_by_one() {
        use Redefined::Operations;
        let redefined = |what: &[Redefined]| Continuity::Redefined(what.to_vec());
        let all = mark(1, "7", &["all"]);
        let narrow = Mark { actions: INSERT, version: "8".to_owned(), ..all.clone() };
        check(from_ref(&all), from_ref(&narrow), &redefined(&[Operations]));
        check(from_ref(&narrow), from_ref(&all), &redefined(&[Operations]));
        // It is as before now; what it published in between is not known.
        check(from_ref(&all), &[Mark { version: "9".to_owned(), ..all.clone() }], &redefined(&[Operations]));
        // Inserts were published all the time, deletes only by a row that has gone and by one that is new.
        let inserts = Mark { actions: INSERT, ..mark(2, "7", &["table 20"]) };
        check(
            &[mark(1, "7", &["table 10"]), inserts.clone()],
            &[mark(1, "7", &["table 11"]), inserts.clone()],
            &redefined(&[Operations]),
        );
        check(&[inserts.clone(), all.clone()], from_ref(&inserts), &redefined(&[Operations]));
        // The publications exchange what they publish.
        let of = |mark: &Mark, actions, version: &str| Mark {
            actions,
            version: version.to_owned(),
            ..mark.clone()
        };
        let updates = crate::schema::Operations::UPDATE.or(INSERT);
        check(
            &[of(&all, updates, "7"), inserts.clone()],
            &[of(&all, INSERT, "8"), of(&inserts, updates, "9")],
            &redefined(&[Operations]),
        );
    }

    #[test]
    fn filters_and_column_lists_are_compared_if_their_rows_have_changed() {
        let redefined = |what: &[Redefined]| Continuity::Redefined(what.to_vec());
        let filtered =
            |row: &str, filter: &str| Mark { filter: Some(filter.to_owned()), ..mark(1, "7", &[row]) };
        check(
            &[filtered("table 10", "a > 1")],
            &[filtered("table 11", "a > 2")],
            &redefined(&[Redefined::RowFilter]),
        );
        // A column was renamed.
        check(&[filtered("table 10", "a > 1")], &[filtered("table 10", "b > 1")], &Continuity::Same);
        check(&[filtered("table 10", "a > 1")], &[filtered("table 11", "a > 1")], &Continuity::Broken);
        let listed = Mark { columns: Some(vec![1, 2]), ..mark(1, "7", &["table 12"]) };
        check(&[mark(1, "7", &["table 10"])], &[listed], &redefined(&[Redefined::Columns]));
        let also = mark(2, "7", &["all"]);
        check(
            &[filtered("table 10", "a > 1")],
            &[filtered("table 10", "a > 1"), also.clone()],
            &redefined(&[Redefined::RowFilter]),
        );
        // The publication without a filter did not have the table for some time, or did not exist.
        for again in [mark(2, "7", &["table 21"]), mark(3, "9", &["table 20"])] {
            check(
                &[filtered("table 10", "a > 1"), mark(2, "7", &["table 20"])],
                &[filtered("table 10", "a > 1"), again],
                &redefined(&[Redefined::RowFilter]),
            );
        }
        // What stayed published all rows.
        check(
            &[filtered("table 10", "a > 1"), also.clone()],
            &[filtered("table 11", "a > 1"), also],
            &Continuity::Same,
        );
    }
}
