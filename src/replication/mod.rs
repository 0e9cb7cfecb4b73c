//! The publisher's replication connection: start-up, authentication, commands, the stream.
//!
//! ```text
//! ReplicationConnection::connect ─▶ identify_system, simple_query, create_slot, drop_slot
//!                                └▶ start ─▶ ReplicationStream: next, try_next, send_status, close
//! ```
//! tokio-postgres is not used here because it has no CopyBoth, and because the stream's bytes should be
//! copied only once: from the socket into a buffer that decoded values then share.
//!
//! | file | |
//! | --- | --- |
//! | `wire` | PURE: messages out of a buffer, rows, errors |
//! | `frame` | PURE: messages inside CopyBoth |
//! | `command` | PURE: the replication grammar of each version |
//! | `channel` | the socket and its two buffers |
//! | `auth` | authentication |
//! | `connection`, `stream` | the session before and after START_REPLICATION |
//! | `error` | classification of faults, and what follows from them |
//!
//! # Invariants
//! - No byte from the server is trusted: lengths are bounded, bodies are read by a checked reader, and
//!   what does not fit is an error with the field's name, never a panic.
//! - A server's error keeps every field.
//!
//! Other modules decode pgoutput's messages (`pgoutput`), keep time, retry and reconnect
//! (`subscription`), and connect with TLS (`net`).

mod auth;
mod channel;
mod command;
mod connection;
mod error;
pub mod frame;
mod stream;
mod wire;

pub use command::{
    Origin, SlotLifetime, SlotSnapshot, SlotSpec, StartOptions, Streaming, Unsupported, WhenActive,
    proto_version_max,
};
pub use connection::{CreatedSlot, ReplicationConnection, SessionOptions, SystemIdentity};
pub use error::{CommandError, CommandErrorKind, Fault, StreamError};
pub use frame::{Feedback, Frame, FrameError, Reply, micros_since_2000};
pub use stream::{Closing, ReplicationStream};
pub use wire::{Row, WireError};
