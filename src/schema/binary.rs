//! Whether a published column's values can travel in their binary form.
//!
//! Pure. The publisher sends the binary form of every type or of none, and a receive function takes
//! whatever bytes fit its length: an `int8` would read a `timestamptz` without a word. So binary is for
//! columns that both sides have under the same built-in type, by a list of types whose form is the same
//! on every version since 14 and tells as much as their text; and for types whose binary form *is* their
//! text. Everything else makes the subscription travel as text.
//!
//! Not on the list: `interval` (an infinite one, since 17, is a finite one to an older server), arrays
//! and composites (they name element types by OID), types of users and extensions.

use super::{ArrayInput, ColumnPlan, PublishedRelation, TargetTable, TypeName};

/// What a column's binary values are to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryForm {
    /// Bytes of the type's text form: whatever takes the text takes them.
    Text,
    /// What the target's own type reads.
    Native,
    /// Not to be used: the sides' types differ, or the form is not one to rely on.
    Unusable,
}

/// Built-in types whose send function gives their text (`textsend`, `namesend`, `json_send`… in
/// PostgreSQL's `utils/adt`).
const TEXT_LIKE: &[&str] = &["text", "varchar", "bpchar", "name", "json"];

const SAME_EVERYWHERE: &[&str] = &[
    "bool",
    "bytea",
    "date",
    "float4",
    "float8",
    "inet",
    "cidr",
    "int2",
    "int4",
    "int8",
    "jsonb",
    "macaddr",
    "macaddr8",
    "numeric",
    "oid",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "uuid",
    "bit",
    "varbit",
];

/// Judges one column: the publisher's type (below its domains) and the target's.
#[must_use]
pub fn binary_form(published: &TypeName, target_base: &TypeName, input: ArrayInput) -> BinaryForm {
    if published.schema != "pg_catalog" {
        return BinaryForm::Unusable;
    }
    let among = |list: &[&str]| list.contains(&published.name.as_str());
    if among(TEXT_LIKE) {
        BinaryForm::Text
    } else if among(SAME_EVERYWHERE) && published == target_base && input == ArrayInput::OfType {
        BinaryForm::Native
    } else {
        BinaryForm::Unusable
    }
}

/// The first published column whose values cannot travel in binary; none if all can. Columns that the
/// target lacks are no concern here.
#[must_use]
pub fn first_unusable<'a>(published: &'a PublishedRelation, target: &TargetTable) -> Option<&'a str> {
    let column = published.columns.iter().find(|column| {
        let found = target.columns.iter().find(|found| found.name == column.name);
        found.is_some_and(|found| {
            binary_form(&column.ty, &found.base_type, found.array_input) == BinaryForm::Unusable
        })
    })?;
    Some(&column.name)
}

/// The same for a table that has been planned.
#[must_use]
pub fn takes_binary(columns: &[ColumnPlan]) -> bool {
    columns.iter().all(|column| column.binary != BinaryForm::Unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_is_for_equal_types_and_for_what_is_text_anyway() {
        let ty = |schema: &str, name: &str| TypeName { schema: schema.to_owned(), name: name.to_owned() };
        let check = |from: &str, to: &str, input, expected| {
            let (from, to) = (ty("pg_catalog", from), ty("pg_catalog", to));
            assert_eq!(binary_form(&from, &to, input), expected, "{from:?} into {to:?}");
        };
        check("int8", "int8", ArrayInput::OfType, BinaryForm::Native);
        check("timestamptz", "int8", ArrayInput::OfType, BinaryForm::Unusable);
        check("int4", "int8", ArrayInput::OfType, BinaryForm::Unusable);
        check("varchar", "int4", ArrayInput::OfType, BinaryForm::Text);
        check("json", "text", ArrayInput::OfType, BinaryForm::Text);
        check("interval", "interval", ArrayInput::OfType, BinaryForm::Unusable);
        check("_text", "_text", ArrayInput::OfText, BinaryForm::Unusable);
        check("numeric", "numeric", ArrayInput::OfText, BinaryForm::Unusable);
        let enumeration = ty("public", "mood");
        let form = binary_form(&enumeration, &enumeration, ArrayInput::OfType);
        assert_eq!(form, BinaryForm::Unusable);
    }
}
