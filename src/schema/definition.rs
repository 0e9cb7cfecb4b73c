//! How the publisher defines a column that the target lacks, and how the target's column is made.
//!
//! Pure. Adding a column to a table fills the rows that exist, and the publisher does not stream that: it
//! notes one value for all of them (`pg_attribute.attmissingval`, from version 11 on), or writes the table
//! anew with a value of its own for each. The target's rows can be filled alike in the first case only.
//!
//! # What the target's column has
//! - Type, collation and NOT NULL as on the publisher. Replicated rows have a value for it, so NOT NULL shows
//!   if one stops arriving. It is left out while older rows would be NULL.
//! - As its default the value that the publisher's older rows were given, not the publisher's present
//!   default: changes from before the column that are still to be streamed have no value for it, and those
//!   rows have this one on the publisher. It can be dropped later.
//! - No identity and no generation: the publisher sends the values.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::pg::{QualifiedName, quote_ident, quote_literal};

use super::older_rows::Filling;
use super::{SeenTable, TypeName};

/// A column as the publisher's catalog defines it, besides name and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnDefinition {
    /// The attribute number. Each new column gets a larger one than all before.
    pub number: i16,
    pub not_null: bool,
    /// The collation, if it is not that of the type.
    pub collation: Option<TypeName>,
    /// What rows that are older than the column were given.
    pub filling: Filling,
    /// The type below its domains, as SQL.
    #[serde(skip)]
    pub ty: String,
}

/// What is known of the target's rows that are older than a misfit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OlderRows {
    /// The table is to be copied, so that its rows come with all values.
    ToBeCopied,
    /// They came from the publisher before it had the column.
    OlderThanColumn,
    /// They may come from a time at which the publisher had the column with other values.
    #[default]
    Unknown,
}

/// What is known of a published table's rows on the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    ToBeCopied,
    /// They were written by the stream, whose last Relation message had these columns.
    Streamed {
        columns: HashSet<String>,
        /// As [`SeenTable::last_number`].
        last_number: i16,
    },
    Unknown,
}

impl Standing {
    /// `seen` is the last description.
    #[must_use]
    pub fn streamed(seen: Option<&SeenTable>) -> Self {
        seen.map_or(Self::Unknown, |seen| Self::Streamed {
            columns: seen.columns.iter().map(|column| column.name.clone()).collect(),
            last_number: seen.last_number,
        })
    }
}

/// Definitions by published table and column.
pub type Definitions = HashMap<QualifiedName, HashMap<String, ColumnDefinition>>;

/// What the target has of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaState {
    Missing,
    /// The applying role may not use it.
    Unusable,
    Usable,
}

/// Returns the collations that the columns have, in no order, some of them several times.
pub(super) fn collations(definitions: &Definitions) -> Vec<&TypeName> {
    definitions.values().flat_map(HashMap::values).filter_map(|column| column.collation.as_ref()).collect()
}

/// Facts with which misfits get the DDL that leaves equal rows. They are read only if there is a misfit.
#[derive(Debug, Clone, Default)]
pub struct MisfitFacts {
    pub subscription: String,
    pub definitions: Definitions,
    /// By published table.
    pub standings: HashMap<QualifiedName, Standing>,
    /// The target's schemas, by name.
    pub schemas: HashMap<String, SchemaState>,
    /// Those of the definitions' collations that the target has.
    pub collations: HashSet<TypeName>,
}

impl MisfitFacts {
    pub(super) fn definition(&self, table: &QualifiedName, column: &str) -> Option<&ColumnDefinition> {
        self.definitions.get(table)?.get(column)
    }

    /// Whether the column was added after the one with this number, and none before it has been dropped since: the
    /// stream may have meant that one by the same name.
    fn is_first_since(&self, table: &QualifiedName, column: &str, last_number: i16) -> bool {
        let Some(columns) = self.definitions.get(table) else { return false };
        let exists = |number| columns.values().any(|column| column.number == number);
        let number = columns.get(column).map_or(last_number, |found| found.number);
        number > last_number && (last_number + 1..number).all(exists)
    }

    pub(super) fn older_rows(&self, table: &QualifiedName, column: &str) -> OlderRows {
        match self.standings.get(table) {
            // A table that is not on record is copied once it is.
            Some(Standing::ToBeCopied) | None => OlderRows::ToBeCopied,
            // A column that was there and not published may have values in older rows.
            Some(Standing::Streamed { columns, last_number })
                if !columns.contains(column) && self.is_first_since(table, column, *last_number) =>
            {
                OlderRows::OlderThanColumn
            }
            Some(Standing::Streamed { .. } | Standing::Unknown) => OlderRows::Unknown,
        }
    }
}

/// Returns the collation and constraints of a column in CREATE TABLE, with a blank in front.
pub(super) fn in_new_table(definition: Option<&ColumnDefinition>) -> String {
    let Some(definition) = definition else { return String::new() };
    format!("{}{}", collation(definition), if definition.not_null { " NOT NULL" } else { "" })
}

/// Returns collation, constraints and default of a column that is added, with a blank in front.
pub(super) fn in_added_column(definition: Option<&ColumnDefinition>, older: OlderRows) -> String {
    let Some(definition) = definition else { return String::new() };
    let mut sql = collation(definition);
    let value = match &definition.filling {
        Filling::Value(value) => Some(value),
        Filling::Null | Filling::PerRow => None,
    };
    if definition.not_null && (value.is_some() || older == OlderRows::ToBeCopied) {
        sql.push_str(" NOT NULL");
    }
    if let Some(value) = value {
        sql.push_str(" DEFAULT ");
        sql.push_str(&quote_literal(value));
    }
    sql
}

/// Whether the target's older rows are certainly equal once the column has been added.
pub(super) fn leaves_equal_rows(definition: Option<&ColumnDefinition>, older: OlderRows) -> bool {
    match (older, definition.map(|definition| &definition.filling)) {
        (OlderRows::ToBeCopied, _)
        | (OlderRows::OlderThanColumn, Some(Filling::Null | Filling::Value(_))) => true,
        (OlderRows::OlderThanColumn, Some(Filling::PerRow) | None) | (OlderRows::Unknown, _) => false,
    }
}

fn collation(definition: &ColumnDefinition) -> String {
    definition.collation.as_ref().map_or_else(String::new, |collation| {
        format!(" COLLATE {}.{}", quote_ident(&collation.schema), quote_ident(&collation.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defined(not_null: bool, filling: Filling) -> ColumnDefinition {
        ColumnDefinition { number: 3, not_null, collation: None, filling, ty: "integer".to_owned() }
    }

    #[test]
    fn older_rows_are_filled_only_with_what_is_known() {
        let check = |definition: &ColumnDefinition, older, sql: &str, equal| {
            assert_eq!(in_added_column(Some(definition), older), sql, "{definition:?} {older:?}");
            assert_eq!(leaves_equal_rows(Some(definition), older), equal, "{definition:?} {older:?}");
        };
        let filled = defined(true, Filling::Value("it's".to_owned()));
        check(&filled, OlderRows::OlderThanColumn, " NOT NULL DEFAULT 'it''s'", true);
        check(&filled, OlderRows::Unknown, " NOT NULL DEFAULT 'it''s'", false);
        let own = defined(true, Filling::PerRow);
        check(&own, OlderRows::OlderThanColumn, "", false);
        check(&own, OlderRows::ToBeCopied, " NOT NULL", true);
        let null = defined(false, Filling::Null);
        check(&null, OlderRows::OlderThanColumn, "", true);
        check(&null, OlderRows::Unknown, "", false);
        let collation = Some(TypeName { schema: "pg_catalog".to_owned(), name: "C".to_owned() });
        let collated = ColumnDefinition { collation, ..null };
        check(&collated, OlderRows::OlderThanColumn, r#" COLLATE "pg_catalog"."C""#, true);
        assert_eq!(in_new_table(Some(&collated)), r#" COLLATE "pg_catalog"."C""#);
    }

    #[test]
    fn a_column_is_newer_only_if_the_publisher_lacked_it() {
        let table = QualifiedName::new("public", "t");
        let check = |standing: Option<Standing>, expected| {
            let standings = standing.map(|standing| (table.clone(), standing)).into_iter().collect();
            let column = defined(false, Filling::Null);
            let definitions = Definitions::from([(table.clone(), HashMap::from([("c".to_owned(), column)]))]);
            let facts = MisfitFacts { definitions, standings, ..MisfitFacts::default() };
            assert_eq!(facts.older_rows(&table, "c"), expected);
        };
        let streamed = |column: &str, last_number| {
            let columns = HashSet::from([column.to_owned()]);
            Some(Standing::Streamed { columns, last_number })
        };
        check(Some(Standing::ToBeCopied), OlderRows::ToBeCopied);
        check(streamed("id", 2), OlderRows::OlderThanColumn);
        check(streamed("id", 3), OlderRows::Unknown);
        check(streamed("c", 2), OlderRows::Unknown);
        check(Some(Standing::Unknown), OlderRows::Unknown);
        check(None, OlderRows::ToBeCopied);
    }
}
