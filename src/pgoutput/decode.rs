//! Reads each message's body, field by field, as PostgreSQL's `logicalrep_read_*` do.
//!
//! Every function reads one kind of message to its end. Fields have their names in `protocol.sgml`, so
//! that an error can be compared with that page.

use bytes::Bytes;

use super::envelope::{self, MessageKind, Place};
use super::error::{DecodeError, Field, Problem};
use super::locate::{self, LargeValue};
use super::message::{
    Begin, Commit, Delete, DeletedRow, Insert, LogicalMessage, Message, OldRow, Origin, Relation,
    RelationColumn, StreamAbort, StreamCommit, StreamStart, Truncate, Type, Update,
};
use super::reader::Reader;
use super::tuple::{Row, Span};
use crate::schema::ReplicaIdentity;

/// `LOGICALREP_IS_REPLICA_IDENTITY` in `proto.c`.
const COLUMN_IS_KEY: u8 = 1;
/// `TRUNCATE_CASCADE` and `TRUNCATE_RESTART_SEQS` in `proto.c`.
const TRUNCATE_CASCADE: u8 = 1;
const TRUNCATE_RESTART_SEQS: u8 = 2;
/// `MESSAGE_TRANSACTIONAL` in `proto.c`.
const MESSAGE_TRANSACTIONAL: u8 = 1;
/// Smallest size of a column in a Relation message: flags, an empty name, type OID, type modifier.
const RELATION_COLUMN_BYTES_MIN: usize = 1 + 1 + 4 + 4;
const OID_BYTES: usize = 4;

const RELATION_OID: Field = Field::Of("relation OID");

/// Decodes the messages of a stream in order.
#[derive(Debug)]
pub struct Decoder {
    place: Place,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { place: Place::Outside }
    }
}

impl Decoder {
    /// Decodes the next message; see [`decode_at`].
    pub fn decode(&mut self, payload: Bytes) -> Result<Message, DecodeError> {
        let message = decode_at(payload, self.place)?;
        match message {
            Message::StreamStart(_) => self.place = Place::InStream,
            Message::StreamStop => self.place = Place::Outside,
            _ => {}
        }
        Ok(message)
    }

    /// Finds the value because of which the next message is large; `head` is the beginning of its payload.
    #[must_use]
    pub fn large_value(&self, head: &[u8]) -> Option<LargeValue> {
        locate::large_value(head, self.place)
    }
}

/// Decodes one message of pgoutput protocol version 1 or 2: the payload of an `XLogData` message,
/// without its header.
///
/// Rows and contents share `payload` and are not copied.
///
/// # Errors
///
/// The payload is not exactly one complete message; see [`DecodeError`].
pub fn decode_at(payload: Bytes, place: Place) -> Result<Message, DecodeError> {
    let (kind, xid, reader) = envelope::open(&payload, place)?;
    match kind {
        MessageKind::Begin => begin(reader).map(Message::Begin),
        MessageKind::Commit => commit(reader).map(Message::Commit),
        MessageKind::Origin => origin(reader).map(Message::Origin),
        MessageKind::Relation => relation(reader).map(Message::Relation),
        MessageKind::Type => type_name(reader).map(Message::Type),
        MessageKind::Truncate => truncate(reader, xid).map(Message::Truncate),
        MessageKind::Logical => logical(reader, &payload).map(Message::Logical),
        MessageKind::StreamStart => stream_start(reader).map(Message::StreamStart),
        MessageKind::StreamStop => reader.finish().map(|()| Message::StreamStop),
        MessageKind::StreamCommit => stream_commit(reader).map(Message::StreamCommit),
        MessageKind::StreamAbort => stream_abort(reader).map(Message::StreamAbort),
        // Rows take over the payload once the reader's borrow of it has ended.
        MessageKind::Insert => {
            let (relation_oid, new) = insert(reader)?;
            Ok(Message::Insert(Insert { xid, relation_oid, new: new.of(payload) }))
        }
        MessageKind::Update => {
            let (relation_oid, old, new) = update(reader)?;
            let old = match old {
                None => OldRow::NotSent,
                Some(Identity::Key(span)) => OldRow::Key(span.of(payload.clone())),
                Some(Identity::Full(span)) => OldRow::Full(span.of(payload.clone())),
            };
            Ok(Message::Update(Update { xid, relation_oid, old, new: new.of(payload) }))
        }
        MessageKind::Delete => {
            let (relation_oid, old) = delete(reader)?;
            let old = match old {
                Identity::Key(span) => DeletedRow::Key(span.of(payload)),
                Identity::Full(span) => DeletedRow::Full(span.of(payload)),
            };
            Ok(Message::Delete(Delete { xid, relation_oid, old }))
        }
    }
}

/// Decodes a message that is not part of a streamed transaction.
pub fn decode(payload: Bytes) -> Result<Message, DecodeError> {
    decode_at(payload, Place::Outside)
}

fn begin(mut reader: Reader<'_>) -> Result<Begin, DecodeError> {
    let final_lsn = reader.position(Field::Of("final LSN"))?;
    let commit_time = reader.i64(Field::Of("commit timestamp"))?;
    let xid = reader.u32(Field::Of("xid"))?;
    reader.finish()?;
    Ok(Begin { final_lsn, commit_time, xid })
}

fn commit(mut reader: Reader<'_>) -> Result<Commit, DecodeError> {
    reader.flags(Field::Of("flags"), 0)?;
    let commit_lsn = reader.position(Field::Of("commit LSN"))?;
    let end_lsn = reader.position(Field::Of("end LSN"))?;
    let commit_time = reader.i64(Field::Of("commit timestamp"))?;
    reader.finish()?;
    Ok(Commit { commit_lsn, end_lsn, commit_time })
}

fn stream_start(mut reader: Reader<'_>) -> Result<StreamStart, DecodeError> {
    let xid = reader.u32(Field::Of("xid"))?;
    let first = reader.flags(Field::Of("first segment"), 1)? == 1;
    reader.finish()?;
    Ok(StreamStart { xid, first })
}

fn stream_commit(mut reader: Reader<'_>) -> Result<StreamCommit, DecodeError> {
    let xid = reader.u32(Field::Of("xid"))?;
    Ok(StreamCommit { xid, commit: commit(reader)? })
}

fn stream_abort(mut reader: Reader<'_>) -> Result<StreamAbort, DecodeError> {
    let xid = reader.u32(Field::Of("xid"))?;
    let subxid = reader.u32(Field::Of("subtransaction's xid"))?;
    reader.finish()?;
    Ok(StreamAbort { xid, subxid })
}

fn origin(mut reader: Reader<'_>) -> Result<Origin, DecodeError> {
    let commit_lsn = reader.lsn(Field::Of("commit LSN"))?;
    let name = reader.name(Field::Of("origin name"))?;
    reader.finish()?;
    Ok(Origin { commit_lsn, name })
}

fn relation(mut reader: Reader<'_>) -> Result<Relation, DecodeError> {
    let oid = reader.u32(RELATION_OID)?;
    let schema = namespace(&mut reader)?;
    let name = reader.name(Field::Of("relation name"))?;
    let replica_identity = replica_identity(&mut reader)?;
    let columns = relation_columns(&mut reader)?;
    reader.finish()?;
    Ok(Relation { oid, schema, name, replica_identity, columns })
}

/// Reads a schema's name. The publisher sends an empty name for `pg_catalog`
/// (`logicalrep_write_namespace`).
fn namespace(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let name = reader.name(Field::Of("namespace"))?;
    Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
}

/// Reads a replica identity as in `pg_class.relreplident`.
fn replica_identity(reader: &mut Reader<'_>) -> Result<ReplicaIdentity, DecodeError> {
    const FIELD: Field = Field::Of("replica identity");
    let offset = reader.offset();
    Ok(match reader.u8(FIELD)? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        found => {
            let problem = Problem::Unexpected { found, expected: "'d', 'n', 'f' or 'i'" };
            return Err(reader.malformed(FIELD, offset, problem));
        }
    })
}

fn relation_columns(reader: &mut Reader<'_>) -> Result<Vec<RelationColumn>, DecodeError> {
    const COUNT: Field = Field::Of("number of columns");
    let offset = reader.offset();
    let announced = u32::from(reader.u16(COUNT)?);
    let count = reader.believable(COUNT, offset, announced, RELATION_COLUMN_BYTES_MIN)?;
    let mut columns = Vec::with_capacity(count);
    for number in 1..=announced {
        let field = |name| Field::OfItem { item: "column", number, name };
        let flags = reader.flags(field("flags"), COLUMN_IS_KEY)?;
        columns.push(RelationColumn {
            key: flags & COLUMN_IS_KEY != 0,
            name: reader.name(field("name"))?,
            type_oid: reader.u32(field("type OID"))?,
            typmod: reader.i32(field("type modifier"))?,
        });
    }
    Ok(columns)
}

fn type_name(mut reader: Reader<'_>) -> Result<Type, DecodeError> {
    let oid = reader.u32(Field::Of("type OID"))?;
    let schema = namespace(&mut reader)?;
    let name = reader.name(Field::Of("type name"))?;
    reader.finish()?;
    Ok(Type { oid, schema, name })
}

fn insert(mut reader: Reader<'_>) -> Result<(u32, Span), DecodeError> {
    let relation_oid = reader.u32(RELATION_OID)?;
    let new = new_row(&mut reader)?;
    reader.finish()?;
    Ok((relation_oid, new))
}

/// The kind of old row that the message announces: `K` or `O`.
enum Identity {
    Key(Span),
    Full(Span),
}

fn update(mut reader: Reader<'_>) -> Result<(u32, Option<Identity>, Span), DecodeError> {
    const MARK: Field = Field::Of("row mark");
    let relation_oid = reader.u32(RELATION_OID)?;
    let offset = reader.offset();
    let (old, new) = match reader.u8(MARK)? {
        b'N' => (None, Span::read(&mut reader, Row::New)?),
        b'K' => {
            let old = Identity::Key(Span::read(&mut reader, Row::OldKey)?);
            (Some(old), new_row(&mut reader)?)
        }
        b'O' => {
            let old = Identity::Full(Span::read(&mut reader, Row::Old)?);
            (Some(old), new_row(&mut reader)?)
        }
        found => {
            let problem = Problem::Unexpected { found, expected: "'K', 'O' or 'N'" };
            return Err(reader.malformed(MARK, offset, problem));
        }
    };
    reader.finish()?;
    Ok((relation_oid, old, new))
}

fn delete(mut reader: Reader<'_>) -> Result<(u32, Identity), DecodeError> {
    const MARK: Field = Field::Of("old row mark");
    let relation_oid = reader.u32(RELATION_OID)?;
    let offset = reader.offset();
    let old = match reader.u8(MARK)? {
        b'K' => Identity::Key(Span::read(&mut reader, Row::OldKey)?),
        b'O' => Identity::Full(Span::read(&mut reader, Row::Old)?),
        found => {
            let problem = Problem::Unexpected { found, expected: "'K' or 'O'" };
            return Err(reader.malformed(MARK, offset, problem));
        }
    };
    reader.finish()?;
    Ok((relation_oid, old))
}

/// Reads a new row with the byte `N` in front.
fn new_row(reader: &mut Reader<'_>) -> Result<Span, DecodeError> {
    const MARK: Field = Field::Of("new row mark");
    let offset = reader.offset();
    match reader.u8(MARK)? {
        b'N' => Span::read(reader, Row::New),
        found => {
            let problem = Problem::Unexpected { found, expected: "'N'" };
            Err(reader.malformed(MARK, offset, problem))
        }
    }
}

fn truncate(mut reader: Reader<'_>, xid: Option<u32>) -> Result<Truncate, DecodeError> {
    const COUNT: Field = Field::Of("number of relations");
    let offset = reader.offset();
    let announced = reader.u32(COUNT)?;
    let flags = reader.flags(Field::Of("flags"), TRUNCATE_CASCADE | TRUNCATE_RESTART_SEQS)?;
    let count = reader.believable(COUNT, offset, announced, OID_BYTES)?;
    let mut relation_oids = Vec::with_capacity(count);
    for number in 1..=announced {
        relation_oids.push(reader.u32(Field::OfItem { item: "relation", number, name: "OID" })?);
    }
    reader.finish()?;
    Ok(Truncate {
        xid,
        relation_oids,
        cascade: flags & TRUNCATE_CASCADE != 0,
        restart_seqs: flags & TRUNCATE_RESTART_SEQS != 0,
    })
}

fn logical(mut reader: Reader<'_>, payload: &Bytes) -> Result<LogicalMessage, DecodeError> {
    let flags = reader.flags(Field::Of("flags"), MESSAGE_TRANSACTIONAL)?;
    let lsn = reader.lsn(Field::Of("LSN"))?;
    let prefix = payload.slice_ref(reader.raw_string(Field::Of("prefix"))?);
    let len = reader.u32(Field::Of("content length"))?;
    let content = payload.slice_ref(reader.bytes(Field::Of("content"), len)?);
    reader.finish()?;
    Ok(LogicalMessage { transactional: flags & MESSAGE_TRANSACTIONAL != 0, lsn, prefix, content })
}
