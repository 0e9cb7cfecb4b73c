//! The stream's messages as apply sees them: relations resolved, changes numbered.

use std::sync::Arc;

use crate::apply::change::RowChange;
use crate::apply::table::TableContext;
use crate::pg::Lsn;
use crate::pgoutput::{Begin, Commit};

/// One step of the stream. Cheap to clone: rows share the bytes that they came in.
#[derive(Debug, Clone)]
pub(crate) enum Event {
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
    /// The publisher had nothing more to send up to here; only between transactions.
    Idle(Lsn),
}

impl Event {
    /// The position of an idle publisher.
    pub(crate) fn idle(&self) -> Option<Lsn> {
        match self {
            Self::Idle(lsn) => Some(*lsn),
            Self::Begin(_) | Self::Change { .. } | Self::Truncate { .. } | Self::Commit { .. } => None,
        }
    }

    /// Bytes of the rows that it keeps alive.
    #[inline]
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::Change { change, .. } => change.size_bytes(),
            Self::Begin(_) | Self::Truncate { .. } | Self::Commit { .. } | Self::Idle(_) => 0,
        }
    }
}
