//! Columns of which older rows may differ between the sides, found when the stream describes their table.
//!
//! Pure. What `ALTER TABLE` does to rows is not streamed, and the Relation message has names and types only. So a
//! column is followed by its attribute numbers on both sides: older rows are equal as long as the same two columns
//! belong together. Otherwise both catalogs have to tell that older rows are equal (`older_rows`).
//!
//! # Which numbers the stream means
//! The publisher's catalog is read after the Relation message has come, so that it may be newer. A number never comes
//! again. So of the columns that were recorded, those that the catalog still has existed in the message, too, and the
//! message's columns are in the order of their numbers. A column is found by its name, as far as that holds. Where
//! columns were added and dropped since the record, the message may mean one of those; then nothing is assumed.
//!
//! What cannot be noticed: an expression that keeps the type (`ALTER … TYPE text USING upper(v)`), and values that
//! somebody else has written into a column of the target before it was published.

use super::older_rows::{self, Filling, MissingValue};
use super::seen::{SeenColumn, SeenTable};
use super::{PublishedColumn, PublishedRelation, TargetTable};

/// A published table as the stream describes it, with the target's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub target_oid: u32,
    /// Their numbers on the publisher are not known.
    pub columns: Vec<SeenColumn>,
    /// What the target's rows have that were written before a column was published.
    fillings: Vec<Filling>,
}

/// A column of the publisher's catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookedColumn {
    pub seen: SeenColumn,
    /// Whether its type is a domain. The stream does not tell a domain's modifier, unless the domain was known when
    /// the attempt began.
    pub of_domain: bool,
    pub missing: MissingValue,
}

/// What the publisher's catalog has of a table, read after the stream described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableLook {
    /// In the order of their numbers; those that are not published, too.
    pub columns: Vec<LookedColumn>,
    /// The largest attribute number, dropped columns included.
    pub last_number: i16,
    /// As [`SeenTable::files`].
    pub files: Vec<u32>,
}

/// A column of which older rows may differ, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedefinedColumn {
    pub column: String,
    pub why: Why,
}

/// Why older rows may differ in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It had another type; both as SQL.
    Type {
        before: String,
        now: String,
    },
    AddedAgain,
    /// On the publisher, it had this name before, and the target's has not been renamed.
    Renamed {
        from: String,
    },
    /// The target's column is another one than before.
    OtherTarget,
    /// The target's column has the values of the publisher's column of this name.
    TargetOf {
        other: String,
    },
    /// The publisher had it, but did not publish it.
    NotPublished,
    /// It is new, and older rows of the sides have this.
    Filled {
        publisher: Filling,
        target: Filling,
    },
    /// It is new, and the publisher's catalog no longer tells which one it was.
    Unknown,
}

impl Description {
    #[must_use]
    pub fn of(published: &PublishedRelation, target: &TargetTable) -> Self {
        let columns = SeenColumn::all_of(published, Some(target));
        let filling = |column: &PublishedColumn| {
            let found = target.columns.iter().find(|found| found.name == column.goes_to());
            match found {
                Some(found) => older_rows::of_target(found),
                // It goes nowhere as long as it is NULL.
                None if column.goes_to().is_empty() => Filling::Null,
                None => Filling::PerRow,
            }
        };
        let fillings = published.columns.iter().map(filling).collect();
        Self { target_oid: target.oid, fillings, columns }
    }

    /// Whether the table is described as it is recorded. The publisher's numbers may differ nevertheless.
    #[must_use]
    pub fn is_as_recorded(&self, recorded: &SeenTable) -> bool {
        recorded.target_oid == Some(self.target_oid)
            && recorded.columns.len() == self.columns.len()
            && recorded
                .columns
                .iter()
                .zip(&self.columns)
                .all(|(was, is)| was.number.is_some() && was.target == is.target && was.is_described_as(is))
    }

    /// Judges the description by the record and by the publisher's catalog; none if the table no longer exists.
    /// Returns the columns of which older rows may differ, and what is to be recorded.
    #[must_use]
    pub fn judge(
        &self,
        recorded: Option<&SeenTable>,
        look: Option<&TableLook>,
    ) -> (Vec<RedefinedColumn>, SeenTable) {
        let none = SeenTable::default();
        let before = recorded.unwrap_or(&none);
        let mut columns = self.columns.clone();
        let numbers = look.map_or_else(|| vec![None; columns.len()], |look| numbers(before, &columns, look));
        for (column, number) in columns.iter_mut().zip(numbers) {
            column.number = number;
            let looked =
                look.and_then(|look| look.columns.iter().find(|looked| looked.seen.number == number));
            if let Some(looked) = looked.filter(|looked| looked.of_domain && looked.seen.has_type_of(column))
            {
                column.typmod = looked.seen.typmod;
            }
        }
        let judge =
            Judge { before, now: &columns, look, same_target: before.target_oid == Some(self.target_oid) };
        let found = match recorded {
            Some(_) => columns
                .iter()
                .zip(&self.fillings)
                .enumerate()
                .filter_map(|(at, (column, filling))| {
                    Some(RedefinedColumn { column: column.name.clone(), why: judge.column(at, filling)? })
                })
                .collect(),
            // It was not described before, so nothing is known to compare with.
            None => Vec::new(),
        };
        let now = record(before, columns, self.target_oid, look);
        (found, now)
    }
}

/// What is to be recorded. Where the catalog is newer than the description, what it says of the table is not used.
fn record(
    before: &SeenTable,
    columns: Vec<SeenColumn>,
    target_oid: u32,
    look: Option<&TableLook>,
) -> SeenTable {
    let known = columns.iter().filter_map(|column| column.number).max().unwrap_or_default();
    let last_number = known.max(before.last_number);
    let is_newer = |look: &TableLook| {
        look.columns.iter().any(|column| column.seen.number.is_some_and(|number| number > last_number))
            || columns.iter().any(|column| column.number.is_none())
    };
    match look.filter(|look| !is_newer(look)) {
        Some(look) => SeenTable {
            columns,
            last_number: look.last_number.max(last_number),
            files: Some(look.files.clone()),
            target_oid: Some(target_oid),
        },
        None => SeenTable { columns, last_number, files: before.files.clone(), target_oid: Some(target_oid) },
    }
}

/// Finds the numbers of the columns that the stream has described.
fn numbers(before: &SeenTable, now: &[SeenColumn], look: &TableLook) -> Vec<Option<i16>> {
    let recorded = |number: i16| before.columns.iter().any(|column| column.number == Some(number));
    let by_name = |column: &SeenColumn| {
        let found = look.columns.iter().find(|found| found.seen.name == column.name)?;
        // Another column was given the name if it is newer, and has another type.
        let number = found.seen.number?;
        (recorded(number) || found.seen.has_type_of(column)).then_some(number)
    };
    let mut numbers: Vec<Option<i16>> = now.iter().map(by_name).collect();
    let ordered = {
        let known: Vec<i16> = numbers.iter().copied().flatten().collect();
        known.is_sorted_by(|a, b| a < b)
    };
    let kept: Vec<i16> = look
        .columns
        .iter()
        .filter_map(|column| column.seen.number)
        .filter(|&number| recorded(number))
        .collect();
    let has_kept = kept.iter().all(|&number| numbers.contains(&Some(number)));
    if kept.len() == now.len() && !(ordered && has_kept) {
        // They are all that there was.
        return kept.into_iter().map(Some).collect();
    }
    if !ordered {
        return vec![None; now.len()];
    }
    // A recorded column that was renamed or dropped since.
    for at in 0..now.len() {
        if numbers[at].is_none() {
            numbers[at] = before_by_name(before, &now[at]).filter(|number| fits(&numbers, at, *number));
        }
    }
    numbers
}

fn before_by_name(before: &SeenTable, column: &SeenColumn) -> Option<i16> {
    before.columns.iter().find(|before| before.name == column.name)?.number
}

/// Whether the column at this place may have the number, since it stands between its neighbours.
fn fits(numbers: &[Option<i16>], at: usize, number: i16) -> bool {
    let below = numbers[..at].iter().copied().flatten().all(|other| other < number);
    below && numbers[at + 1..].iter().copied().flatten().all(|other| other > number)
}

struct Judge<'a> {
    before: &'a SeenTable,
    now: &'a [SeenColumn],
    look: Option<&'a TableLook>,
    /// Whether the numbers of the target's columns can be compared.
    same_target: bool,
}

impl Judge<'_> {
    fn column(&self, at: usize, filling: &Filling) -> Option<Why> {
        let column = &self.now[at];
        let at_name = self.before.columns.iter().position(|before| before.name == column.name);
        let Some(number) = column.number else { return self.unnumbered(at, at_name) };
        if let Some(before) = self.before.columns.iter().find(|before| before.number == Some(number)) {
            return self.same(before, column);
        }
        if at_name.is_some_and(|named| self.before.columns[named].number.is_none()) {
            // The record is of an older version.
            return self.unnumbered(at, at_name);
        }
        let has_target = |before: &&SeenColumn| match (before.target, column.target) {
            (Some(was), Some(is)) if self.same_target => was == is,
            _ => before.name == column.name,
        };
        match self.before.columns.iter().find(has_target) {
            Some(other) if other.name == column.name => Some(match changed_type(other, column) {
                Some(Why::Type { before, now }) if before != now => Why::Type { before, now },
                _ => Why::AddedAgain,
            }),
            Some(other) => Some(Why::TargetOf { other: other.name.clone() }),
            None => self.new_column(number, filling),
        }
    }

    /// The publisher's column is the same one.
    fn same(&self, before: &SeenColumn, now: &SeenColumn) -> Option<Why> {
        let same_target = match (before.target, now.target) {
            (Some(was), Some(is)) if self.same_target => was == is,
            _ => before.name == now.name,
        };
        match (same_target, before.name == now.name) {
            (true, _) => changed_type(before, now),
            (false, true) => Some(Why::OtherTarget),
            (false, false) => Some(Why::Renamed { from: before.name.clone() }),
        }
    }

    /// Its number is not known. If it stands where it stood before, nothing else than its type has changed.
    fn unnumbered(&self, at: usize, named: Option<usize>) -> Option<Why> {
        let Some(named) = named else {
            // Without a catalog, there is no table any more whose rows could differ.
            return self.look.map(|_| Why::Unknown);
        };
        let place =
            |column: &SeenColumn| self.before.columns.iter().position(|before| before.name == column.name);
        if self.now[..at].iter().filter_map(place).any(|earlier| earlier > named) {
            return Some(Why::AddedAgain);
        }
        changed_type(&self.before.columns[named], &self.now[at])
    }

    fn new_column(&self, number: i16, target: &Filling) -> Option<Why> {
        let look = self.look?;
        let last = self.before.last_number;
        if number <= last {
            return Some(Why::NotPublished);
        }
        let exists = |number: i16| look.columns.iter().any(|column| column.seen.number == Some(number));
        if !(last + 1..=look.last_number).all(exists) {
            return Some(Why::Unknown);
        }
        let known = self.before.files.as_deref().unwrap_or_default();
        let rewritten = look.files.iter().any(|file| !known.contains(file));
        let found = look.columns.iter().find(|column| column.seen.number == Some(number))?;
        let publisher = found.missing.filling(rewritten);
        (!publisher.equals(target)).then(|| Why::Filled { publisher, target: target.clone() })
    }
}

fn changed_type(before: &SeenColumn, now: &SeenColumn) -> Option<Why> {
    before.may_have_changed_rows(now).then(|| Why::Type { before: before.display(), now: now.display() })
}

impl TableLook {
    /// The number of the column of this name.
    #[must_use]
    pub fn number_of(&self, name: &str) -> Option<i16> {
        self.columns.iter().find(|column| column.seen.name == name)?.seen.number
    }
}

impl RedefinedColumn {
    fn describe(&self) -> String {
        let Self { column, why } = self;
        match why {
            Why::Type { before, now } if before != now => format!("\"{column}\" was {before} and is {now}"),
            Why::Type { .. } | Why::AddedAgain => format!("\"{column}\" was dropped and added again"),
            Why::Renamed { from } => {
                format!("\"{column}\" was \"{from}\" on the publisher, and the target's \"{column}\" was not")
            }
            Why::OtherTarget => format!("the target's \"{column}\" is another column than before"),
            Why::TargetOf { other } => {
                format!("\"{column}\" is new on the publisher, and the target's was \"{other}\"")
            }
            Why::NotPublished => format!("\"{column}\" was there before, but not published"),
            Why::Filled { publisher, target } => {
                let (publisher, target) = (of_publisher(publisher), of_target(target, publisher));
                format!(
                    "\"{column}\" is new: rows from before have {publisher} on the publisher, and {target} on the target"
                )
            }
            Why::Unknown => {
                format!(
                    "\"{column}\" is new, and the publisher's columns have changed again since, so that it is not \
                         known what rows from before have"
                )
            }
        }
    }
}

fn of_publisher(filling: &Filling) -> &'static str {
    match filling {
        Filling::Null => "NULL",
        Filling::Value(_) => "a default's value",
        Filling::PerRow => "values that its catalog does not tell",
    }
}

fn of_target(filling: &Filling, publisher: &Filling) -> &'static str {
    match (filling, publisher) {
        (Filling::Null, _) => "NULL",
        (Filling::Value(_), Filling::Value(_)) => "another one's",
        (Filling::Value(_), _) => "a default's value",
        (Filling::PerRow, _) => "values that its catalog does not tell",
    }
}

/// Returns the facts for an operator: one sentence without a full stop.
#[must_use]
pub fn facts(columns: &[RedefinedColumn]) -> String {
    let changes: Vec<String> = columns.iter().map(RedefinedColumn::describe).collect();
    format!("{}; what ALTER TABLE does to rows is not streamed", changes.join(", "))
}

#[cfg(test)]
mod tests;
