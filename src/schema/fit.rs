//! Whether every value of the publisher's type enters the target's type and reads back unchanged.
//!
//! Pure. Values are sent as text (binary is used only between equal types), so the question is what the
//! target's input function makes of the text that the publisher's output function wrote.
//!
//! # Why there are several verdicts
//!
//! It matters how types fail. A value that is *refused* stops the apply and is named (`value_error`):
//! this is allowed with a warning, because often no such value exists. A value that is *silently
//! changed* cannot be noticed later. Where such values can be told from others, they are looked for and
//! refused ([`ValueGuard`]); else the pair is unfit, as is a pair where hardly any value would enter. A value
//! that is kept in another form of the same value is announced. This module alone ensures that no value is
//! silently changed by a cast, unless the mapping allows it.

mod numbers;
mod text;
mod times;

use super::guard::ValueGuard;
use super::render::{Modifier, is_builtin};
use super::{InnerType, TypeName};

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
    /// Some values are changed, and the mapping allows that. Others may be refused.
    Coerced(&'static str),
    /// Values would be changed silently, and cannot be told from others.
    Changes(&'static str),
    /// Values would hardly ever enter.
    Unfit(&'static str),
}

const TOO_LONG: &str = "a value longer than the target column allows is refused";
const LABELS: &str = "a value that the target's type does not know is refused";
const INNER_CHANGES: &str =
    "a type inside has other limits on the target, which would silently change values";
pub(super) const INNER_ORDER: &str = "a composite type inside has its columns in another order on the target";
const INNER_REFUSES: &str = "a value that does not fit into a type inside the target's is refused";
const FOREIGN: &str = "the target's type does not take the values of the publisher's type";

impl Fit {
    /// Whether some values do not enter.
    #[must_use]
    pub const fn refuses(self) -> bool {
        match self {
            Self::Fits | Self::OtherForm(_) => false,
            Self::Risky(_) | Self::Guarded(_) | Self::Coerced(_) | Self::Changes(_) | Self::Unfit(_) => true,
        }
    }

    /// The verdict if the mapping allows the target to change values.
    #[must_use]
    pub const fn coerced(self) -> Self {
        match self {
            Self::Guarded(guard) => Self::Coerced(guard.rule.change()),
            Self::Changes(change) => Self::Coerced(change),
            Self::Fits | Self::OtherForm(_) | Self::Risky(_) | Self::Coerced(_) | Self::Unfit(_) => self,
        }
    }

    /// The verdict on arrays of such elements.
    const fn of_elements(self) -> Self {
        match self {
            Self::Guarded(guard) => Self::Guarded(guard.of_elements()),
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

/// Adds to the verdict on two types that users have created what is inside them. Values of a composite type go by the
/// order of its columns, whatever their names are; if their number differs, the target refuses the values.
#[must_use]
pub fn with_inner_types(fit: Fit, source: &[InnerType], target: &[InnerType]) -> Fit {
    if matches!(fit, Fit::Unfit(_)) {
        return fit;
    }
    let is_elsewhere = |(from, to): (&InnerType, &InnerType)| {
        from.path != to.path
            && (target.iter().any(|other| other.path == from.path)
                || source.iter().any(|other| other.path == to.path))
    };
    if source.iter().zip(target).any(is_elsewhere) {
        return Fit::Unfit(INNER_ORDER);
    }
    if source.len() != target.len() {
        return if source.is_empty() || target.is_empty() || fit != Fit::Fits {
            fit
        } else {
            Fit::Risky(INNER_REFUSES)
        };
    }
    let parts =
        source.iter().zip(target).map(|(from, to)| judge((&from.ty, from.typmod), (&to.ty, to.typmod)));
    parts.fold(fit, |fit, part| match part {
        Fit::Guarded(_) | Fit::Changes(_) | Fit::Coerced(_) => Fit::Changes(INNER_CHANGES),
        Fit::Risky(_) | Fit::Unfit(_) if fit == Fit::Fits => Fit::Risky(INNER_REFUSES),
        Fit::Fits | Fit::OtherForm(_) | Fit::Risky(_) | Fit::Unfit(_) => fit,
    })
}

fn judge_sides(from: Side<'_>, to: Side<'_>) -> Fit {
    if from.name == to.name && from.builtin == to.builtin {
        return same_type(from, to);
    }
    if let Some(fit) = text::into_text(from, to) {
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

    /// The declared length, or number of digits of a second.
    const fn length(self) -> Option<i32> {
        match self.modifier {
            Modifier::Length(length) => Some(length),
            Modifier::None | Modifier::Numeric { .. } | Modifier::Interval { .. } | Modifier::Opaque(_) => {
                None
            }
        }
    }
}

/// Judges equal types, which differ only by their modifiers.
fn same_type(from: Side<'_>, to: Side<'_>) -> Fit {
    let name = from.name.strip_prefix('_').filter(|_| from.builtin).unwrap_or(from.name);
    match (from.modifier, to.modifier) {
        (from, to) if from == to => Fit::Fits,
        // A bit string without a length, as CREATE TABLE AS creates it, accepts any length.
        (_, Modifier::None) => Fit::Fits,
        (from, Modifier::Numeric { precision, scale }) => numbers::numeric_into(from, precision, scale),
        (_, Modifier::Length(length)) => same_type_length(name, from.length(), length),
        (from, Modifier::Interval { fields, precision }) => times::interval_into(from, fields, precision),
        (_, Modifier::Opaque(_)) => {
            Fit::Risky("a value that the target column's type modifier forbids is refused")
        }
    }
}

fn same_type_length(name: &str, from: Option<i32>, to: i32) -> Fit {
    match name {
        "bpchar" if from.is_some_and(|from| from < to) => Fit::OtherForm(text::FILLED),
        "varchar" | "varbit" if from.is_some_and(|from| from <= to) => Fit::Fits,
        "varchar" => Fit::Guarded(text::blanks_beyond(to)),
        // The blanks that are cut off mean nothing.
        "bpchar" => Fit::Risky(text::TOO_LONG_CHAR),
        "varbit" => Fit::Risky(TOO_LONG),
        // A bit string must have exactly the declared length.
        "bit" if from.is_some() => Fit::Unfit("the target takes bit strings of another length only"),
        "bit" => Fit::Risky("a bit string of another length is refused"),
        _ => times::digits_into(from, to),
    }
}

/// Judges a pair of different built-in types, neither of them an array.
fn judge_builtin(from: Side<'_>, to: Side<'_>) -> Fit {
    if from.name == to.name {
        return same_type(from, to);
    }
    if let Some(fit) = text::into_text(from, to) {
        return fit;
    }
    match (from.name, to.name) {
        ("int2" | "int4" | "int8" | "numeric" | "float4" | "float8" | "oid", _) => numbers::judge(from, to),
        ("date" | "time" | "timetz" | "timestamp" | "timestamptz", _) => times::judge(from, to),
        (_, "name" | "char" | "bytea") if text::is_character(from.name) => text::into_other(to.name),
        ("json", "jsonb") => Fit::Guarded(text::EQUAL_KEYS),
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

/// Judges a pair with at least one user-defined type, whose text form is unknown here. Its array type
/// has its name with an underscore in front, like built-in ones.
fn judge_custom(from: Side<'_>, to: Side<'_>) -> Fit {
    let (from, to) = match (from.name.strip_prefix('_'), to.name.strip_prefix('_')) {
        (Some(from_name), Some(to_name)) => (Side { name: from_name, ..from }, Side { name: to_name, ..to }),
        (None, None) => (from, to),
        (Some(_), None) | (None, Some(_)) => return Fit::Unfit(FOREIGN),
    };
    if let Some(fit) = text::into_text(from, to) {
        return fit;
    }
    match (from.builtin, to.builtin) {
        (true, false) if text::is_character(from.name) => Fit::Risky(LABELS),
        (false, false) => Fit::Risky(LABELS),
        (true, false) | (false, true) => Fit::Unfit(FOREIGN),
        (true, true) => judge_builtin(from, to),
    }
}

#[cfg(test)]
mod tests;
