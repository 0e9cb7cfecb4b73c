//! A published table as the stream described it, which the record keeps.
//!
//! A column is its attribute number: names come and go. The stream has names only, so that the numbers are found by
//! `redefined`, and may be unknown.

use serde::{Deserialize, Serialize};

use super::fit::{self, Fit};
use super::redefined::TableLook;
use super::render::type_sql;
use super::{PublishedRelation, TargetTable, TypeName};

/// A published column as the stream described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenColumn {
    pub name: String,
    pub type_schema: String,
    pub type_name: String,
    pub typmod: i32,
    /// The attribute number on the publisher; none if it is not known.
    #[serde(default)]
    pub number: Option<i16>,
    /// The attribute number of the target's column; none if it is not known.
    #[serde(default)]
    pub target: Option<i16>,
}

/// A published table as the stream described it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeenTable {
    pub columns: Vec<SeenColumn>,
    /// The largest attribute number that the publisher's catalog had at that time or later. A column with a larger one
    /// was added afterwards.
    pub last_number: i16,
    /// The files of the publisher's table and its partitions that had been written anew by then; none if that is not
    /// known.
    #[serde(default)]
    pub files: Option<Vec<u32>>,
    /// The OID of the target's table, whose columns are meant; none if it is not known.
    #[serde(default)]
    pub target_oid: Option<u32>,
}

impl SeenTable {
    /// A table that is to be copied, as the publisher's catalog has it. A column whose number `look` does not tell was
    /// changed in between.
    #[must_use]
    pub fn to_be_copied(
        relation: &PublishedRelation,
        last_number: i16,
        look: Option<&TableLook>,
        target: &TargetTable,
    ) -> Self {
        let mut columns = SeenColumn::all_of(relation, Some(target));
        for column in &mut columns {
            column.number = look.and_then(|look| look.number_of(&column.name));
        }
        Self {
            columns,
            last_number: look.map_or(last_number, |look| look.last_number),
            files: look.map(|look| look.files.clone()),
            target_oid: Some(target.oid),
        }
    }
}

impl SeenColumn {
    #[must_use]
    pub fn new(name: String, ty: TypeName, typmod: i32) -> Self {
        Self { name, type_schema: ty.schema, type_name: ty.name, typmod, number: None, target: None }
    }

    /// The column with its attribute number on the publisher.
    #[must_use]
    pub fn numbered(self, number: i16) -> Self {
        Self { number: Some(number), ..self }
    }

    /// The columns of a description, with those of the target.
    #[must_use]
    pub fn all_of(relation: &PublishedRelation, target: Option<&TargetTable>) -> Vec<Self> {
        let seen = |column: &super::PublishedColumn| {
            let found =
                target.and_then(|target| target.columns.iter().find(|found| found.name == column.goes_to()));
            Self {
                target: found.map(|found| found.attnum),
                ..Self::new(column.name.clone(), column.ty.clone(), column.typmod)
            }
        };
        relation.columns.iter().map(seen).collect()
    }

    /// Whether it is described as `other`, whatever its numbers are.
    #[must_use]
    pub fn is_described_as(&self, other: &Self) -> bool {
        self.name == other.name && self.has_type_of(other) && self.typmod == other.typmod
    }

    pub(super) fn has_type_of(&self, other: &Self) -> bool {
        self.type_schema == other.type_schema && self.type_name == other.type_name
    }

    fn ty(&self) -> TypeName {
        TypeName { schema: self.type_schema.clone(), name: self.type_name.clone() }
    }

    /// The type as SQL.
    pub(super) fn display(&self) -> String {
        type_sql(&self.ty(), self.typmod)
    }

    /// Whether rows may have been changed when this column became `now`. PostgreSQL writes no row anew if only
    /// a limit is relaxed, or between varchar and text (`ATColumnChangeRequiresRewrite` in `tablecmds.c`).
    pub(super) fn may_have_changed_rows(&self, now: &Self) -> bool {
        let text =
            |ty: &TypeName| ty.schema == "pg_catalog" && matches!(ty.name.as_str(), "text" | "varchar");
        let (from, to) = (self.ty(), now.ty());
        let related = from == to || (text(&from) && text(&to));
        !related || fit::judge((&from, self.typmod), (&to, now.typmod)) != Fit::Fits
    }
}
