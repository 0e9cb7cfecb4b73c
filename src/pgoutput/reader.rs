//! A cursor over a message's body that checks every step and names the field in every error.

use super::envelope::MessageKind;
use super::error::{DecodeError, Field, Malformed, Problem};
use crate::pg::Lsn;

/// Longest name, bytes. Those of relations have 63 (`NAMEDATALEN`), those of origins up to an index entry's size.
const NAME_BYTES_MAX: usize = 8 << 10;

/// Reads integers in network byte order, strings and bytes, always forward.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    message: MessageKind,
    /// Length of the whole payload, from which the current offset is computed.
    payload_bytes: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) fn new(message: MessageKind, payload_bytes: usize, body: &'a [u8]) -> Self {
        Self { message, payload_bytes, rest: body }
    }

    /// Offset from the start of the payload, bytes.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.payload_bytes - self.rest.len()
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: Field) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(self.truncated(field, N)),
        }
    }

    #[inline]
    pub(super) fn u8(&mut self, field: Field) -> Result<u8, DecodeError> {
        self.array(field).map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self, field: Field) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self, field: Field) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, field: Field) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self, field: Field) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_be_bytes)
    }

    pub(super) fn lsn(&mut self, field: Field) -> Result<Lsn, DecodeError> {
        self.array(field).map(|bytes| Lsn::new(u64::from_be_bytes(bytes)))
    }

    /// Reads a position that must not be `InvalidXLogRecPtr`.
    pub(super) fn position(&mut self, field: Field) -> Result<Lsn, DecodeError> {
        let offset = self.offset();
        match self.lsn(field)? {
            Lsn::ZERO => Err(self.malformed(field, offset, Problem::NoPosition)),
            lsn => Ok(lsn),
        }
    }

    /// Reads flags; only those in `known` may be set.
    pub(super) fn flags(&mut self, field: Field, known: u8) -> Result<u8, DecodeError> {
        let offset = self.offset();
        match self.u8(field)? {
            flags if flags & !known == 0 => Ok(flags),
            flags => Err(self.malformed(field, offset, Problem::UnknownFlags { flags })),
        }
    }

    /// Reads `len` bytes.
    #[inline]
    pub(super) fn bytes(&mut self, field: Field, len: u32) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(len as usize) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.truncated(field, len as usize)),
        }
    }

    /// Reads a string up to its zero byte, in any encoding.
    pub(super) fn raw_string(&mut self, field: Field) -> Result<&'a [u8], DecodeError> {
        match self.rest.iter().position(|&byte| byte == 0) {
            Some(end) => {
                let text = &self.rest[..end];
                self.rest = &self.rest[end + 1..];
                Ok(text)
            }
            None => Err(self.malformed(field, self.offset(), Problem::Unterminated)),
        }
    }

    /// Reads a name: a string of bounded length that has to be UTF-8.
    pub(super) fn name(&mut self, field: Field) -> Result<String, DecodeError> {
        let offset = self.offset();
        let text = self.raw_string(field)?;
        if text.len() > NAME_BYTES_MAX {
            return Err(self.malformed(field, offset, Problem::LongName { bytes: text.len() }));
        }
        match std::str::from_utf8(text) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.malformed(field, offset, Problem::NotUtf8)),
        }
    }

    /// Refuses a count read at `offset` if the rest of the message cannot hold that many items of at
    /// least `item_bytes_min` bytes. The result is safe as the size of an allocation.
    #[inline]
    pub(super) fn believable(
        &self,
        field: Field,
        offset: usize,
        announced: u32,
        item_bytes_min: usize,
    ) -> Result<usize, DecodeError> {
        let count = announced as usize;
        if count <= self.rest.len() / item_bytes_min {
            return Ok(count);
        }
        let problem = Problem::Count { announced, left_bytes: self.rest.len() };
        Err(self.malformed(field, offset, problem))
    }

    /// Checks that the message ends here.
    #[inline]
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let problem = Problem::Trailing { excess_bytes: self.rest.len() };
        Err(self.malformed(Field::Of("end"), self.offset(), problem))
    }

    #[cold]
    fn truncated(&self, field: Field, needed_bytes: usize) -> DecodeError {
        let problem = Problem::Truncated { needed_bytes, left_bytes: self.rest.len() };
        self.malformed(field, self.offset(), problem)
    }

    #[cold]
    pub(super) fn malformed(&self, field: Field, offset: usize, problem: Problem) -> DecodeError {
        DecodeError::Malformed(Box::new(Malformed { message: self.message, field, offset, problem }))
    }
}
