//! Medians, ratios and tables, which can be written into the documentation.

use std::fmt::Write as _;
use std::path::Path;

use crate::Result;
use crate::contestant::{Commits, Run};
use crate::latency::Latency;
use crate::measure::Group;
use crate::stand::Stand;
use crate::workload::Workload;

/// Returns the markers between which the report stands in a file. They contain the PostgreSQL version,
/// so that a file can hold several reports.
fn markers(major: u32) -> (String, String) {
    (format!("<!-- bench {major}: begin -->"), format!("<!-- bench {major}: end -->"))
}

/// One round of one workload.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) builtin: Run,
    pub(crate) sluice: Run,
}

#[derive(Debug)]
pub(crate) struct Latencies {
    pub(crate) commits: Commits,
    pub(crate) builtin: Latency,
    pub(crate) sluice: Latency,
}

#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    major: u32,
    command: String,
    cores: usize,
    outcomes: Vec<(Workload, Vec<Outcome>)>,
    pub(crate) latencies: Vec<Latencies>,
}

impl Report {
    pub(crate) fn new(stand: &Stand, scale: f64, rounds: u32) -> Self {
        let binaries = stand.publisher.binaries();
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let (major, version) = (binaries.major(), binaries.version());
        let mut machine = format!("PostgreSQL {version}, {cores} cores");
        if let Some(model) = cpu_model() {
            let _ = write!(machine, " ({model})");
        }
        let _ = write!(machine, ", {rounds} rounds, load {} at the start", load_average());
        let mut command = format!("scripts/bench --rounds {rounds} --postgres {major}");
        if (scale - 1.0).abs() > f64::EPSILON {
            let _ = write!(command, " --scale {scale}");
            let _ = write!(machine, "; counts are multiplied by {scale}");
        }
        Self { machine, major, command, outcomes: Vec::new(), latencies: Vec::new(), cores }
    }

    pub(crate) fn add(&mut self, workload: Workload, outcome: Outcome) {
        match self.outcomes.iter_mut().find(|(of, _)| *of == workload) {
            Some((_, outcomes)) => outcomes.push(outcome),
            None => self.outcomes.push((workload, vec![outcome])),
        }
    }

    /// Returns the report as Markdown.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}. Made by `{}`.\n\n", self.machine, self.command);
        text.push_str(
            "| workload | built-in, s | pgsluice, s | ratio | rounds' ratios | bound | CPU built-in: walsender + apply, s \
             | CPU pgsluice: walsender + pgsluice + target, s | pgsluice's CPU / apply worker's | peak, MiB |\n\
             | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |\n",
        );
        let mut ratios = Vec::new();
        for (workload, outcomes) in &self.outcomes {
            let (line, ratio) = row(*workload, outcomes, self.cores);
            text.push_str(&line);
            if !workload.copies() {
                ratios.push(ratio);
            }
        }
        text.push_str(
            "\nThe bound is the ratio that there would be if the busiest process (or, all together, the cores) never \
             waited: what is between it and the ratio is pgsluice's to gain, the rest is the servers' work.\n",
        );
        if ratios.len() > 1 {
            #[expect(clippy::cast_precision_loss, reason = "seven workloads")]
            let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
            let _ = writeln!(text, "\nGeometric mean of the streamed workloads' ratios: **{mean:.2}**.");
        }
        for Latencies { commits, builtin, sluice } in &self.latencies {
            let wait = match commits {
                Commits::AsTheyCome => "as by default",
                Commits::Off => "do not wait for its disk (`off`, the built-in subscriber's default)",
                Commits::On => "wait for its disk (`on`, pgsluice's default)",
            };
            let _ = writeln!(
                text,
                "\nLatency of {} commits under `synchronous_commit = remote_apply`, one after another, \
                 milliseconds; commits on the target {wait}:\n\n| | p50 | p99 | longest |\n\
                 | --- | ---: | ---: | ---: |",
                builtin.commits
            );
            for (name, latency) in [("built-in", builtin), ("pgsluice", sluice)] {
                let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
                let _ = writeln!(
                    text,
                    "| {name} | {:.2} | {:.2} | {:.2} |",
                    ms(latency.p50),
                    ms(latency.p99),
                    ms(latency.max)
                );
            }
            let _ = writeln!(
                text,
                "| pgsluice / built-in | {:.2} | {:.2} | |",
                sluice.p50.as_secs_f64() / builtin.p50.as_secs_f64(),
                sluice.p99.as_secs_f64() / builtin.p99.as_secs_f64()
            );
        }
        text
    }

    /// Replaces the text between the file's markers by the tables.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let (begin, end) = markers(self.major);
        let old = std::fs::read_to_string(path)?;
        let place = old.find(&begin).zip(old.find(&end)).filter(|(from, to)| from < to);
        let (from, to) = place.ok_or_else(|| format!("{} lacks {begin} and {end}", path.display()))?;
        let new = format!("{}{begin}\n{}{}", &old[..from], self.text(), &old[to..]);
        Ok(std::fs::write(path, new)?)
    }
}

/// Formats one round as a line of progress.
pub(crate) fn progress(workload: Workload, round: u32, outcome: &Outcome) -> String {
    let (b, s) = (&outcome.builtin, &outcome.sluice);
    format!(
        "{} round {}: built-in {:.2} s (walsender {:.2}, apply {:.2}); pgsluice {:.2} s (walsender {:.2}, \
         pgsluice {:.2}, target {:.2}, peak {:.0} MiB); ratio {:.2}; load {}",
        workload.letter(),
        round + 1,
        b.seconds,
        b.cpu.seconds(Group::Publisher),
        b.cpu.seconds(Group::Target),
        s.seconds,
        s.cpu.seconds(Group::Publisher),
        s.cpu.seconds(Group::Sluice),
        s.cpu.seconds(Group::Target),
        mebibytes(s),
        b.seconds / s.seconds,
        load_average()
    )
}

fn row(workload: Workload, outcomes: &[Outcome], cores: usize) -> (String, f64) {
    let builtin = |of: &dyn Fn(&Run) -> f64| median(outcomes.iter().map(|outcome| of(&outcome.builtin)));
    let sluice = |of: &dyn Fn(&Run) -> f64| median(outcomes.iter().map(|outcome| of(&outcome.sluice)));
    let cpu = |group: Group| move |run: &Run| run.cpu.seconds(group);
    let (b, s) = (builtin(&|run| run.seconds), sluice(&|run| run.seconds));
    let ratio = b / s;
    let each: Vec<_> =
        outcomes.iter().map(|o| format!("{:.2}", o.builtin.seconds / o.sluice.seconds)).collect();
    let apply = builtin(&cpu(Group::Target));
    let [walsender, own, target] =
        [Group::Publisher, Group::Sluice, Group::Target].map(|group| sluice(&cpu(group)));
    #[expect(clippy::cast_precision_loss, reason = "a number of cores")]
    let all = (walsender + own + target) / cores.max(1) as f64;
    let bound = b / walsender.max(target).max(all);
    let line = format!(
        "| {}: {} | {b:.2} | {s:.2} | **{ratio:.2}** | {} | {bound:.2} \
         | {:.2} + {apply:.2} | {walsender:.2} + {own:.2} + {target:.2} | {:.0} % | {:.0} |\n",
        workload.letter(),
        workload.title(),
        each.join(" "),
        builtin(&cpu(Group::Publisher)),
        100.0 * own / apply,
        sluice(&mebibytes),
    );
    (line, ratio)
}

fn mebibytes(run: &Run) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rounded figure")]
    run.peak_bytes.map_or(f64::NAN, |bytes| bytes as f64 / f64::from(1 << 20))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        None => f64::NAN,
        Some(&upper) if values.len() % 2 == 1 => upper,
        Some(&upper) => f64::midpoint(values.get(middle.saturating_sub(1)).copied().unwrap_or(upper), upper),
    }
}

fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the load average, because figures of a busy machine are of little use.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
