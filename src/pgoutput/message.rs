//! The messages of pgoutput protocol version 2 as values. `decode` reads them.
//!
//! Relations are named by their OID on the publisher; [`super::RelationCache`] knows their names. Times
//! are microseconds since 2000-01-01 00:00 UTC (PostgreSQL's `TimestampTz`) by the publisher's clock.

use std::fmt;

use bytes::Bytes;

use super::tuple::Tuple;
use crate::pg::Lsn;
use crate::schema::ReplicaIdentity;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Begin(Begin),
    Commit(Commit),
    Origin(Origin),
    Relation(Relation),
    Type(Type),
    Insert(Insert),
    Update(Update),
    Delete(Delete),
    Truncate(Truncate),
    Logical(LogicalMessage),
    StreamStart(StreamStart),
    StreamStop,
    StreamCommit(StreamCommit),
    StreamAbort(StreamAbort),
}

/// A part of a transaction in progress begins; everything up to Stream Stop belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStart {
    /// Xid of the top-level transaction.
    pub xid: u32,
    /// Whether this is the transaction's first part.
    pub first: bool,
}

/// A streamed transaction is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamCommit {
    pub xid: u32,
    pub commit: Commit,
}

/// A streamed transaction, or one of its subtransactions, was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbort {
    /// Xid of the top-level transaction.
    pub xid: u32,
    /// Xid of the subtransaction that was rolled back; equal to `xid` if the whole transaction was.
    pub subxid: u32,
}

/// A transaction starts. Everything up to the next [`Commit`] belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Start of the transaction's commit record; equals [`Commit::commit_lsn`].
    pub final_lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub commit_time: i64,
    pub xid: u32,
}

/// A transaction is committed. Its flags are reserved and zero; decoding refuses any other value (as
/// PostgreSQL's `logicalrep_read_commit` does), so there is no field for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// End of the commit record: the *finish* position, which feedback reports and skip names.
    pub end_lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub commit_time: i64,
}

/// The transaction was replicated to the publisher from another server. It follows [`Begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Commit position on the server of origin; `0/0` if unknown.
    pub commit_lsn: Lsn,
    /// The replication origin's name on the publisher.
    pub name: String,
}

/// Describes a table before its first change in this session, and again after it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    /// The schema; `pg_catalog` where the message has an empty string (`logicalrep_read_namespace`).
    pub schema: String,
    pub name: String,
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in the order in which tuples carry their values.
    pub columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Whether the column is part of the replica identity; every column is under REPLICA IDENTITY FULL.
    pub key: bool,
    pub name: String,
    /// The type's OID on the publisher (`pg_attribute.atttypid`).
    pub type_oid: u32,
    /// The type modifier (`pg_attribute.atttypmod`), -1 if there is none.
    pub typmod: i32,
}

/// Names a type that is not built in, before a [`Relation`] that uses it.
///
/// For a domain this is its base type's name under the domain's OID (`logicalrep_write_typ`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    pub oid: u32,
    /// The schema; `pg_catalog` where the message has an empty string.
    pub schema: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insert {
    /// The transaction or subtransaction that made the change; present in a streamed piece only.
    pub xid: Option<u32>,
    pub relation_oid: u32,
    pub new: Tuple,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The transaction or subtransaction that made the change; present in a streamed piece only.
    pub xid: Option<u32>,
    pub relation_oid: u32,
    pub old: OldRow,
    pub new: Tuple,
}

/// The row before an update, as replica identity lets the publisher send it.
/// One enum, not two `Option`s: key and full image can never both be present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldRow {
    /// The identity's columns did not change, so the new row's values are the key.
    NotSent,
    /// Only the identity's columns are set; the others are NULL in the message.
    Key(Tuple),
    /// The whole row, under REPLICA IDENTITY FULL.
    Full(Tuple),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// The transaction or subtransaction that made the change; present in a streamed piece only.
    pub xid: Option<u32>,
    pub relation_oid: u32,
    pub old: DeletedRow,
}

/// The deleted row. Unlike an update's old row, it is always sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeletedRow {
    /// Only the identity's columns are set; the others are NULL in the message.
    Key(Tuple),
    /// The whole row, under REPLICA IDENTITY FULL.
    Full(Tuple),
}

/// The tables of one TRUNCATE, including those reached by CASCADE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// The transaction or subtransaction that made the change; present in a streamed piece only.
    pub xid: Option<u32>,
    pub relation_oids: Vec<u32>,
    pub cascade: bool,
    /// Whether RESTART IDENTITY was given.
    pub restart_seqs: bool,
}

/// A message of `pg_logical_emit_message`; sent only if the option `messages` is on (PostgreSQL 14).
#[derive(Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Whether the message is part of the surrounding transaction.
    pub transactional: bool,
    pub lsn: Lsn,
    /// The prefix in the client encoding. PostgreSQL does not check its encoding, so it is kept as
    /// bytes.
    pub prefix: Bytes,
    pub content: Bytes,
}

/// Shows the content's length and not its bytes, which are user data.
impl fmt::Debug for LogicalMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &self.prefix)
            .field("content_bytes", &self.content.len())
            .finish()
    }
}

impl OldRow {
    /// Returns the old key or row, if one was sent.
    #[must_use]
    #[inline]
    pub fn tuple(&self) -> Option<&Tuple> {
        match self {
            Self::NotSent => None,
            Self::Key(tuple) | Self::Full(tuple) => Some(tuple),
        }
    }

    pub fn tuple_mut(&mut self) -> Option<&mut Tuple> {
        match self {
            Self::NotSent => None,
            Self::Key(tuple) | Self::Full(tuple) => Some(tuple),
        }
    }
}

impl From<DeletedRow> for OldRow {
    #[inline]
    fn from(row: DeletedRow) -> Self {
        match row {
            DeletedRow::Key(tuple) => Self::Key(tuple),
            DeletedRow::Full(tuple) => Self::Full(tuple),
        }
    }
}
