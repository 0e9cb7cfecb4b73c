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
//! - `money`: its binary form leaves the number of fractional digits to the locale.
//! - `xml`: what it says of its own encoding matters in one form only.
//!
//! Receive functions apply the column's type modifier as input functions do (`numeric_recv`,
//! `varcharrecv`, `timestamptz_recv`…), so lengths and digits are kept the same way.

use super::TypeName;
use super::render::{element_name, is_builtin};

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
    "interval",
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

/// Whether a value of the publisher's type `source` can enter a column of the type `target` in
/// binary; each is what is below the column's domains.
#[must_use]
pub fn same_in_binary(source: &TypeName, target: &TypeName) -> bool {
    source == target && is_builtin(source) && STABLE.binary_search(&element_name(&source.name)).is_ok()
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
    fn the_list_is_sorted_for_its_binary_search() {
        assert!(STABLE.is_sorted());
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
    }
}
