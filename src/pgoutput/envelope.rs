//! Reads what precedes a message's body: its kind byte and, within a streamed transaction, an xid.
//!
//! Version 1 has only a kind byte. From version 2 on, a Relation, Type, Insert, Update, Delete,
//! Truncate or logical Message *inside* a streamed transaction has its xid between kind and body
//! (`logicalrep_write_*` with a valid xid). Whether a message is inside depends on the stream start and
//! stop messages before it; here it is an argument.

use std::fmt;

use super::error::{DecodeError, Field};
use super::reader::Reader;

/// The messages of protocol version 2 (`LogicalRepMsgType` in PostgreSQL's `logicalproto.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    Begin,
    Commit,
    Origin,
    Relation,
    Type,
    Insert,
    Update,
    Delete,
    Truncate,
    /// `pg_logical_emit_message`; PostgreSQL calls the message just "Message".
    Logical,
    StreamStart,
    StreamStop,
    StreamCommit,
    StreamAbort,
}

/// Position of a message relative to streamed transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not inside a part of a streamed transaction.
    Outside,
    /// Between the Stream Start and the Stream Stop of a transaction in progress.
    InStream,
}

impl MessageKind {
    #[inline]
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            b'B' => Self::Begin,
            b'C' => Self::Commit,
            b'O' => Self::Origin,
            b'R' => Self::Relation,
            b'Y' => Self::Type,
            b'I' => Self::Insert,
            b'U' => Self::Update,
            b'D' => Self::Delete,
            b'T' => Self::Truncate,
            b'M' => Self::Logical,
            b'S' => Self::StreamStart,
            b'E' => Self::StreamStop,
            b'c' => Self::StreamCommit,
            b'A' => Self::StreamAbort,
            _ => return None,
        })
    }
}

/// Writes the name from PostgreSQL's documentation.
impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begin => "Begin",
            Self::Commit => "Commit",
            Self::Origin => "Origin",
            Self::Relation => "Relation",
            Self::Type => "Type",
            Self::Insert => "Insert",
            Self::Update => "Update",
            Self::Delete => "Delete",
            Self::Truncate => "Truncate",
            Self::Logical => "logical decoding",
            Self::StreamStart => "Stream Start",
            Self::StreamStop => "Stream Stop",
            Self::StreamCommit => "Stream Commit",
            Self::StreamAbort => "Stream Abort",
        })
    }
}

impl MessageKind {
    /// Whether the message has an xid before its body inside a streamed transaction.
    #[inline]
    fn carries_xid(self) -> bool {
        match self {
            Self::Relation
            | Self::Type
            | Self::Insert
            | Self::Update
            | Self::Delete
            | Self::Truncate
            | Self::Logical => true,
            Self::Begin
            | Self::Commit
            | Self::Origin
            | Self::StreamStart
            | Self::StreamStop
            | Self::StreamCommit
            | Self::StreamAbort => false,
        }
    }
}

/// Splits a payload into its kind, the xid of a streamed change (its subtransaction's, if it is of one),
/// and a reader that stands at the body.
#[inline]
pub(super) fn open(
    payload: &[u8],
    place: Place,
) -> Result<(MessageKind, Option<u32>, Reader<'_>), DecodeError> {
    let (&byte, body) = payload.split_first().ok_or(DecodeError::Empty)?;
    let kind = MessageKind::from_byte(byte).ok_or(DecodeError::UnknownMessage(byte))?;
    let mut reader = Reader::new(kind, payload.len(), body);
    let streamed = place == Place::InStream && kind.carries_xid();
    let xid = if streamed { Some(reader.u32(Field::Of("xid"))?) } else { None };
    Ok((kind, xid, reader))
}
