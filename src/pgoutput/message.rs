//! The messages of pgoutput protocol version 2 as values. How they are read is `decode`'s story.
//!
//! Relations are called by their OID on the publisher; a [`super::RelationCache`] knows their names.
//! Times are microseconds since 2000-01-01 00:00 UTC (PostgreSQL's `TimestampTz`), publisher's clock.

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

/// A piece of a transaction that is still in progress begins; up to the stream stop, everything is its.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStart {
    /// Of the top-level transaction.
    pub xid: u32,
    /// It is the transaction's first piece.
    pub first: bool,
}

/// A transaction that came in pieces is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamCommit {
    pub xid: u32,
    pub commit: Commit,
}

/// A transaction that came in pieces, or one of its subtransactions, was rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamAbort {
    /// Of the top-level transaction.
    pub xid: u32,
    /// Of what was rolled back: the same, if that is all of it.
    pub subxid: u32,
}

/// A transaction starts. Everything up to the next [`Commit`] belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Where the transaction's commit record starts: equals [`Commit::commit_lsn`].
    pub final_lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub commit_time: i64,
    pub xid: u32,
}

/// A transaction is whole. Its flags are reserved and zero; any other value is refused while
/// decoding (as PostgreSQL's `logicalrep_read_commit` does), so there is no field for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where the commit record starts.
    pub commit_lsn: Lsn,
    /// Just after the commit record: the *finish* position, which feedback reports and skip names.
    pub end_lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub commit_time: i64,
}

/// The transaction came to the publisher from elsewhere. Follows [`Begin`], if at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Where it was committed on the server that it came from; `0/0` if unknown.
    pub commit_lsn: Lsn,
    /// The replication origin's name on the publisher.
    pub name: String,
}

/// Describes a table before its first change in this session, and again after it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    /// `pg_catalog` where the wire has an empty string (`logicalrep_read_namespace`).
    pub schema: String,
    pub name: String,
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in the order in which tuples carry their values.
    pub columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity; every column is under REPLICA IDENTITY FULL.
    pub key: bool,
    pub name: String,
    /// `pg_attribute.atttypid` on the publisher.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 where there is none.
    pub typmod: i32,
}

/// Names a type that is not built in, ahead of a [`Relation`] that uses it.
///
/// For a domain this is its base type's name under the domain's OID (`logicalrep_write_typ`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    pub oid: u32,
    /// `pg_catalog` where the wire has an empty string.
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
    /// The identity's columns did not change: the new row's values are the key.
    NotSent,
    /// Only the identity's columns mean anything; the others are NULL on the wire.
    Key(Tuple),
    /// REPLICA IDENTITY FULL: the whole row.
    Full(Tuple),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// The transaction or subtransaction that made the change; present in a streamed piece only.
    pub xid: Option<u32>,
    pub relation_oid: u32,
    pub old: DeletedRow,
}

/// The deleted row: unlike an update's old row, it is always sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeletedRow {
    /// Only the identity's columns mean anything; the others are NULL on the wire.
    Key(Tuple),
    /// REPLICA IDENTITY FULL: the whole row.
    Full(Tuple),
}

/// Every table of one TRUNCATE, those reached by CASCADE included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// The transaction or subtransaction that made the change; present in a streamed piece only.
    pub xid: Option<u32>,
    pub relation_oids: Vec<u32>,
    pub cascade: bool,
    /// RESTART IDENTITY.
    pub restart_seqs: bool,
}

/// `pg_logical_emit_message`; sent only to sessions that asked for `messages` (PostgreSQL 14).
#[derive(Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Part of the transaction around it; if not, it stands outside of any.
    pub transactional: bool,
    pub lsn: Lsn,
    /// In the client encoding, which it need not keep to: nothing here interprets it.
    pub prefix: Bytes,
    pub content: Bytes,
}

/// The content is user data: its length is shown, not its bytes.
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
    /// The key or row, if one was sent.
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
