//! A row in its encoding of the protocol.
//!
//! There is no table of the values' offsets: a row is read from its first column on, and each value
//! begins with its length. So a row costs no allocation, a clone only a reference count, and a row is
//! read from one place in memory. The price is that a single column is found by passing over those
//! before it.

use std::borrow::Cow;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::error::{DecodeError, Field, Problem};
use super::reader::Reader;

/// The values of a row, in the order of its relation's columns.
///
/// Cloning shares the buffer. Equality compares values, not buffers.
#[derive(Clone)]
pub struct Tuple {
    /// A `TupleData` without its count: kind bytes, lengths, values.
    ///
    /// It holds exactly `columns` complete values; only [`Span::read`] and [`Tuple::over`] create them.
    values: Bytes,
    columns: u16,
    complete: bool,
    text: TextColumns,
}

/// The columns whose binary values are text; all rows of a table share one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextColumns(Option<Arc<Vec<bool>>>);

impl FromIterator<bool> for TextColumns {
    /// Takes for each column, from the first on, whether its binary values are text.
    fn from_iter<I: IntoIterator<Item = bool>>(columns: I) -> Self {
        let columns: Vec<bool> = columns.into_iter().collect();
        Self(columns.contains(&true).then(|| Arc::new(columns)))
    }
}

/// One column's value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Value<'a> {
    Null,
    /// A TOASTed value that the update did not change. It was not sent, and it is not NULL.
    Unchanged,
    /// The type's text representation, in the session's client encoding.
    Text(&'a [u8]),
    /// The output of the type's send function.
    Binary(&'a [u8]),
}

/// The format in which the publisher sends values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    /// Each type's binary format, where it has one. Publishers support this from 14 on.
    Binary,
}

/// A row's place in the payload, which its reader still borrows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: usize,
    end: usize,
    columns: u16,
    complete: bool,
}

/// The row of a message that is being read, for errors.
#[derive(Debug, Clone, Copy)]
pub(super) enum Row {
    New,
    OldKey,
    Old,
}

impl Row {
    const fn count(self) -> Field {
        Field::Of(match self {
            Self::New => "new row's number of columns",
            Self::OldKey => "old key's number of columns",
            Self::Old => "old row's number of columns",
        })
    }

    const fn column(self, number: u32, name: &'static str) -> Field {
        let item = match self {
            Self::New => "new row's column",
            Self::OldKey => "old key's column",
            Self::Old => "old row's column",
        };
        Field::OfItem { item, number, name }
    }
}

impl Span {
    /// Reads a `TupleData` (`logicalrep_read_tuple` in PostgreSQL's `proto.c`).
    #[inline]
    pub(super) fn read(reader: &mut Reader<'_>, row: Row) -> Result<Self, DecodeError> {
        let offset = reader.offset();
        let columns = reader.u16(row.count())?;
        reader.believable(row.count(), offset, u32::from(columns), 1)?;
        let start = reader.offset();
        let mut complete = true;
        for number in 1..=u32::from(columns) {
            complete &= pass_over(reader, row, number)? != UNCHANGED;
        }
        Ok(Self { start, end: reader.offset(), columns, complete })
    }

    /// Returns the row, given the payload that it was read from.
    #[inline]
    pub(super) fn of(self, mut payload: Bytes) -> Tuple {
        payload.truncate(self.end);
        payload.advance(self.start);
        let Self { columns, complete, .. } = self;
        Tuple { values: payload, columns, complete, text: TextColumns::default() }
    }
}

/// Passes over one value, which must be complete, and returns its kind.
#[inline]
fn pass_over(reader: &mut Reader<'_>, row: Row, number: u32) -> Result<u8, DecodeError> {
    let kind_field = row.column(number, "kind");
    let offset = reader.offset();
    match reader.u8(kind_field)? {
        kind @ (NULL | UNCHANGED) => Ok(kind),
        kind @ (TEXT | BINARY) => {
            let len = reader.u32(row.column(number, "length"))?;
            reader.bytes(row.column(number, "value"), len)?;
            Ok(kind)
        }
        found => {
            let problem = Problem::Unexpected { found, expected: "'n', 'u', 't' or 'b'" };
            Err(reader.malformed(kind_field, offset, problem))
        }
    }
}

impl Tuple {
    /// Number of columns.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Whether every column's value was sent: none is [`Value::Unchanged`].
    #[must_use]
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Returns the value of column `index`, counted from 0; `None` beyond the last. It passes over the
    /// columns before it: use [`Self::iter`] to read many.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> Option<Value<'_>> {
        self.iter().nth(index)
    }

    /// Returns this row with each unchanged value replaced by that of `older`; the row itself if there
    /// is none.
    #[must_use]
    pub fn over(&self, older: &Self) -> Cow<'_, Self> {
        if self.complete {
            return Cow::Borrowed(self);
        }
        let mut values = BytesMut::with_capacity(self.values.len() + older.values.len());
        let mut complete = true;
        let mut below = older.iter();
        for value in self {
            let below = below.next();
            let value = if value == Value::Unchanged { below.unwrap_or(value) } else { value };
            complete &= value != Value::Unchanged;
            put(&mut values, value);
        }
        let (values, text) = (values.freeze(), self.text.clone());
        Cow::Owned(Self { values, columns: self.columns, complete, text })
    }

    /// Returns this row with only those columns whose position, counted from 0, `keeps` names.
    #[must_use]
    pub fn only(&self, keeps: impl Fn(usize) -> bool) -> Self {
        let mut values = BytesMut::with_capacity(self.values.len());
        let (mut columns, mut complete) = (0, true);
        for (_, value) in self.iter().enumerate().filter(|(column, _)| keeps(*column)) {
            columns += 1;
            complete &= value != Value::Unchanged;
            put(&mut values, value);
        }
        Self { values: values.freeze(), columns, complete, text: TextColumns::default() }
    }

    /// Marks the columns whose binary values are to be taken as text.
    pub fn binary_as_text(&mut self, text: &TextColumns) {
        self.text = text.clone();
    }

    /// Size of the row in bytes. It keeps alive the message that it came in, which is little larger.
    #[must_use]
    #[inline]
    pub fn size_bytes(&self) -> usize {
        self.values.len()
    }

    /// Returns all values in column order.
    #[must_use]
    #[inline]
    pub fn iter(&self) -> Values<'_> {
        let text = self.text.0.as_deref().map_or(&[][..], Vec::as_slice);
        Values { rest: &self.values, left: self.columns, text }
    }

    /// Returns the bytes of one of this row's values, sharing the buffer.
    ///
    /// # Panics
    ///
    /// Panics if the bytes belong to another row.
    #[must_use]
    pub fn share(&self, value: &[u8]) -> Bytes {
        self.values.slice_ref(value)
    }
}

/// The kinds of values, as `logicalrep_write_tuple` in PostgreSQL's `proto.c` marks them.
const NULL: u8 = b'n';
const UNCHANGED: u8 = b'u';
const TEXT: u8 = b't';
const BINARY: u8 = b'b';

fn put(out: &mut BytesMut, value: Value<'_>) {
    let (kind, bytes) = match value {
        Value::Null => return out.put_u8(NULL),
        Value::Unchanged => return out.put_u8(UNCHANGED),
        Value::Text(bytes) => (TEXT, bytes),
        Value::Binary(bytes) => (BINARY, bytes),
    };
    out.put_u8(kind);
    // Lengths in the protocol have 32 bits, so the conversion does not fail.
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

impl<'a> Value<'a> {
    /// Returns the bytes sent, text or binary; `None` for NULL and unchanged.
    #[must_use]
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Null | Self::Unchanged => None,
            Self::Text(bytes) | Self::Binary(bytes) => Some(bytes),
        }
    }
}

/// A [`Tuple`]'s values in column order.
#[derive(Clone)]
pub struct Values<'a> {
    rest: &'a [u8],
    left: u16,
    /// For each remaining column, whether its binary values are text; columns beyond the slice have
    /// none.
    text: &'a [bool],
}

impl Values<'_> {
    /// Whether the next column's binary values are text.
    #[inline]
    fn next_is_text(&mut self) -> bool {
        match self.text.split_first() {
            Some((&is_text, rest)) => {
                self.text = rest;
                is_text
            }
            None => false,
        }
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        self.left -= 1;
        let is_text = self.next_is_text();
        if kind == NULL || kind == UNCHANGED {
            self.rest = rest;
            return Some(if kind == NULL { Value::Null } else { Value::Unchanged });
        }
        let (len, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        self.rest = rest;
        Some(if kind == TEXT || is_text { Value::Text(bytes) } else { Value::Binary(bytes) })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}

impl FusedIterator for Values<'_> {}

impl<'a> IntoIterator for &'a Tuple {
    type Item = Value<'a>;
    type IntoIter = Values<'a>;

    fn into_iter(self) -> Values<'a> {
        self.iter()
    }
}

impl PartialEq for Tuple {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other)
    }
}

impl Eq for Tuple {}

/// Shows kinds and lengths but no values, because rows may be logged by accident.
impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

/// Shows kind and length; see [`Tuple`].
impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Unchanged => f.write_str("Unchanged"),
            Self::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgoutput::testing::tuple;

    #[test]
    fn a_row_stays_small() {
        assert_eq!(size_of::<Tuple>(), size_of::<Bytes>() + 16);
    }

    #[test]
    fn binary_values_of_text_columns_are_text() {
        let mut row = tuple(&[Value::Binary(b"a"), Value::Null, Value::Binary(b"b"), Value::Binary(b"c")]);
        row.binary_as_text(&[false, true, true].into_iter().collect());
        assert!(row.iter().eq([Value::Binary(b"a"), Value::Null, Value::Text(b"b"), Value::Binary(b"c")]));
        let newer = tuple(&[Value::Text(b"1"), Value::Unchanged, Value::Unchanged, Value::Unchanged]);
        let over = newer.over(&row);
        assert!(over.iter().eq([Value::Text(b"1"), Value::Null, Value::Text(b"b"), Value::Binary(b"c")]));
        assert!(over.is_complete() && !newer.is_complete());
    }
}
