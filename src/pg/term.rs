//! Terms: which of several owners of a subscription, one after the other, writes.
//!
//! # Why a lock is not enough
//! A process that was stopped, or cut off, learns late that its lock is gone, and what it has sent may
//! arrive later still. So each take-over counts, and each write says which one it belongs to.
//!
//! A take-over holds in the run of the server in which it was made. Its lock ends with that, and a server that comes up
//! again, or another one behind the same address, may have an older state of the record with the same term.

use std::fmt;

/// The number of a take-over of a subscription (`pgsluice.owner`). Each is larger than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(i64);

impl Term {
    /// Nobody's: the terms of owners begin at 1.
    pub const NONE: Self = Self(0);

    #[must_use]
    pub const fn new(term: i64) -> Self {
        Self(term)
    }

    /// As the database has it, a `bigint`.
    #[must_use]
    pub const fn as_i64(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Puts a statement behind a CTE `owner`, which has one row, with the subscription as `name`, if the
/// subscription `$1` is owned under the term `$2` since the server was started, and none otherwise.
///
/// The row stays locked until the transaction ends, and a take-over changes it: either the take-over waits
/// for the transaction, or the statement sees the new term. A CTE that locks rows is not inlined, and is
/// read before a row that is joined with it is changed.
macro_rules! as_owner {
    ($statement:literal) => {
        concat!(
            "WITH owner AS (SELECT o.subscription AS name FROM pgsluice.owner o \
             WHERE o.subscription = $1 AND o.term = $2 \
                 AND o.server_started_at = pg_catalog.pg_postmaster_start_time() FOR SHARE)",
            $statement
        )
    };
}

pub(crate) use as_owner;
