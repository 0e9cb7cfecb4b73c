//! A failing plan made smaller: actions and faults that do not matter for the failure are left out.

use std::fmt::Write as _;

use crate::plan::Plan;
use crate::run::{Outcome, run};

/// Runs that shrinking may take.
const TRIES_MAX: usize = 600;

/// The smallest plan found that still fails, and its run with the story.
pub(crate) fn shrink(plan: &Plan) -> (Plan, Outcome) {
    let mut best = plan.clone();
    let mut tries = 0;
    let fails = |plan: &Plan, tries: &mut usize| {
        *tries += 1;
        run(plan, false).violation.is_some()
    };
    let mut smaller = true;
    while smaller && tries < TRIES_MAX {
        smaller = false;
        for at in (0..best.strikes.len()).rev() {
            let mut candidate = best.clone();
            candidate.strikes.remove(at);
            if tries < TRIES_MAX && fails(&candidate, &mut tries) {
                (best, smaller) = (candidate, true);
            }
        }
        for at in (0..best.actions.len()).rev() {
            let mut candidate = best.clone();
            candidate.actions.remove(at);
            if tries < TRIES_MAX && fails(&candidate, &mut tries) {
                (best, smaller) = (candidate, true);
            }
        }
        if best.config.instances > 1 {
            let mut candidate = best.clone();
            candidate.config.instances = 1;
            candidate.strikes.retain(|(_, strike)| strike.suits(1));
            if tries < TRIES_MAX && fails(&candidate, &mut tries) {
                (best, smaller) = (candidate, true);
            }
        }
    }
    let outcome = run(&best, true);
    (best, outcome)
}

/// A failure as it is printed: what was planned, what happened, what is wrong.
pub(crate) fn spelled(plan: &Plan, outcome: &Outcome) -> String {
    let mut text = format!("seed {}\n{:?}\n", plan.seed, plan.config);
    for (at, action) in &plan.actions {
        let _ = writeln!(text, "  at {at} µs: {action:?}");
    }
    for (at, strike) in &plan.strikes {
        let _ = writeln!(text, "  after event {at}: {strike:?}");
    }
    let lines = &outcome.story;
    text += &lines.join("\n");
    let _ = write!(text, "\n{}", outcome.violation.as_deref().unwrap_or("no violation"));
    text
}
