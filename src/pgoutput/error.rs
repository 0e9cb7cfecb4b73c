//! Why a payload is not a message, in words that name the message and the field.

use std::fmt;

use super::envelope::MessageKind;
use crate::error::{Diagnosis, Disposition, PauseReason};

/// A payload is not a message of pgoutput protocol version 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("empty message")]
    Empty,
    /// The first byte is none of this version's kinds.
    #[error("unknown message type {}", Byte(*.0))]
    UnknownMessage(u8),
    /// Boxed because it is rare and large, and every read returns a `Result` with it.
    #[error(transparent)]
    Malformed(Box<Malformed>),
}

/// A known message whose body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} message, {field} at byte {offset}: {problem}")]
pub struct Malformed {
    pub message: MessageKind,
    pub field: Field,
    /// Where the field starts, bytes from the start of the payload (its kind byte is 0).
    pub offset: usize,
    pub problem: Problem,
}

/// A field of a message, by the name that errors call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A field of the message itself.
    Of(&'static str),
    /// A field of one item of a list: the third column's type OID.
    OfItem {
        /// What the item is: "column", "new row's column".
        item: &'static str,
        /// Counted from 1.
        number: u32,
        name: &'static str,
    },
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(name) => f.write_str(name),
            Self::OfItem { item, number, name } => write!(f, "{item} {number}, {name}"),
        }
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("needs {needed_bytes} bytes, {left_bytes} left")]
    Truncated { needed_bytes: usize, left_bytes: usize },
    /// A count that the rest of the message cannot hold.
    #[error("announces {announced} items, more than the {left_bytes} bytes left can hold")]
    Count { announced: u32, left_bytes: usize },
    #[error("string without its terminating zero byte")]
    Unterminated,
    #[error("name is not UTF-8")]
    NotUtf8,
    #[error("{} where {expected} belongs", Byte(*.found))]
    Unexpected { found: u8, expected: &'static str },
    #[error("unknown flags {flags:#04x}")]
    UnknownFlags { flags: u8 },
    #[error("position 0/0, which is no position")]
    NoPosition,
    #[error("{excess_bytes} bytes after the end of the message")]
    Trailing { excess_bytes: usize },
}

impl DecodeError {
    /// What to tell the operator.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let diagnosis = Diagnosis::new("the publisher's stream holds a message that cannot be decoded")
            .detail(self.to_string());
        match self {
            Self::UnknownMessage(_) => diagnosis.hint(
                "The publisher speaks more than pgoutput protocol version 2; run a pgsluice release that \
                 supports the publisher's version, then resume.",
            ),
            Self::Malformed(malformed) if malformed.problem == Problem::NotUtf8 => diagnosis.hint(
                "The replication connection has to use client_encoding UTF8 for this publisher; a name that is \
                 changed on the publisher stays as it was in changes made before.",
            ),
            Self::Empty | Self::Malformed(_) => diagnosis.hint(
                "Resume to read the message again from the publisher; if it comes back, report it together \
                 with the publisher's version (SELECT version()).",
            ),
        }
    }

    /// The same bytes will come again after a reconnect: a person has to look.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Empty | Self::UnknownMessage(_) | Self::Malformed(_) => {
                Disposition::Pause(PauseReason::Protocol)
            }
        }
    }
}

/// A byte of the wire for people: `'S'`, or `0x07` where it has no glyph.
struct Byte(u8);

impl fmt::Display for Byte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "'{}'", char::from(self.0))
        } else {
            write!(f, "{:#04x}", self.0)
        }
    }
}
