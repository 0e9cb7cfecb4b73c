//! Values in columns for texts, and texts in other columns.

use super::{Fit, Side, TOO_LONG};
use crate::schema::guard::{GuardRule, LengthUnit, ValueGuard};
use crate::schema::render::Modifier;

pub(super) const TOO_LONG_CHAR: &str =
    "a value longer than the target column allows is refused; blanks at its end do not count in type char";
pub(super) const FILLED: &str = "the target fills values up with blanks to the column's length";
const KEEPS_FILLING: &str = "the blanks with which type char fills values up become part of the value";
const LONGER_FILLED: &str =
    "the publisher fills every value up with blanks to a length that the target does not allow";
const CUTS: &str = "the target would silently cut off what is too long";
const REREADS: &str = "the target would silently read the text as escaped bytes";

pub(super) const EQUAL_KEYS: ValueGuard = ValueGuard::of_value(GuardRule::EqualKeys);

pub(super) fn blanks_beyond(length: i32) -> ValueGuard {
    let length = usize::try_from(length).unwrap_or_default();
    ValueGuard::of_value(GuardRule::BlanksBeyond { length, unit: LengthUnit::Characters })
}

/// Judges a character type as the target, which accepts the text of any type; `None` for other targets.
pub(super) fn into_text(from: Side<'_>, to: Side<'_>) -> Option<Fit> {
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
        Some(_) if !may_end_in_blank(from) => Fit::Risky(TOO_LONG),
        _ => Fit::Guarded(blanks_beyond(length)),
    }
}

/// Judges another type into `char(n)`.
fn into_char(from: Side<'_>, length: i32) -> Fit {
    match longest(from) {
        _ if may_end_in_blank(from) => Fit::Guarded(ValueGuard::of_value(GuardRule::BlanksAtEnd)),
        Some(longest) if longest <= length => Fit::OtherForm(FILLED),
        _ => Fit::Risky(TOO_LONG_CHAR),
    }
}

/// Whether a value's text can end in a blank.
fn may_end_in_blank(side: Side<'_>) -> bool {
    !side.builtin || is_character(side.name) || matches!(side.name, "json" | "xml" | "refcursor")
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

pub(super) fn is_character(name: &str) -> bool {
    matches!(name, "text" | "varchar" | "bpchar" | "name" | "char")
}

/// Judges a text into one of the built-in types that take any text and change some.
pub(super) fn into_other(to: &str) -> Fit {
    match to {
        "bytea" => Fit::Changes(REREADS),
        // Type `name` silently truncates at 63 bytes, type "char" at one.
        _ => Fit::Changes(CUTS),
    }
}
