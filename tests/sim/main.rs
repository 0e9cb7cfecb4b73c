//! The simulator: the real core of `apply` between models of publisher, network and target, under one seed and
//! a virtual clock, with faults at every await.
//!
//! ```text
//! plan (seed) ─▶ run: events ─▶ world (publisher, walsenders, target, connections)
//!                        │         ▲
//!                        └─ poll ──┴─ instances: service, stream (Core), table_sync
//! verdict: rows equal, a gap that covers what differs, or paused for the right reason; if not, a shrunk story
//! ```
//! In a third of the runs, the publisher's publications and tables change (`alter`). `catalog` is what they are at a
//! moment, and `take_up` has the real code judge what a look at it shows.
//!
//! `scripts/sim` runs it for as long as one likes; here it runs for as long as a test may.

#![expect(
    clippy::collapsible_match,
    clippy::if_not_else,
    clippy::manual_is_variant_and,
    clippy::manual_let_else,
    clippy::match_same_arms,
    clippy::needless_pass_by_value,
    clippy::option_option,
    clippy::panic,
    clippy::print_stdout,
    clippy::type_complexity,
    reason = "models of other programs, read beside what they model; tests print what they found"
)]

mod alter;
mod catalog;
mod faults;
mod link;
mod members;
mod mutants;
mod ops;
mod plan;
mod publisher;
mod random;
mod run;
mod service;
mod shrink;
mod stream;
mod table_sync;
mod tables;
mod take_up;
mod target;
mod verdict;
mod walsender;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::mutants::{MUTANTS, Mutant, RARE, put_in};
use crate::plan::{Plan, plan};
use crate::run::run;

/// A mutant that is not found within so many runs is a failure.
const RUNS_MAX: u64 = 10_000;

/// Runs the plans of these seeds; fails with the shrunk story of the first that goes wrong.
fn check(seeds: Range<u64>) -> BTreeMap<&'static str, u64> {
    let mut ends = BTreeMap::new();
    for seed in seeds {
        let plan = plan(seed);
        let outcome = run(&plan, false);
        *ends.entry(outcome.ended).or_insert(0) += 1;
        assert!(outcome.violation.is_none(), "{}", story_of(&plan));
    }
    ends
}

fn story_of(plan: &Plan) -> String {
    let (small, outcome) = shrink::shrink(plan);
    shrink::spelled(&small, &outcome)
}

/// The first of these seeds that finds the mutant.
fn find(mutant: Mutant, seeds: impl IntoIterator<Item = u64>) -> Option<u64> {
    put_in(Some(mutant));
    let finds = |seed: &u64| {
        let plan = plan(*seed);
        let suits = plan.config.publications_change || !mutant.needs_changes();
        suits && run(&plan, false).violation.is_some()
    };
    let found = seeds.into_iter().find(finds);
    put_in(None);
    found
}

/// Finds each mutant of the part. `known` are runs to be tried before the others.
fn check_mutants(part: usize, known: &[(Mutant, u64)]) {
    for mutant in MUTANTS.into_iter().skip(part).step_by(PARTS) {
        let known = known.iter().filter(|(known, _)| *known == mutant).map(|(_, seed)| *seed);
        let found = find(mutant, known.chain(1..=RUNS_MAX));
        println!("{mutant:?}: run {found:?}");
        assert!(found.is_some(), "{mutant:?} is not found within {RUNS_MAX} runs");
    }
}

const PARTS: usize = 3;
/// Runs of each part.
const RUNS: u64 = 7_000;

#[test]
fn everything_is_applied_once_part_1() {
    println!("{:?}", check(1..1 + RUNS));
}

#[test]
fn everything_is_applied_once_part_2() {
    println!("{:?}", check(1 + RUNS..1 + 2 * RUNS));
}

#[test]
fn everything_is_applied_once_part_3() {
    println!("{:?}", check(1 + 2 * RUNS..1 + 3 * RUNS));
}

#[test]
fn every_mutant_is_found_part_1() {
    check_mutants(0, &RARE);
}

#[test]
fn every_mutant_is_found_part_2() {
    check_mutants(1, &RARE);
}

#[test]
fn every_mutant_is_found_part_3() {
    check_mutants(2, &RARE);
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 1..=50 {
        let (first, again) = (run(&plan(seed), true), run(&plan(seed), true));
        assert!(first.story.len() > 20, "seed {seed} tells {} lines", first.story.len());
        assert_eq!(first.story, again.story, "seed {seed}");
    }
}

/// A failure is told in as few steps as it needs.
#[test]
fn a_failing_plan_is_shrunk() {
    let mutant = Mutant::Model(mutants::Fault::SlotLookedAtOnce);
    let seed = find(mutant, 1..=RUNS_MAX).expect("a run that finds it");
    put_in(Some(mutant));
    let whole = plan(seed);
    let (small, outcome) = shrink::shrink(&whole);
    let (again, same) = shrink::shrink(&whole);
    put_in(None);
    assert_eq!(shrink::spelled(&small, &outcome), shrink::spelled(&again, &same));
    assert!(small.actions.len() + small.strikes.len() < whole.actions.len() + whole.strikes.len());
    assert!(
        small.strikes.iter().any(|(_, strike)| matches!(strike, plan::Strike::SlotMadeAgain)),
        "{small:?}"
    );
    assert!(shrink::spelled(&small, &outcome).contains("VIOLATION"));
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// As many runs as `scripts/sim` asks for, on all processors.
#[test]
#[ignore = "as long as one likes: scripts/sim"]
fn as_many_as_asked_for() {
    let (first, runs) = (number("SIM_SEED", 1), number("SIM_SEEDS", 10_000));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(runs);
    let each = runs.div_ceil(threads);
    let parts: Vec<_> = (0..threads)
        .map(|part| {
            let from = first + part * each;
            let to = (from + each).min(first + runs);
            std::thread::spawn(move || check(from..to))
        })
        .collect();
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for part in parts {
        for (how, count) in part.join().expect("a run failed: its story is above") {
            *ends.entry(how).or_insert(0) += count;
        }
    }
    println!("{runs} runs from seed {first}: {ends:?}");
}

/// One run with its whole story.
#[test]
#[ignore = "prints a story: scripts/sim --seed"]
fn one_story() {
    let plan = plan(number("SIM_SEED", 1));
    let outcome = run(&plan, true);
    println!("{}", shrink::spelled(&plan, &outcome));
}

/// Which run finds each mutant.
#[test]
#[ignore = "prints a table: scripts/sim --mutants"]
fn every_mutant() {
    // What too few runs find is looked for where it is known to be.
    let far: Vec<(Mutant, u64)> = RARE.into_iter().filter(|(_, seed)| *seed > RUNS_MAX).collect();
    for part in 0..PARTS {
        check_mutants(part, &far);
    }
}
