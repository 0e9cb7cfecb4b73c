//! The frontend/backend protocol's envelope and the few message bodies that replication needs.
//!
//! Pure: splits buffered bytes into messages and reads their bodies with checks and without copying.
//! The formats are in protocol.sgml, "Message Formats". There is no socket and no state.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::ServerError;
use crate::net::{HEADER_BYTES, MESSAGE_BYTES_MAX, Oversize};
use crate::text::kept_bytes;

/// A message of the server: its type and everything after the length word.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

/// The bytes are not PostgreSQL's protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a message of type {} claims a length of {length} bytes", .tag.escape_ascii())]
    Length { tag: u8, length: u32 },
    #[error("a message of type {} ends within its field {field}", .tag.escape_ascii())]
    Truncated { tag: u8, field: &'static str },
    #[error("an unexpected message of type {} came while {during}", .tag.escape_ascii())]
    Unexpected { tag: u8, during: &'static str },
    #[error(transparent)]
    Oversize(#[from] Oversize),
    #[error("the field {field} does not hold {expected}")]
    Value { field: &'static str, expected: &'static str },
}

/// How much of the next message the buffer holds.
#[derive(Debug)]
pub(super) enum Split {
    Complete(Message),
    /// Total size of the message in bytes as far as it is known; always more than the buffer holds.
    Partial {
        total: usize,
    },
}

/// The header of the first message in the buffer: its type, and its size with the header in bytes.
pub(super) fn header(buffer: &[u8]) -> Result<Option<(u8, usize)>, WireError> {
    let Some(&[tag, a, b, c, d]) = buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(bytes) if (4..=MESSAGE_BYTES_MAX).contains(&bytes) => Ok(Some((tag, bytes + 1))),
        _ => Err(WireError::Length { tag, length }),
    }
}

/// Takes the first message off the buffer, or returns how long it will be.
pub(super) fn split(buffer: &mut BytesMut) -> Result<Split, WireError> {
    let Some((tag, total)) = header(buffer)? else {
        return Ok(Split::Partial { total: HEADER_BYTES });
    };
    if buffer.len() < total {
        return Ok(Split::Partial { total });
    }
    let mut body = buffer.split_to(total).freeze();
    body.advance(HEADER_BYTES);
    Ok(Split::Complete(Message { tag, body }))
}

/// A cursor over a message's body that checks every read.
pub(super) struct Reader {
    tag: u8,
    rest: Bytes,
}

impl Reader {
    pub(super) fn new(message: &Message) -> Self {
        Self { tag: message.tag, rest: message.body.clone() }
    }

    pub(super) fn bytes(&mut self, count: usize, field: &'static str) -> Result<Bytes, WireError> {
        if self.rest.len() < count {
            return Err(WireError::Truncated { tag: self.tag, field });
        }
        Ok(self.rest.split_to(count))
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let bytes = self.bytes(N, field)?;
        <[u8; N]>::try_from(bytes.as_ref()).map_err(|_| WireError::Truncated { tag: self.tag, field })
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, WireError> {
        self.array(field).map(i32::from_be_bytes)
    }

    /// Reads a zero-terminated string and returns it without its zero.
    pub(super) fn cstr(&mut self, field: &'static str) -> Result<Bytes, WireError> {
        let end = self.rest.iter().position(|&b| b == 0);
        let end = end.ok_or(WireError::Truncated { tag: self.tag, field })?;
        let text = self.rest.split_to(end);
        self.rest.advance(1);
        Ok(text)
    }

    pub(super) fn rest(self) -> Bytes {
        self.rest
    }
}

/// A row of text values; `None` is NULL. Bytes are in the session's `client_encoding`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row(pub Vec<Option<Bytes>>);

impl Row {
    /// Returns the value at `index`; `None` if it is NULL or there is no such column.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Bytes> {
        self.0.get(index)?.as_ref()
    }

    /// Returns the value at `index` as text; `None` also if it is not UTF-8.
    #[must_use]
    pub fn text(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.get(index)?).ok()
    }
}

/// Reads a `DataRow` message.
pub(super) fn data_row(message: &Message) -> Result<Row, WireError> {
    let mut reader = Reader::new(message);
    let columns = u16::from_be_bytes(reader.array("column count")?);
    // The capacity is bounded by the body's size too: each column takes at least its own length word.
    let mut values = Vec::with_capacity(usize::from(columns).min(message.body.len() / 4));
    for _ in 0..columns {
        let length = reader.i32("value length")?;
        values.push(match usize::try_from(length) {
            Ok(length) => Some(reader.bytes(length, "value")?),
            Err(_) if length == -1 => None,
            Err(_) => return Err(WireError::Truncated { tag: message.tag, field: "value" }),
        });
    }
    Ok(Row(values))
}

/// Reads a `ParameterStatus` message: name and value.
pub(super) fn parameter_status(message: &Message) -> Result<(String, String), WireError> {
    let mut reader = Reader::new(message);
    let name = reader.cstr("name")?;
    let value = reader.cstr("value")?;
    Ok((lossy(&name), lossy(&value)))
}

/// Reads an `ErrorResponse` or `NoticeResponse`. It never fails: of a malformed one it returns what
/// could be read, and of long texts the beginning. Before `client_encoding` is set, texts may have any encoding.
pub(super) fn server_error(message: &Message) -> ServerError {
    let mut error = ServerError::default();
    let mut reader = Reader::new(message);
    while let Ok([field]) = reader.array::<1>("field type") {
        if field == 0 {
            break;
        }
        let Ok(value) = reader.cstr("field value") else { break };
        let value = kept_bytes(&value);
        match field {
            // 'V' is never localized (9.6 and later) and comes after 'S', so it wins.
            b'S' | b'V' => error.severity = value,
            b'C' => error.code = value,
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            b'W' => error.context = Some(value),
            b's' => error.schema = Some(value),
            b't' => error.table = Some(value),
            b'c' => error.column = Some(value),
            b'd' => error.data_type = Some(value),
            b'n' => error.constraint = Some(value),
            // Position, source file, line, routine and unknown fields, which frontends ignore.
            _ => {}
        }
    }
    error
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Message {
        Message { tag, body: Bytes::copy_from_slice(body) }
    }

    #[test]
    fn messages_split_only_when_complete() {
        let mut buffer = BytesMut::from(&b"Z\0\0\0\x05I"[..]);
        for cut in 0..buffer.len() {
            let mut part = BytesMut::from(&buffer[..cut]);
            assert!(matches!(split(&mut part), Ok(Split::Partial { total }) if total > cut), "{cut}");
            assert_eq!(part.len(), cut, "a partial message stays");
        }
        buffer.put_slice(b"rest");
        let Ok(Split::Complete(message)) = split(&mut buffer) else { panic!() };
        assert_eq!((message.tag, message.body.as_ref()), (b'Z', &b"I"[..]));
        assert_eq!(buffer, "rest");
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0u32, 3, 0x3fff_ffff, 0x4000_0000, u32::MAX] {
            let mut buffer = BytesMut::new();
            buffer.put_u8(b'd');
            buffer.put_u32(length);
            assert_eq!(split(&mut buffer).map(|_| ()), Err(WireError::Length { tag: b'd', length }));
        }
    }

    #[test]
    fn rows_keep_nulls_and_refuse_lies() {
        let row = data_row(&message(b'D', b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0")).unwrap();
        assert_eq!((row.text(0), row.get(1), row.text(2), row.get(9)), (Some("ab"), None, Some(""), None));
        for lie in [&b"\0\x02\0\0\0\x02ab"[..], b"\0\x01\0\0\0\x09ab", b"\0\x01\xff\xff\xff\xfe", b"\0"] {
            assert!(data_row(&message(b'D', lie)).is_err(), "{lie:?}");
        }
    }

    #[test]
    fn errors_keep_every_field_and_survive_garbage() {
        let body = b"SFEHLER\0VERROR\0C42P01\0Mno table\0Dd\0Hh\0Wc\0ss\0tt\0cc\0dd\0nn\0Rroutine\0\0";
        let error = server_error(&message(b'E', body));
        assert_eq!(error.to_string(), "ERROR: no table (SQLSTATE 42P01)");
        let texts = [&error.detail, &error.hint, &error.context, &error.schema, &error.table, &error.column];
        assert_eq!(texts.map(|t| t.as_deref().unwrap()), ["d", "h", "c", "s", "t", "c"]);
        assert_eq!((error.data_type.as_deref(), error.constraint.as_deref()), (Some("d"), Some("n")));
        let cut = server_error(&message(b'E', b"C08006\0Mcut\xff"));
        assert_eq!((cut.code.as_str(), cut.message.as_str()), ("08006", ""));
    }

    proptest! {
        #[test]
        fn no_input_panics(data in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = split(&mut BytesMut::from(&data[..]));
            let message = message(b'D', &data);
            let _ = data_row(&message);
            let _ = parameter_status(&message);
            let _ = server_error(&message);
        }
    }
}
