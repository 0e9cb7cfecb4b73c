//! How many row messages of pgoutput one core decodes in a second: `cargo bench --bench decode`.
//!
//! The row is that of the throughput benchmark, `orders (id bigint primary key, customer_id int,
//! status text, amount numeric(12,2), created_at timestamptz, note text)`, as PostgreSQL sends it in
//! text. Each iteration decodes one message and walks its values, as planning does; it also drops
//! them, and takes a counted reference of the payload, as reading from a socket does.

use bytes::{BufMut, Bytes, BytesMut};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use pgsluice::pgoutput::{DeletedRow, Message, OldRow, Tuple, Value, decode};

fn main() {
    divan::main();
}

/// Row messages per iteration, so that the clock's own cost does not show.
const MESSAGES: usize = 1000;

const ORDER: [Option<&str>; 6] = [
    Some("1234567"),
    Some("4711"),
    Some("shipped"),
    Some("1299.90"),
    Some("2024-02-29 12:00:00.123456+00"),
    Some("leave it with the neighbour"),
];
const ORDER_KEY: [Option<&str>; 6] = [Some("1234567"), None, None, None, None, None];

fn put_row(out: &mut BytesMut, mark: u8, row: [Option<&str>; 6]) {
    out.put_u8(mark);
    out.put_u16(6);
    for value in row {
        match value {
            None => out.put_u8(b'n'),
            Some(text) => {
                out.put_u8(b't');
                out.put_u32(u32::try_from(text.len()).expect("a short text"));
                out.put_slice(text.as_bytes());
            }
        }
    }
}

/// A message of `kind` with these rows, each with its mark.
fn message(kind: u8, rows: &[(u8, [Option<&str>; 6])]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(kind);
    out.put_u32(16_384);
    for &(mark, row) in rows {
        put_row(&mut out, mark, row);
    }
    out.freeze()
}

/// Looks at every value, as a consumer does.
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

fn bench(bencher: Bencher<'_, '_>, payload: &Bytes) {
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .counter(BytesCount::new(MESSAGES * payload.len()))
        .bench_local(|| {
            for _ in 0..MESSAGES {
                let message = decode(black_box(payload.clone())).expect("a whole message");
                black_box(rows_of(&message));
            }
        });
}

#[divan::bench]
fn insert(bencher: Bencher<'_, '_>) {
    bench(bencher, &message(b'I', &[(b'N', ORDER)]));
}

#[divan::bench]
fn update(bencher: Bencher<'_, '_>) {
    bench(bencher, &message(b'U', &[(b'N', ORDER)]));
}

#[divan::bench]
fn update_of_key(bencher: Bencher<'_, '_>) {
    bench(bencher, &message(b'U', &[(b'K', ORDER_KEY), (b'N', ORDER)]));
}

#[divan::bench]
fn update_identity_full(bencher: Bencher<'_, '_>) {
    bench(bencher, &message(b'U', &[(b'O', ORDER), (b'N', ORDER)]));
}

#[divan::bench]
fn delete(bencher: Bencher<'_, '_>) {
    bench(bencher, &message(b'D', &[(b'K', ORDER_KEY)]));
}
