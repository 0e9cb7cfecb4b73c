//! Columns that have changed on the publisher since the stream last described their table.
//!
//! Pure. `ALTER TABLE … TYPE … USING`, or dropping a column and adding one of the same name, changes rows
//! that are not streamed. The Relation message shows the new type only, and the target's column may well hold
//! its values, so that older rows differ and nothing else would tell.
//!
//! A column that is added again comes after all others, which shows it even if it has its former type. What cannot be
//! noticed: an expression that keeps the type (`TYPE text USING upper(v)`), and the last column, added again with its
//! former type.

use serde::{Deserialize, Serialize};

use super::fit::{self, Fit};
use super::render::type_sql;
use super::{PublishedRelation, PublishedTable, TypeName};

/// A published column as the stream described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenColumn {
    pub name: String,
    pub type_schema: String,
    pub type_name: String,
    pub typmod: i32,
}

/// A published table as the stream described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenTable {
    pub columns: Vec<SeenColumn>,
    /// The largest attribute number that the publisher's catalog had at that time or later. A column with a larger one
    /// was added afterwards.
    pub last_number: i16,
}

impl PublishedTable {
    /// The table as a stream that begins now would describe it.
    #[must_use]
    pub fn seen(&self) -> SeenTable {
        SeenTable { columns: SeenColumn::all_of(&self.relation), last_number: self.last_number }
    }
}

impl SeenColumn {
    #[must_use]
    pub fn all_of(relation: &PublishedRelation) -> Vec<Self> {
        let seen = |column: &super::PublishedColumn| Self {
            name: column.name.clone(),
            type_schema: column.ty.schema.clone(),
            type_name: column.ty.name.clone(),
            typmod: column.typmod,
        };
        relation.columns.iter().map(seen).collect()
    }

    fn ty(&self) -> TypeName {
        TypeName { schema: self.type_schema.clone(), name: self.type_name.clone() }
    }

    fn display(&self) -> String {
        type_sql(&self.ty(), self.typmod)
    }

    /// Whether rows may have been changed when this column became `now`. PostgreSQL writes no row anew if only
    /// a limit is relaxed, or between varchar and text (`ATColumnChangeRequiresRewrite` in `tablecmds.c`).
    fn may_have_changed_rows(&self, now: &Self) -> bool {
        let text =
            |ty: &TypeName| ty.schema == "pg_catalog" && matches!(ty.name.as_str(), "text" | "varchar");
        let (from, to) = (self.ty(), now.ty());
        let related = from == to || (text(&from) && text(&to));
        !related || fit::judge((&from, self.typmod), (&to, now.typmod)) != Fit::Fits
    }
}

/// A column whose type has changed, or that was added again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedefinedColumn {
    pub column: String,
    /// The types as SQL. They are equal if it was added again with its former type.
    pub before: String,
    pub now: String,
}

impl RedefinedColumn {
    fn describe(&self) -> String {
        let Self { column, before, now } = self;
        if before == now {
            format!("\"{column}\" was dropped and added again")
        } else {
            format!("\"{column}\" was {before} and is {now}")
        }
    }
}

/// Returns the columns of which older rows may have been changed.
#[must_use]
pub fn redefined(before: &[SeenColumn], now: &[SeenColumn]) -> Vec<RedefinedColumn> {
    // The last former position of the columns that have been passed.
    let mut last = None;
    let changed = |now: &SeenColumn| {
        let at = before.iter().position(|before| before.name == now.name)?;
        let is_added_again = last > Some(at);
        last = last.max(Some(at));
        let before = &before[at];
        (is_added_again || before.may_have_changed_rows(now)).then(|| RedefinedColumn {
            column: now.name.clone(),
            before: before.display(),
            now: now.display(),
        })
    };
    now.iter().filter_map(changed).collect()
}

/// Returns the facts for an operator: one sentence without a full stop.
#[must_use]
pub fn facts(columns: &[RedefinedColumn]) -> String {
    let changes: Vec<String> = columns.iter().map(RedefinedColumn::describe).collect();
    format!("{}; what ALTER TABLE does to rows is not streamed", changes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, ty: &str, typmod: i32) -> SeenColumn {
        let type_schema = "pg_catalog".to_owned();
        SeenColumn { name: name.to_owned(), type_schema, type_name: ty.to_owned(), typmod }
    }

    #[test]
    fn a_type_that_changed_counts_and_a_limit_that_was_relaxed_does_not() {
        let check = |before: (&str, i32), now: (&str, i32), expected: bool| {
            let found = redefined(&[column("c", before.0, before.1)], &[column("c", now.0, now.1)]);
            assert_eq!(!found.is_empty(), expected, "{before:?} {now:?}");
        };
        check(("int4", -1), ("int4", -1), false);
        check(("int4", -1), ("int8", -1), true);
        check(("varchar", 9), ("varchar", 24), false);
        check(("varchar", 24), ("varchar", 9), true);
        check(("varchar", 9), ("text", -1), false);
        check(("text", -1), ("varchar", -1), false);
        check(("bpchar", 9), ("text", -1), true);
        check(("numeric", ((12 << 16) | 4) + 4), ("numeric", ((12 << 16) | 2) + 4), true);
        check(("numeric", ((12 << 16) | 2) + 4), ("numeric", ((14 << 16) | 2) + 4), false);
        check(("timestamp", -1), ("timestamp", 0), true);
        assert_eq!(redefined(&[column("a", "int4", -1)], &[column("b", "int8", -1)]), []);
    }

    #[test]
    fn a_column_that_was_added_again_has_another_place() {
        let columns = |names: &str| -> Vec<SeenColumn> {
            names.split_whitespace().map(|name| column(name, "text", -1)).collect()
        };
        let check = |before: &str, now: &str, expected: &[&str]| {
            let found = redefined(&columns(before), &columns(now));
            let found: Vec<&str> = found.iter().map(|column| column.column.as_str()).collect();
            assert_eq!(found, expected, "{before} -> {now}");
        };
        check("id a b", "id a b", &[]);
        check("id a b", "id b a", &["a"]);
        check("id a b c", "id c b a", &["b", "a"]);
        check("id a b", "id b", &[]);
        check("id b", "id a b", &[]);
        check("id a b", "id b new a", &["a"]);
    }

    #[test]
    fn the_facts_name_the_types() {
        let before = [column("price", "int4", -1), column("a", "text", -1), column("b", "text", -1)];
        let now = [column("price", "int8", -1), column("b", "text", -1), column("a", "text", -1)];
        assert_eq!(
            facts(&redefined(&before, &now)),
            "\"price\" was integer and is bigint, \"a\" was dropped and added again; what ALTER TABLE does to rows is \
             not streamed"
        );
    }
}
