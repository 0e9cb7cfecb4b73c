//! Whether a key's values are equal on the target exactly if their bytes, as sent, are equal; and whether values that are
//! equal are the same.
//!
//! Pure. `apply` compares keys before the target has seen them. If this module says yes, equal bytes
//! mean the same row and different bytes mean different rows, which decides what compaction may leave
//! out. A row without a key is found by values that are the same, if there is such a row. Types that have not been
//! examined are a no.
//!
//! The listed types have one output for each value: there is no `-0`, no `1.0` beside `1.00`, no
//! insignificant blanks, no equality of upper and lower case. Not listed are `float4`, `float8`,
//! `interval`, `timetz`, `jsonb`, `citext`, and any type of an extension, whose equality is unknown.

use super::render::{Modifier, is_builtin};
use super::{PublishedColumn, TargetColumn, TypeName};

/// Types whose values are equal exactly if their output is, with any modifier.
const CANONICAL: &[&str] = &[
    "int2",
    "int4",
    "int8",
    "oid",
    "bool",
    "uuid",
    "bytea",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "char",
    "name",
    "macaddr",
    "macaddr8",
    "inet",
    "cidr",
    "bit",
    "varbit",
    "pg_lsn",
];

/// Integer types, whose output does not depend on their width.
const INTEGERS: &[&str] = &["int2", "int4", "int8"];

/// Text types whose values are equal exactly if their bytes are, with a deterministic collation.
const TEXTS: &[&str] = &["text", "varchar"];

/// Judges one key column whose values enter the target without loss (`fit`), and whose unique index and
/// collation compare texts by their bytes.
#[must_use]
pub(super) fn equal_as_bytes(published: &PublishedColumn, target: &TargetColumn) -> bool {
    let (from, to) = (&published.ty, &target.base_type);
    if !is_builtin(to) {
        return false;
    }
    let (from_name, to_name) = (from.name.as_str(), to.name.as_str());
    if TEXTS.contains(&to_name) {
        // The target compares exactly the texts that are sent, whatever the published type.
        return true;
    }
    if !is_builtin(from) {
        return false;
    }
    if INTEGERS.contains(&to_name) {
        return INTEGERS.contains(&from_name);
    }
    from_name == to_name && (CANONICAL.contains(&to_name) || has_one_form(from, published.typmod))
}

/// Whether values of the target's column that are equal are also the same.
#[must_use]
pub(super) fn equal_is_same(target: &TargetColumn) -> bool {
    let ty = &target.base_type;
    let name = ty.name.as_str();
    is_builtin(ty)
        && (CANONICAL.contains(&name)
            || (TEXTS.contains(&name) && target.deterministic)
            || has_one_form(ty, target.typmod))
}

/// Whether each value has one form. A declared scale gives every number the same number of digits, and
/// a declared length pads every string (`numeric_in` and `bpchar_input` in PostgreSQL's `numeric.c` and
/// `varchar.c`).
fn has_one_form(ty: &TypeName, typmod: i32) -> bool {
    matches!(
        (ty.name.as_str(), Modifier::of(ty, typmod)),
        ("numeric", Modifier::Numeric { .. }) | ("bpchar", Modifier::Length(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::older_rows::MissingValue;
    use crate::schema::{ArrayInput, ColumnDefault};

    fn check(expected: bool, from: &str, typmod: i32, to: &str) {
        let ty = |name: &str| {
            let (schema, name) = name.split_once('.').unwrap_or(("pg_catalog", name));
            TypeName { schema: schema.to_owned(), name: name.to_owned() }
        };
        let name = "id".to_owned();
        let published = PublishedColumn {
            target: None,
            name: name.clone(),
            ty: ty(from),
            typmod,
            key: true,
            domain: None,
            inner_types: Vec::new(),
        };
        let target = TargetColumn {
            name,
            attnum: 1,
            ty: ty(to),
            type_oid: 0,
            typmod: -1,
            array_input: ArrayInput::OfType,
            base_type: ty(to),
            display_type: to.to_owned(),
            not_null: true,
            not_null_domain: None,
            default: ColumnDefault::None,
            default_sql: None,
            missing: MissingValue::None,
            is_as_created: false,
            is_virtual: false,
            equality: None,
            deterministic: true,
            inner_types: Vec::new(),
        };
        assert_eq!(equal_as_bytes(&published, &target), expected, "{from} ({typmod}) -> {to}");
    }

    #[test]
    fn keys_are_compared_as_bytes_only_where_bytes_are_values() {
        for (from, to) in [
            ("int4", "int4"),
            ("int4", "int8"),
            ("uuid", "uuid"),
            ("text", "varchar"),
            ("varchar", "text"),
            ("numeric", "text"),
            ("public.citext", "text"),
            ("timestamptz", "timestamptz"),
            ("bytea", "bytea"),
            ("char", "char"),
        ] {
            check(true, from, -1, to);
        }
        for (from, to) in [
            ("text", "public.citext"),
            ("public.citext", "public.citext"),
            ("numeric", "numeric"),
            ("int4", "numeric"),
            ("numeric", "int4"),
            ("float8", "float8"),
            ("bpchar", "bpchar"),
            ("text", "bpchar"),
            ("interval", "interval"),
            ("timetz", "timetz"),
            ("jsonb", "jsonb"),
            ("_int4", "_int4"),
            ("date", "timestamp"),
            ("s.mood", "s.mood"),
        ] {
            check(false, from, -1, to);
        }
        // numeric(10,2) and char(3).
        check(true, "numeric", ((10 << 16) | 2) + 4, "numeric");
        check(true, "bpchar", 3 + 4, "bpchar");
    }
}
