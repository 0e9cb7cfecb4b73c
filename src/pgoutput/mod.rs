//! Decodes `pgoutput`, the publisher's stream of changes: bytes in, typed messages out.
//!
//! ```text
//! payload (Bytes) ──envelope──▶ kind + body ──decode──▶ Message ──▶ apply
//!                                                │
//!                      Type, Relation messages ──┴─▶ RelationCache ──▶ schema::PublishedRelation
//! ```
//! Covers protocol versions 1 and 2: PostgreSQL's `protocol.sgml`, "Logical Replication Message
//! Formats", and `src/backend/replication/logical/proto.c`, which settles what that page leaves open.
//!
//! # Why decoding is stricter than PostgreSQL's own subscriber
//!
//! That subscriber ignores unknown flag bits and bytes after a message's end. Here both are errors: a
//! message that is not fully understood must not be applied.
//!
//! # Why a tuple stays encoded
//!
//! Decoding a row checks that each value is complete, and allocates nothing. Values are bytes in the
//! session's client encoding and are never interpreted here. A [`Tuple`] keeps the payload alive that
//! it was read from, so a payload should not be a slice of a far larger read buffer.
//!
//! # Invariants
//! - No input causes a panic, and counts and lengths in a message are used only after checking that so
//!   many bytes are left. An error names the message and the field.
//! - Names of schemas, tables, columns and types are UTF-8: the session asks for `client_encoding`
//!   UTF8, or for another encoding in which the names are ASCII. Any other name is an error.
//! - `Debug` shows the shape of rows (kinds and lengths), never their values.
//!
//! # What it does not do
//!
//! It has no socket, clock, driver or runtime. It does not check the order of messages, nor whether a
//! tuple has as many columns as its relation; the caller that combines the two does.
//!
//! # Versions 2 to 4
//!
//! They add an envelope (an xid before the body of a change inside a streamed transaction) and kinds
//! (stream start, stop, commit, abort; prepared transactions), but change no body. `envelope` handles
//! both additions. Prepared transactions (3) and what parallel apply needs (4) are not requested.

mod builtin;
mod decode;
mod envelope;
mod error;
mod locate;
mod message;
mod reader;
mod relations;
mod tally;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tuple;

pub use builtin::builtin_type_name;
pub use decode::{Decoder, decode, decode_at};
pub use envelope::{MessageKind, Place};
pub use error::{DecodeError, Field, Malformed, Problem};
pub use locate::{LargeMessage, LargeValue};
pub use message::{
    Begin, Commit, Delete, DeletedRow, Insert, LogicalMessage, Message, OldRow, Origin, Relation,
    RelationColumn, StreamAbort, StreamCommit, StreamStart, Truncate, Type, Update,
};
pub use relations::{RelationCache, RelationError};
pub use tally::Tally;
pub use tuple::{Format, TextColumns, Tuple, Value, Values};
