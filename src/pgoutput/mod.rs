//! Decodes `pgoutput`, the publisher's stream of changes: bytes in, typed messages out.
//!
//! ```text
//! payload (Bytes) ──envelope──▶ kind + body ──decode──▶ Message ──▶ apply::plan
//!                                                │
//!                      Type, Relation messages ──┴─▶ RelationCache ──▶ schema::PublishedRelation
//! ```
//! Protocol versions 1 and 2, whole: PostgreSQL's `protocol.sgml`, "Logical Replication Message Formats",
//! and `src/backend/replication/logical/proto.c`, which settles what the page leaves open.
//!
//! # Why stricter than PostgreSQL's own subscriber
//! It ignores flag bits that it does not know and bytes after a message's end. Here both are errors:
//! a publisher that says more than is understood must not be applied as if it had said less.
//!
//! # Why a tuple is kept as it came
//! Decoding a row sees that each value is whole, and allocates nothing; whoever reads the row walks it.
//! Values are bytes in the session's client encoding and are never interpreted here. A [`Tuple`]
//! keeps the payload alive that it was read from, so payloads should not be windows of a far larger
//! read buffer.
//!
//! # Invariants
//! - No input panics, and no count or length of the wire is believed before that many bytes are seen
//!   to be there. An error names the message and the field.
//! - Names of schemas, tables, columns and types are UTF-8: the session asks for `client_encoding`
//!   UTF8, or for another whose names happen to be ASCII. Anything else is an error, not a guess.
//! - `Debug` shows the shape of rows (kinds and lengths), never their values.
//!
//! # What it does not do
//! No socket, clock, driver or runtime. It does not know whether messages come in a sensible order,
//! nor whether a tuple has as many columns as its relation: whoever pairs the two checks that.
//!
//! # Versions 2 to 4
//! They add an envelope (an xid before the body of a change inside a streamed transaction) and kinds
//! (stream start, stop, commit, abort; prepared transactions), but change no body. `envelope` is
//! where both enter. Prepared transactions (3) and what parallel apply needs (4) are not asked for.

mod builtin;
mod decode;
mod envelope;
mod error;
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
pub use message::{
    Begin, Commit, Delete, DeletedRow, Insert, LogicalMessage, Message, OldRow, Origin, Relation,
    RelationColumn, StreamAbort, StreamCommit, StreamStart, Truncate, Type, Update,
};
pub use relations::{RelationCache, RelationError};
pub use tally::Tally;
pub use tuple::{Format, TextColumns, Tuple, Value, Values};
