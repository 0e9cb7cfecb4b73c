//! Decoding any bytes gives a frame that encodes to the same bytes, or an error that can be shown.
//!
//! The corpus has each kind of frame and each kind of error. A unit test reads it as well, so that it
//! is used without a nightly compiler.

use bytes::Bytes;
use pgsluice::replication::frame::{Frame, Reply, parse};

pub(crate) fn run(data: &[u8]) {
    match parse(Bytes::copy_from_slice(data)) {
        Ok(frame) => assert_eq!(written(&frame), data),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Encodes the frame as the publisher would have sent it.
fn written(frame: &Frame) -> Vec<u8> {
    match frame {
        Frame::XLogData { wal_start, wal_end, sent_at_us, payload } => {
            let mut bytes = vec![b'w'];
            bytes.extend(wal_start.as_u64().to_be_bytes());
            bytes.extend(wal_end.as_u64().to_be_bytes());
            bytes.extend(sent_at_us.to_be_bytes());
            bytes.extend(payload);
            bytes
        }
        Frame::Keepalive { wal_end, sent_at_us, reply } => {
            let mut bytes = vec![b'k'];
            bytes.extend(wal_end.as_u64().to_be_bytes());
            bytes.extend(sent_at_us.to_be_bytes());
            bytes.push(u8::from(*reply == Reply::Requested));
            bytes
        }
        Frame::End => unreachable!("no bytes end the stream, the protocol's own message does"),
    }
}
