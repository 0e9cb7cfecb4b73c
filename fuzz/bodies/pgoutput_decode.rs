//! Decoding any bytes gives a message whose values all lie within them, or an error that can be shown.
//! The corpus holds messages of a real publisher (`capture-corpus`). A unit test reads it as well, so
//! that it is used without a nightly compiler.

use bytes::Bytes;
use pgsluice::pgoutput::{DecodeError, DeletedRow, Message, OldRow, Place, RelationCache, Tuple, decode_at};

pub(crate) fn run(data: &[u8]) {
    for place in [Place::Outside, Place::InStream] {
        match decode_at(Bytes::copy_from_slice(data), place) {
            Ok(message) => walk(message, data.len()),
            Err(error) => tell(&error),
        }
    }
}

fn walk(message: Message, payload_bytes: usize) {
    // Debug must not panic; it shows only the shape.
    assert!(!format!("{message:?}").is_empty());
    match message {
        Message::Insert(insert) => row(&insert.new, payload_bytes),
        Message::Update(update) => {
            match &update.old {
                OldRow::NotSent => {}
                OldRow::Key(old) | OldRow::Full(old) => row(old, payload_bytes),
            }
            row(&update.new, payload_bytes);
        }
        Message::Delete(delete) => match &delete.old {
            DeletedRow::Key(old) | DeletedRow::Full(old) => row(old, payload_bytes),
        },
        Message::Relation(relation) => {
            assert!(relation.columns.len() * 10 <= payload_bytes);
            if let Err(error) = RelationCache::new().note_relation(relation) {
                assert!(!error.diagnosis().to_string().is_empty());
            }
        }
        Message::Truncate(truncate) => assert!(truncate.relation_oids.len() * 4 <= payload_bytes),
        Message::Logical(logical) => {
            assert!(logical.prefix.len() + logical.content.len() <= payload_bytes);
        }
        Message::Begin(_)
        | Message::Commit(_)
        | Message::Origin(_)
        | Message::Type(_)
        | Message::StreamStart(_)
        | Message::StreamStop
        | Message::StreamCommit(_)
        | Message::StreamAbort(_) => {}
    }
}

fn row(tuple: &Tuple, payload_bytes: usize) {
    assert!(tuple.len() <= payload_bytes);
    assert_eq!(tuple.get(tuple.len()), None);
    let mut total = 0;
    for (index, value) in tuple.iter().enumerate() {
        assert_eq!(tuple.get(index), Some(value));
        total += value.as_bytes().map_or(0, <[u8]>::len);
    }
    assert!(total <= payload_bytes, "values overlap");
}

fn tell(error: &DecodeError) {
    assert!(!error.diagnosis().to_string().is_empty());
    if let DecodeError::Malformed(malformed) = error {
        assert!(!malformed.field.to_string().is_empty());
    }
}
