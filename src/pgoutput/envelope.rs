//! What surrounds a message's body: its kind byte, and room for what later versions put beside it.
//!
//! Version 1 has a kind byte and nothing else. From version 2 on, a Relation, Type, Insert, Update,
//! Delete, Truncate or logical Message *inside* a streamed transaction has its xid between kind and
//! body (`logicalrep_write_*` with a valid xid). Whether one is there depends on the stream start
//! and stop messages before it, which is state; this module is where that state will be an argument.

use std::fmt;

use super::error::DecodeError;
use super::reader::Reader;

/// The messages of protocol version 1 (`LogicalRepMsgType` in PostgreSQL's `logicalproto.h`).
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
}

impl MessageKind {
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
            _ => return None,
        })
    }
}

/// The name as PostgreSQL's documentation has it.
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
        })
    }
}

/// Splits a payload into its kind and a reader that stands at the body.
pub(super) fn open(payload: &[u8]) -> Result<(MessageKind, Reader<'_>), DecodeError> {
    let (&byte, body) = payload.split_first().ok_or(DecodeError::Empty)?;
    let kind = MessageKind::from_byte(byte).ok_or(DecodeError::UnknownMessage(byte))?;
    Ok((kind, Reader::new(kind, payload.len(), body)))
}
