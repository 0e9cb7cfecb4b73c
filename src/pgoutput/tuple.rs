//! A row of the wire: one shared buffer and a table of where its values lie.

use std::fmt;
use std::iter::FusedIterator;
use std::slice;

use bytes::Bytes;

use super::error::{DecodeError, Field, Problem};
use super::reader::Reader;

/// The values of a row, in the order of its relation's columns.
///
/// Cloning shares buffer and costs the table. Equality compares values, not buffers.
#[derive(Clone)]
pub struct Tuple {
    /// The whole payload that the row came in.
    payload: Bytes,
    cells: Box<[Cell]>,
}

/// One column's value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Value<'a> {
    Null,
    /// A TOASTed value that the update did not touch: not sent, and not NULL.
    Unchanged,
    /// The type's text representation, in the session's client encoding.
    Text(&'a [u8]),
    /// What the type's send function gives.
    Binary(&'a [u8]),
}

/// How the publisher was asked to send values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    /// Each type's binary form, where it has one. Publishers from 14 on.
    Binary,
}

/// Where a value lies in the payload. Twelve bytes; `Bytes` per column would be 32 and a counter.
///
/// Invariant: `start + len` is within the payload; only [`Cells::read`] makes them.
#[derive(Debug, Clone, Copy)]
enum Cell {
    Null,
    Unchanged,
    Text { start: u32, len: u32 },
    Binary { start: u32, len: u32 },
}

/// A table of cells that still lacks the payload that its reader borrows.
#[derive(Debug)]
pub(super) struct Cells(Box<[Cell]>);

/// Which of a message's rows is read, for errors.
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

impl Cells {
    /// Reads a `TupleData` (`logicalrep_read_tuple` in PostgreSQL's `proto.c`), with one allocation
    /// that is never larger than twelve times the bytes at hand.
    pub(super) fn read(reader: &mut Reader<'_>, row: Row) -> Result<Self, DecodeError> {
        let offset = reader.offset();
        let announced = u32::from(reader.u16(row.count())?);
        let count = reader.believable(row.count(), offset, announced, 1)?;
        let mut cells = Vec::with_capacity(count);
        for number in 1..=announced {
            cells.push(Cell::read(reader, row, number)?);
        }
        Ok(Self(cells.into_boxed_slice()))
    }

    /// The row, given the payload that the cells were read from.
    pub(super) fn of(self, payload: Bytes) -> Tuple {
        Tuple { payload, cells: self.0 }
    }
}

impl Cell {
    #[inline]
    fn read(reader: &mut Reader<'_>, row: Row, number: u32) -> Result<Self, DecodeError> {
        let kind_field = row.column(number, "kind");
        let offset = reader.offset();
        let kind = reader.u8(kind_field)?;
        match kind {
            b'n' => return Ok(Self::Null),
            b'u' => return Ok(Self::Unchanged),
            b't' | b'b' => {}
            found => {
                let problem = Problem::Unexpected { found, expected: "'n', 'u', 't' or 'b'" };
                return Err(reader.malformed(kind_field, offset, problem));
            }
        }
        let len = reader.u32(row.column(number, "length"))?;
        let value_field = row.column(number, "value");
        let offset = reader.offset();
        let Ok(start) = u32::try_from(offset) else {
            return Err(reader.malformed(value_field, offset, Problem::TooFar));
        };
        reader.bytes(value_field, len)?;
        Ok(if kind == b't' { Self::Text { start, len } } else { Self::Binary { start, len } })
    }
}

impl Tuple {
    /// Number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The value of column `index`, counted from 0; `None` beyond the last.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Value<'_>> {
        self.cells.get(index).map(|&cell| value(&self.payload, cell))
    }

    /// This row on top of an older one: where a value is unchanged here, the older row's is taken.
    /// Shares bytes if nothing has to be taken.
    #[must_use]
    pub fn over(&self, older: &Self) -> Self {
        if !self.cells.iter().any(|cell| matches!(cell, Cell::Unchanged)) {
            return self.clone();
        }
        let mut payload = Vec::with_capacity(self.payload.len() + older.payload.len());
        let cells = self.iter().enumerate().map(|(i, value)| {
            let value = if value == Value::Unchanged { older.get(i).unwrap_or(value) } else { value };
            // Each row came in one message of less than 4 GiB, but two of them might not fit.
            let start = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            let mut keep = |bytes: &[u8]| {
                payload.extend_from_slice(bytes);
                u32::try_from(bytes.len()).unwrap_or(u32::MAX)
            };
            match value {
                Value::Null => Cell::Null,
                Value::Unchanged => Cell::Unchanged,
                Value::Text(bytes) => Cell::Text { start, len: keep(bytes) },
                Value::Binary(bytes) => Cell::Binary { start, len: keep(bytes) },
            }
        });
        let cells: Box<[Cell]> = cells.collect();
        Self { payload: Bytes::from(payload), cells }
    }

    /// Takes the binary values of the columns that `is_text` names for what they are: text.
    pub fn binary_as_text(&mut self, is_text: impl Fn(usize) -> bool) {
        for (column, cell) in self.cells.iter_mut().enumerate() {
            if let Cell::Binary { start, len } = *cell
                && is_text(column)
            {
                *cell = Cell::Text { start, len };
            }
        }
    }

    /// Bytes of the message that the row came in, which it keeps alive.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.payload.len() + self.cells.len() * size_of::<Cell>()
    }

    /// All values in column order.
    #[must_use]
    pub fn iter(&self) -> Values<'_> {
        Values { payload: &self.payload, cells: self.cells.iter() }
    }

    /// The bytes of column `index`, text or binary, sharing the buffer; `None` for a NULL or
    /// unchanged value and beyond the last column.
    #[must_use]
    pub fn bytes(&self, index: usize) -> Option<Bytes> {
        match *self.cells.get(index)? {
            Cell::Null | Cell::Unchanged => None,
            Cell::Text { start, len } | Cell::Binary { start, len } => {
                let start = start as usize;
                Some(self.payload.slice(start..start + len as usize))
            }
        }
    }
}

#[inline]
fn value(payload: &[u8], cell: Cell) -> Value<'_> {
    match cell {
        Cell::Null => Value::Null,
        Cell::Unchanged => Value::Unchanged,
        Cell::Text { start, len } => Value::Text(&payload[start as usize..][..len as usize]),
        Cell::Binary { start, len } => Value::Binary(&payload[start as usize..][..len as usize]),
    }
}

impl<'a> Value<'a> {
    /// The bytes sent, text or binary; `None` for NULL and unchanged.
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
    payload: &'a [u8],
    cells: slice::Iter<'a, Cell>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.cells.next().map(|&cell| value(self.payload, cell))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.cells.size_hint()
    }
}

impl DoubleEndedIterator for Values<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.cells.next_back().map(|&cell| value(self.payload, cell))
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

/// Kinds and lengths: rows may be logged by accident, their values may not.
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

/// Kind and length, see [`Tuple`].
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

    #[test]
    fn a_cell_stays_small() {
        assert_eq!(size_of::<Cell>(), 12);
        assert_eq!(size_of::<Tuple>(), size_of::<Bytes>() + size_of::<Box<[Cell]>>());
    }
}
