//! Faults that the simulator puts into the core, to show that it finds them.
//!
//! Nothing here is compiled into a release: without the feature `mutants`, [`is`] is always false, and the
//! compiler drops what depends on it.

/// A fault that can be switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// What cannot go as a set is replayed together with the batches under way.
    ReplayUnderWay = 1,
    /// Changes of a transaction in progress apply whatever the table's position is.
    PiecesIgnorePositions,
    /// Changes that a subtransaction made are applied as they come in pieces.
    PiecesOfSubtransactions,
    /// An idle position is reported before it is recorded.
    IdleBeforeRecord,
    /// After a failure, the progress row is taken as it is found.
    AdoptRecord,
    /// COMMIT goes with the last slice, before the others are answered.
    LastSliceEarly,
    /// Failed batches are replayed in the wrong order.
    ReplayReversed,
    /// A batch is reported when it is sent.
    ReportBeforeAnswer,
    /// A table's changes apply from the beginning, whatever its position.
    IgnorePositions,
    /// A failed batch is dropped: only what follows it is replayed.
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
