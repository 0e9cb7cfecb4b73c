//! How large a server's messages may be, judged by their headers, before memory is taken for them. Pure.
//!
//! | messages | bound |
//! | --- | --- |
//! | before ReadyForQuery | 64 KiB each, 1 MiB together: anybody may answer on the server's address |
//! | errors and notices | none: each of their texts is shortened while it arrives |
//! | rows, copied data | the protocol's; callers have smaller ones |
//! | parameters, notifications, keys | 64 KiB |
//! | all others | 1 MiB: a description of 1,664 columns has 140 kB |
//!
//! A server's error may quote a whole value of hundreds of megabytes, and has to be told as an error nevertheless.
//! So [`Shortener`] keeps the beginning of each text, and the fields behind a long one.

use std::io;

/// Largest message that a server can send, bytes: `PQ_LARGE_MESSAGE_LIMIT`, which is PostgreSQL's
/// `MaxAllocSize` less one.
pub(crate) const MESSAGE_BYTES_MAX: usize = 0x3fff_fffe;
/// Size of a message's type and length.
pub(crate) const HEADER_BYTES: usize = 5;

const START_UP_MESSAGE_BYTES_MAX: usize = 64 << 10;
const START_UP_BYTES_MAX: usize = 1 << 20;
const SMALL_BYTES_MAX: usize = 64 << 10;
const OTHER_BYTES_MAX: usize = 1 << 20;
/// An error or a notice that is larger is shortened, bytes.
const WHOLE_TEXT_BYTES_MAX: usize = 64 << 10;
/// What is kept of each of its texts, bytes. What is shown and stored is less.
const FIELD_BYTES_MAX: usize = 16 << 10;
/// What is kept of all of them, bytes.
const FIELDS_BYTES_MAX: usize = 256 << 10;

/// A server sends more than it may. The rest has not been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of type {} has {bytes} bytes, more than the {bytes_max} that are taken", .tag.escape_ascii())]
pub struct Oversize {
    tag: u8,
    bytes: usize,
    bytes_max: usize,
}

impl From<Oversize> for io::Error {
    fn from(oversize: Oversize) -> Self {
        Self::new(io::ErrorKind::InvalidData, oversize)
    }
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handling {
    Whole,
    Shortened,
}

/// Judges the messages of one connection in their order.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    start_up: StartUp,
}

#[derive(Debug)]
enum StartUp {
    Running { bytes: usize },
    Done,
}

impl Default for StartUp {
    fn default() -> Self {
        Self::Running { bytes: 0 }
    }
}

impl Sizes {
    /// Judges the next message by its type and its size with its header.
    pub(crate) fn next(&mut self, tag: u8, bytes: usize) -> Result<Handling, Oversize> {
        let bytes_max = match self.start_up {
            StartUp::Running { bytes: before } => {
                START_UP_MESSAGE_BYTES_MAX.min(START_UP_BYTES_MAX.saturating_sub(before))
            }
            StartUp::Done => match tag {
                b'E' | b'N' | b'D' | b'd' => MESSAGE_BYTES_MAX + 1,
                b'S' | b'A' | b'K' | b'R' | b'Z' => SMALL_BYTES_MAX,
                _ => OTHER_BYTES_MAX,
            },
        };
        if bytes > bytes_max {
            return Err(Oversize { tag, bytes, bytes_max });
        }
        if let StartUp::Running { bytes: before } = &mut self.start_up {
            *before += bytes;
            if tag == b'Z' {
                self.start_up = StartUp::Done;
            }
        }
        let is_long_text = matches!(tag, b'E' | b'N') && bytes > WHOLE_TEXT_BYTES_MAX;
        Ok(if is_long_text { Handling::Shortened } else { Handling::Whole })
    }
}

/// Takes the body of an ErrorResponse or a NoticeResponse as it comes, and keeps the beginning of each field.
#[derive(Debug)]
pub(crate) struct Shortener {
    tag: u8,
    /// Bytes of the body that are still to come.
    left: usize,
    body: Vec<u8>,
    at: At,
}

#[derive(Debug, Clone, Copy)]
enum At {
    /// Before a field's type, or the zero byte that ends the fields.
    Field,
    /// In a field's text, which begins there in what is kept.
    Text { start: usize },
    /// Behind the fields, or behind what is kept of them.
    End,
}

impl Shortener {
    pub(crate) fn new(tag: u8, body_bytes: usize) -> Self {
        Self { tag, left: body_bytes, body: Vec::new(), at: At::Field }
    }

    pub(crate) fn tag(&self) -> u8 {
        self.tag
    }

    /// Bytes of the body that are still to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Takes what belongs to the body, and returns its length.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> usize {
        let taken = self.left.min(bytes.len());
        self.left -= taken;
        let mut rest = &bytes[..taken];
        while let Some((&first, behind)) = rest.split_first() {
            match self.at {
                At::Field if first == 0 || self.body.len() >= FIELDS_BYTES_MAX => self.at = At::End,
                At::Field => {
                    self.body.push(first);
                    self.at = At::Text { start: self.body.len() };
                    rest = behind;
                }
                At::Text { start } => {
                    let end = rest.iter().position(|&byte| byte == 0);
                    let text = &rest[..end.unwrap_or(rest.len())];
                    let room = FIELD_BYTES_MAX.saturating_sub(self.body.len() - start);
                    self.body.extend_from_slice(&text[..room.min(text.len())]);
                    let Some(end) = end else { break };
                    self.end_text(start);
                    rest = &rest[end + 1..];
                }
                At::End => break,
            }
        }
        taken
    }

    /// Ends a text that was kept in part at a whole character.
    fn end_text(&mut self, start: usize) {
        let kept = &self.body[start..];
        if kept.len() == FIELD_BYTES_MAX
            && let Err(error) = std::str::from_utf8(kept)
            && error.error_len().is_none()
        {
            let end = start + error.valid_up_to();
            self.body.truncate(end);
        }
        self.body.push(0);
        self.at = At::Field;
    }

    /// Returns the body with shortened texts, once everything has come.
    pub(crate) fn body(mut self) -> Vec<u8> {
        if let At::Text { start } = self.at {
            self.end_text(start);
        }
        self.body.push(0);
        self.body
    }

    /// Returns the message with shortened texts, once everything has come.
    pub(crate) fn message(self) -> Vec<u8> {
        let mut message = vec![self.tag];
        let body = self.body();
        // The body has a few hundred kilobytes at most.
        message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
        message.extend_from_slice(&body);
        message
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_depend_on_the_phase_and_the_kind() {
        let mut sizes = Sizes::default();
        let large = START_UP_MESSAGE_BYTES_MAX + 1;
        for tag in *b"RESNKDd" {
            assert!(sizes.next(tag, large).is_err(), "{}", char::from(tag));
        }
        assert_eq!(sizes.next(b'E', large - 1), Ok(Handling::Whole));
        assert_eq!(sizes.next(b'Z', 6), Ok(Handling::Whole));
        assert_eq!(sizes.next(b'D', MESSAGE_BYTES_MAX + 1), Ok(Handling::Whole));
        assert_eq!(sizes.next(b'E', MESSAGE_BYTES_MAX + 1), Ok(Handling::Shortened));
        assert_eq!(sizes.next(b'N', WHOLE_TEXT_BYTES_MAX), Ok(Handling::Whole));
        assert!(sizes.next(b'd', MESSAGE_BYTES_MAX + 2).is_err());
        assert!(sizes.next(b'S', SMALL_BYTES_MAX + 1).is_err());
        assert_eq!(sizes.next(b'T', 200_000), Ok(Handling::Whole));
        let error = sizes.next(b'T', OTHER_BYTES_MAX + 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a message of type T has 1048577 bytes, more than the 1048576 that are taken"
        );
    }

    #[test]
    fn many_small_messages_are_too_much_before_authentication() {
        let mut sizes = Sizes::default();
        let taken = (0..1000).take_while(|_| sizes.next(b'S', 60_000).is_ok()).count();
        assert_eq!(taken, START_UP_BYTES_MAX / 60_000);
    }

    fn fields(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut body: Vec<u8> =
            fields.iter().flat_map(|(kind, text)| [&[*kind], *text, &[0]].concat()).collect();
        body.push(0);
        body
    }

    #[test]
    fn the_fields_behind_a_long_one_are_kept() {
        let long = "ä".repeat(100_000);
        let body = fields(&[(b'C', b"22P02"), (b'M', long.as_bytes()), (b'n', b"my_check")]);
        for step in [1, 7, 4096, body.len()] {
            let mut shortener = Shortener::new(b'E', body.len());
            let bytes = [&body[..], b"next"].concat();
            let taken: usize = bytes.chunks(step).map(|part| shortener.feed(part)).sum();
            assert_eq!((taken, shortener.left()), (body.len(), 0));
            let kept = "ä".repeat(FIELD_BYTES_MAX / 2);
            assert!(
                shortener.body() == fields(&[(b'C', b"22P02"), (b'M', kept.as_bytes()), (b'n', b"my_check")]),
                "by {step}"
            );
        }
    }

    #[test]
    fn a_character_is_not_kept_in_part() {
        let long = format!("x{}", "ä".repeat(1 << 20));
        let body = fields(&[(b'M', long.as_bytes())]);
        let mut shortener = Shortener::new(b'E', body.len());
        shortener.feed(&body);
        let message = shortener.message();
        assert_eq!(message[1..5], u32::try_from(message.len() - 1).unwrap().to_be_bytes());
        let text = &message[6..message.len() - 2];
        assert_eq!(std::str::from_utf8(text).unwrap().len(), FIELD_BYTES_MAX - 1);
    }

    proptest! {
        #[test]
        fn whatever_comes_little_is_kept(parts in proptest::collection::vec((any::<u8>(), 0_usize..50_000), 0..8)) {
            let body: Vec<u8> = parts.iter().flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count)).collect();
            let mut shortener = Shortener::new(b'N', body.len());
            prop_assert_eq!(shortener.feed(&body), body.len());
            prop_assert!(shortener.message().len() <= FIELDS_BYTES_MAX + FIELD_BYTES_MAX + 16);
        }
    }
}
