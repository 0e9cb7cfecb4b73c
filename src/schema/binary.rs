//! Whether values may travel in binary: whether the bytes that one server's send function writes
//! mean the same to the other server's receive function.
//!
//! Pure. Text says what a value is and is refused where the other type does not take it; binary is
//! read as whatever the receiver believes it to be, so an `int8` would turn into a `timestamp`
//! without a word. Therefore both columns must have the very same type, and one of a list: PostgreSQL's
//! own, whose binary form has not changed since version 10 and names no object of its server.
//!
//! # What is left out, and why
//! - Enums, composites, types of extensions: their forms have OIDs that differ, or versions.
//! - `regclass` and its kind: an OID in binary, a name in text.
//! - `interval`: an infinite one, since 17, is a finite one to an older server.
//! - `money`: its binary form leaves the number of fractional digits to the locale.
//! - `xml`: what it says of its own encoding matters in one form only.
//!
//! Receive functions apply the column's type modifier as input functions do (`numeric_recv`,
//! `varcharrecv`, `timestamptz_recv`…), so lengths and digits are kept the same way.
//!
//! # The stream
//! A copy chooses for each table; a stream is binary or text for all columns of all tables at once.
//! Types whose binary form *is* their text are no obstacle there, whatever the target's column is. Rows of
//! arrays cannot be put together as an array (`ArrayInput`), but boxes that hold one each can.

use super::render::{element_name, is_builtin};
use super::{ArrayInput, ColumnPlan, OWN_SCHEMA, PublishedColumn, PublishedRelation, TypeName};

/// Alphabetical.
const STABLE: &[&str] = &[
    "bit",
    "bool",
    "box",
    "bpchar",
    "bytea",
    "char",
    "cidr",
    "circle",
    "date",
    "datemultirange",
    "daterange",
    "float4",
    "float8",
    "inet",
    "int2",
    "int4",
    "int4multirange",
    "int4range",
    "int8",
    "int8multirange",
    "int8range",
    "json",
    "jsonb",
    "line",
    "lseg",
    "macaddr",
    "macaddr8",
    "name",
    "numeric",
    "nummultirange",
    "numrange",
    "oid",
    "path",
    "pg_lsn",
    "point",
    "polygon",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "tsmultirange",
    "tsquery",
    "tsrange",
    "tstzmultirange",
    "tstzrange",
    "tsvector",
    "uuid",
    "varbit",
    "varchar",
];

/// Elements of arrays that `migrations/` made a box for. Alphabetical.
const BOXED: &[&str] = &[
    "bool",
    "bpchar",
    "bytea",
    "date",
    "float4",
    "float8",
    "inet",
    "int2",
    "int4",
    "int8",
    "json",
    "jsonb",
    "numeric",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
    "varchar",
];

/// The composite type that holds one array of this type, as its column `value`.
#[must_use]
pub fn array_box(ty: &TypeName) -> Option<TypeName> {
    let element = ty.name.strip_prefix('_').filter(|_| is_builtin(ty))?;
    BOXED.binary_search(&element).ok()?;
    Some(TypeName { schema: OWN_SCHEMA.to_owned(), name: format!("boxed_{element}") })
}

/// Whether a value of the publisher's type `source` can enter a column of the type `target` in
/// binary; each is what is below the column's domains.
#[must_use]
pub fn same_in_binary(source: &TypeName, target: &TypeName) -> bool {
    source == target && is_builtin(source) && STABLE.binary_search(&element_name(&source.name)).is_ok()
}

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

/// Judges one column: the publisher's type (below its domains) and the target's.
#[must_use]
pub fn binary_form(published: &TypeName, target_base: &TypeName, input: ArrayInput) -> BinaryForm {
    if is_builtin(published) && TEXT_LIKE.contains(&published.name.as_str()) {
        BinaryForm::Text
    } else if same_in_binary(published, target_base)
        && (input == ArrayInput::OfType || array_box(target_base).is_some())
    {
        BinaryForm::Native
    } else {
        BinaryForm::Unusable
    }
}

/// Whether a row whose values came in binary can enter the target as it is, `COPY` reading each by its
/// column's own type.
#[must_use]
pub fn copies_in_binary(columns: &[ColumnPlan]) -> bool {
    columns.iter().all(|column| match column.binary {
        BinaryForm::Native => true,
        // A name is cut short as text, and refused in binary.
        BinaryForm::Text => {
            let base = &column.base_type;
            is_builtin(base) && base.name != "name" && TEXT_LIKE.contains(&base.name.as_str())
        }
        BinaryForm::Unusable => false,
    })
}

/// A column of the target, as far as binary values are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnType {
    pub name: String,
    /// What is below its domains.
    pub base_type: TypeName,
    pub array_input: ArrayInput,
}

/// The first published column whose values cannot travel in binary; none if all can. Columns that the
/// target lacks are no concern here.
#[must_use]
pub fn first_unusable<'a>(
    published: &'a PublishedRelation,
    target: &[ColumnType],
) -> Option<&'a PublishedColumn> {
    published.columns.iter().find(|column| {
        let found = target.iter().find(|found| found.name == column.name);
        found.is_some_and(|found| {
            binary_form(&column.ty, &found.base_type, found.array_input) == BinaryForm::Unusable
        })
    })
}

/// The same for a table that has been planned.
#[must_use]
pub fn takes_binary(columns: &[ColumnPlan]) -> bool {
    columns.iter().all(|column| column.binary != BinaryForm::Unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &str, target: &str, expected: bool) {
        let ty = |name: &str| {
            let (schema, name) = name.split_once('.').unwrap_or(("pg_catalog", name));
            TypeName { schema: schema.to_owned(), name: name.to_owned() }
        };
        assert_eq!(same_in_binary(&ty(source), &ty(target)), expected, "{source} into {target}");
    }

    #[test]
    fn the_lists_are_sorted_for_their_binary_search() {
        assert!(STABLE.is_sorted());
        assert!(BOXED.is_sorted());
    }

    #[test]
    fn every_box_is_made_by_a_migration() {
        let made = include_str!("../../migrations/0004_boxes.sql");
        let expected: Vec<String> = BOXED
            .iter()
            .map(|name| format!("CREATE TYPE pgsluice.boxed_{name} AS (value pg_catalog.{name}[]);"))
            .collect();
        let found: Vec<&str> = made.lines().filter(|line| line.starts_with("CREATE")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn only_the_same_type_and_only_one_that_means_the_same_everywhere() {
        check("int8", "int8", true);
        check("_numeric", "_numeric", true);
        check("bpchar", "bpchar", true);
        // Eight bytes each: nothing would be refused.
        check("int8", "timestamptz", false);
        check("int4", "int8", false);
        check("varchar", "text", false);
        check("int4", "_int4", false);
        check("public.int8", "public.int8", false);
        check("public.mood", "public.mood", false);
        check("int8", "public.id", false);
        check("regclass", "regclass", false);
        check("_regclass", "_regclass", false);
        check("money", "money", false);
        check("xml", "xml", false);
        check("interval", "interval", false);
    }

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
        check("_text", "_text", ArrayInput::OfText, BinaryForm::Native);
        check("_text", "_varchar", ArrayInput::OfText, BinaryForm::Unusable);
        check("_int4range", "_int4range", ArrayInput::OfText, BinaryForm::Unusable);
        check("numeric", "numeric", ArrayInput::OfText, BinaryForm::Unusable);
        let enumeration = ty("public", "mood");
        let form = binary_form(&enumeration, &enumeration, ArrayInput::OfType);
        assert_eq!(form, BinaryForm::Unusable);
    }
}
