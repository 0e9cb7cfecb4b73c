//! Faults that are put in on purpose, in the core and in the models, to show that the simulator finds them.

use std::cell::Cell;

use pgsluice::mutation::{Mutation, switch};

/// A fault of what lies in SQL or in the worker, and so in the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The progress row is adopted where it is found.
    AdoptRecord,
    /// Rows behind a refused one are applied outside its transaction.
    RowsOutside,
    /// The store's writes do not ask for the owner's term.
    UnfencedStore,
    /// A copy lands although it was superseded.
    UnfencedCopy,
    /// A table that is ready is copied again.
    CopyOverReady,
    /// A copy whose COMMIT was not answered counts as failed.
    LostCopyFailed,
    /// Publisher, slot and target are always trusted.
    AlwaysTrusted,
    /// The slot's position is not compared with the record.
    SlotNotCompared,
    /// It is compared before the slot is in use, and not again.
    SlotLookedAtOnce,
    /// The publisher's past is not compared with what was seen of it.
    PastNotCompared,
    /// A restored target gives out terms again that it had given out before.
    TermsGoBack,
    /// Who owned the subscription before the target was restored owns it afterwards.
    OwnerInEveryRun,
    /// What is seen of the publisher is recorded, however late, over what another run of it has shown since.
    LateWitness,
    /// The stream takes a table in before the stream's position is reached.
    HandOverEarly,
    /// A table that left is forgotten at the look that misses it, and not once the stream is behind that.
    ForgottenAtTheLook,
    /// A table that has the name of another is taken for the same one.
    SameByName,
    /// What is published today decides which of yesterday's changes are applied.
    TodaysOperations,
    /// A publication that was made again is taken for the same one.
    MadeAgainIsTheSame,
    /// A table that has left and come back is taken as having stayed.
    ReturnedIsTheSame,
    /// A publication that was altered and altered back is taken as having stayed as it was.
    AlteredBackIsTheSame,
    /// A gap ends before the look that has found it.
    GapEndsEarly,
    /// The position of a look counts as proven by the look itself.
    LookProvesItself,
    /// The tables are recorded before their gaps.
    GapsBehindTheRecord,
    /// The rows that a table has stay when it is synchronised again.
    CopyOnTop,
    /// A publication without which the stream went on counts as asked for.
    LeftOutIsForgotten,
    /// Nothing tells that a table which has left may lack its last changes.
    LastChangesUntold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    Core(Mutation),
    Model(Fault),
    /// Both sides of one fault.
    Both(Mutation, Fault),
}

/// The mutants that few runs find, with a run that does. The test suite tries that one first; `scripts/sim --mutants` counts.
pub(crate) const RARE: [(Mutant, u64); 7] = [
    (Mutant::Model(Fault::LeftOutIsForgotten), 5031),
    (Mutant::Model(Fault::LastChangesUntold), 541_113),
    (Mutant::Model(Fault::LateWitness), 1846),
    (Mutant::Model(Fault::TermsGoBack), 2158),
    (Mutant::Model(Fault::GapsBehindTheRecord), 4545),
    (Mutant::Core(Mutation::ReplayReversed), 1394),
    (Mutant::Model(Fault::OwnerInEveryRun), 536_925),
];

pub(crate) const MUTANTS: [Mutant; 35] = [
    Mutant::Core(Mutation::ReplayUnderWay),
    Mutant::Core(Mutation::PiecesIgnorePositions),
    Mutant::Core(Mutation::PiecesOfSubtransactions),
    Mutant::Core(Mutation::IdleBeforeRecord),
    Mutant::Both(Mutation::AdoptRecord, Fault::AdoptRecord),
    Mutant::Core(Mutation::LastSliceEarly),
    Mutant::Core(Mutation::ReplayReversed),
    Mutant::Core(Mutation::ReportBeforeAnswer),
    Mutant::Core(Mutation::IgnorePositions),
    Mutant::Core(Mutation::DropFailed),
    Mutant::Model(Fault::RowsOutside),
    Mutant::Model(Fault::UnfencedStore),
    Mutant::Model(Fault::UnfencedCopy),
    Mutant::Model(Fault::CopyOverReady),
    Mutant::Model(Fault::LostCopyFailed),
    Mutant::Model(Fault::AlwaysTrusted),
    Mutant::Model(Fault::SlotNotCompared),
    Mutant::Model(Fault::SlotLookedAtOnce),
    Mutant::Model(Fault::PastNotCompared),
    Mutant::Model(Fault::TermsGoBack),
    Mutant::Model(Fault::LateWitness),
    Mutant::Model(Fault::OwnerInEveryRun),
    Mutant::Model(Fault::HandOverEarly),
    Mutant::Model(Fault::ForgottenAtTheLook),
    Mutant::Model(Fault::SameByName),
    Mutant::Model(Fault::TodaysOperations),
    Mutant::Model(Fault::MadeAgainIsTheSame),
    Mutant::Model(Fault::ReturnedIsTheSame),
    Mutant::Model(Fault::AlteredBackIsTheSame),
    Mutant::Model(Fault::GapEndsEarly),
    Mutant::Model(Fault::LookProvesItself),
    Mutant::Model(Fault::GapsBehindTheRecord),
    Mutant::Model(Fault::CopyOnTop),
    Mutant::Model(Fault::LeftOutIsForgotten),
    Mutant::Model(Fault::LastChangesUntold),
];

impl Mutant {
    /// Whether it can only be found where publications and tables change.
    pub(crate) fn needs_changes(self) -> bool {
        match self {
            Self::Model(fault) => fault as u8 >= Fault::ForgottenAtTheLook as u8,
            Self::Core(_) | Self::Both(..) => false,
        }
    }
}

thread_local! {
    static ON: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Whether the models have the fault.
pub(crate) fn has(fault: Fault) -> bool {
    ON.get() == Some(fault)
}

/// Puts a mutant's faults in, in this thread, and takes out all others.
pub(crate) fn put_in(mutant: Option<Mutant>) {
    let (core, model) = match mutant {
        None => (None, None),
        Some(Mutant::Core(core)) => (Some(core), None),
        Some(Mutant::Model(model)) => (None, Some(model)),
        Some(Mutant::Both(core, model)) => (Some(core), Some(model)),
    };
    switch(core);
    ON.set(model);
}
