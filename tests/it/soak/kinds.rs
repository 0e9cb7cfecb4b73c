//! The kinds of faults and of work, by their names, and which of them a run leaves out.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::rngs::StdRng;

/// What is done to the service, the servers, the connections or the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Kill,
    Stop,
    Freeze,
    Second,
    TargetBackend,
    PublisherBackend,
    CutTarget,
    CutPublisher,
    StallTarget,
    StallPublisher,
    MuteTarget,
    MutePublisher,
    LostAnswer,
    FastTarget,
    FastPublisher,
    /// The publisher is stopped while the target does not answer.
    HeldPublisher,
    ImmediateTarget,
    ImmediatePublisher,
    LockTable,
    LockRows,
    VacuumFull,
    AddColumn,
    Index,
    Retype,
    Join,
    Leave,
}

impl Fault {
    /// Name, and how often it is chosen in relation to the others.
    pub(super) const ALL: [(Self, &'static str, u32); 26] = [
        (Self::Kill, "kill", 6),
        (Self::Stop, "stop", 3),
        (Self::Freeze, "freeze", 2),
        (Self::Second, "second", 2),
        (Self::TargetBackend, "target-backend", 3),
        (Self::PublisherBackend, "publisher-backend", 3),
        (Self::CutTarget, "cut-target", 2),
        (Self::CutPublisher, "cut-publisher", 2),
        (Self::StallTarget, "stall-target", 2),
        (Self::StallPublisher, "stall-publisher", 2),
        (Self::MuteTarget, "mute-target", 2),
        (Self::MutePublisher, "mute-publisher", 1),
        (Self::LostAnswer, "lost-answer", 5),
        (Self::FastTarget, "fast-target", 1),
        (Self::FastPublisher, "fast-publisher", 1),
        (Self::HeldPublisher, "held-publisher", 1),
        (Self::ImmediateTarget, "immediate-target", 1),
        (Self::ImmediatePublisher, "immediate-publisher", 1),
        (Self::LockTable, "lock-table", 2),
        (Self::LockRows, "lock-rows", 2),
        (Self::VacuumFull, "vacuum-full", 1),
        (Self::AddColumn, "add-column", 1),
        (Self::Index, "index", 1),
        (Self::Retype, "retype", 1),
        (Self::Join, "join", 4),
        (Self::Leave, "leave", 2),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).expect("ALL holds every kind").1
    }
}

/// What the writers on the publisher do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// The mix of the kills: keyed rows, moving keys, a unique index, rows without a key.
    Mixed,
    AllKey,
    Upserts,
    Doubles,
    /// Among these, rows that differ in the sign of a zero only.
    Zeros,
    Unique,
    Toast,
    Wide,
    Truncate,
    Joined,
    Large,
    Savepoints,
}

impl Work {
    pub(super) const ALL: [(Self, &'static str); 12] = [
        (Self::Mixed, "mixed"),
        (Self::AllKey, "all-key"),
        (Self::Upserts, "upserts"),
        (Self::Doubles, "doubles"),
        (Self::Zeros, "zeros"),
        (Self::Unique, "unique"),
        (Self::Toast, "toast"),
        (Self::Wide, "wide"),
        (Self::Truncate, "truncate"),
        (Self::Joined, "joined"),
        (Self::Large, "large"),
        (Self::Savepoints, "savepoints"),
    ];
}

/// What a run attacks with.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    without: BTreeSet<String>,
}

impl Selection {
    /// Leaves out the kinds of this list, separated by commas. Panics at a name that is none.
    pub(super) fn without(list: &str) -> Self {
        let names = Fault::ALL.iter().map(|kind| kind.1).chain(Work::ALL.iter().map(|kind| kind.1));
        let known: BTreeSet<&str> = names.collect();
        let without: BTreeSet<String> =
            list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for name in &without {
            assert!(known.contains(name.as_str()), "'{name}' is no kind; the kinds are {known:?}");
        }
        Self { without }
    }

    /// The list as it was given.
    pub(super) fn left_out(&self) -> String {
        self.without.iter().cloned().collect::<Vec<_>>().join(",")
    }

    pub(super) fn has(&self, work: Work) -> bool {
        Work::ALL.iter().any(|(kind, name)| *kind == work && !self.without.contains(*name))
    }

    fn faults(&self) -> impl Iterator<Item = (Fault, u32)> {
        Fault::ALL
            .iter()
            .filter(|(_, name, _)| !self.without.contains(*name))
            .map(|&(kind, _, weight)| (kind, weight))
    }

    /// One fault at random, by its weight; `None` if all are left out.
    pub(super) fn choose(&self, random: &mut StdRng) -> Option<Fault> {
        let sum: u32 = self.faults().map(|(_, weight)| weight).sum();
        let mut at = (sum > 0).then(|| random.random_range(0..sum))?;
        self.faults().find_map(|(kind, weight)| {
            let here = at < weight;
            at = at.saturating_sub(weight);
            here.then_some(kind)
        })
    }
}

#[test]
fn a_selection_leaves_out_what_it_names() {
    use rand::SeedableRng as _;

    let mut random = StdRng::seed_from_u64(1);
    let all_but_two: Vec<&str> =
        Fault::ALL.iter().map(|kind| kind.1).filter(|name| !["kill", "join"].contains(name)).collect();
    let selection = Selection::without(&(all_but_two.join(", ") + ",upserts"));
    for _ in 0..100 {
        let fault = selection.choose(&mut random).unwrap();
        assert!([Fault::Kill, Fault::Join].contains(&fault), "{fault:?}");
    }
    assert!(selection.has(Work::Large) && !selection.has(Work::Upserts));
}
