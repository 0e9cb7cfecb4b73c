//! Encodes messages for tests: the exact inverse of `decode`, as PostgreSQL's `logicalrep_write_*` do
//! it. Other modules' tests build their rows with [`tuple`].

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Delete, DeletedRow, LogicalMessage, Message, OldRow, Relation, StreamCommit, Truncate, Tuple, Update,
    Value, decode,
};
use crate::schema::ReplicaIdentity;

/// Returns a row with these values.
pub(crate) fn tuple(values: &[Value<'_>]) -> Tuple {
    let mut out = BytesMut::new();
    out.put_u8(b'I');
    out.put_u32(0);
    out.put_u8(b'N');
    put_values(&mut out, values.iter().copied());
    match decode(out.freeze()) {
        Ok(Message::Insert(insert)) => insert.new,
        other => panic!("not an insert: {other:?}"),
    }
}

/// Returns the payload that decodes to `message`.
pub(crate) fn encode(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    match message {
        Message::Begin(begin) => {
            out.put_u8(b'B');
            out.put_u64(begin.final_lsn.as_u64());
            out.put_i64(begin.commit_time);
            out.put_u32(begin.xid);
        }
        Message::Commit(commit) => {
            out.put_slice(b"C\0");
            out.put_u64(commit.commit_lsn.as_u64());
            out.put_u64(commit.end_lsn.as_u64());
            out.put_i64(commit.commit_time);
        }
        Message::Origin(origin) => {
            out.put_u8(b'O');
            out.put_u64(origin.commit_lsn.as_u64());
            put_string(&mut out, &origin.name);
        }
        Message::Relation(relation) => put_relation(&mut out, relation),
        Message::Type(described) => {
            out.put_u8(b'Y');
            out.put_u32(described.oid);
            put_namespace(&mut out, &described.schema);
            put_string(&mut out, &described.name);
        }
        Message::Insert(insert) => {
            out.put_u8(b'I');
            out.put_u32(insert.relation_oid);
            put_row(&mut out, b'N', &insert.new);
        }
        Message::Update(update) => put_update(&mut out, update),
        Message::Delete(delete) => put_delete(&mut out, delete),
        Message::Truncate(truncate) => put_truncate(&mut out, truncate),
        Message::Logical(logical) => put_logical(&mut out, logical),
        Message::StreamStart(start) => {
            out.put_u8(b'S');
            out.put_u32(start.xid);
            out.put_u8(u8::from(start.first));
        }
        Message::StreamStop => out.put_u8(b'E'),
        Message::StreamCommit(StreamCommit { xid, commit }) => {
            out.put_u8(b'c');
            out.put_u32(*xid);
            out.put_slice(&encode(&Message::Commit(*commit))[1..]);
        }
        Message::StreamAbort(abort) => {
            out.put_u8(b'A');
            out.put_u32(abort.xid);
            out.put_u32(abort.subxid);
        }
    }
    out.freeze()
}

fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_u8(b'R');
    out.put_u32(relation.oid);
    put_namespace(out, &relation.schema);
    put_string(out, &relation.name);
    out.put_u8(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.put_u16(u16::try_from(relation.columns.len()).unwrap());
    for column in &relation.columns {
        out.put_u8(u8::from(column.key));
        put_string(out, &column.name);
        out.put_u32(column.type_oid);
        out.put_i32(column.typmod);
    }
}

fn put_update(out: &mut BytesMut, update: &Update) {
    out.put_u8(b'U');
    out.put_u32(update.relation_oid);
    match &update.old {
        OldRow::NotSent => {}
        OldRow::Key(row) => put_row(out, b'K', row),
        OldRow::Full(row) => put_row(out, b'O', row),
    }
    put_row(out, b'N', &update.new);
}

fn put_delete(out: &mut BytesMut, delete: &Delete) {
    out.put_u8(b'D');
    out.put_u32(delete.relation_oid);
    match &delete.old {
        DeletedRow::Key(row) => put_row(out, b'K', row),
        DeletedRow::Full(row) => put_row(out, b'O', row),
    }
}

fn put_truncate(out: &mut BytesMut, truncate: &Truncate) {
    out.put_u8(b'T');
    out.put_u32(u32::try_from(truncate.relation_oids.len()).unwrap());
    out.put_u8(u8::from(truncate.cascade) | u8::from(truncate.restart_seqs) << 1);
    truncate.relation_oids.iter().for_each(|&oid| out.put_u32(oid));
}

fn put_logical(out: &mut BytesMut, logical: &LogicalMessage) {
    out.put_u8(b'M');
    out.put_u8(u8::from(logical.transactional));
    out.put_u64(logical.lsn.as_u64());
    out.put_slice(&logical.prefix);
    out.put_u8(0);
    out.put_u32(u32::try_from(logical.content.len()).unwrap());
    out.put_slice(&logical.content);
}

fn put_namespace(out: &mut BytesMut, schema: &str) {
    put_string(out, if schema == "pg_catalog" { "" } else { schema });
}

fn put_string(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_row(out: &mut BytesMut, mark: u8, row: &Tuple) {
    out.put_u8(mark);
    put_values(out, row.iter());
}

fn put_values<'a>(out: &mut BytesMut, values: impl ExactSizeIterator<Item = Value<'a>>) {
    out.put_u16(u16::try_from(values.len()).unwrap());
    for value in values {
        let (kind, bytes) = match value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(bytes) => (b't', Some(bytes)),
            Value::Binary(bytes) => (b'b', Some(bytes)),
        };
        out.put_u8(kind);
        if let Some(bytes) = bytes {
            out.put_u32(u32::try_from(bytes.len()).unwrap());
            out.put_slice(bytes);
        }
    }
}
