//! Numbers in columns for numbers.

use super::{FOREIGN, Fit, Side};
use crate::schema::guard::{FloatType, GuardRule, ValueGuard};
use crate::schema::render::Modifier;

const OVERFLOW: &str = "a value out of the target type's range is refused";
const NOT_INTEGRAL: &str = "a value with a fraction or out of range is refused";

const fn digits_beyond(scale: i32) -> Fit {
    Fit::Guarded(ValueGuard::of_value(GuardRule::DigitsBeyond { scale }))
}

const fn float_digits(float: FloatType) -> Fit {
    Fit::Guarded(ValueGuard::of_value(GuardRule::FloatDigits(float)))
}

/// Judges a number with this modifier into `numeric(precision, scale)`.
pub(super) fn numeric_into(from: Modifier, precision: i32, scale: i32) -> Fit {
    match from {
        Modifier::Numeric { scale: from_scale, .. } if from_scale > scale => digits_beyond(scale),
        Modifier::Numeric { precision: from_precision, scale: from_scale }
            if from_precision - from_scale <= precision - scale =>
        {
            Fit::Fits
        }
        Modifier::Numeric { .. } => Fit::Risky(OVERFLOW),
        Modifier::None | Modifier::Length(_) | Modifier::Interval { .. } | Modifier::Opaque(_) => {
            digits_beyond(scale)
        }
    }
}

/// Judges numbers into other numbers. The longest integers have 5, 10, 19 and (oid) 10 digits.
pub(super) fn judge(from: Side<'_>, to: Side<'_>) -> Fit {
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
        ("int4" | "int8" | "numeric" | "oid" | "float8", "float4") => float_digits(FloatType::Single),
        ("int8" | "numeric", "float8") => float_digits(FloatType::Double),
        (_, "numeric") => match (digits, to.modifier) {
            (None, Modifier::Numeric { scale, .. }) => digits_beyond(scale),
            (Some(_), Modifier::Numeric { scale, .. }) if scale < 0 => digits_beyond(scale),
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
