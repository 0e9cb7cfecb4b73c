//! Values that the target's type would change without an error.
//!
//! Pure. PostgreSQL's input functions cut blanks off, drop what a type does not keep, and report nothing. So
//! `apply` and `copy` look at each value of a guarded column before it is sent, and refuse it as the server
//! refuses a value that is too long. A value whose type cannot be guarded in this way is unfit (`fit`).
//!
//! Only values in text form are looked at. Guarded columns never have another form: their published types
//! are text, or differ from the target's (`binary`).

use std::collections::HashSet;

use crate::error::ServerError;
use crate::pg::QualifiedName;

/// What would be changed silently. The first matching rule of PostgreSQL's input function is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueGuard {
    /// Blanks beyond the length of a `varchar(n)` are cut off (`varchar_input` in `varchar.c`). Longer values
    /// are refused by the server.
    BlanksBeyond { length: usize, unit: LengthUnit },
    /// Blanks at the end mean nothing in a `char(n)`, which fills every value up with them.
    BlanksAtEnd,
    /// Of several equal keys, `jsonb` keeps the last value only.
    EqualKeys,
}

/// What a declared length counts on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthUnit {
    Characters,
    /// The database's encoding is `SQL_ASCII`.
    Bytes,
}

const STRING_DATA_RIGHT_TRUNCATION: &str = "22001";
const DUPLICATE_JSON_OBJECT_KEY_VALUE: &str = "22030";

impl ValueGuard {
    /// Whether the target would change the value silently.
    #[must_use]
    pub fn refuses(self, value: &[u8]) -> bool {
        match self {
            Self::BlanksBeyond { length, unit } => {
                value.len() > length && value.ends_with(b" ") && unit.count(value) > length
            }
            Self::BlanksAtEnd => value.ends_with(b" "),
            Self::EqualKeys => has_equal_keys(value),
        }
    }

    /// Counts a declared length in these units.
    #[must_use]
    pub fn counted_in(self, unit: LengthUnit) -> Self {
        match self {
            Self::BlanksBeyond { length, .. } => Self::BlanksBeyond { length, unit },
            Self::BlanksAtEnd | Self::EqualKeys => self,
        }
    }

    /// What the target does to such a value, for warnings.
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
        }
    }

    /// Returns the refusal of a value of this column, in the form of a server's error.
    #[must_use]
    pub fn refusal(self, table: &QualifiedName, column: &str) -> ServerError {
        let (code, message, detail) = match self {
            Self::BlanksBeyond { length, unit } => (
                STRING_DATA_RIGHT_TRUNCATION,
                format!("value too long for column \"{column}\", which holds {length} {}", unit.as_str()),
                "Only blanks at its end are too many. The target would cut them off without an error.",
            ),
            Self::BlanksAtEnd => (
                STRING_DATA_RIGHT_TRUNCATION,
                format!("the value for column \"{column}\" of type char ends in a blank"),
                "The target fills values up with blanks, so that those of the value could not be told apart.",
            ),
            Self::EqualKeys => (
                DUPLICATE_JSON_OBJECT_KEY_VALUE,
                format!("an object in the value for column \"{column}\" of type jsonb has a key twice"),
                "The target would keep the last value only, without an error.",
            ),
        };
        ServerError {
            severity: "ERROR".to_owned(),
            code: code.to_owned(),
            message,
            detail: Some(detail.to_owned()),
            schema: Some(table.schema.clone()),
            table: Some(table.name.clone()),
            column: Some(column.to_owned()),
            ..ServerError::default()
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

/// Whether an object in a JSON text has a key twice. The publisher's type json has checked the syntax, so that
/// only strings and braces have to be found; of another text the answer is meaningless.
fn has_equal_keys(json: &[u8]) -> bool {
    /// A container that is open: the keys of an object, none of an array.
    type Open = Option<HashSet<Vec<u8>>>;
    let mut open: Vec<Open> = Vec::new();
    // Within an object, the next string is a key after `{` and `,`.
    let mut key_is_next = false;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'{' => {
                open.push(Some(HashSet::new()));
                key_is_next = true;
            }
            b'[' => {
                open.push(None);
                key_is_next = false;
            }
            b'}' | b']' => {
                open.pop();
                key_is_next = false;
            }
            b',' => key_is_next = matches!(open.last(), Some(Some(_))),
            b'"' => {
                let end = at + string_length(json.get(at..).unwrap_or_default());
                let string = json.get(at..end).unwrap_or_default();
                at = end + 1;
                if std::mem::take(&mut key_is_next)
                    && let Some(Some(keys)) = open.last_mut()
                    && !keys.insert(unescaped(string))
                {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// The number of bytes before the quote that ends a string.
fn string_length(rest: &[u8]) -> usize {
    let mut escaped = false;
    let ends = |&byte: &u8| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    };
    rest.iter().position(ends).unwrap_or(rest.len())
}

/// A key as jsonb compares it. A string that cannot be read is compared as it is.
fn unescaped(string: &[u8]) -> Vec<u8> {
    if !string.contains(&b'\\') {
        return string.to_vec();
    }
    let quoted = [b"\"", string, b"\""].concat();
    serde_json::from_slice::<String>(&quoted).map_or_else(|_| string.to_vec(), String::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: ValueGuard, value: &str, expected: bool) {
        assert_eq!(guard.refuses(value.as_bytes()), expected, "{guard:?} {value:?}");
    }

    #[test]
    fn only_what_would_be_cut_off_silently_is_refused() {
        let five = ValueGuard::BlanksBeyond { length: 5, unit: LengthUnit::Characters };
        check(five, "abc       ", true);
        check(five, "      ", true);
        check(five, "abc  ", false);
        check(five, "äöü  ", false);
        check(five, "äöü   ", true);
        // The server refuses it.
        check(five, "abcdefg", false);
        check(five.counted_in(LengthUnit::Bytes), "äöü  ", true);
        check(ValueGuard::BlanksAtEnd, "ab ", true);
        check(ValueGuard::BlanksAtEnd, " ab", false);
        check(ValueGuard::BlanksAtEnd, "", false);
    }

    #[test]
    fn equal_keys_are_found_wherever_they_are() {
        for (expected, json) in [
            (true, r#"{"a": 1, "a": 2}"#),
            (true, r#"[1, {"b": {"a": [], "c": {"a": 1}, "a": "x"}}]"#),
            (true, r#"{"\u0061": 1, "a": 2}"#),
            (true, r#"{"a\"": 1, "b": "a", "a\"": 2}"#),
            (true, r#"{"": 1, "" : 2}"#),
            (true, r#"{"x": [{"a": 1}], "x": 0}"#),
            (false, r#"{"a": {"a": {"a": "a"}}, "b": ["a", "a", "b"]}"#),
            (false, r#"[{"a": 1}, {"a": 1}]"#),
            (false, r#"{"a": "b", "b": "a", "c": "{\"a\": 1, \"a\": 2}"}"#),
            (false, r#"{"a\\": 1, "a": 2}"#),
            (false, "null"),
            (false, r#""a, \"a\"""#),
            // No JSON; nothing may panic.
            (false, r#"}{"#),
            (false, r#"{"a"#),
            (false, r#"{"a\"#),
        ] {
            check(ValueGuard::EqualKeys, json, expected);
        }
    }

    #[test]
    fn a_refusal_names_the_column_and_not_the_value() {
        let guard = ValueGuard::BlanksBeyond { length: 5, unit: LengthUnit::Characters };
        let error = guard.refusal(&QualifiedName::new("public", "t"), "v");
        assert_eq!(
            error.to_string(),
            r#"ERROR: value too long for column "v", which holds 5 characters (SQLSTATE 22001)"#
        );
        assert_eq!(error.column.as_deref(), Some("v"));
    }
}
