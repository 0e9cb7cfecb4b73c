//! The messages that `decode` and `plan` measure.
//!
//! The row is that of the throughput benchmark, `orders (id bigint primary key, customer_id int, status
//! text, amount numeric(12,2), created_at timestamptz, note text)`, as PostgreSQL sends it in text.
//! There are as many rows as apply puts into a batch, each with its own key. They lie one after the
//! other in shared buffers, as reads from a socket leave them.

use bytes::{BufMut, Bytes, BytesMut};

/// Row messages of a batch.
pub(crate) const MESSAGES: usize = 8192;

/// Size of one read from a busy socket, bytes.
const READ_BYTES: usize = 64 << 10;

type Row<'a> = [Option<&'a str>; 6];

/// Returns one message of each of `kinds` for each row of `ids`. `old` is the byte that marks an
/// update's old row: `K`, `O`, or none.
pub(crate) fn messages(kinds: &[u8], ids: impl Iterator<Item = usize>, old: Option<u8>) -> Vec<Bytes> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let kinds = kinds.iter().copied().cycle();
    let payloads = kinds.zip(ids).map(|(kind, id)| {
        if buffer.capacity() < MESSAGE_BYTES_MAX {
            buffer = BytesMut::with_capacity(READ_BYTES);
        }
        put_message(&mut buffer, kind, id, old);
        buffer.split().freeze()
    });
    payloads.collect()
}

const MESSAGE_BYTES_MAX: usize = 512;

fn put_message(out: &mut BytesMut, kind: u8, id: usize, old: Option<u8>) {
    let id = (1_234_567 + id).to_string();
    let key: Row<'_> = [Some(&id), None, None, None, None, None];
    let row: Row<'_> = [
        Some(&id),
        Some("4711"),
        Some("shipped"),
        Some("1299.90"),
        Some("2024-02-29 12:00:00.123456+00"),
        Some("leave it with the neighbour"),
    ];
    out.put_u8(kind);
    out.put_u32(16_384);
    match (kind, old) {
        (b'D', _) => put_row(out, b'K', key),
        (b'U', Some(mark)) => {
            put_row(out, mark, if mark == b'K' { key } else { row });
            put_row(out, b'N', row);
        }
        _ => put_row(out, b'N', row),
    }
}

fn put_row(out: &mut BytesMut, mark: u8, row: Row<'_>) {
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
