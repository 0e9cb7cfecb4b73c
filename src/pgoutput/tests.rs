//! Tests of the decoder: against a real publisher's bytes, against the encoder of `testing`, and
//! against bytes that no publisher sends.

use std::collections::HashSet;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use insta::assert_snapshot;
use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::{encode, tuple};
use super::*;
use crate::pg::Lsn;
use crate::schema::ReplicaIdentity;

/// Messages that a real PostgreSQL 15 sent (`fuzz/capture-corpus`), by the name of their file.
fn corpus() -> Vec<(String, Bytes)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/pgoutput_decode");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, Bytes::from(std::fs::read(path).unwrap()))
        })
        .collect();
    files.sort();
    files
}

fn captured(name: &str) -> Message {
    let (_, payload) = corpus().into_iter().find(|(file, _)| file == name).unwrap();
    decode(payload).unwrap()
}

/// Returns values as text, so that tests can compare and show them.
fn show(row: &Tuple) -> String {
    let values: Vec<_> = row
        .iter()
        .map(|value| match value {
            Value::Null => "NULL".to_owned(),
            Value::Unchanged => "unchanged".to_owned(),
            Value::Text(bytes) => format!("'{}'", bytes.escape_ascii()),
            Value::Binary(bytes) => format!("x'{}'", bytes.escape_ascii()),
        })
        .collect();
    values.join(", ")
}

#[test]
fn every_captured_message_decodes_and_encodes_back_to_the_publishers_bytes() {
    let files = corpus();
    let mut kinds = HashSet::new();
    for (name, payload) in &files {
        let message = decode(payload.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(&encode(&message), payload, "{name}");
        kinds.insert(std::mem::discriminant(&message));
    }
    assert_eq!(kinds.len(), 10, "the corpus lacks a kind of message");
}

#[test]
fn captured_relations_and_types_read_as_the_catalog_has_them() {
    let mut cache = RelationCache::new();
    for name in ["type_array", "type_domain"] {
        let Message::Type(described) = captured(name) else { panic!("{name}") };
        cache.note_type(described).unwrap();
    }
    let mut read = |name: &str| {
        let Message::Relation(described) = captured(name) else { panic!("{name}") };
        let relation = cache.note_relation(described).unwrap();
        let columns: Vec<_> = relation
            .columns
            .iter()
            .map(|column| {
                let key = if column.key { " key" } else { "" };
                format!("{} {}.{}({}){key}", column.name, column.ty.schema, column.ty.name, column.typmod)
            })
            .collect();
        format!("{} {:?}: {}", relation.name, relation.identity, columns.join(", "))
    };
    assert_snapshot!(read("relation_orders"), @"corpus.orders Default: id pg_catalog.int8(-1) key, customer_id pg_catalog.int4(-1), status pg_catalog.text(-1), amount pg_catalog.numeric(786438), created_at pg_catalog.timestamptz(-1), note pg_catalog.text(-1)");
    assert_snapshot!(read("relation_quoted"), @r#"corpus."Tab'le" Default: B pg_catalog.int4(-1) key, a"b corpus._mood(-1), price pg_catalog.numeric(-1), big pg_catalog.text(-1)"#);
    assert_snapshot!(read("relation_full"), @"corpus.whole Full: a pg_catalog.int4(-1) key, b pg_catalog.text(-1) key");
}

#[test]
fn captured_rows_keep_null_unchanged_and_empty_apart() {
    let insert = |name: &str| match captured(name) {
        Message::Insert(insert) => show(&insert.new),
        other => panic!("{other:?}"),
    };
    assert_snapshot!(insert("insert_null_text"), @"'1', '7', 'new', '12.50', '2024-02-29 12:00:00.123456+00', NULL");
    assert_snapshot!(insert("insert_empty_text"), @"'2', '7', 'paid', 'NaN', 'infinity', ''");
    assert_snapshot!(insert("insert_null_binary"), @r"x'\x00\x00\x00\x00\x00\x00\x00\x01', x'\x00\x00\x00\x07', x'new', x'\x00\x02\x00\x00\x00\x00\x00\x02\x00\x0c\x13\x88', x'\x00\x02\xb5\x82\xc4y\xf2@', NULL");
    assert_snapshot!(insert("insert_all_null_text"), @"NULL, NULL");

    let update = |name: &str| match captured(name) {
        Message::Update(Update { old: OldRow::NotSent, new, .. }) => show(&new),
        Message::Update(Update { old: OldRow::Key(old), new, .. }) => {
            format!("key {} -> {}", show(&old), show(&new))
        }
        Message::Update(Update { old: OldRow::Full(old), new, .. }) => {
            format!("full {} -> {}", show(&old), show(&new))
        }
        other => panic!("{other:?}"),
    };
    assert_snapshot!(update("update_text"), @"'1', '7', 'paid', '12.50', '2024-02-29 12:00:00.123456+00', NULL");
    assert_snapshot!(update("update_key_text"), @"key '1', NULL, NULL, NULL, NULL, NULL -> '3', '7', 'paid', '12.50', '2024-02-29 12:00:00.123456+00', NULL");
    assert_snapshot!(update("update_full_text"), @"full '1', 'one' -> '1', 'uno'");
    assert_snapshot!(update("update_unchanged_text"), @"'1', '{calm,busy}', '4.00', unchanged");

    let delete = |name: &str| match captured(name) {
        Message::Delete(Delete { old: DeletedRow::Key(old), .. }) => format!("key {}", show(&old)),
        Message::Delete(Delete { old: DeletedRow::Full(old), .. }) => format!("full {}", show(&old)),
        other => panic!("{other:?}"),
    };
    assert_snapshot!(delete("delete_key_text"), @"key '3', NULL, NULL, NULL, NULL, NULL");
    assert_snapshot!(delete("delete_full_text"), @"full '1', 'uno'");
}

#[test]
fn captured_transaction_messages_agree_with_each_other() {
    let (Message::Begin(begin), Message::Commit(commit)) = (captured("begin"), captured("commit")) else {
        panic!("begin, commit")
    };
    assert_eq!(begin.final_lsn, commit.commit_lsn);
    assert_eq!(begin.commit_time, commit.commit_time);
    assert!(commit.end_lsn > commit.commit_lsn);
    let lsn = "0/16B3748".parse().unwrap();
    assert_eq!(captured("origin"), Message::Origin(Origin { commit_lsn: lsn, name: "upstream".into() }));
    let Message::Truncate(truncate) = captured("truncate") else { panic!("truncate") };
    assert!(truncate.cascade && truncate.restart_seqs);
    assert_eq!(truncate.relation_oids.len(), 2);
    let logical = |name: &str| match captured(name) {
        Message::Logical(logical) => (logical.transactional, logical.prefix, logical.content),
        other => panic!("{other:?}"),
    };
    assert_eq!(logical("message"), (true, Bytes::from("corpus"), Bytes::from("inside")));
    assert_eq!(logical("message_outside"), (false, Bytes::from("corpus"), Bytes::from(&b"\0\xff"[..])));
}

/// Returns the error of a payload; it has to name the message that the first byte announces.
fn error(payload: impl AsRef<[u8]>) -> String {
    decode(Bytes::copy_from_slice(payload.as_ref())).unwrap_err().to_string()
}

#[test]
fn errors_name_message_field_and_place() {
    assert_snapshot!(error(b""), @"empty message");
    assert_snapshot!(error(b"p\0\0\0\x01\x01"), @"unknown message type 'p'");
    assert_snapshot!(error(b"S\0\0\0\x01\x02"), @"Stream Start message, first segment at byte 5: unknown flags 0x02");
    assert_snapshot!(error(b"c\0\0\0\x01\x01"), @"Stream Commit message, flags at byte 5: unknown flags 0x01");
    assert_snapshot!(error(b"A\0\0\0\x01\0"), @"Stream Abort message, subtransaction's xid at byte 5: needs 4 bytes, 1 left");
    assert_snapshot!(error(b"\x07"), @"unknown message type 0x07");
    assert_snapshot!(error(b"B\0\0\0"), @"Begin message, final LSN at byte 1: needs 8 bytes, 3 left");
    assert_snapshot!(error([b"B".as_slice(), &[0; 20]].concat()), @"Begin message, final LSN at byte 1: position 0/0, which is no position");
    assert_snapshot!(error(b"C\x01"), @"Commit message, flags at byte 1: unknown flags 0x01");
    assert_snapshot!(error(b"O\0\0\0\0\0\0\0\0upstream"), @"Origin message, origin name at byte 9: string without its terminating zero byte");
    assert_snapshot!(error(b"R\0\0\0\x01public\0w\xfcnsche\0"), @"Relation message, relation name at byte 12: name is not UTF-8");
    let long = [b"R\0\0\0\x01public\0", &vec![b'x'; 8193][..], b"\0"].concat();
    assert_snapshot!(error(&long), @"Relation message, relation name at byte 12: name of 8193 bytes");
    assert_snapshot!(error(b"R\0\0\0\x01public\0widgets\0x"), @"Relation message, replica identity at byte 20: 'x' where 'd', 'n', 'f' or 'i' belongs");
    assert_snapshot!(error(b"R\0\0\0\x01public\0widgets\0d\xff\xff\x01id\0"), @"Relation message, number of columns at byte 21: announces 65535 items, more than the 4 bytes left can hold");
    assert_snapshot!(error(b"R\0\0\0\x01public\0widgets\0d\0\x01\x01id\0\0\0\0\x17\xff\xff"), @"Relation message, column 1, type modifier at byte 31: needs 4 bytes, 2 left");
    assert_snapshot!(error(b"R\0\0\0\x01public\0widgets\0d\0\x01\x03id\0\0\0\0\x17\xff\xff\xff\xff"), @"Relation message, column 1, flags at byte 23: unknown flags 0x03");
    assert_snapshot!(error(b"Y\0\0\0\x01\0mood"), @"Type message, type name at byte 6: string without its terminating zero byte");
    assert_snapshot!(error(b"I\0\0\0\x01K"), @"Insert message, new row mark at byte 5: 'K' where 'N' belongs");
    assert_snapshot!(error(b"I\0\0\0\x01N\0\x03nu"), @"Insert message, new row's number of columns at byte 6: announces 3 items, more than the 2 bytes left can hold");
    assert_snapshot!(error(b"I\0\0\0\x01N\0\x02nx"), @"Insert message, new row's column 2, kind at byte 9: 'x' where 'n', 'u', 't' or 'b' belongs");
    assert_snapshot!(error(b"I\0\0\0\x01N\0\x02nt\xff\xff\xff\xffabc"), @"Insert message, new row's column 2, value at byte 14: needs 4294967295 bytes, 3 left");
    assert_snapshot!(error(b"I\0\0\0\x01N\0\x01n\0"), @"Insert message, end at byte 9: 1 bytes after the end of the message");
    assert_snapshot!(error(b"U\0\0\0\x01K\0\x01b\0\0"), @"Update message, old key's column 1, length at byte 9: needs 4 bytes, 2 left");
    assert_snapshot!(error(b"U\0\0\0\x01O\0\x01nO"), @"Update message, new row mark at byte 9: 'O' where 'N' belongs");
    assert_snapshot!(error(b"D\0\0\0\x01N"), @"Delete message, old row mark at byte 5: 'N' where 'K' or 'O' belongs");
    assert_snapshot!(error(b"T\xff\xff\xff\xff\0\0\0\0\x01"), @"Truncate message, number of relations at byte 1: announces 4294967295 items, more than the 4 bytes left can hold");
    assert_snapshot!(error(b"T\0\0\0\0\x04"), @"Truncate message, flags at byte 5: unknown flags 0x04");
    assert_snapshot!(error(b"M\x02"), @"logical decoding message, flags at byte 1: unknown flags 0x02");
    assert_snapshot!(error(b"M\0\0\0\0\0\0\0\0\x01p\0\0\0\0\x05abc"), @"logical decoding message, content at byte 16: needs 5 bytes, 3 left");
}

#[test]
fn diagnoses_say_what_to_do_next() {
    let diagnosis = |payload: &'static [u8]| decode(Bytes::from_static(payload)).unwrap_err().diagnosis();
    assert_snapshot!(diagnosis(b"p"), @r"
        the publisher's stream holds a message that cannot be decoded
          detail: unknown message type 'p'
          hint: The publisher speaks more than pgoutput protocol version 2; run a pgsluice release that supports the publisher's version, then resume.
    ");
    assert_snapshot!(diagnosis(b"Y\0\0\0\x01\0\xff\0"), @r"
        the publisher's stream holds a message that cannot be decoded
          detail: Type message, type name at byte 6: name is not UTF-8
          hint: The replication connection has to use client_encoding UTF8 for this publisher; a name that is changed on the publisher stays as it was in changes made before.
    ");
    assert_snapshot!(diagnosis(b"C"), @r"
        the publisher's stream holds a message that cannot be decoded
          detail: Commit message, flags at byte 1: needs 1 bytes, 0 left
          hint: Resume to read the message again from the publisher; if it comes back, report it together with the publisher's version (SELECT version()).
    ");
}

#[test]
fn debug_shows_the_shape_of_rows_and_not_their_values() {
    let row = tuple(&[Value::Null, Value::Unchanged, Value::Text(b"hunter2"), Value::Binary(b"\0")]);
    assert_snapshot!(format!("{row:?} {:?}", row.iter()), @"[Null, Unchanged, Text(7 bytes), Binary(1 bytes)] [Null, Unchanged, Text(7 bytes), Binary(1 bytes)]");
    let Message::Logical(logical) = captured("message") else { panic!("message") };
    let logical = LogicalMessage { lsn: Lsn::new(1), ..logical };
    assert_snapshot!(format!("{logical:?}"), @r#"LogicalMessage { transactional: true, lsn: 0/1, prefix: b"corpus", content_bytes: 6 }"#);
}

#[test]
fn a_tuple_gives_values_by_index_in_order_and_as_shared_bytes() {
    let row = tuple(&[Value::Text(b"7"), Value::Null, Value::Unchanged, Value::Binary(b"\0\x07")]);
    assert_eq!(row.len(), 4);
    assert_eq!(row.get(0), Some(Value::Text(b"7")));
    assert_eq!(row.get(1), Some(Value::Null));
    assert_eq!(row.get(2), Some(Value::Unchanged));
    assert_eq!(row.get(3).and_then(Value::as_bytes), Some(&b"\0\x07"[..]));
    assert_eq!(row.get(4), None);
    let value = row.get(3).and_then(Value::as_bytes).unwrap();
    assert_eq!(row.share(value).as_ptr(), value.as_ptr());
    assert_eq!([1, 2].map(|column| row.get(column).and_then(Value::as_bytes)), [None, None]);
    assert_eq!(row.get(4), None);
    assert!(row.iter().eq([row.get(0), row.get(1), row.get(2), row.get(3)].map(Option::unwrap)));
    assert_eq!(row.iter().len(), 4);
    assert!(tuple(&[]).is_empty());
    assert_eq!(row.clone(), row);
}

/// Owns what [`Value`] borrows.
#[derive(Debug, Clone)]
enum OwnedValue {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

fn any_row() -> impl Strategy<Value = Tuple> {
    let value = prop_oneof![
        Just(OwnedValue::Null),
        Just(OwnedValue::Unchanged),
        vec(any::<u8>(), 0..20).prop_map(OwnedValue::Text),
        vec(any::<u8>(), 0..20).prop_map(OwnedValue::Binary),
    ];
    vec(value, 0..20).prop_map(|values| {
        let values: Vec<_> = values
            .iter()
            .map(|value| match value {
                OwnedValue::Null => Value::Null,
                OwnedValue::Unchanged => Value::Unchanged,
                OwnedValue::Text(bytes) => Value::Text(bytes),
                OwnedValue::Binary(bytes) => Value::Binary(bytes),
            })
            .collect();
        tuple(&values)
    })
}

fn any_name() -> impl Strategy<Value = String> {
    vec(prop_oneof![Just('a'), Just('"'), Just('\''), any::<char>()], 1..10)
        .prop_map(|chars| chars.into_iter().filter(|&c| c != '\0').chain(['z']).collect())
}

fn any_position() -> impl Strategy<Value = Lsn> {
    (1..=u64::MAX).prop_map(Lsn::new)
}

fn any_relation() -> impl Strategy<Value = Relation> {
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ];
    let column = (any::<bool>(), any_name(), any::<u32>(), any::<i32>())
        .prop_map(|(key, name, type_oid, typmod)| RelationColumn { key, name, type_oid, typmod });
    (any::<u32>(), any_name(), any_name(), identity, vec(column, 0..10)).prop_map(
        |(oid, schema, name, replica_identity, columns)| Relation {
            oid,
            schema,
            name,
            replica_identity,
            columns,
        },
    )
}

fn any_transaction_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any_position(), any::<i64>(), any::<u32>())
            .prop_map(|(final_lsn, commit_time, xid)| Message::Begin(Begin { final_lsn, commit_time, xid })),
        (any_position(), any_position(), any::<i64>()).prop_map(|(commit_lsn, end_lsn, commit_time)| {
            Message::Commit(Commit { commit_lsn, end_lsn, commit_time })
        }),
        (any::<u64>(), any_name())
            .prop_map(|(lsn, name)| { Message::Origin(Origin { commit_lsn: Lsn::new(lsn), name }) }),
        (any::<bool>(), any::<u64>(), any_name(), vec(any::<u8>(), 0..50)).prop_map(
            |(transactional, lsn, prefix, content)| {
                let (prefix, content) = (Bytes::from(prefix), Bytes::from(content));
                Message::Logical(LogicalMessage { transactional, lsn: Lsn::new(lsn), prefix, content })
            }
        ),
    ]
}

fn any_change() -> impl Strategy<Value = Message> {
    let old =
        prop_oneof![Just(OldRow::NotSent), any_row().prop_map(OldRow::Key), any_row().prop_map(OldRow::Full)];
    let deleted = prop_oneof![any_row().prop_map(DeletedRow::Key), any_row().prop_map(DeletedRow::Full)];
    prop_oneof![
        (any::<u32>(), any_row()).prop_map(|(relation_oid, new)| Message::Insert(Insert {
            xid: None,
            relation_oid,
            new
        })),
        (any::<u32>(), old, any_row()).prop_map(|(relation_oid, old, new)| Message::Update(Update {
            xid: None,
            relation_oid,
            old,
            new
        })),
        (any::<u32>(), deleted).prop_map(|(relation_oid, old)| Message::Delete(Delete {
            xid: None,
            relation_oid,
            old
        })),
        (vec(any::<u32>(), 0..10), any::<bool>(), any::<bool>()).prop_map(
            |(relation_oids, cascade, restart_seqs)| {
                Message::Truncate(Truncate { xid: None, relation_oids, cascade, restart_seqs })
            }
        ),
    ]
}

fn any_stream_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u32>(), any::<bool>())
            .prop_map(|(xid, first)| Message::StreamStart(StreamStart { xid, first })),
        Just(Message::StreamStop),
        (any::<u32>(), any_position(), any_position(), any::<i64>()).prop_map(
            |(xid, commit_lsn, end_lsn, commit_time)| {
                let commit = Commit { commit_lsn, end_lsn, commit_time };
                Message::StreamCommit(StreamCommit { xid, commit })
            }
        ),
        (any::<u32>(), any::<u32>())
            .prop_map(|(xid, subxid)| Message::StreamAbort(StreamAbort { xid, subxid })),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any_transaction_message(),
        any_change(),
        any_stream_message(),
        any_relation().prop_map(Message::Relation),
        (any::<u32>(), any_name(), any_name()).prop_map(|(oid, schema, name)| Message::Type(Type {
            oid,
            schema,
            name
        })),
    ]
}

/// Reads every value of a row, so that a wrong offset would panic.
fn touch(message: &Message) {
    let rows: &[&Tuple] = match message {
        Message::Insert(insert) => &[&insert.new],
        Message::Update(Update { old: OldRow::Key(old) | OldRow::Full(old), new, .. }) => &[old, new],
        Message::Update(Update { old: OldRow::NotSent, new, .. }) => &[new],
        Message::Delete(Delete { old: DeletedRow::Key(old) | DeletedRow::Full(old), .. }) => &[old],
        _ => &[],
    };
    for row in rows {
        for (index, value) in row.iter().enumerate() {
            assert_eq!(row.get(index), Some(value));
        }
    }
}

/// Any bytes are a complete message or an error that names the message and a field.
fn decodes_or_tells(payload: Bytes) {
    let first = payload.first().copied();
    match decode(payload) {
        Ok(message) => {
            touch(&message);
            assert_eq!(decode(encode(&message)), Ok(message));
        }
        Err(DecodeError::Empty) => assert_eq!(first, None),
        Err(DecodeError::UnknownMessage(byte)) => assert_eq!(first, Some(byte)),
        Err(DecodeError::Malformed(malformed)) => {
            let text = malformed.to_string();
            assert!(text.starts_with(&format!("{} message, ", malformed.message)), "{text}");
            assert!(!malformed.field.to_string().is_empty(), "{text}");
        }
    }
}

/// The change as a streamed piece has it.
fn made_by(xid: u32, mut change: Message) -> Message {
    match &mut change {
        Message::Insert(Insert { xid: made_by, .. })
        | Message::Update(Update { xid: made_by, .. })
        | Message::Delete(Delete { xid: made_by, .. })
        | Message::Truncate(Truncate { xid: made_by, .. }) => *made_by = Some(xid),
        _ => {}
    }
    change
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in any_message()) {
        prop_assert_eq!(decode(encode(&message)), Ok(message));
    }

    #[test]
    fn within_a_stream_a_change_has_its_xid_before_it(change in any_change(), xid in any::<u32>()) {
        let alone = encode(&change);
        let mut streamed = BytesMut::from(&alone[..1]);
        streamed.put_u32(xid);
        streamed.put_slice(&alone[1..]);
        let start = Message::StreamStart(StreamStart { xid, first: true });
        let mut decoder = Decoder::default();
        prop_assert_eq!(decoder.decode(alone.clone()), Ok(change.clone()));
        prop_assert_eq!(decoder.decode(encode(&start)), Ok(start));
        prop_assert_eq!(decoder.decode(streamed.freeze()), Ok(made_by(xid, change.clone())));
        prop_assert_eq!(decoder.decode(encode(&Message::StreamStop)), Ok(Message::StreamStop));
        prop_assert_eq!(decoder.decode(alone), Ok(change));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        kind in prop_oneof![
            proptest::sample::select(&b"BCORYIUDTMSEcA"[..]),
            any::<u8>(),
        ],
        body in vec(prop_oneof![0..4_u8, proptest::sample::select(&b"NKOntub"[..]), any::<u8>()], 0..200),
    ) {
        let mut payload = vec![kind];
        payload.extend(body);
        decodes_or_tells(Bytes::from(payload));
    }

    #[test]
    fn a_message_cut_short_or_drawn_out_is_refused(message in any_message(), cut in any::<prop::sample::Index>()) {
        let payload = encode(&message);
        let short = payload.slice(..cut.index(payload.len()));
        prop_assert!(decode(short).is_err());
        let mut long = BytesMut::from(&payload[..]);
        long.put_u8(0);
        prop_assert!(decode(long.freeze()).is_err());
    }

    #[test]
    fn a_mutated_message_never_panics(
        message in any_message(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut payload = BytesMut::from(&encode(&message)[..]);
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        decodes_or_tells(payload.freeze());
    }
}
