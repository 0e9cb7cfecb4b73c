//! Table tests of the verdicts on pairs of types, in a short notation.

use super::*;

/// Parses `numeric(12,2)`, `varchar(50)[]`, `shop.mood`.
fn parse(text: &str) -> (TypeName, i32) {
    let (text, array) = text.strip_suffix("[]").map_or((text, ""), |text| (text, "_"));
    let (name, arguments) = text.split_once('(').unwrap_or((text, ""));
    let (schema, name) = name.split_once('.').unwrap_or(("pg_catalog", name));
    let numbers: Vec<i32> =
        arguments.trim_end_matches(')').split(',').filter_map(|n| n.parse().ok()).collect();
    let typmod = match (name, numbers.as_slice()) {
        (_, []) => -1,
        ("numeric", [precision, scale]) => ((precision << 16) | (scale & 0x7ff)) + 4,
        ("varchar" | "bpchar", [length]) => length + 4,
        ("interval", [precision]) => (0x7FFF << 16) | precision,
        (_, [length, ..]) => *length,
    };
    (TypeName { schema: schema.to_owned(), name: format!("{array}{name}") }, typmod)
}

fn check(verdict: char, from: &str, to: &str) {
    let (source, target) = (parse(from), parse(to));
    let fit = judge((&source.0, source.1), (&target.0, target.1));
    let found = match fit {
        Fit::Fits => 'f',
        Fit::OtherForm(_) => 'o',
        Fit::Risky(_) => 'r',
        Fit::Guarded(_) => 'g',
        Fit::Coerced(_) | Fit::Changes(_) => 'c',
        Fit::Unfit(_) => 'u',
    };
    assert_eq!(found, verdict, "{from} -> {to}: {fit:?}");
}

#[test]
fn numbers_widen_and_never_round() {
    for (verdict, from, to) in [
        ('f', "int2", "int4"),
        ('f', "int4", "int8"),
        ('f', "int2", "float4"),
        ('f', "int4", "float8"),
        ('g', "int4", "float4"),
        ('g', "int8", "float8"),
        ('r', "int8", "int4"),
        ('r', "int4", "int2"),
        ('f', "int8", "numeric"),
        ('f', "int4", "numeric(10,0)"),
        ('r', "int4", "numeric(10,2)"),
        ('f', "int4", "numeric(12,2)"),
        ('g', "int4", "numeric(12,-2)"),
        ('f', "float4", "float8"),
        ('g', "float8", "float4"),
        ('f', "float8", "numeric"),
        ('g', "float8", "numeric(10,2)"),
        ('r', "float8", "int4"),
        ('g', "numeric", "float8"),
        ('r', "numeric", "int4"),
        ('f', "numeric(9,0)", "int4"),
        ('r', "numeric(10,0)", "int4"),
        ('u', "numeric(9,2)", "int4"),
        ('f', "numeric(10,2)", "numeric"),
        ('f', "numeric(10,2)", "numeric(12,2)"),
        ('f', "numeric(10,2)", "numeric(12,4)"),
        ('r', "numeric(10,2)", "numeric(10,4)"),
        ('g', "numeric(10,4)", "numeric(10,2)"),
        ('g', "numeric", "numeric(10,2)"),
        ('u', "bool", "int4"),
        ('u', "money", "numeric"),
        ('f', "oid", "int8"),
        ('u', "int4", "oid"),
    ] {
        check(verdict, from, to);
    }
}

#[test]
fn text_takes_everything_and_lengths_are_loud() {
    for (verdict, from, to) in [
        ('f', "int4", "text"),
        ('f', "shop.mood", "text"),
        ('f', "_int4", "text"),
        ('f', "jsonb", "text"),
        ('f', "uuid", "varchar(36)"),
        ('r', "uuid", "varchar(35)"),
        ('f', "text", "varchar"),
        ('g', "text", "varchar(50)"),
        ('g', "text[]", "varchar(50)[]"),
        ('g', "shop.mood", "varchar(50)"),
        ('g', "json", "varchar(50)"),
        ('f', "varchar(50)", "varchar(50)"),
        ('f', "varchar(50)", "varchar(60)"),
        ('g', "varchar(100)", "varchar(50)"),
        ('g', "varchar(100)[]", "varchar(50)[]"),
        ('f', "varchar(50)[]", "varchar(50)[]"),
        ('f', "varchar(50)", "varchar"),
        ('g', "varchar", "varchar(50)"),
        ('o', "bpchar(3)", "bpchar(5)"),
        ('r', "bpchar(5)", "bpchar(3)"),
        ('o', "bpchar(3)", "text"),
        ('o', "bpchar(3)", "varchar(3)"),
        ('u', "bpchar(4)", "varchar(3)"),
        ('f', "bpchar", "text"),
        ('g', "text", "bpchar(5)"),
        ('g', "varchar(3)", "bpchar(5)"),
        ('g', "varchar(3)[]", "bpchar(5)[]"),
        ('f', "text", "bpchar"),
        ('o', "int4", "bpchar(11)"),
        ('r', "int4", "bpchar(10)"),
        ('r', "numeric", "bpchar(10)"),
        ('o', "timestamptz", "text"),
        ('o', "timestamptz[]", "text"),
        ('f', "timestamp", "text"),
        ('o', "bytea", "text"),
        ('c', "text", "bytea"),
        ('u', "text", "int4"),
        ('c', "text", "name"),
        ('c', "text", "char"),
        ('f', "varchar", "public.citext"),
        ('r', "text", "shop.mood"),
        ('r', "shop.mood", "shop.mood2"),
        ('f', "shop.mood", "other.mood"),
        ('u', "int4", "shop.mood"),
        ('u', "shop.mood", "int4"),
    ] {
        check(verdict, from, to);
    }
}

#[test]
fn times_keep_their_zone_and_their_fractions() {
    for (verdict, from, to) in [
        ('r', "date", "timestamp"),
        ('u', "date", "timestamptz"),
        ('c', "timestamp", "date"),
        ('u', "timestamp", "timestamptz"),
        ('c', "timestamptz", "timestamp"),
        ('u', "numeric", "date"),
        ('f', "timestamp(3)", "timestamp"),
        ('f', "timestamp", "timestamp(6)"),
        ('g', "timestamp(6)", "timestamp(0)"),
        ('g', "timestamp", "timestamp(3)"),
        ('f', "time", "interval"),
        ('g', "interval", "interval(2)"),
        ('f', "interval(2)", "interval"),
        ('f', "interval(2)", "interval(4)"),
        ('c', "timetz", "time"),
        ('u', "time", "timetz"),
    ] {
        check(verdict, from, to);
    }
}

#[test]
fn structures_follow_their_elements() {
    for (verdict, from, to) in [
        ('f', "int4[]", "int8[]"),
        ('r', "int8[]", "int4[]"),
        ('u', "int4[]", "int4"),
        ('u', "int4", "int4[]"),
        ('f', "numeric(10,2)[]", "numeric(10,2)[]"),
        ('g', "numeric(10,4)[]", "numeric(10,2)[]"),
        ('f', "varchar(5)[]", "text[]"),
        ('g', "json", "jsonb"),
        ('g', "json[]", "jsonb[]"),
        ('f', "jsonb", "json"),
        ('f', "shop.mood[]", "text[]"),
        ('r', "text[]", "shop.mood[]"),
        ('u', "shop.mood[]", "int4[]"),
        ('u', "shop.mood", "text[]"),
        ('f', "cidr", "inet"),
        ('r', "inet", "cidr"),
        ('u', "bit(3)", "bit(4)"),
        ('f', "bit(3)", "varbit(4)"),
        ('f', "int4range", "numrange"),
        ('u', "daterange", "int4range"),
        ('u', "uuid", "int8"),
    ] {
        check(verdict, from, to);
    }
}

#[test]
fn an_interval_keeps_what_is_larger_than_its_smallest_field() {
    let interval = |fields: i32, precision: i32| (fields << 16) | precision;
    let (day_to_second, year, month, all) = (0x1C08, 1 << 2, 1 << 1, 0x7FFF);
    let none = 0xFFFF;
    let check = |from: i32, to: i32, fits: bool| {
        let ty = TypeName { schema: "pg_catalog".to_owned(), name: "interval".to_owned() };
        let fit = judge((&ty, from), (&ty, to));
        assert_eq!(fit == Fit::Fits, fits, "{from:x} -> {to:x}: {fit:?}");
        assert!(fits || matches!(fit, Fit::Guarded(_)), "{fit:?}");
    };
    check(-1, interval(day_to_second, none), true);
    check(-1, interval(day_to_second, 0), false);
    check(interval(year, none), interval(month, none), true);
    check(interval(month, none), interval(year, none), false);
    check(interval(year, none), interval(all, 0), true);
    check(interval(day_to_second, 2), interval(all, 3), true);
    check(interval(all, 3), interval(day_to_second, 2), false);
}

#[test]
fn a_mapping_allows_changes_but_nothing_that_hardly_enters() {
    let check = |from: &str, to: &str, expected: bool| {
        let (source, target) = (parse(from), parse(to));
        let fit = judge((&source.0, source.1), (&target.0, target.1)).coerced();
        assert_eq!(matches!(fit, Fit::Coerced(_)), expected, "{from} -> {to}: {fit:?}");
    };
    check("numeric", "numeric(10,2)", true);
    check("text[]", "varchar(5)[]", true);
    check("timestamptz", "timestamp", true);
    check("timestamp", "timestamptz", false);
    check("text", "int4", false);
    check("int8", "int4", false);
    check("int4", "int8", false);
}

#[test]
fn parts_of_a_type_count_by_their_place() {
    let parts = |text: &str| -> Vec<InnerType> {
        let part = |text: &str| {
            let (path, ty) = text.split_once(' ').expect("a path and a type");
            let path = path.split('.').map(str::to_owned).collect();
            let (ty, typmod) = parse(ty);
            InnerType { path, ty, typmod }
        };
        text.split(", ").filter(|text| !text.is_empty()).map(part).collect()
    };
    let check = |from: &str, to: &str, expected: Fit| {
        assert_eq!(with_inner_types(Fit::Fits, &parts(from), &parts(to)), expected, "{from} -> {to}");
    };
    check("a int4, b text", "a int4, b text", Fit::Fits);
    check("a int4, b text", "a int8, c text", Fit::Fits);
    check("a text", "a varchar(5)", Fit::Changes(INNER_CHANGES));
    check("a int8", "a int4", Fit::Risky(INNER_REFUSES));
    check("a int4, b int4", "b int4, a int4", Fit::Unfit(INNER_ORDER));
    check("p.a int4, p.b int4", "p.b int4, p.a int4", Fit::Unfit(INNER_ORDER));
    check("a int4, b int4", "b int4, c int4", Fit::Unfit(INNER_ORDER));
    check("a int4, b int4", "a int4", Fit::Risky(INNER_REFUSES));
    check("", "a int4", Fit::Fits);
}
