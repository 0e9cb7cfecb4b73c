//! Whether values may be sent in binary: whether the bytes of one server's send function mean the same
//! to the other server's receive function.
//!
//! Pure. A text that is not a value of the other type is refused, but a binary value is read as the
//! receiver's type without a check: an `int8` would become a `timestamp`. Therefore both columns must
//! have the same type, and it must be in a list of built-in types whose binary form has not changed
//! since version 10 and contains no OIDs of the server.
//!
//! # Types that are left out
//! - Enums, composites and types of extensions: their forms contain OIDs, which differ, or depend on
//!   versions.
//! - `regclass` and similar types: an OID in binary, a name in text.
//! - `interval`: an infinite one, which exists since 17, is a finite one to an older server.
//! - `money`: its binary form leaves the number of fractional digits to the locale.
//! - `xml`: the encoding that it declares matters in only one of the forms.
//!
//! Receive functions apply the column's type modifier as input functions do (`numeric_recv`,
//! `varcharrecv`, `timestamptz_recv`…), so lengths and digits are limited in the same way.
//!
//! # The stream
//!
//! A copy chooses the format for each table; a stream is binary or text for all columns of all tables.
//! Types whose binary form is their text can be part of a binary stream whatever the target's column
//! is. Rows of arrays cannot be combined into an array (`ArrayInput`), but composite values that hold
//! one array each can.

use super::fit::{self, Fit};
use super::render::{element_name, is_builtin};
use super::{ArrayInput, ColumnPlan, OWN_SCHEMA, PublishedColumn, PublishedRelation, TypeName, ValueGuard};

/// Types with a stable binary form, in alphabetical order.
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

/// Element types of arrays for which `migrations/` creates a composite type, in alphabetical order.
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

/// Returns the composite type that holds one array of this type in its column `value`.
#[must_use]
pub fn array_box(ty: &TypeName) -> Option<TypeName> {
    let element = ty.name.strip_prefix('_').filter(|_| is_builtin(ty))?;
    BOXED.binary_search(&element).ok()?;
    Some(TypeName { schema: OWN_SCHEMA.to_owned(), name: format!("boxed_{element}") })
}

/// Whether a value of the publisher's type `source` can enter a column of the type `target` in binary.
/// Both types are those below the columns' domains.
#[must_use]
pub fn same_in_binary(source: &TypeName, target: &TypeName) -> bool {
    source == target && is_builtin(source) && STABLE.binary_search(&element_name(&source.name)).is_ok()
}

/// What a column's binary values are to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryForm {
    /// The bytes of the type's text form, which every type that reads the text reads.
    Text,
    /// The binary form of the target's own type.
    Native,
    /// Not usable: the sides' types differ, or the binary form is not stable.
    Unusable,
}

/// Built-in types whose send function returns their text (`textsend`, `namesend`, `json_send`… in
/// PostgreSQL's `utils/adt`).
const TEXT_LIKE: &[&str] = &["text", "varchar", "bpchar", "name", "json"];

/// Judges one column by the publisher's type (below its domains) and the target's.
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

/// As [`binary_form`], for a column whose values are looked at by `guard`, which reads text.
#[must_use]
pub fn guarded_form(
    published: &TypeName,
    target_base: &TypeName,
    input: ArrayInput,
    guard: Option<ValueGuard>,
) -> BinaryForm {
    match binary_form(published, target_base, input) {
        BinaryForm::Native if guard.is_some() => BinaryForm::Unusable,
        form => form,
    }
}

/// Whether a row with binary values can enter the target unchanged by `COPY`, which reads each value
/// with its column's own type.
#[must_use]
pub fn copies_in_binary(columns: &[ColumnPlan]) -> bool {
    columns.iter().all(|column| match column.binary {
        BinaryForm::Native => true,
        // An overlong name is truncated as text, but refused in binary.
        BinaryForm::Text => {
            let base = &column.base_type;
            is_builtin(base) && base.name != "name" && TEXT_LIKE.contains(&base.name.as_str())
        }
        BinaryForm::Unusable => false,
    })
}

/// A column of the target, with what matters for binary values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnType {
    pub name: String,
    /// The type below its domains.
    pub base_type: TypeName,
    /// As [`TargetColumn::typmod`](super::TargetColumn::typmod).
    pub typmod: i32,
    pub array_input: ArrayInput,
}

/// Returns the first published column whose values cannot be sent in binary; none if all can. Columns
/// that the target lacks are ignored.
#[must_use]
pub fn first_unusable<'a>(
    published: &'a PublishedRelation,
    target: &[ColumnType],
) -> Option<&'a PublishedColumn> {
    published.columns.iter().find(|column| {
        let found = target.iter().find(|found| found.name == column.goes_to());
        found.is_some_and(|found| {
            let guard = match fit::judge((&column.ty, column.typmod), (&found.base_type, found.typmod)) {
                Fit::Guarded(guard) => Some(guard),
                _ => None,
            };
            guarded_form(&column.ty, &found.base_type, found.array_input, guard) == BinaryForm::Unusable
        })
    })
}

/// Whether all values of a planned table can be sent in binary.
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
        // Both types have eight bytes, so the receive function would not refuse the value.
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
