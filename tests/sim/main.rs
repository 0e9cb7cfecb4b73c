//! The simulator: the real core of `apply` between models of publisher, network and target, under one seed and
//! a virtual clock, with faults at every await.
//!
//! ```text
//! plan (seed) ─▶ run: events ─▶ world (publisher, walsenders, target, connections)
//!                        │         ▲
//!                        └─ poll ──┴─ instances: service, stream (Core), table_sync
//! verdict: rows equal, or paused for the right reason; if not, a shrunk story
//! ```
//! `scripts/sim` runs it for as long as one likes; here it runs for as long as a test may.

mod faults;
mod link;
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
mod target;
mod verdict;
mod walsender;
mod world;

#[test]
fn first() {
    let from: u64 = std::env::var("SIM_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::var("SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let mut ends = std::collections::BTreeMap::new();
    let began = std::time::Instant::now();
    let mut events = 0;
    for seed in from..from + count {
        let plan = plan::plan(seed);
        let outcome = run::run(&plan, false);
        events += outcome.events;
        *ends.entry(outcome.ended).or_insert(0) += 1;
        if let Some(violation) = outcome.violation {
            let (small, told) = shrink::shrink(&plan);
            println!("{}", shrink::spelled(&small, &told));
            panic!("seed {seed}: {violation}");
        }
    }
    println!("{ends:?} {events} events in {:?}", began.elapsed());
}

#[test]
fn mutants_first() {
    let count: u64 = std::env::var("SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10000);
    for mutant in mutants::MUTANTS {
        mutants::put_in(Some(mutant));
        let began = std::time::Instant::now();
        let found = (1..=count).find_map(|seed| run::run(&plan::plan(seed), false).violation.map(|v| (seed, v)));
        println!("{mutant:?}: {found:?} in {:?}", began.elapsed());
    }
    mutants::put_in(None);
}
