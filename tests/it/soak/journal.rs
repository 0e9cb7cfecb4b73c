//! What was done, when, and how long it took until everything went on: printed as it happens, and
//! summed up at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::kinds::Fault;

/// One fault.
#[derive(Debug)]
struct Entry {
    fault: Fault,
    /// It could not be done, and does not count.
    is_void: bool,
    /// From the end of the fault until everything that was committed by then had been applied.
    recovery: Option<Duration>,
}

/// All faults of a run.
#[derive(Debug)]
pub(super) struct Journal {
    began: Instant,
    entries: Vec<Entry>,
    lines: Vec<String>,
}

/// A fault's number in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(usize);

impl Journal {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), entries: Vec::new(), lines: Vec::new() }
    }

    /// A line that is no fault.
    pub(super) fn note(&mut self, text: &str) {
        let now = jiff::Timestamp::now().strftime("%H:%M:%S%.3f");
        let line = format!("{:8.3} s  {now}  {text}", self.began.elapsed().as_secs_f64());
        println!("{line}");
        self.lines.push(line);
    }

    /// Notes a fault that begins now.
    pub(super) fn fault(&mut self, fault: Fault) -> Number {
        self.entries.push(Entry { fault, is_void: false, recovery: None });
        let number = Number(self.entries.len() - 1);
        self.about(number, "begins");
        number
    }

    pub(super) fn about(&mut self, number: Number, text: &str) {
        let line = format!("fault {:4}  {:20} {text}", number.0 + 1, self.entries[number.0].fault.name());
        self.note(&line);
    }

    /// Notes that a fault could not be done.
    pub(super) fn not_done(&mut self, number: Number, why: &str) {
        self.entries[number.0].is_void = true;
        self.about(number, &format!("not done: {why}"));
    }

    pub(super) fn recovered(&mut self, number: Number, after: Duration) {
        self.entries[number.0].recovery = Some(after);
    }

    pub(super) fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// How often each kind struck, and the times to recover.
    pub(super) fn table(&self) -> String {
        let mut kinds: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| !entry.is_void) {
            *counts.entry(entry.fault.name()).or_default() += 1;
            kinds.entry(entry.fault.name()).or_default().extend(entry.recovery);
        }
        let mut text =
            "| fault | times | recovery, median s | longest s |\n| --- | --- | --- | --- |\n".to_owned();
        let mut all = Vec::new();
        for (name, mut times) in kinds {
            all.extend_from_slice(&times);
            text.push_str(&row(name, counts[name], &mut times));
        }
        text.push_str(&row("all", counts.values().sum(), &mut all));
        text
    }
}

fn row(name: &str, count: usize, times: &mut [Duration]) -> String {
    times.sort();
    let seconds =
        |time: Option<&Duration>| time.map_or("–".to_owned(), |time| format!("{:.2}", time.as_secs_f64()));
    let (median, longest) = (seconds(times.get(times.len() / 2)), seconds(times.last()));
    format!("| {name} | {count} | {median} | {longest} |\n")
}

#[test]
fn the_table_has_a_line_for_each_kind_that_was_done_and_one_for_all() {
    let mut journal = Journal::new();
    for (fault, seconds) in [(Fault::Kill, 3), (Fault::Join, 1), (Fault::Kill, 5), (Fault::Kill, 4)] {
        let number = journal.fault(fault);
        journal.recovered(number, Duration::from_secs(seconds));
    }
    journal.fault(Fault::Join);
    let number = journal.fault(Fault::Leave);
    journal.not_done(number, "no table has joined");
    let table = journal.table();
    for line in ["| kill | 3 | 4.00 | 5.00 |", "| join | 2 | 1.00 | 1.00 |", "| all | 5 | 4.00 | 5.00 |"] {
        assert!(table.contains(line), "{table}");
    }
    assert!(!table.contains("leave"), "{table}");
}
