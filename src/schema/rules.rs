//! What the mapping says of one table: which of its columns go where, and which operations are applied.
//!
//! Pure. The rules turn the publisher's description of a table into that of what is applied, so that everything else
//! knows of renamed columns only, and of ignored ones not at all: [`TableRules::map`] and [`TableRules::projection`] are
//! the two places.

use std::collections::BTreeMap;

use super::{Operations, PublishedColumn, PublishedRelation};
use crate::pgoutput::{OldRow, Tuple, Value};

/// The rules for one published table. Without a rule, a column goes to the target's column of its name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableRules {
    /// By the published column's name.
    pub columns: BTreeMap<String, ColumnRule>,
    /// Operations that are not applied.
    pub left_out: Operations,
    /// Whether a TRUNCATE pauses the subscription.
    pub truncate_pauses: bool,
}

/// What the mapping says of one published column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnRule {
    pub goes: Goes,
    /// Whether the target's type may change its values.
    pub coerced: bool,
}

/// Where a column's values go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goes {
    ToItsName,
    To(String),
    /// Nowhere.
    Ignored,
    /// Nowhere, as long as they are NULL.
    IgnoredIfNull,
}

/// Which values of a table's rows are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection(Vec<Fate>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Applied,
    Ignored,
    IgnoredIfNull,
}

impl TableRules {
    /// Whether the target's type may change the column's values.
    #[must_use]
    pub fn is_coerced(&self, column: &str) -> bool {
        self.columns.get(column).is_some_and(|rule| rule.coerced)
    }

    /// The operations out of `published` that the target has to be able to carry out before anything is copied.
    #[must_use]
    pub const fn copied(&self, published: Operations) -> Operations {
        let applied = published.without(self.left_out);
        if self.truncate_pauses { applied.without(Operations::TRUNCATE) } else { applied }
    }

    /// Returns the description of what is applied: without the columns that go nowhere, the others with the target's
    /// column that they go to.
    #[must_use]
    pub fn map(&self, mut relation: PublishedRelation) -> PublishedRelation {
        if self.columns.is_empty() {
            return relation;
        }
        relation.columns.retain_mut(|column| self.takes(column));
        relation
    }

    /// Returns the description that is recorded: that of what is applied, and the columns that are ignored only while they
    /// are NULL, whose values are known, too. These go to no column: none has an empty name.
    #[must_use]
    pub fn described(&self, mut relation: PublishedRelation) -> PublishedRelation {
        for column in &mut relation.columns {
            if self.columns.get(&column.name).is_some_and(|rule| rule.goes == Goes::IgnoredIfNull) {
                column.target = Some(String::new());
            }
        }
        relation.columns.retain_mut(|column| column.target.is_some() || self.takes(column));
        relation
    }

    /// Whether the column's values go somewhere, which is noted in it.
    fn takes(&self, column: &mut PublishedColumn) -> bool {
        match self.columns.get(&column.name).map(|rule| &rule.goes) {
            None | Some(Goes::ToItsName) => true,
            Some(Goes::To(name)) => {
                column.target = Some(name.clone());
                true
            }
            Some(Goes::Ignored | Goes::IgnoredIfNull) => false,
        }
    }

    /// Returns which values of a table's rows are applied; none if all are.
    #[must_use]
    pub fn projection(&self, relation: &PublishedRelation) -> Option<Projection> {
        let fate = |name: &String| match self.columns.get(name).map(|rule| &rule.goes) {
            None | Some(Goes::ToItsName | Goes::To(_)) => Fate::Applied,
            Some(Goes::Ignored) => Fate::Ignored,
            Some(Goes::IgnoredIfNull) => Fate::IgnoredIfNull,
        };
        let fates: Vec<Fate> = relation.columns.iter().map(|column| fate(&column.name)).collect();
        fates.iter().any(|fate| *fate != Fate::Applied).then_some(Projection(fates))
    }

    /// The columns whose values go nowhere as long as they are NULL.
    pub fn ignored_if_null(&self) -> impl Iterator<Item = &String> {
        self.columns.iter().filter(|(_, rule)| rule.goes == Goes::IgnoredIfNull).map(|(name, _)| name)
    }
}

impl Projection {
    /// Leaves out of a new row what is not applied.
    ///
    /// # Errors
    /// A value that is not NULL, in a column that is ignored only if it is: the column's position. An unchanged TOASTed
    /// value is not NULL.
    pub fn project_new(&self, row: &mut Tuple) -> Result<(), usize> {
        let unexpected = self
            .0
            .iter()
            .zip(&*row)
            .position(|(fate, value)| *fate == Fate::IgnoredIfNull && value != Value::Null);
        if let Some(column) = unexpected {
            return Err(column);
        }
        self.project(row);
        Ok(())
    }

    /// Leaves out of an old row what is not applied.
    pub fn project_old(&self, row: &mut OldRow) {
        if let Some(row) = row.tuple_mut() {
            self.project(row);
        }
    }

    fn project(&self, row: &mut Tuple) {
        *row = row.only(|column| self.0.get(column).is_none_or(|fate| *fate == Fate::Applied));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{ReplicaIdentity, TypeName};

    fn relation(names: &[&str]) -> PublishedRelation {
        let column = |name: &&str| PublishedColumn {
            name: (*name).to_owned(),
            target: None,
            ty: TypeName { schema: "pg_catalog".to_owned(), name: "int4".to_owned() },
            typmod: -1,
            key: false,
            domain: None,
            inner_types: Vec::new(),
        };
        PublishedRelation {
            name: crate::pg::QualifiedName::new("public", "t"),
            identity: ReplicaIdentity::Default,
            columns: names.iter().map(column).collect(),
        }
    }

    fn rules(rules: &[(&str, Goes)]) -> TableRules {
        let rule = |(name, goes): &(&str, Goes)| {
            ((*name).to_owned(), ColumnRule { goes: goes.clone(), coerced: false })
        };
        TableRules { columns: rules.iter().map(rule).collect(), ..TableRules::default() }
    }

    #[test]
    fn what_is_applied_is_described_without_what_is_ignored() {
        let published = relation(&["a", "b", "c", "d"]);
        let rules =
            rules(&[("b", Goes::Ignored), ("c", Goes::To("see".to_owned())), ("d", Goes::IgnoredIfNull)]);
        let mapped = rules.map(published.clone());
        let names: Vec<(&str, &str)> =
            mapped.columns.iter().map(|column| (column.name.as_str(), column.goes_to())).collect();
        assert_eq!(names, [("a", "a"), ("c", "see")]);
        assert_eq!(rules.map(mapped.clone()), mapped, "it is mapped once");
        let projection = rules.projection(&published).expect("columns are ignored");
        assert_eq!(rules.projection(&relation(&["a", "c"])), None);

        let row = |values: &[Value<'_>]| crate::pgoutput::testing::tuple(values);
        let (a, b, c) = (Value::Text(b"1"), Value::Binary(b"22"), Value::Unchanged);
        let mut new = row(&[a, b, c, Value::Null]);
        projection.project_new(&mut new).expect("NULL");
        assert_eq!((new.iter().collect::<Vec<_>>(), new.is_complete()), (vec![a, c], false));
        for value in [Value::Text(b"x"), Value::Unchanged] {
            assert_eq!(projection.project_new(&mut row(&[a, b, a, value])), Err(3));
        }
        let mut complete = row(&[a, c, a, Value::Null]);
        projection.project_new(&mut complete).expect("NULL");
        assert!(complete.is_complete(), "what was not sent is ignored");
    }
}
