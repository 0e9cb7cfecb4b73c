//! Events: the stream's messages with relations resolved and changes numbered.

use std::sync::Arc;

use crate::apply::change::RowChange;
use crate::apply::table::TableContext;
use crate::pgoutput::{Begin, Commit};

/// A larger row goes alone: in a set its bytes would be copied into an array, and kept while other batches are
/// under way.
const SET_ROW_BYTES_MAX: usize = 4 << 20;

/// One event of the stream. Cheap to clone: rows share the bytes of their messages.
#[derive(Debug, Clone)]
pub enum Event {
    Begin(Begin),
    Change {
        table: Arc<TableContext>,
        change: RowChange,
        /// Its place among the transaction's changes, from 1.
        index: u64,
    },
    Truncate {
        tables: Vec<Arc<TableContext>>,
        restart_seqs: bool,
        /// Its place among the transaction's changes, from 1.
        index: u64,
    },
    Commit {
        commit: Commit,
        /// How many changes the transaction had, those of other tables included.
        changes: u64,
    },
}

impl Event {
    /// Whether the event can be part of a set.
    #[inline]
    pub(crate) fn suits_sets(&self) -> bool {
        match self {
            Self::Change { table, change, .. } => {
                change.size_bytes() < SET_ROW_BYTES_MAX && table.suits_sets(change)
            }
            Self::Truncate { tables, .. } => !tables.iter().any(|table| table.acts()),
            Self::Begin(_) | Self::Commit { .. } => true,
        }
    }

    /// Bytes of the event's rows.
    #[inline]
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::Change { change, .. } => change.size_bytes(),
            Self::Begin(_) | Self::Truncate { .. } | Self::Commit { .. } => 0,
        }
    }
}
