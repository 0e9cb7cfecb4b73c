//! Faults that the simulator puts into the core, to show that it finds them.
//!
//! Nothing here is compiled into a release: without the feature `mutants`, `is` is always false, and the
//! compiler drops what depends on it.

/// A fault that can be switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// If no sets can be built, unanswered batches are replayed, too.
    ReplayUnderWay = 1,
    /// Changes of a transaction in progress apply before the table's position, too.
    PiecesIgnorePositions,
    /// Changes of subtransactions are applied while the transaction is in progress.
    PiecesOfSubtransactions,
    /// An idle position is reported before it is recorded.
    IdleBeforeRecord,
    /// After a failure, a position that is found in the progress row is taken over.
    AdoptRecord,
    /// The last slice, with COMMIT, is sent before the others have been answered.
    LastSliceEarly,
    /// Failed batches are replayed in the wrong order.
    ReplayReversed,
    /// A batch is reported when it is sent.
    ReportBeforeAnswer,
    /// A table's changes apply before its position, too.
    IgnorePositions,
    /// A failed batch is dropped: only later events are replayed.
    DropFailed,
}

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static ON: Cell<u8> = const { Cell::new(0) };
    }

    /// Switches a fault on in this thread, and all others off.
    pub fn switch(mutation: Option<Mutation>) {
        ON.set(mutation.map_or(0, |mutation| mutation as u8));
    }

    pub(crate) fn is(mutation: Mutation) -> bool {
        ON.get() == mutation as u8
    }
}

#[cfg(feature = "mutants")]
pub(crate) use switch::is;
#[cfg(feature = "mutants")]
pub use switch::switch;

/// Whether the fault is switched on.
#[cfg(not(feature = "mutants"))]
#[inline]
pub(crate) const fn is(_: Mutation) -> bool {
    false
}
