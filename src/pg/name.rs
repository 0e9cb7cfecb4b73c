//! Names of tables, slots and subscriptions, each checked once.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::quote_ident;

/// Largest length of a name, bytes: PostgreSQL's `NAMEDATALEN` less the terminator.
const NAME_BYTES_MAX: usize = 63;

/// The error for a name that PostgreSQL would not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseNameError(String);

/// A table's schema and name, exactly as the catalog holds them (no folding, no quoting).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedName {
    pub schema: String,
    pub name: String,
}

impl QualifiedName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// Returns `"schema"."name"`, which is safe in any SQL statement.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

/// Writes `schema.name`; a part that would not read back as itself is quoted.
impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str| {
            let plain = text.bytes().enumerate().all(|(i, b)| {
                b.is_ascii_lowercase() || b == b'_' || (i > 0 && (b.is_ascii_digit() || b == b'$'))
            });
            if plain && !text.is_empty() { text.to_owned() } else { quote_ident(text) }
        };
        write!(f, "{}.{}", part(&self.schema), part(&self.name))
    }
}

impl fmt::Debug for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `schema.name` as SQL would: unquoted parts fold to lower case, `"…"` keeps its case.
/// A name without a schema is in `public`.
impl FromStr for QualifiedName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why: &str| ParseNameError(format!("\"{text}\" is not a table name: {why}"));
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = match rest.strip_prefix('"') {
                Some(quoted) => take_quoted(quoted).ok_or_else(|| wrong("a quote is not closed"))?,
                None => {
                    let end = rest.find('.').unwrap_or(rest.len());
                    (rest[..end].to_lowercase(), &rest[end..])
                }
            };
            if part.is_empty() {
                return Err(wrong("a part is empty"));
            }
            if part.len() > NAME_BYTES_MAX {
                return Err(wrong("a part is longer than 63 bytes"));
            }
            parts.push(part);
            match after.strip_prefix('.') {
                Some(next) => rest = next,
                None if after.is_empty() => break,
                None => return Err(wrong("expected a dot between schema and table")),
            }
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), None, None) => Ok(Self::new("public", name)),
            (Some(schema), Some(name), None) => Ok(Self { schema, name }),
            _ => Err(wrong("expected schema.table")),
        }
    }
}

impl Serialize for QualifiedName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Splits `name"rest` at its closing quote and undoubles the quotes within.
fn take_quoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            name.push(c);
        } else if chars.next_if(|&(_, next)| next == '"').is_some() {
            name.push('"');
        } else {
            return Some((name, &text[at + 1..]));
        }
    }
    None
}

/// A replication slot's name: lower-case letters, digits and underscores, at most 63
/// (`ReplicationSlotValidateName` in PostgreSQL's `slot.c`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SlotName(String);

/// A subscription's name: 1 to 63 bytes of visible text, unique in a target database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SubscriptionName(String);

impl SlotName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SubscriptionName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as part of an `application_name`, by which sessions are found again: there, servers replace what is not
    /// ASCII (`pg_clean_ascii` in PostgreSQL's `string.c`), each version in its own way.
    #[must_use]
    pub fn in_ascii(&self) -> String {
        let mut ascii = String::with_capacity(self.0.len());
        for byte in self.0.bytes() {
            match byte {
                b' '..=b'~' => ascii.push(char::from(byte)),
                other => ascii.extend(format!("%{other:02X}").chars()),
            }
        }
        ascii
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SubscriptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SlotName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if allowed && !text.is_empty() && text.len() <= NAME_BYTES_MAX {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseNameError(format!(
            "\"{text}\" is not a replication slot name: use 1 to 63 lower-case letters, digits and underscores"
        )))
    }
}

impl FromStr for SubscriptionName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = !text.chars().any(char::is_control) && text.trim() == text;
        if allowed && !text.is_empty() && text.len() <= NAME_BYTES_MAX {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseNameError(format!(
            "\"{}\" is not a subscription name: use 1 to 63 bytes without control characters or outer spaces",
            text.escape_debug()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_read_as_sql_reads_them() {
        let check = |text: &str, schema: &str, name: &str| {
            assert_eq!(text.parse(), Ok(QualifiedName::new(schema, name)), "{text}");
        };
        check("widgets", "public", "widgets");
        check("Public.Widgets", "public", "widgets");
        check(r#"reporting."B""#, "reporting", "B");
        check(r#""a.b"."c""d""#, "a.b", "c\"d");
        check("public.tab'le", "public", "tab'le");
        for text in ["", ".", "a.", ".b", "a.b.c", r#""a"#, r#""a"b"#, r#""""#] {
            assert!(text.parse::<QualifiedName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn display_reads_back_as_itself() {
        for name in [
            QualifiedName::new("public", "widgets"),
            QualifiedName::new("public", "B"),
            QualifiedName::new("a.b", "tab'le"),
            QualifiedName::new("s", "q\"uote"),
        ] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!(QualifiedName::new("s", "q\"uote").quoted(), r#""s"."q""uote""#);
    }

    #[test]
    fn slot_names_follow_postgresql() {
        assert!("my_subscription_2".parse::<SlotName>().is_ok());
        for text in ["", "My", "a-b", "a b", &"x".repeat(64)] {
            assert!(text.parse::<SlotName>().is_err(), "{text:?}");
        }
    }
}
