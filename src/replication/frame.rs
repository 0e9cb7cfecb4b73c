//! The messages inside CopyBoth during replication, decoded and encoded. Pure.
//!
//! The formats are in protocol.sgml, "Streaming Replication Protocol": `XLogData` ('w') and primary
//! keepalive ('k') from the publisher, standby status update ('r') to it. Payloads are slices of the
//! given bytes, never copies. Anything malformed is an error that names the field; nothing here panics
//! or trusts a length. Module `pgoutput` decodes the payload.

use std::time::SystemTime;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::pg::Lsn;

/// Seconds from the Unix epoch to PostgreSQL's, 2000-01-01 UTC (`POSTGRES_EPOCH_JDATE`).
const POSTGRES_EPOCH_S: u64 = 946_684_800;

/// Size of a standby status update with its CopyData header, bytes.
const STATUS_BYTES: usize = 5 + 34;

/// One message of the publisher. Times are microseconds since 2000-01-01 UTC by the publisher's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// One pgoutput message of the logical stream.
    XLogData { wal_start: Lsn, wal_end: Lsn, sent_at_us: i64, payload: Bytes },
    /// The publisher is running and has decoded WAL up to `wal_end`.
    Keepalive { wal_end: Lsn, sent_at_us: i64, reply: Reply },
    /// The publisher has ended the stream normally.
    End,
}

/// Whether the sender wants an immediate answer; without one it may end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    NotNeeded,
    Requested,
}

/// The payload of a CopyData message violates the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a replication message is empty")]
    Empty,
    #[error("a replication message has the unknown type {0:#04x}")]
    UnknownType(u8),
    #[error("{message} ends within its field {field}")]
    Truncated { message: &'static str, field: &'static str },
    #[error("{message} is {extra} bytes longer than it should be")]
    Trailing { message: &'static str, extra: usize },
    #[error("the field reply of a keepalive is {0:#04x}")]
    ReplyFlag(u8),
}

/// Decodes the payload of one CopyData message.
pub fn parse(mut data: Bytes) -> Result<Frame, FrameError> {
    let Some(&kind) = data.first() else { return Err(FrameError::Empty) };
    data.advance(1);
    match kind {
        b'w' => {
            let message = "XLogData";
            let wal_start = take_lsn(&mut data, message, "wal_start")?;
            let wal_end = take_lsn(&mut data, message, "wal_end")?;
            let sent_at_us = take_i64(&mut data, message, "sent_at")?;
            Ok(Frame::XLogData { wal_start, wal_end, sent_at_us, payload: data })
        }
        b'k' => {
            let message = "a keepalive";
            let wal_end = take_lsn(&mut data, message, "wal_end")?;
            let sent_at_us = take_i64(&mut data, message, "sent_at")?;
            let reply = match data.as_ref() {
                [] => return Err(FrameError::Truncated { message, field: "reply" }),
                [0] => Reply::NotNeeded,
                [1] => Reply::Requested,
                [flag] => return Err(FrameError::ReplyFlag(*flag)),
                [_, extra @ ..] => return Err(FrameError::Trailing { message, extra: extra.len() }),
            };
            Ok(Frame::Keepalive { wal_end, sent_at_us, reply })
        }
        other => Err(FrameError::UnknownType(other)),
    }
}

fn take_i64(data: &mut Bytes, message: &'static str, field: &'static str) -> Result<i64, FrameError> {
    let Some(bytes) = data.first_chunk::<8>() else { return Err(FrameError::Truncated { message, field }) };
    let value = i64::from_be_bytes(*bytes);
    data.advance(8);
    Ok(value)
}

fn take_lsn(data: &mut Bytes, message: &'static str, field: &'static str) -> Result<Lsn, FrameError> {
    take_i64(data, message, field).map(|value| Lsn::new(value.cast_unsigned()))
}

/// The subscriber's positions. They decide which WAL the publisher may remove and which synchronous
/// commits it releases.
///
/// `flush` must never lie beyond what is durable on the target, because the slot releases WAL up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feedback {
    /// Position received.
    pub write: Lsn,
    /// Position durable on the target.
    pub flush: Lsn,
    /// Position visible on the target.
    pub apply: Lsn,
    /// This machine's clock, microseconds since 2000-01-01 UTC ([`micros_since_2000`]).
    pub clock_us: i64,
    /// Whether the publisher shall send a keepalive at once.
    pub reply: Reply,
}

/// Appends a CopyData message holding a standby status update.
pub fn encode_status(feedback: &Feedback, out: &mut BytesMut) {
    out.reserve(STATUS_BYTES);
    out.put_u8(b'd');
    out.put_i32(38); // the length itself, the type and five fields: 4 + 1 + 4 * 8 + 1
    out.put_u8(b'r');
    out.put_u64(feedback.write.as_u64());
    out.put_u64(feedback.flush.as_u64());
    out.put_u64(feedback.apply.as_u64());
    out.put_i64(feedback.clock_us);
    out.put_u8(match feedback.reply {
        Reply::NotNeeded => 0,
        Reply::Requested => 1,
    });
}

/// Converts a point in time to microseconds since 2000-01-01 UTC, as the replication protocol counts
/// it, saturating.
#[must_use]
pub fn micros_since_2000(time: SystemTime) -> i64 {
    let epoch = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(POSTGRES_EPOCH_S);
    match time.duration_since(epoch) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn xlog_data(payload: &[u8]) -> Bytes {
        let mut data = BytesMut::new();
        data.put_u8(b'w');
        data.put_u64(1);
        data.put_u64(u64::MAX);
        data.put_i64(-3);
        data.put_slice(payload);
        data.freeze()
    }

    fn keepalive(tail: &[u8]) -> Bytes {
        let mut data = BytesMut::new();
        data.put_u8(b'k');
        data.put_u64(7);
        data.put_i64(8);
        data.put_slice(tail);
        data.freeze()
    }

    #[test]
    fn data_and_keepalives_are_read_without_copying() {
        let data = xlog_data(b"payload");
        let start = data.as_ptr() as usize;
        let Ok(Frame::XLogData { wal_start, wal_end, sent_at_us, payload }) = parse(data) else { panic!() };
        assert_eq!((wal_start, wal_end, sent_at_us), (Lsn::new(1), Lsn::new(u64::MAX), -3));
        assert_eq!(payload, "payload");
        assert_eq!(payload.as_ptr() as usize, start + 25, "the payload is a slice of the input");

        for (flag, reply) in [(0, Reply::NotNeeded), (1, Reply::Requested)] {
            let expected = Frame::Keepalive { wal_end: Lsn::new(7), sent_at_us: 8, reply };
            assert_eq!(parse(keepalive(&[flag])), Ok(expected));
        }
    }

    #[test]
    fn what_is_malformed_is_named() {
        let check = |data: Bytes, text: &str| {
            assert_eq!(parse(data).map_err(|e| e.to_string()), Err(text.to_owned()));
        };
        check(Bytes::new(), "a replication message is empty");
        check(Bytes::from_static(b"x"), "a replication message has the unknown type 0x78");
        check(xlog_data(b"").slice(..20), "XLogData ends within its field sent_at");
        check(xlog_data(b"").slice(..1), "XLogData ends within its field wal_start");
        check(keepalive(&[]), "a keepalive ends within its field reply");
        check(keepalive(&[2]), "the field reply of a keepalive is 0x02");
        check(keepalive(&[0, 0]), "a keepalive is 1 bytes longer than it should be");
    }

    /// The fuzz target's corpus has each kind of frame and each kind of error.
    #[test]
    fn the_corpus_reads_as_its_names_say() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/replication_frame");
        let mut lines: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let read = match parse(Bytes::from(std::fs::read(&path).unwrap())) {
                    Ok(Frame::XLogData { payload, .. }) => format!("{} bytes of data", payload.len()),
                    Ok(Frame::Keepalive { reply, .. }) => format!("{reply:?}"),
                    Ok(Frame::End) => "the end".to_owned(),
                    Err(error) => error.to_string(),
                };
                format!("{}: {read}", path.file_name().unwrap().to_string_lossy())
            })
            .collect();
        lines.sort();
        insta::assert_snapshot!(lines.join("\n"), @r"
        data: 21 bytes of data
        data_empty: 0 bytes of data
        data_extremes: 1 bytes of data
        data_truncated: XLogData ends within its field sent_at
        keepalive: NotNeeded
        keepalive_flag: the field reply of a keepalive is 0x02
        keepalive_reply: Requested
        keepalive_trailing: a keepalive is 1 bytes longer than it should be
        keepalive_truncated: a keepalive ends within its field reply
        unknown: a replication message has the unknown type 0x78
        ");
    }

    #[test]
    fn a_status_update_has_the_documented_layout() {
        let mut out = BytesMut::new();
        let feedback = Feedback {
            write: Lsn::new(0x0102_0304_0506_0708),
            flush: Lsn::new(2),
            apply: Lsn::new(3),
            clock_us: 4,
            reply: Reply::Requested,
        };
        encode_status(&feedback, &mut out);
        assert_eq!(out.len(), STATUS_BYTES);
        assert_eq!(&out[..14], b"d\0\0\0\x26r\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(&out[30..], b"\0\0\0\0\0\0\0\x04\x01");
    }

    #[test]
    fn clocks_count_from_2000() {
        let at = |s: u64| micros_since_2000(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(POSTGRES_EPOCH_S), 0);
        assert_eq!(at(POSTGRES_EPOCH_S + 2), 2_000_000);
        assert_eq!(at(POSTGRES_EPOCH_S - 2), -2_000_000);
    }

    proptest! {
        #[test]
        fn no_input_panics(data in proptest::collection::vec(any::<u8>(), 0..64), kind in "[wk]") {
            let _ = parse(Bytes::from(data.clone()));
            let mut known = kind.into_bytes();
            known.extend(data);
            let _ = parse(Bytes::from(known));
        }
    }
}
