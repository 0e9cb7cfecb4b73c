//! Errors of decoding, which name the message and the field.

use std::fmt;

use super::envelope::MessageKind;
use crate::error::{Diagnosis, Disposition, PauseReason};

/// A payload is not a message of pgoutput protocol version 1 or 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("empty message")]
    Empty,
    /// The first byte is not the kind of a known message.
    #[error("unknown message type {}", Byte(*.0))]
    UnknownMessage(u8),
    /// The message cannot be read. Boxed because it is rare and large, and every read returns a
    /// `Result` with it.
    #[error(transparent)]
    Malformed(Box<Malformed>),
}

/// A known message whose body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} message, {field} at byte {offset}: {problem}")]
pub struct Malformed {
    pub message: MessageKind,
    pub field: Field,
    /// Offset of the field from the start of the payload, bytes; the kind byte is at 0.
    pub offset: usize,
    pub problem: Problem,
}

/// The name of a field in errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A field of the message itself.
    Of(&'static str),
    /// A field of one item of a list, such as the third column's type OID.
    OfItem {
        /// Name of the item: "column", "new row's column".
        item: &'static str,
        /// Number of the item, from 1.
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
    /// The rest of the message cannot hold this number of items.
    #[error("announces {announced} items, more than the {left_bytes} bytes left can hold")]
    Count { announced: u32, left_bytes: usize },
    #[error("string without its terminating zero byte")]
    Unterminated,
    #[error("name is not UTF-8")]
    NotUtf8,
    #[error("name of {bytes} bytes")]
    LongName { bytes: usize },
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
    /// Text for the operator.
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

    /// Returns a pause: after a reconnect the publisher sends these bytes again, so a person has to act.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Empty | Self::UnknownMessage(_) | Self::Malformed(_) => {
                Disposition::Pause(PauseReason::Protocol)
            }
        }
    }
}

/// Formats a byte for errors: `'S'`, or `0x07` where it is not printable.
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
