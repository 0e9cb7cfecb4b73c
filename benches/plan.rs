//! How many row messages one core plans in a second: `cargo bench --bench plan`.
//!
//! Planning is everything between decoding and sending: events, compaction, arrays. The row is that of
//! `benches/decode.rs`, the batch as large as apply makes them. Compare with `cargo bench --bench decode`.

use bytes::{BufMut, Bytes, BytesMut};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use pgsluice::apply::bench::Planner;
use pgsluice::pgoutput::{Message, decode};
use tokio_postgres::types::Type;

fn main() {
    divan::main();
}

/// Row messages of a batch, as `apply::applier` bounds it.
const MESSAGES: usize = 8192;

fn columns() -> [(&'static str, Type); 6] {
    [
        ("id", Type::INT8_ARRAY),
        ("customer_id", Type::INT4_ARRAY),
        ("status", Type::TEXT_ARRAY),
        ("amount", Type::NUMERIC_ARRAY),
        ("created_at", Type::TIMESTAMPTZ_ARRAY),
        ("note", Type::TEXT_ARRAY),
    ]
}

fn put_row(out: &mut BytesMut, mark: u8, values: [Option<&str>; 6]) {
    out.put_u8(mark);
    out.put_u16(6);
    for value in values {
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

/// A message of `kind` about the row `id`.
fn message(kind: u8, id: usize) -> Message {
    let id = (1_234_567 + id).to_string();
    let mut out = BytesMut::new();
    out.put_u8(kind);
    out.put_u32(16_384);
    if kind == b'D' {
        put_row(&mut out, b'K', [Some(&id), None, None, None, None, None]);
    } else {
        let rest =
            ["4711", "shipped", "1299.90", "2024-02-29 12:00:00.123456+00", "leave it with the neighbour"];
        let [customer, status, amount, at, note] = rest.map(Some);
        put_row(&mut out, b'N', [Some(&id), customer, status, amount, at, note]);
    }
    decode(Bytes::from(out)).expect("a whole message")
}

fn bench(bencher: Bencher<'_, '_>, messages: &[Message]) {
    let planner = Planner::new(&columns());
    bencher
        .counter(ItemsCount::new(messages.len()))
        .with_inputs(|| messages.to_vec())
        .bench_local_values(|messages| black_box(planner.plan(messages)).expect("sets"));
}

fn of_kind(kind: u8) -> Vec<Message> {
    (0..MESSAGES).map(|id| message(kind, id)).collect()
}

#[divan::bench]
fn insert(bencher: Bencher<'_, '_>) {
    bench(bencher, &of_kind(b'I'));
}

#[divan::bench]
fn update(bencher: Bencher<'_, '_>) {
    bench(bencher, &of_kind(b'U'));
}

#[divan::bench]
fn delete(bencher: Bencher<'_, '_>) {
    bench(bencher, &of_kind(b'D'));
}

/// A hundred rows, updated again and again: all but the last update of each is compacted away.
#[divan::bench]
fn update_of_few(bencher: Bencher<'_, '_>) {
    bench(bencher, &(0..MESSAGES).map(|n| message(b'U', n % 100)).collect::<Vec<_>>());
}

/// Each row is inserted, updated and deleted.
#[divan::bench]
fn passing_rows(bencher: Bencher<'_, '_>) {
    bench(bencher, &(0..MESSAGES).map(|n| message(b"IUD"[n % 3], n / 3)).collect::<Vec<_>>());
}
