//! Text for a target whose encoding lacks some characters.
//!
//! The state is in the user's database, whose encoding may be LATIN1, for example. A value that it cannot
//! store causes a conflict (`value_error`), and the evidence of that conflict contains the value. If the
//! server refuses a text as untranslatable, it is written again in ASCII, which every server encoding has.
//! Otherwise the conflict could not be recorded and would be met again and again.

use std::fmt::Write as _;

use crate::conflict::{ConflictReport, FieldValue, RowImage};
use crate::error::Diagnosis;

use super::{StateChange, StoreErrorKind};

/// PostgreSQL's error `untranslatable_character`: the server's encoding lacks a character.
const UNTRANSLATABLE: &str = "22P05";

/// Whether the server could not store a character.
pub(super) fn is_untranslatable<T>(outcome: &Result<T, StoreErrorKind>) -> bool {
    matches!(outcome, Err(StoreErrorKind::Server(server)) if server.code == UNTRANSLATABLE)
}

/// Returns the text with escapes such as `\u{441}` for characters that are not ASCII.
pub(super) fn text(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\0'..='\x7f' => ascii.push(character),
            '…' => ascii.push_str("..."),
            '→' => ascii.push_str("->"),
            other => {
                let _ = write!(ascii, "\\u{{{:x}}}", u32::from(other));
            }
        }
    }
    ascii
}

fn optional(text_or_none: Option<&String>) -> Option<String> {
    text_or_none.map(|known| text(known))
}

pub(super) fn diagnosis(diagnosis: &Diagnosis) -> Diagnosis {
    Diagnosis {
        primary: text(&diagnosis.primary),
        detail: optional(diagnosis.detail.as_ref()),
        hint: optional(diagnosis.hint.as_ref()),
        logged_as: diagnosis.logged_as.clone(),
    }
}

pub(super) fn state_change(change: &StateChange) -> StateChange {
    StateChange {
        state: change.state,
        reason: optional(change.reason.as_ref()),
        detail: optional(change.detail.as_ref()),
        hint: optional(change.hint.as_ref()),
        conflict_id: change.conflict_id,
    }
}

/// Returns the report in ASCII. Values stay exact: one that is not ASCII is kept as its UTF-8 bytes and not
/// as text.
pub(super) fn report(report: &ConflictReport) -> ConflictReport {
    ConflictReport {
        key: report.key.as_ref().map(image),
        incoming: report.incoming.as_ref().map(image),
        old: report.old.as_ref().map(image),
        local_rows: report.local_rows.iter().map(image).collect(),
        message: text(&report.message),
        server_detail: optional(report.server_detail.as_ref()),
        ..report.clone()
    }
}

fn image(row: &RowImage) -> RowImage {
    let value = |value: &FieldValue| match value {
        FieldValue::Text(known) if !known.is_ascii() => FieldValue::Bytes(known.as_bytes().to_vec()),
        FieldValue::Start { start, size } => FieldValue::Start { start: text(start), size: *size },
        other => other.clone(),
    };
    row.iter().map(|(column, known)| (text(column), value(known))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_ascii_and_stays_readable() {
        assert_eq!(text("a → b…"), "a -> b...");
        assert_eq!(text("größe"), r"gr\u{f6}\u{df}e");
        assert_eq!(text(r"plain \u"), r"plain \u");
    }

    #[test]
    fn values_keep_every_byte() {
        let row: RowImage = [
            ("id".to_owned(), FieldValue::Text("1".to_owned())),
            ("é".to_owned(), FieldValue::Text("é".to_owned())),
        ]
        .into_iter()
        .collect();
        let row = image(&row);
        assert_eq!(row.get("id"), Some(&FieldValue::Text("1".to_owned())));
        assert_eq!(row.get(r"\u{e9}"), Some(&FieldValue::Bytes(vec![0xc3, 0xa9])));
    }
}
