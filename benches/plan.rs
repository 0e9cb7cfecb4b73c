//! Measures how many row messages one core plans in a second: `cargo bench --bench plan`.
//!
//! Planning is everything between decoding and sending: events, compaction, arrays. The messages are
//! those of `benches/decode.rs`, so the figures can be compared. Dropping the messages and the results
//! is part of the measurement. `decoded_…` also includes decoding: the whole cost of a row between
//! socket and socket.

mod rows;

use bytes::Bytes;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use pgsluice::apply::bench::Planner;
use pgsluice::pgoutput::{Message, decode};
use rows::MESSAGES;
use tokio_postgres::types::Type;

fn main() {
    divan::main();
}

fn planner() -> Planner {
    Planner::new(&[
        ("id", Type::INT8_ARRAY),
        ("customer_id", Type::INT4_ARRAY),
        ("status", Type::TEXT_ARRAY),
        ("amount", Type::NUMERIC_ARRAY),
        ("created_at", Type::TIMESTAMPTZ_ARRAY),
        ("note", Type::TEXT_ARRAY),
    ])
}

fn decoded(payload: &Bytes) -> Message {
    decode(payload.clone()).expect("a whole message")
}

fn bench(bencher: Bencher<'_, '_>, payloads: &[Bytes]) {
    let mut planner = planner();
    bencher
        .counter(ItemsCount::new(payloads.len()))
        .with_inputs(|| payloads.iter().map(decoded).collect::<Vec<_>>())
        .bench_local_values(|messages| drop(black_box(planner.plan(messages)).expect("sets")));
}

fn bench_decoded(bencher: Bencher<'_, '_>, payloads: &[Bytes]) {
    let mut planner = planner();
    bencher.counter(ItemsCount::new(payloads.len())).bench_local(|| {
        let messages = payloads.iter().map(|payload| decoded(black_box(payload)));
        drop(black_box(planner.plan(messages)).expect("sets"));
    });
}

fn of_kind(kind: u8) -> Vec<Bytes> {
    rows::messages(&[kind], 0..MESSAGES, None)
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

/// A hundred rows are updated again and again; compaction leaves only the last update of each.
#[divan::bench]
fn update_of_few(bencher: Bencher<'_, '_>) {
    bench(bencher, &rows::messages(b"U", (0..MESSAGES).map(|n| n % 100), None));
}

/// Each row is inserted, updated and deleted.
#[divan::bench]
fn passing_rows(bencher: Bencher<'_, '_>) {
    bench(bencher, &rows::messages(b"IUD", (0..MESSAGES).map(|n| n / 3), None));
}

#[divan::bench]
fn decoded_insert(bencher: Bencher<'_, '_>) {
    bench_decoded(bencher, &of_kind(b'I'));
}

#[divan::bench]
fn decoded_update(bencher: Bencher<'_, '_>) {
    bench_decoded(bencher, &of_kind(b'U'));
}

#[divan::bench]
fn decoded_delete(bencher: Bencher<'_, '_>) {
    bench_decoded(bencher, &of_kind(b'D'));
}
