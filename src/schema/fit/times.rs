//! Times and intervals in columns for times and intervals.

use super::{FOREIGN, Fit, Side};
use crate::schema::guard::{GuardRule, IntervalField, ValueGuard};
use crate::schema::render::{Modifier, interval_bit};

/// Digits of a second that every time has, unless it is declared with fewer.
const ALL_DIGITS: i32 = 6;

const OVERFLOW: &str = "a value out of the target type's range is refused";
const DROPS_TIME: &str = "the target would silently drop the time of day";
const DROPS_ZONE: &str = "the target would silently drop the time zone";
const INVENTS_ZONE: &str = "the target would silently take its session's time zone for the value's";

/// Judges times with `from` digits of a second into those with `to`.
pub(super) fn digits_into(from: Option<i32>, to: i32) -> Fit {
    if from.unwrap_or(ALL_DIGITS) <= to {
        return Fit::Fits;
    }
    Fit::Guarded(ValueGuard::of_value(GuardRule::FractionBeyond { digits: to }))
}

/// Judges an interval, or a time of day, into an interval with these fields and digits of a second.
pub(super) fn interval_into(from: Modifier, to_fields: Option<i32>, to_precision: Option<i32>) -> Fit {
    let (fields, precision) = match from {
        Modifier::Interval { fields, precision } => (fields, precision),
        Modifier::Length(digits) => (None, Some(digits)),
        Modifier::None | Modifier::Numeric { .. } | Modifier::Opaque(_) => (None, None),
    };
    let (from, to) = (smallest(fields), smallest(to_fields));
    let digits = to_precision.unwrap_or(ALL_DIGITS);
    let keeps_digits = from < IntervalField::Second || precision.unwrap_or(ALL_DIGITS) <= digits;
    if from <= to && keeps_digits {
        return Fit::Fits;
    }
    Fit::Guarded(ValueGuard::of_value(GuardRule::IntervalBeyond { smallest: to, digits }))
}

/// The smallest field that such an interval keeps. Larger ones than the declared are kept in any case.
fn smallest(fields: Option<i32>) -> IntervalField {
    use IntervalField::{Day, Hour, Minute, Month, Second, Year};
    let Some(fields) = fields else { return Second };
    let has = |field: &(IntervalField, i32)| fields & field.1 != 0;
    let bits = [
        (Second, interval_bit::SECOND),
        (Minute, interval_bit::MINUTE),
        (Hour, interval_bit::HOUR),
        (Day, interval_bit::DAY),
        (Month, interval_bit::MONTH),
        (Year, interval_bit::YEAR),
    ];
    bits.into_iter().find(has).map_or(Second, |(field, _)| field)
}

pub(super) fn judge(from: Side<'_>, to: Side<'_>) -> Fit {
    match (from.name, to.name) {
        // Dates extend to 5874897 AD, time stamps only to 294276 AD.
        ("date", "timestamp") => Fit::Risky(OVERFLOW),
        // A time of day enters an interval as the time since midnight.
        ("time", "interval") => match to.modifier {
            Modifier::Interval { fields, precision } => interval_into(from.modifier, fields, precision),
            _ => Fit::Fits,
        },
        // What would be stored depends on a setting, so that the mapping cannot allow it.
        ("date" | "timestamp", "timestamptz") | ("time", "timetz") => Fit::Unfit(INVENTS_ZONE),
        ("timestamptz", "timestamp") | ("timetz", "time") => Fit::Changes(DROPS_ZONE),
        ("timestamp" | "timestamptz", "date") => Fit::Changes(DROPS_TIME),
        _ => Fit::Unfit(FOREIGN),
    }
}
