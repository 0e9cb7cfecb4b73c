//! A published column as the DDL for the target writes it.
//!
//! Pure. Name and type are known from the comparison; the rest is added once something does not fit.

use serde::Serialize;

use crate::pg::{QualifiedName, quote_ident};

use super::definition::{self, ColumnDefinition, MisfitFacts, OlderRows};
use super::render::{is_builtin, type_sql};
use super::{PublishedColumn, TypeName};

/// A published column with its type as SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnSql {
    /// The target's column.
    pub name: String,
    /// The publisher's column.
    pub source: String,
    pub ty: String,
    /// Whether the type is a user's, which the target may lack.
    pub custom: bool,
    /// None until [`super::Misfit::complete`], and if the publisher's catalog no longer has the column with its type.
    pub definition: Option<ColumnDefinition>,
    /// The column's collation, which the target lacks.
    pub lost_collation: Option<TypeName>,
    pub older_rows: OlderRows,
}

impl ColumnSql {
    #[must_use]
    pub fn of(column: &PublishedColumn) -> Self {
        Self {
            name: column.goes_to().to_owned(),
            source: column.name.clone(),
            ty: type_sql(&column.ty, column.typmod),
            custom: !is_builtin(&column.ty),
            definition: None,
            lost_collation: None,
            older_rows: OlderRows::default(),
        }
    }

    pub(super) fn complete(&mut self, table: &QualifiedName, facts: &MisfitFacts) {
        // A column of another type was added under its name, or has been changed, since the stream described it.
        let same_type = |found: &&ColumnDefinition| {
            // The stream does not tell the modifier of a domain.
            found.ty == self.ty || found.ty.split('(').next() == Some(self.ty.as_str())
        };
        self.definition = facts.definition(table, &self.source).filter(same_type).cloned();
        if let Some(definition) = &mut self.definition {
            self.lost_collation = definition.collation.take_if(|name| !facts.collations.contains(name));
        }
        self.older_rows = facts.older_rows(table, &self.source);
    }

    fn sql(&self) -> String {
        format!("{} {}", quote_ident(&self.name), self.ty)
    }

    pub(super) fn in_new_table(&self) -> String {
        format!("{}{}", self.sql(), definition::in_new_table(self.definition.as_ref()))
    }

    pub(super) fn added(&self) -> String {
        let definition = self.definition.as_ref();
        format!("ADD COLUMN {}{}", self.sql(), definition::in_added_column(definition, self.older_rows))
    }

    pub(super) fn leaves_equal_rows(&self) -> bool {
        definition::leaves_equal_rows(self.definition.as_ref(), self.older_rows)
    }
}
