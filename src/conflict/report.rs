//! The evidence of one conflict: everything that a person needs to decide about it.
//!
//! Values are kept as they were sent: text as a JSON string, NULL as null, an unchanged TOAST value
//! (which the publisher did not send) as `{"unchanged": true}`, the beginning of a long value with its size as
//! `{"start": "…", "size": 100000000}`, and bytes that are not UTF-8 (from
//! LATIN1 or `SQL_ASCII` databases) as `{"bytes": "\\x…"}` in PostgreSQL's hex notation.

use std::fmt;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::ServerError;
use crate::pg::{Lsn, QualifiedName};
use crate::text::shown;

use super::{ConflictKind, Operation};

/// Largest value that is kept as a whole, bytes. Evidence is shown to people, and JSON in the target is limited.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// How many characters are kept of a longer value.
pub const START_CHARS: usize = 256;

/// Largest number of a key's characters in a summary; the evidence has the whole key.
const SUMMARY_KEY_CHARS_MAX: usize = 200;

/// Everything known about one conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConflictReport {
    /// The subscription's name.
    pub subscription: String,
    pub kind: ConflictKind,
    pub operation: Operation,
    /// The publisher's table.
    pub source: QualifiedName,
    /// The target's table.
    pub target: QualifiedName,
    /// The values that identify the row, where the table has a key.
    pub key: Option<RowImage>,
    /// The row as the publisher sent it; none for DELETE and TRUNCATE.
    pub incoming: Option<RowImage>,
    /// The old row or key, where the publisher sent one.
    pub old: Option<RowImage>,
    /// The target's rows that stand in the way, as they were when the conflict was found.
    pub local_rows: Vec<RowImage>,
    pub constraint: Option<String>,
    /// The target's SQLSTATE; none if no error was raised, as for a missing row.
    pub sqlstate: Option<String>,
    /// What went wrong in one sentence: the server's message, or pgsluice's own for a missing row.
    pub message: String,
    /// The server's DETAIL.
    pub server_detail: Option<String>,
    /// The publisher's transaction.
    pub xid: u32,
    /// Where the transaction finishes; `skip --lsn` takes this LSN.
    pub commit_lsn: Lsn,
    #[serde(serialize_with = "serialize_time")]
    pub commit_time: Option<Timestamp>,
    /// How many changes the transaction has, once that is known.
    pub change_count: Option<u64>,
    /// The offending change's position in its transaction, from 1.
    pub change_index: u64,
}

impl ConflictReport {
    /// One line for `status` with type, table and row. It may quote values (of the key, or in the
    /// server's message), so it must not be logged.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut line = format!("{}: {} {}", self.kind, self.operation, self.target);
        if let Some(key) = self.key.as_ref().filter(|key| !key.is_empty()) {
            let key = key.to_string();
            let shown: String = key.chars().take(SUMMARY_KEY_CHARS_MAX).collect();
            let cut = if shown.len() < key.len() { "…" } else { "" };
            let _ = write!(line, " {shown}{cut}");
        }
        if let Some(constraint) = &self.constraint {
            let _ = write!(line, ", constraint {constraint}");
        }
        let _ = write!(line, ": {}", shown(&self.message));
        line
    }

    /// The detail of a missing row that a foreign key may have removed.
    pub(crate) const FOREIGN_KEYS_ACT: &'static str = "Foreign keys of the target act on replicated rows, because the \
        role may not set session_replication_role: ON DELETE CASCADE may have removed the row already.";

    /// Returns what a person does so that a retry succeeds, as the middle of a sentence.
    fn remedy(&self) -> &'static str {
        let detail = self.server_detail.as_deref().unwrap_or_default();
        match (self.kind, self.sqlstate.as_deref()) {
            (ConflictKind::UpdateMissing | ConflictKind::DeleteMissing, _)
                if detail == Self::FOREIGN_KEYS_ACT =>
            {
                "run GRANT SET ON PARAMETER session_replication_role TO the role (15+) or drop the foreign keys, and \
                 put the missing row back or pass over the transaction if it only deletes what is gone"
            }
            (ConflictKind::TableMissing, _)
                if detail.contains("context: ") && detail.contains("function ") =>
            {
                ServerError::NAME_LOST
            }
            // No type of the column would help.
            (ConflictKind::ValueError, Some("22021")) => {
                "the target database's encoding does not have this character or byte: correct the value on the \
                 publisher and pass over this transaction, or use a target database with the publisher's encoding"
            }
            (ConflictKind::ValueError, Some("22P05")) => {
                "neither the target database's encoding nor type jsonb has every character: if the column is jsonb, \
                 make it json; else correct the value on the publisher and pass over this transaction"
            }
            (ConflictKind::ValueError, Some("22030")) => {
                "make the target's column json, which keeps all keys"
            }
            (kind, _) => kind.remedy(),
        }
    }

    /// Returns what to do next, given the conflict's number in the store.
    #[must_use]
    pub fn hint(&self, id: i64) -> String {
        let name = &self.subscription;
        format!(
            "see \"pgsluice conflicts show {id}\"; {}, then \"pgsluice resume {name}\", or pass over the \
             transaction with \"pgsluice conflicts resolve {id} --with skip-transaction\"",
            self.remedy(),
        )
    }
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
fn serialize_time<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}

/// Columns and values of one row in the given order; a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RowImage(Vec<(String, FieldValue)>);

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldValue {
    Null,
    /// The value in the type's text output.
    Text(String),
    /// An unchanged TOAST value, which the publisher did not send.
    Unchanged,
    /// The type's text output where it is not UTF-8.
    Bytes(Vec<u8>),
    /// The beginning of a value of `size` bytes, which are more than [`VALUE_BYTES_MAX`].
    Start {
        start: String,
        size: u64,
    },
}

impl RowImage {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &FieldValue)> {
        self.0.iter().map(|(column, value)| (column.as_str(), value))
    }

    #[must_use]
    pub fn get(&self, column: &str) -> Option<&FieldValue> {
        self.iter().find_map(|(name, value)| (name == column).then_some(value))
    }
}

impl FromIterator<(String, FieldValue)> for RowImage {
    fn from_iter<I: IntoIterator<Item = (String, FieldValue)>>(fields: I) -> Self {
        Self(fields.into_iter().collect())
    }
}

/// Writes `(id, name) = (1, Hammer)`, as PostgreSQL writes keys in its details.
impl fmt::Display for RowImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.iter().map(|(column, _)| column).collect();
        let values: Vec<_> = self.iter().map(|(_, value)| value.to_string()).collect();
        write!(f, "({}) = ({})", columns.join(", "), values.join(", "))
    }
}

impl Serialize for RowImage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (column, value) in &self.0 {
            map.serialize_entry(column, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for RowImage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Columns;

        impl<'de> Visitor<'de> for Columns {
            type Value = RowImage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of columns and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(RowImage(fields))
            }
        }

        deserializer.deserialize_map(Columns)
    }
}

impl FieldValue {
    /// Returns a received value as text if it is UTF-8, else as bytes.
    #[must_use]
    pub fn from_bytes(value: &[u8]) -> Self {
        if value.len() > VALUE_BYTES_MAX {
            // A character has four bytes at most. The last one may be cut, and is left out then.
            let start = &value[..4 * START_CHARS];
            let text = match std::str::from_utf8(start) {
                Ok(text) => Some(text),
                Err(error) if error.error_len().is_none() => {
                    std::str::from_utf8(&start[..error.valid_up_to()]).ok()
                }
                Err(_) => None,
            };
            let Some(text) = text else { return Self::from_binary(value) };
            let start = text.chars().take(START_CHARS).collect();
            return Self::Start { start, size: value.len() as u64 };
        }
        match std::str::from_utf8(value) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(value.to_vec()),
        }
    }

    /// Returns a value in binary.
    #[must_use]
    pub fn from_binary(value: &[u8]) -> Self {
        if value.len() > VALUE_BYTES_MAX {
            return Self::Start { start: hex(&value[..START_CHARS]), size: value.len() as u64 };
        }
        Self::Bytes(value.to_vec())
    }
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Text(text) => f.write_str(text),
            Self::Unchanged => f.write_str("(unchanged)"),
            Self::Bytes(bytes) => f.write_str(&hex(bytes)),
            Self::Start { start, size } => write!(f, "{start}… ({size} bytes)"),
        }
    }
}

impl Serialize for FieldValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_none(),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Unchanged => serializer.collect_map([("unchanged", true)]),
            Self::Bytes(bytes) => serializer.collect_map([("bytes", hex(bytes))]),
            Self::Start { start, size } => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("start", start)?;
                map.serialize_entry("size", size)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for FieldValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(Option<String>),
            Start { start: String, size: u64 },
            Marked { unchanged: Option<bool>, bytes: Option<String> },
        }

        match Raw::deserialize(deserializer)? {
            Raw::Text(None) => Ok(Self::Null),
            Raw::Text(Some(text)) => Ok(Self::Text(text)),
            Raw::Start { start, size } => Ok(Self::Start { start, size }),
            Raw::Marked { unchanged: Some(true), bytes: None } => Ok(Self::Unchanged),
            Raw::Marked { unchanged: None, bytes: Some(text) } => unhex(&text)
                .map(Self::Bytes)
                .ok_or_else(|| D::Error::custom("bytes are not in PostgreSQL's hex notation")),
            Raw::Marked { .. } => Err(D::Error::custom("expected text, null, unchanged or bytes")),
        }
    }
}

/// Formats bytes in `bytea`'s hex notation: `\x` and two digits for each byte.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_value_only_the_beginning_is_kept() {
        let check = |value: &[u8], shown: &str| {
            let kept = FieldValue::from_bytes(value);
            let json = serde_json::to_string(&kept).unwrap();
            assert!(json.len() < 6 * START_CHARS, "{}", json.len());
            assert_eq!(serde_json::from_str::<FieldValue>(&json).unwrap(), kept);
            assert!(kept.to_string().ends_with(shown), "{kept}");
        };
        check(&vec![b'x'; VALUE_BYTES_MAX + 1], "xxx… (65537 bytes)");
        // A character of three bytes lies across the cut.
        check("€".repeat(100_000).as_bytes(), "€€… (300000 bytes)");
        check(&vec![0xff; 70_000], "ffff… (70000 bytes)");
        assert_eq!(FieldValue::from_bytes(&vec![b'x'; VALUE_BYTES_MAX]).to_string().len(), VALUE_BYTES_MAX);
    }

    fn row() -> RowImage {
        RowImage::from_iter([
            ("id".to_owned(), FieldValue::from_bytes(b"1")),
            ("name".to_owned(), FieldValue::Null),
            ("body".to_owned(), FieldValue::Unchanged),
            ("latin".to_owned(), FieldValue::from_bytes(b"caf\xe9")),
        ])
    }

    #[test]
    fn values_are_json_whole_and_read_back() {
        let json = serde_json::to_string(&row()).unwrap();
        insta::assert_snapshot!(
            json,
            @r#"{"id":"1","name":null,"body":{"unchanged":true},"latin":{"bytes":"\\x636166e9"}}"#
        );
        assert_eq!(serde_json::from_str::<RowImage>(&json).unwrap(), row());
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for json in [
            r#"{"a":{}}"#,
            r#"{"a":{"unchanged":false}}"#,
            r#"{"a":{"bytes":"63"}}"#,
            r#"{"a":{"bytes":"\\x6"}}"#,
            r#"{"a":{"bytes":"\\xzz"}}"#,
            r#"{"a":{"unchanged":true,"bytes":"\\x"}}"#,
            r#"{"a":1}"#,
            r"[1]",
        ] {
            assert!(serde_json::from_str::<RowImage>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_operator_reads_what_and_what_next() {
        let report = ConflictReport {
            subscription: "my_subscription".into(),
            kind: ConflictKind::InsertExists,
            operation: Operation::Insert,
            source: QualifiedName::new("public", "widgets"),
            target: QualifiedName::new("reporting", "widget"),
            key: Some(RowImage::from_iter([("id".into(), FieldValue::Text("4".into()))])),
            incoming: Some(row()),
            old: None,
            local_rows: vec![],
            constraint: Some("widgets_pkey".into()),
            sqlstate: Some("23505".into()),
            message: "duplicate key value violates unique constraint \"widgets_pkey\"".into(),
            server_detail: None,
            xid: 731,
            commit_lsn: Lsn::new(0x16B_3748),
            commit_time: None,
            change_count: Some(2),
            change_index: 1,
        };
        insta::assert_snapshot!(report.summary(), @r#"insert_exists: insert reporting.widget (id) = (4), constraint widgets_pkey: duplicate key value violates unique constraint "widgets_pkey""#);
        insta::assert_snapshot!(report.hint(7), @r#"see "pgsluice conflicts show 7"; remove or change the target's row that holds the key, then "pgsluice resume my_subscription", or pass over the transaction with "pgsluice conflicts resolve 7 --with skip-transaction""#);
    }
}
