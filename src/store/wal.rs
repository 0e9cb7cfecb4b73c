//! Positions in the target's WAL: where it has been written by commits, and where it has been flushed.

use crate::pg::Lsn;

use super::{Store, StoreError};

/// The smallest WAL page that a server can be built with, bytes (`XLOG_BLCKSZ`).
const WAL_PAGE_BYTES_MIN: u64 = 1024;
/// Length of the longest header of a WAL page, in bytes (`XLogLongPageHeaderData`). A short header has 24 bytes
/// and a record at least 24, so no record ends within this many bytes of a page's beginning.
const WAL_PAGE_HEADER_BYTES_MAX: u64 = 40;

/// Positions in the target's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPositions {
    /// The insert position: every commit so far lies before it.
    pub inserted: Lsn,
    pub flushed: Lsn,
}

impl WalPositions {
    /// If the insert position is directly after a page's header, no record is on that page yet, and the flush
    /// position stays at the page's beginning until more is written. So the insert position is set back to
    /// the page's beginning.
    fn new(inserted: Lsn, flushed: Lsn) -> Self {
        let at_page = flushed.as_u64().is_multiple_of(WAL_PAGE_BYTES_MIN);
        let header_only = inserted.bytes_since(flushed) <= WAL_PAGE_HEADER_BYTES_MAX;
        let inserted = if at_page && header_only { inserted.min(flushed) } else { inserted };
        Self { inserted, flushed }
    }
}

impl Store {
    pub async fn wal_positions(&self) -> Result<WalPositions, StoreError> {
        let sql = "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn()";
        self.run("read the target's WAL positions", async {
            let (inserted, flushed): (Lsn, Lsn) = sqlx::query_as(sql).fetch_one(&self.pool).await?;
            Ok(WalPositions::new(inserted, flushed))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_header_is_nothing_to_wait_for() {
        let check = |inserted, flushed, expected| {
            let positions = WalPositions::new(Lsn::new(inserted), Lsn::new(flushed));
            assert_eq!(positions.inserted, Lsn::new(expected), "{inserted} inserted, {flushed} flushed");
        };
        check(8192 + 24, 8192, 8192);
        check(8192 + 40, 8192, 8192);
        check(8192 + 64, 8192, 8192 + 64);
        check(8200 + 40, 8200, 8200 + 40);
        check(8192, 8192, 8192);
        check(8000, 8192, 8000);
    }
}
