//! Measures how many row messages of pgoutput one core decodes in a second: `cargo bench --bench
//! decode`.
//!
//! Each iteration decodes a batch of messages (`rows`) one by one, reads the values of each, as
//! planning does, and drops them. It also takes a counted reference to the payload, as reading from a
//! socket does.

mod rows;

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use pgsluice::pgoutput::{DeletedRow, Message, OldRow, Tuple, Value, decode};
use rows::MESSAGES;

fn main() {
    divan::main();
}

/// Reads every value, as a consumer does.
fn walk(row: &Tuple) -> usize {
    row.iter().filter_map(Value::as_bytes).map(<[u8]>::len).sum()
}

fn rows_of(message: &Message) -> usize {
    match message {
        Message::Insert(insert) => walk(&insert.new),
        Message::Update(update) => match &update.old {
            OldRow::NotSent => walk(&update.new),
            OldRow::Key(old) | OldRow::Full(old) => walk(old) + walk(&update.new),
        },
        Message::Delete(delete) => match &delete.old {
            DeletedRow::Key(old) | DeletedRow::Full(old) => walk(old),
        },
        other => unreachable!("not a row message: {other:?}"),
    }
}

fn bench(bencher: Bencher<'_, '_>, kind: u8, old: Option<u8>) {
    let payloads = rows::messages(&[kind], 0..MESSAGES, old);
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .counter(BytesCount::new(payloads.iter().map(Bytes::len).sum::<usize>()))
        .bench_local(|| {
            for payload in &payloads {
                let message = decode(black_box(payload.clone())).expect("a whole message");
                black_box(rows_of(&message));
            }
        });
}

#[divan::bench]
fn insert(bencher: Bencher<'_, '_>) {
    bench(bencher, b'I', None);
}

#[divan::bench]
fn update(bencher: Bencher<'_, '_>) {
    bench(bencher, b'U', None);
}

#[divan::bench]
fn update_of_key(bencher: Bencher<'_, '_>) {
    bench(bencher, b'U', Some(b'K'));
}

#[divan::bench]
fn update_identity_full(bencher: Bencher<'_, '_>) {
    bench(bencher, b'U', Some(b'O'));
}

#[divan::bench]
fn delete(bencher: Bencher<'_, '_>) {
    bench(bencher, b'D', None);
}
