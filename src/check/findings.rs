//! Collects the findings of a check's steps and makes the report. Pure.

use std::collections::BTreeMap;

use crate::error::Diagnosis;

use super::report::{Reach, Report, Status, Step, StepReport, TableReport};

/// What is known so far about one subscription's steps.
#[derive(Debug)]
pub(super) struct Findings {
    steps: BTreeMap<Step, (Status, Diagnosis)>,
    reach: Reach,
}

impl Default for Findings {
    fn default() -> Self {
        Self { steps: BTreeMap::new(), reach: Reach::Reached }
    }
}

impl Findings {
    pub(super) fn ok(&mut self, step: Step, text: impl Into<String>) {
        self.note(step, Status::Ok, Diagnosis::new(text));
    }

    /// Records success with a detail or a hint.
    pub(super) fn fine(&mut self, step: Step, text: Diagnosis) {
        self.note(step, Status::Ok, text);
    }

    pub(super) fn warn(&mut self, step: Step, text: Diagnosis) {
        self.note(step, Status::Warning, text);
    }

    pub(super) fn fail(&mut self, step: Step, text: Diagnosis) {
        self.note(step, Status::Failed, text);
    }

    /// Records that a server did not answer.
    pub(super) fn out_of_reach(&mut self) {
        self.reach = Reach::Unreachable;
    }

    /// Records a step's status. If a step is judged more than once, the worst status counts.
    fn note(&mut self, step: Step, status: Status, text: Diagnosis) {
        let rank = |status: Status| match status {
            Status::NotReached => 0,
            Status::Ok => 1,
            Status::Warning => 2,
            Status::Failed => 3,
        };
        let known = self.steps.get(&step).map_or(0, |(known, _)| rank(*known));
        if rank(status) > known {
            self.steps.insert(step, (status, text));
        }
    }

    /// Returns the report with every step. A step that was not judged names the step that it waits for.
    pub(super) fn into_report(self, name: &str, tables: Vec<TableReport>) -> Report {
        let steps: Vec<StepReport> = Step::ALL
            .into_iter()
            .map(|step| match self.steps.get(&step) {
                Some((status, text)) => StepReport { step, status: *status, text: text.clone() },
                None => StepReport { step, status: Status::NotReached, text: self.waits_for(step) },
            })
            .collect();
        let ok = steps.iter().all(|step| matches!(step.status, Status::Ok | Status::Warning));
        Report { name: name.to_owned(), ok, steps, tables, reach: self.reach }
    }

    fn waits_for(&self, step: Step) -> Diagnosis {
        match self.obstacle(step) {
            Some(obstacle) => Diagnosis::new(format!("needs {}", obstacle.as_str())),
            None => Diagnosis::new("could not be looked at"),
        }
    }

    /// Returns the failed step that this one needs. A step only needs earlier ones, so the recursion
    /// ends.
    fn obstacle(&self, step: Step) -> Option<Step> {
        step.needs().iter().find_map(|&need| match self.steps.get(&need) {
            Some((Status::Failed, _)) => Some(need),
            Some(_) => None,
            None => self.obstacle(need),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(report: &Report) -> String {
        let line =
            |step: &StepReport| format!("{}: {:?} {}", step.step.as_str(), step.status, step.text.primary);
        report.steps.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_was_not_reached_says_what_it_waits_for() {
        let mut findings = Findings::default();
        findings.ok(Step::Name, "db-master");
        findings.ok(Step::Route, "there is one");
        findings.fail(Step::Port, Diagnosis::new("refused"));
        findings.out_of_reach();
        findings.ok(Step::Target, "reached");
        let report = findings.into_report("s", Vec::new());
        assert!(!report.ok);
        assert_eq!(report.reach, Reach::Unreachable);
        insta::assert_snapshot!(statuses(&report), @r"
        name: Ok db-master
        route: Ok there is one
        port: Failed refused
        tls: NotReached needs port
        authentication: NotReached needs port
        database: NotReached needs port
        replication: NotReached needs port
        wal_level: NotReached needs port
        slots: NotReached needs port
        wal_senders: NotReached needs port
        slot: NotReached needs port
        publications: NotReached needs port
        privileges: NotReached needs port
        target: Ok reached
        state: NotReached could not be looked at
        replica_role: NotReached could not be looked at
        origins: NotReached could not be looked at
        tables: NotReached needs port
        versions: NotReached needs port
        ");
    }

    #[test]
    fn the_worst_of_a_step_stands() {
        let mut findings = Findings::default();
        findings.warn(Step::Slots, Diagnosis::new("few"));
        findings.ok(Step::Slots, "some");
        findings.fail(Step::Slots, Diagnosis::new("none"));
        findings.warn(Step::Slots, Diagnosis::new("few"));
        let report = findings.into_report("s", Vec::new());
        assert_eq!(report.steps[8].text.primary, "none");
    }

    #[test]
    fn steps_need_earlier_ones_only() {
        for step in Step::ALL {
            let later = step.needs().iter().find(|need| {
                Step::ALL.iter().position(|s| s == *need) >= Step::ALL.iter().position(|s| *s == step)
            });
            // The slot is judged by what the target has recorded, but is listed among the publisher's
            // steps.
            assert!(later.is_none() || (step, later) == (Step::Slot, Some(&Step::State)), "{step:?}");
        }
    }
}
