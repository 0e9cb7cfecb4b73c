//! Whether every value of the publisher's type enters the target's type and reads back unchanged.
//!
//! Pure. Values are sent as text (binary is used only between equal types), so the question is what the
//! target's input function makes of the text that the publisher's output function wrote.
//!
//! # Why there are five verdicts
//!
//! It matters how types fail. A value that is *refused* stops the apply and is named (`value_error`):
//! this is allowed with a warning, because often no such value exists. A value that is *silently
//! changed* cannot be noticed later. Where such values can be told from others, they are looked for and
//! refused ([`ValueGuard`]); else the pair is unfit, as is a pair where hardly any value would enter. A value
//! that is kept in another form of the same value is announced. This module alone ensures that no value is
//! silently changed by a cast.

use super::TypeName;
use super::guard::{LengthUnit, ValueGuard};
use super::render::{Modifier, is_builtin};

/// The verdict on one pair of types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Every value enters without loss.
    Fits,
    /// Every value enters, some in another form of the same value.
    OtherForm(&'static str),
    /// Some values may be refused with an error.
    Risky(&'static str),
    /// Some values would be changed silently. They are found and refused.
    Guarded(ValueGuard),
    /// Values would be changed silently, or would hardly ever enter.
    Unfit(&'static str),
}

const OVERFLOW: &str = "a value out of the target type's range is refused";
const TOO_LONG: &str = "a value longer than the target column allows is refused";
const TOO_LONG_CHAR: &str =
    "a value longer than the target column allows is refused; blanks at its end do not count in type char";
const FILLED: &str = "the target fills values up with blanks to the column's length";
const KEEPS_FILLING: &str = "the blanks with which type char fills values up become part of the value";
const LONGER_FILLED: &str =
    "the publisher fills every value up with blanks to a length that the target does not allow";
const CUTS_BLANKS: &str = "the target would silently cut off blanks at the end of elements that are too long";
const DROPS_KEYS: &str = "the target would silently keep only one of several equal keys of a JSON object";
const NOT_INTEGRAL: &str = "a value with a fraction or out of range is refused";
const LABELS: &str = "a value that the target's type does not know is refused";
const ROUNDS_DIGITS: &str = "the target would silently round away decimal digits";
const ROUNDS_FLOAT: &str = "the target would silently round to fewer significant digits";
const ROUNDS_TIME: &str = "the target would silently round away fractions of a second";
const DROPS_TIME: &str = "the target would silently drop the time of day";
const DROPS_ZONE: &str = "the target would silently drop the time zone";
const INVENTS_ZONE: &str = "the target would silently take its session's time zone for the value's";
const CUTS: &str = "the target would silently cut off what is too long";
const FIELDS: &str = "the target would silently drop fields of the interval";
const REREADS: &str = "the target would silently read the text as escaped bytes";
const FOREIGN: &str = "the target's type does not take the values of the publisher's type";

impl Fit {
    /// Whether some values do not enter.
    #[must_use]
    pub const fn refuses(self) -> bool {
        match self {
            Self::Fits | Self::OtherForm(_) => false,
            Self::Risky(_) | Self::Guarded(_) | Self::Unfit(_) => true,
        }
    }

    /// The verdict on arrays of such elements, whose values are not looked at.
    const fn of_elements(self) -> Self {
        match self {
            Self::Guarded(ValueGuard::EqualKeys) => Self::Unfit(DROPS_KEYS),
            Self::Guarded(_) => Self::Unfit(CUTS_BLANKS),
            other => other,
        }
    }
}

/// Judges one column: the publisher's type against the target's, each below its domains.
#[must_use]
pub fn judge(source: (&TypeName, i32), target: (&TypeName, i32)) -> Fit {
    let from = Side::new(source.0, source.1);
    let to = Side::new(target.0, target.1);
    let fit = judge_sides(from, to);
    if to.name.starts_with('_') { fit.of_elements() } else { fit }
}

fn judge_sides(from: Side<'_>, to: Side<'_>) -> Fit {
    if from.name == to.name && from.builtin == to.builtin {
        return same_type(from, to);
    }
    if let Some(fit) = into_text(from, to) {
        return fit;
    }
    // Elements are judged as single values are; an array never enters a scalar, nor a scalar an array.
    match (from.builtin && to.builtin, from.array(), to.array()) {
        (true, Some(from), Some(to)) => judge_builtin(from, to),
        (true, None, None) => judge_builtin(from, to),
        (true, _, _) => Fit::Unfit(FOREIGN),
        (false, _, _) => judge_custom(from, to),
    }
}

#[derive(Clone, Copy)]
struct Side<'a> {
    name: &'a str,
    builtin: bool,
    modifier: Modifier,
}

impl<'a> Side<'a> {
    fn new(ty: &'a TypeName, typmod: i32) -> Self {
        Self { name: &ty.name, builtin: is_builtin(ty), modifier: Modifier::of(ty, typmod) }
    }

    /// Returns the element type, if this is a built-in array type.
    fn array(self) -> Option<Self> {
        let name = self.name.strip_prefix('_').filter(|_| self.builtin)?;
        Some(Self { name, ..self })
    }
}

/// Judges equal types, which differ only by their modifiers.
fn same_type(from: Side<'_>, to: Side<'_>) -> Fit {
    use Modifier::{Interval, Length, None, Numeric, Opaque};
    let name = from.name.strip_prefix('_').filter(|_| from.builtin).unwrap_or(from.name);
    match (from.modifier, to.modifier) {
        (from, to) if from == to => Fit::Fits,
        // A bit string without a length, as CREATE TABLE AS creates it, accepts any length.
        (_, None) => Fit::Fits,
        (from, Numeric { precision, scale }) => numeric_into(from, precision, scale),
        (from, Length(to)) => same_type_length(name, from, to),
        (Interval { fields, precision }, Interval { fields: to_fields, precision: to_precision }) => {
            interval_into(fields, precision, to_fields, to_precision)
        }
        (_, Interval { fields, precision }) => interval_into(Option::None, Option::None, fields, precision),
        (_, Opaque(_)) => Fit::Risky("a value that the target column's type modifier forbids is refused"),
    }
}

fn same_type_length(name: &str, from: Modifier, to: i32) -> Fit {
    let from = match from {
        Modifier::Length(length) => Some(length),
        _ => None,
    };
    match name {
        "varchar" | "bpchar" | "varbit" if from.is_some_and(|from| from <= to) => Fit::Fits,
        "varchar" => Fit::Guarded(blanks_beyond(to)),
        // The blanks that are cut off mean nothing.
        "bpchar" => Fit::Risky(TOO_LONG_CHAR),
        "varbit" => Fit::Risky(TOO_LONG),
        // A bit string must have exactly the declared length.
        "bit" if from.is_some() => Fit::Unfit("the target takes bit strings of another length only"),
        "bit" => Fit::Risky("a bit string of another length is refused"),
        // Fractional digits of a second are 6 unless declared otherwise.
        _ if from.unwrap_or(6) <= to => Fit::Fits,
        _ => Fit::Unfit(ROUNDS_TIME),
    }
}

fn numeric_into(from: Modifier, precision: i32, scale: i32) -> Fit {
    match from {
        Modifier::Numeric { scale: from_scale, .. } if from_scale > scale => Fit::Unfit(ROUNDS_DIGITS),
        Modifier::Numeric { precision: from_precision, scale: from_scale }
            if from_precision - from_scale <= precision - scale =>
        {
            Fit::Fits
        }
        Modifier::Numeric { .. } => Fit::Risky(OVERFLOW),
        _ => Fit::Unfit(ROUNDS_DIGITS),
    }
}

fn interval_into(
    fields: Option<i32>,
    precision: Option<i32>,
    to_fields: Option<i32>,
    to_precision: Option<i32>,
) -> Fit {
    if to_fields.is_some() && to_fields != fields {
        return Fit::Unfit(FIELDS);
    }
    if precision.unwrap_or(6) <= to_precision.unwrap_or(6) { Fit::Fits } else { Fit::Unfit(ROUNDS_TIME) }
}

/// Judges a character type as the target, which accepts the text of any type; `None` for other targets.
fn into_text(from: Side<'_>, to: Side<'_>) -> Option<Fit> {
    let unlimited = to.name == "text" && to.builtin || to.name == "citext" && !to.builtin;
    let sized = to.builtin && matches!(to.name, "varchar" | "bpchar");
    if !unlimited && !sized {
        return None;
    }
    Some(match (to.name, to.modifier) {
        ("varchar", Modifier::Length(length)) => into_varchar(from, length),
        ("bpchar", Modifier::Length(length)) => into_char(from, length),
        _ => as_text(from),
    })
}

/// Judges a type into text without a limit.
fn as_text(from: Side<'_>) -> Fit {
    let element = from.name.strip_prefix('_').unwrap_or(from.name);
    match element {
        _ if !from.builtin => Fit::Fits,
        "bytea" => Fit::OtherForm("bytes are kept as text, in hexadecimal"),
        "money" => Fit::OtherForm("amounts are kept as text, as locale C has them"),
        "timestamptz" | "tstzrange" | "tstzmultirange" => {
            Fit::OtherForm("times are kept as text, in time zone UTC")
        }
        "bpchar" if from.modifier != Modifier::None => Fit::OtherForm(KEEPS_FILLING),
        _ => Fit::Fits,
    }
}

fn into_varchar(from: Side<'_>, length: i32) -> Fit {
    match longest(from) {
        Some(longest) if longest <= length => as_text(from),
        Some(_) if from.name == "bpchar" => Fit::Unfit(LONGER_FILLED),
        _ => Fit::Guarded(blanks_beyond(length)),
    }
}

/// Judges another type into `char(n)`. Only texts can end in a blank.
fn into_char(from: Side<'_>, length: i32) -> Fit {
    match longest(from) {
        _ if !from.builtin || is_character(from.name) || from.name == "json" => {
            Fit::Guarded(ValueGuard::BlanksAtEnd)
        }
        Some(longest) if longest <= length => Fit::OtherForm(FILLED),
        _ => Fit::Risky(TOO_LONG_CHAR),
    }
}

fn blanks_beyond(length: i32) -> ValueGuard {
    let length = usize::try_from(length).unwrap_or_default();
    ValueGuard::BlanksBeyond { length, unit: LengthUnit::Characters }
}

/// Returns the number of characters of the longest text form, if the type has a bound.
fn longest(side: Side<'_>) -> Option<i32> {
    match (side.name, side.modifier) {
        ("varchar" | "bpchar" | "bit" | "varbit", Modifier::Length(length)) => Some(length),
        ("bool", _) => Some(1),
        ("int2", _) => Some(6),
        ("int4", _) => Some(11),
        ("int8", _) => Some(20),
        ("oid" | "xid", _) => Some(10),
        ("uuid", _) => Some(36),
        ("macaddr", _) => Some(17),
        ("macaddr8", _) => Some(23),
        ("name", _) => Some(63),
        _ => None,
    }
    .filter(|_| side.builtin)
}

/// Judges a pair of different built-in types, neither of them an array.
fn judge_builtin(from: Side<'_>, to: Side<'_>) -> Fit {
    if from.name == to.name {
        return same_type(from, to);
    }
    if let Some(fit) = into_text(from, to) {
        return fit;
    }
    match (from.name, to.name) {
        ("int2" | "int4" | "int8" | "numeric" | "float4" | "float8" | "oid", _) => numbers(from, to),
        ("date" | "time" | "timetz" | "timestamp" | "timestamptz", _) => times(from, to),
        // Type `name` silently truncates at 63 bytes, type "char" at one.
        (_, "name" | "char") if is_character(from.name) => Fit::Unfit(CUTS),
        (_, "bytea") if is_character(from.name) => Fit::Unfit(REREADS),
        ("json", "jsonb") => Fit::Guarded(ValueGuard::EqualKeys),
        ("cidr", "inet")
        | ("jsonb", "json")
        | ("int4range", "int8range" | "numrange")
        | ("int8range", "numrange")
        | ("int4multirange", "int8multirange" | "nummultirange")
        | ("int8multirange", "nummultirange") => Fit::Fits,
        ("inet", "cidr") => Fit::Risky("an address with host bits is refused"),
        ("macaddr", "macaddr8") => Fit::OtherForm("addresses are kept in their 8-byte form"),
        ("bit", "varbit") => match (from.modifier, to.modifier) {
            (_, Modifier::None) => Fit::Fits,
            (Modifier::Length(from), Modifier::Length(to)) if from <= to => Fit::Fits,
            _ => Fit::Risky(TOO_LONG),
        },
        ("varbit", "bit") => Fit::Risky("a bit string of another length is refused"),
        _ => Fit::Unfit(FOREIGN),
    }
}

fn is_character(name: &str) -> bool {
    matches!(name, "text" | "varchar" | "bpchar" | "name" | "char")
}

/// Judges numbers into other numbers. The longest integers have 5, 10, 19 and (oid) 10 digits.
fn numbers(from: Side<'_>, to: Side<'_>) -> Fit {
    let digits = match from.name {
        "int2" => Some(5),
        "int4" | "oid" => Some(10),
        "int8" => Some(19),
        _ => None,
    };
    match (from.name, to.name) {
        ("int2", "int4" | "int8" | "float4" | "float8")
        | ("int4" | "oid", "int8" | "float8")
        | ("float4", "float8") => Fit::Fits,
        ("int8" | "int4", "int2") | ("int8" | "oid", "int4") => Fit::Risky(OVERFLOW),
        ("int4" | "int8" | "numeric" | "oid", "float4" | "float8") | ("float8", "float4") => {
            Fit::Unfit(ROUNDS_FLOAT)
        }
        (_, "numeric") => match (digits, to.modifier) {
            (_, Modifier::Numeric { scale, .. }) if digits.is_none() || scale < 0 => {
                Fit::Unfit(ROUNDS_DIGITS)
            }
            (Some(digits), Modifier::Numeric { precision, scale }) if digits > precision - scale => {
                Fit::Risky(OVERFLOW)
            }
            _ => Fit::Fits,
        },
        ("numeric", "int2" | "int4" | "int8") => numeric_into_integer(from.modifier, to.name),
        ("float4" | "float8", "int2" | "int4" | "int8") => Fit::Risky(NOT_INTEGRAL),
        _ => Fit::Unfit(FOREIGN),
    }
}

fn numeric_into_integer(from: Modifier, to: &str) -> Fit {
    let holds = match to {
        "int2" => 4,
        "int4" => 9,
        _ => 18,
    };
    match from {
        // Their text has a decimal point, which no integer type accepts.
        Modifier::Numeric { scale, .. } if scale > 0 => Fit::Unfit(FOREIGN),
        Modifier::Numeric { precision, scale } if precision - scale <= holds => Fit::Fits,
        Modifier::Numeric { .. } => Fit::Risky(OVERFLOW),
        _ => Fit::Risky(NOT_INTEGRAL),
    }
}

fn times(from: Side<'_>, to: Side<'_>) -> Fit {
    match (from.name, to.name) {
        // Dates extend to 5874897 AD, time stamps only to 294276 AD.
        ("date", "timestamp") => Fit::Risky(OVERFLOW),
        // A time of day enters an interval as the time since midnight; fields and fractions are judged
        // as for any interval.
        ("time", "interval") => {
            let digits = if let Modifier::Length(digits) = from.modifier { Some(digits) } else { None };
            match to.modifier {
                Modifier::Interval { fields, precision } => interval_into(None, digits, fields, precision),
                _ => Fit::Fits,
            }
        }
        ("date" | "timestamp", "timestamptz") | ("time", "timetz") => Fit::Unfit(INVENTS_ZONE),
        ("timestamptz", "timestamp") | ("timetz", "time") => Fit::Unfit(DROPS_ZONE),
        ("timestamp" | "timestamptz", "date") => Fit::Unfit(DROPS_TIME),
        _ => Fit::Unfit(FOREIGN),
    }
}

/// Judges a pair with at least one user-defined type, whose text form is unknown here. Its array type
/// has its name with an underscore in front, like built-in ones.
fn judge_custom(from: Side<'_>, to: Side<'_>) -> Fit {
    let (from, to) = match (from.name.strip_prefix('_'), to.name.strip_prefix('_')) {
        (Some(from_name), Some(to_name)) => (Side { name: from_name, ..from }, Side { name: to_name, ..to }),
        (None, None) => (from, to),
        (Some(_), None) | (None, Some(_)) => return Fit::Unfit(FOREIGN),
    };
    if let Some(fit) = into_text(from, to) {
        return fit;
    }
    match (from.builtin, to.builtin) {
        (true, false) if is_character(from.name) => Fit::Risky(LABELS),
        (false, false) => Fit::Risky(LABELS),
        (true, false) | (false, true) => Fit::Unfit(FOREIGN),
        (true, true) => judge_builtin(from, to),
    }
}

#[cfg(test)]
mod tests {
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
            ('u', "int4", "float4"),
            ('u', "int8", "float8"),
            ('r', "int8", "int4"),
            ('r', "int4", "int2"),
            ('f', "int8", "numeric"),
            ('f', "int4", "numeric(10,0)"),
            ('r', "int4", "numeric(10,2)"),
            ('f', "int4", "numeric(12,2)"),
            ('u', "int4", "numeric(12,-2)"),
            ('f', "float4", "float8"),
            ('u', "float8", "float4"),
            ('f', "float8", "numeric"),
            ('u', "float8", "numeric(10,2)"),
            ('r', "float8", "int4"),
            ('u', "numeric", "float8"),
            ('r', "numeric", "int4"),
            ('f', "numeric(9,0)", "int4"),
            ('r', "numeric(10,0)", "int4"),
            ('u', "numeric(9,2)", "int4"),
            ('f', "numeric(10,2)", "numeric"),
            ('f', "numeric(10,2)", "numeric(12,2)"),
            ('f', "numeric(10,2)", "numeric(12,4)"),
            ('r', "numeric(10,2)", "numeric(10,4)"),
            ('u', "numeric(10,4)", "numeric(10,2)"),
            ('u', "numeric", "numeric(10,2)"),
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
            ('g', "uuid", "varchar(35)"),
            ('f', "text", "varchar"),
            ('g', "text", "varchar(50)"),
            ('u', "text[]", "varchar(50)[]"),
            ('g', "shop.mood", "varchar(50)"),
            ('g', "json", "varchar(50)"),
            ('f', "varchar(50)", "varchar(50)"),
            ('f', "varchar(50)", "varchar(60)"),
            ('g', "varchar(100)", "varchar(50)"),
            ('u', "varchar(100)[]", "varchar(50)[]"),
            ('f', "varchar(50)[]", "varchar(50)[]"),
            ('f', "varchar(50)", "varchar"),
            ('g', "varchar", "varchar(50)"),
            ('f', "bpchar(3)", "bpchar(5)"),
            ('r', "bpchar(5)", "bpchar(3)"),
            ('o', "bpchar(3)", "text"),
            ('o', "bpchar(3)", "varchar(3)"),
            ('u', "bpchar(4)", "varchar(3)"),
            ('f', "bpchar", "text"),
            ('g', "text", "bpchar(5)"),
            ('g', "varchar(3)", "bpchar(5)"),
            ('u', "varchar(3)[]", "bpchar(5)[]"),
            ('f', "text", "bpchar"),
            ('o', "int4", "bpchar(11)"),
            ('r', "int4", "bpchar(10)"),
            ('r', "numeric", "bpchar(10)"),
            ('o', "timestamptz", "text"),
            ('o', "timestamptz[]", "text"),
            ('f', "timestamp", "text"),
            ('o', "bytea", "text"),
            ('u', "text", "bytea"),
            ('u', "text", "int4"),
            ('u', "text", "name"),
            ('u', "text", "char"),
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
            ('u', "timestamp", "date"),
            ('u', "timestamp", "timestamptz"),
            ('u', "timestamptz", "timestamp"),
            ('u', "numeric", "date"),
            ('f', "timestamp(3)", "timestamp"),
            ('f', "timestamp", "timestamp(6)"),
            ('u', "timestamp(6)", "timestamp(0)"),
            ('u', "timestamp", "timestamp(3)"),
            ('f', "time", "interval"),
            ('u', "interval", "interval(2)"),
            ('f', "interval(2)", "interval"),
            ('f', "interval(2)", "interval(4)"),
            ('u', "timetz", "time"),
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
            ('u', "numeric(10,4)[]", "numeric(10,2)[]"),
            ('f', "varchar(5)[]", "text[]"),
            ('g', "json", "jsonb"),
            ('u', "json[]", "jsonb[]"),
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
}
