//! Finds the value because of which a message is large, from the message's beginning alone.

use super::envelope::{self, MessageKind, Place};
use super::error::Field;

/// A message that is larger than is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargeMessage {
    pub bytes: usize,
    /// The largest that is taken.
    pub bytes_max: usize,
    /// The value because of which it is large, if it is a row's and the value is found.
    pub value: Option<LargeValue>,
}

/// The first value of a row that does not end within the known part of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargeValue {
    pub relation_oid: u32,
    /// Its place among the relation's columns, from 0.
    pub column: usize,
    pub bytes: u32,
}

/// Returns the value, if the message is a row's; `head` is the beginning of its payload.
pub(super) fn large_value(head: &[u8], place: Place) -> Option<LargeValue> {
    let (kind, _, mut reader) = envelope::open(head, place).ok()?;
    if !matches!(kind, MessageKind::Insert | MessageKind::Update | MessageKind::Delete) {
        return None;
    }
    let field = Field::Of("value");
    let relation_oid = reader.u32(field).ok()?;
    // The reader is at its end sooner or later, so both loops end.
    loop {
        let _which_row = reader.u8(field).ok()?;
        for column in 0..usize::from(reader.u16(field).ok()?) {
            if matches!(reader.u8(field).ok()?, b't' | b'b') {
                let bytes = reader.u32(field).ok()?;
                if reader.bytes(field, bytes).is_err() {
                    return Some(LargeValue { relation_oid, column, bytes });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn the_value_that_goes_on_is_found() {
        let insert = head(&[b"I", &7_u32.to_be_bytes(), b"N", &3_u16.to_be_bytes()]);
        let small = head(&[b"t", &2_u32.to_be_bytes(), b"12", b"n"]);
        let large = head(&[b"b", &1000_u32.to_be_bytes(), b"the rest is missing"]);
        let found =
            |head: &[u8], place| large_value(head, place).map(|v| (v.relation_oid, v.column, v.bytes));
        assert_eq!(found(&head(&[&insert, &small, &large]), Place::Outside), Some((7, 2, 1000)));
        assert_eq!(found(&head(&[&insert, &small]), Place::Outside), None, "it has not come yet");
        let update = head(&[b"U", &9_u32.to_be_bytes(), &8_u32.to_be_bytes(), b"O", &2_u16.to_be_bytes()]);
        let old = head(&[b"t", &1_u32.to_be_bytes(), b"1", b"u", b"N", &2_u16.to_be_bytes(), b"u"]);
        assert_eq!(found(&head(&[&update, &old, &large]), Place::InStream), Some((8, 1, 1000)));
        assert_eq!(found(b"M", Place::Outside), None);
        assert_eq!(found(b"", Place::Outside), None);
    }
}
