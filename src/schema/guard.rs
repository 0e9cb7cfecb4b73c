//! Values that the target's type would change without an error.
//!
//! Pure. PostgreSQL's input functions round numbers and times, cut blanks off, drop what a type does not keep, and
//! report nothing. So `apply` and `copy` look at each value of a guarded column before it is sent, and refuse it as
//! the server refuses a value that is too long. A value whose type cannot be guarded in this way is unfit (`fit`).
//!
//! Only values in text form are looked at: guarded columns are never sent in binary (`binary`).

mod array;
mod decimal;
mod json;
mod time;

use crate::error::ServerError;
use crate::pg::QualifiedName;

use decimal::Decimal;
pub use decimal::FloatType;
pub use time::IntervalField;

/// What is looked for in a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueGuard {
    pub rule: GuardRule,
    pub part: GuardedPart,
}

/// What a rule is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardedPart {
    Value,
    /// Each element of an array.
    Elements,
}

/// What would be changed silently. The first matching rule of PostgreSQL's input function is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardRule {
    /// Blanks beyond the length of a `varchar(n)` are cut off (`varchar_input` in `varchar.c`). Longer values
    /// are refused by the server.
    BlanksBeyond { length: usize, unit: LengthUnit },
    /// Blanks at the end mean nothing in a `char(n)`, which fills every value up with them.
    BlanksAtEnd,
    /// Of several equal keys, `jsonb` keeps the last value only.
    EqualKeys,
    /// A `numeric(p,s)` rounds to `scale` digits after the point, or, if it is negative, before it
    /// (`apply_typmod` in `numeric.c`).
    DigitsBeyond { scale: i32 },
    /// A floating-point number rounds to the digits that it can hold.
    FloatDigits(FloatType),
    /// A time rounds its fraction of a second to `digits` (`AdjustTimestampForTypmod` in `timestamp.c`).
    FractionBeyond { digits: i32 },
    /// An interval drops the fields below `smallest`, and rounds the fraction of a second to `digits`
    /// (`AdjustIntervalForTypmod` in `timestamp.c`).
    IntervalBeyond { smallest: IntervalField, digits: i32 },
}

/// What a declared length counts on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthUnit {
    Characters,
    /// The database's encoding is `SQL_ASCII`.
    Bytes,
}

const STRING_DATA_RIGHT_TRUNCATION: &str = "22001";
const NUMERIC_VALUE_OUT_OF_RANGE: &str = "22003";
const DATETIME_FIELD_OVERFLOW: &str = "22008";
const INTERVAL_FIELD_OVERFLOW: &str = "22015";
const DUPLICATE_JSON_OBJECT_KEY_VALUE: &str = "22030";

impl ValueGuard {
    /// Guards values that are no arrays.
    #[must_use]
    pub const fn of_value(rule: GuardRule) -> Self {
        Self { rule, part: GuardedPart::Value }
    }

    /// Guards each element of arrays by this guard's rule.
    #[must_use]
    pub const fn of_elements(self) -> Self {
        Self { part: GuardedPart::Elements, ..self }
    }

    /// Whether the target would change the value silently.
    #[must_use]
    pub fn refuses(self, value: &[u8]) -> bool {
        match self.part {
            GuardedPart::Value => self.rule.refuses(value),
            GuardedPart::Elements => array::any_element(value, |element| self.rule.refuses(element)),
        }
    }

    /// Counts a declared length in these units.
    #[must_use]
    pub fn counted_in(self, unit: LengthUnit) -> Self {
        match self.rule {
            GuardRule::BlanksBeyond { length, .. } => {
                Self { rule: GuardRule::BlanksBeyond { length, unit }, ..self }
            }
            GuardRule::BlanksAtEnd
            | GuardRule::EqualKeys
            | GuardRule::DigitsBeyond { .. }
            | GuardRule::FloatDigits(_)
            | GuardRule::FractionBeyond { .. }
            | GuardRule::IntervalBeyond { .. } => self,
        }
    }

    /// Returns the refusal of a value of this column, in the form of a server's error.
    #[must_use]
    pub fn refusal(self, table: &QualifiedName, column: &str) -> ServerError {
        let subject = match self.part {
            GuardedPart::Value => format!("the value for column \"{column}\""),
            GuardedPart::Elements => format!("an element of the value for column \"{column}\""),
        };
        let (code, what, detail) = self.rule.refusal();
        ServerError {
            severity: "ERROR".to_owned(),
            code: code.to_owned(),
            message: format!("{subject} {what}"),
            detail: Some(format!(
                "{detail} without an error. Unless rows are found by this column, columns = {{ \"{column}\" = {{ \
                 coerce = true }} }} in the table's rule would allow that."
            )),
            schema: Some(table.schema.clone()),
            table: Some(table.name.clone()),
            column: Some(column.to_owned()),
            ..ServerError::default()
        }
    }
}

impl GuardRule {
    fn refuses(self, value: &[u8]) -> bool {
        match self {
            Self::BlanksBeyond { length, unit } => {
                value.len() > length && value.ends_with(b" ") && unit.count(value) > length
            }
            Self::BlanksAtEnd => value.ends_with(b" "),
            Self::EqualKeys => json::has_equal_keys(value),
            Self::DigitsBeyond { scale } => {
                Decimal::parse(value).is_some_and(|decimal| decimal.has_digits_beyond(scale))
            }
            Self::FloatDigits(float) => float.rounds(value),
            Self::FractionBeyond { digits } => time::has_fraction_beyond(value, digits),
            Self::IntervalBeyond { smallest, digits } => time::interval_exceeds(value, smallest, digits),
        }
    }

    /// What is refused, for warnings.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::BlanksBeyond { .. } => {
                "a value longer than the target column allows is refused, also if only blanks at its end are too many"
            }
            Self::BlanksAtEnd => {
                "the target fills values up with blanks; a value that is too long or ends in a blank is refused"
            }
            Self::EqualKeys => {
                "white space and the order of keys are not kept; a value in which an object has a key twice is refused"
            }
            Self::DigitsBeyond { .. } => {
                "a value with more decimal digits than the target column keeps, or out of its range, is refused"
            }
            Self::FloatDigits(_) => {
                "a value with more significant digits than the target column keeps, or out of its range, is refused"
            }
            Self::FractionBeyond { .. } => {
                "a value with more digits of a second than the target column keeps is refused"
            }
            Self::IntervalBeyond { .. } => {
                "a value with fields or digits of a second that the target column does not keep is refused"
            }
        }
    }

    /// What the target does to such values, for columns whose mapping allows it.
    #[must_use]
    pub const fn change(self) -> &'static str {
        match self {
            Self::BlanksBeyond { .. } => "the target cuts off blanks at the end of values that are too long",
            Self::BlanksAtEnd => "the target does not tell blanks at the end from those that fill values up",
            Self::EqualKeys => "the target keeps only one of several equal keys of a JSON object",
            Self::DigitsBeyond { .. } => "the target rounds away decimal digits",
            Self::FloatDigits(_) => "the target rounds to fewer significant digits",
            Self::FractionBeyond { .. } => "the target rounds away fractions of a second",
            Self::IntervalBeyond { .. } => "the target drops fields or fractions of a second",
        }
    }

    /// The SQLSTATE of a refusal, what is wrong with the value, and what the target would do to it.
    fn refusal(self) -> (&'static str, String, &'static str) {
        match self {
            Self::BlanksBeyond { length, unit } => (
                STRING_DATA_RIGHT_TRUNCATION,
                format!("is longer than the column's {length} {}", unit.as_str()),
                "Only blanks at its end are too many. The target would cut them off",
            ),
            Self::BlanksAtEnd => (
                STRING_DATA_RIGHT_TRUNCATION,
                "of type char ends in a blank".to_owned(),
                "The target would fill it up with blanks, from which those of the value could not be told,",
            ),
            Self::EqualKeys => (
                DUPLICATE_JSON_OBJECT_KEY_VALUE,
                "of type jsonb has an object with a key twice".to_owned(),
                "The target would keep the last value only",
            ),
            Self::DigitsBeyond { scale: scale @ ..0 } => (
                NUMERIC_VALUE_OUT_OF_RANGE,
                format!(
                    "has digits other than 0 in the last {} places before the point",
                    scale.unsigned_abs()
                ),
                "The target would round them away",
            ),
            Self::DigitsBeyond { scale } => (
                NUMERIC_VALUE_OUT_OF_RANGE,
                format!("has more than {scale} digits after the point"),
                "The target would round them away",
            ),
            Self::FloatDigits(float) => (
                NUMERIC_VALUE_OUT_OF_RANGE,
                format!("has more significant digits than {} keeps", float.as_str()),
                "The target would round it",
            ),
            Self::FractionBeyond { digits } => (
                DATETIME_FIELD_OVERFLOW,
                format!("has more than {digits} digits of a second"),
                "The target would round them away",
            ),
            Self::IntervalBeyond { smallest: IntervalField::Second, digits } => (
                INTERVAL_FIELD_OVERFLOW,
                format!("has more than {digits} digits of a second"),
                "The target would round them away",
            ),
            Self::IntervalBeyond { smallest, .. } => (
                INTERVAL_FIELD_OVERFLOW,
                format!("has fields below {}", smallest.as_str()),
                "The target would drop them",
            ),
        }
    }
}

impl LengthUnit {
    fn count(self, value: &[u8]) -> usize {
        // A continuation byte of UTF-8 begins no character.
        let begins = |byte: &&u8| **byte & 0b1100_0000 != 0b1000_0000;
        match self {
            Self::Characters => value.iter().filter(begins).count(),
            Self::Bytes => value.len(),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Characters => "characters",
            Self::Bytes => "bytes",
        }
    }
}

#[cfg(test)]
mod tests;
