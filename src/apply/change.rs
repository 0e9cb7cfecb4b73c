//! One replicated row change as it was received, and its values as parameters.
//!
//! Pure data, shared by sets and by row-by-row apply.

use bytes::Bytes;

use crate::pgoutput::{OldRow, TextColumns, Tuple, Value};
use crate::schema::Operations;

/// One row change as it was received. Cheap to clone: tuples share the message's bytes.
#[derive(Debug, Clone)]
pub enum RowChange {
    Insert { new: Tuple },
    Update { old: OldRow, new: Tuple },
    Delete { old: OldRow },
}

impl RowChange {
    /// The SQL command's name, for evidence and messages.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Insert { .. } => "INSERT",
            Self::Update { .. } => "UPDATE",
            Self::Delete { .. } => "DELETE",
        }
    }

    /// The set that has only this operation.
    #[must_use]
    #[inline]
    pub fn as_set(&self) -> Operations {
        match self {
            Self::Insert { .. } => Operations::INSERT,
            Self::Update { .. } => Operations::UPDATE,
            Self::Delete { .. } => Operations::DELETE,
        }
    }

    /// Bytes of the change's tuples.
    #[must_use]
    #[inline]
    pub fn size_bytes(&self) -> usize {
        let old = |old: &OldRow| old.tuple().map_or(0, Tuple::size_bytes);
        match self {
            Self::Insert { new } => new.size_bytes(),
            Self::Update { old: row, new } => new.size_bytes() + old(row),
            Self::Delete { old: row } => old(row),
        }
    }

    /// The row after the change.
    #[must_use]
    pub fn new_row(&self) -> Option<&Tuple> {
        match self {
            Self::Insert { new } | Self::Update { new, .. } => Some(new),
            Self::Delete { .. } => None,
        }
    }

    /// Marks binary values of these columns as text: the binary form of their types is the text.
    pub fn binary_as_text(&mut self, columns: &TextColumns) {
        let (old, new) = match self {
            Self::Insert { new } => (None, Some(new)),
            Self::Update { old, new } => (old.tuple_mut(), Some(new)),
            Self::Delete { old } => (old.tuple_mut(), None),
        };
        for tuple in old.into_iter().chain(new) {
            tuple.binary_as_text(columns);
        }
    }

    /// The tuple that identifies the row to change: the old key or row if it was sent, else the new row of an
    /// update that does not change the key.
    #[must_use]
    pub fn identity_row(&self) -> Option<&Tuple> {
        match self {
            Self::Insert { .. } => None,
            Self::Update { old, new } => Some(old.tuple().unwrap_or(new)),
            Self::Delete { old } => old.tuple(),
        }
    }
}

/// A parameter's value in the format in which the publisher sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Param {
    Null,
    Text(Bytes),
    Binary(Bytes),
}

impl Param {
    /// The parameter for a value of this row; none if it was not sent because it did not change.
    #[must_use]
    pub fn of(row: &Tuple, value: Value<'_>) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Null),
            Value::Unchanged => None,
            Value::Text(bytes) => Some(Self::Text(row.share(bytes))),
            Value::Binary(bytes) => Some(Self::Binary(row.share(bytes))),
        }
    }

    /// Bytes of the value.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Null => 0,
            Self::Text(bytes) | Self::Binary(bytes) => bytes.len(),
        }
    }
}
