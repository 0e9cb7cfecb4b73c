//! Compares pgsluice with PostgreSQL's own subscriber: the same publisher, the same changes and the
//! same target server, in turn. `scripts/bench` runs it; `scripts/bench --help` lists its arguments.
//!
//! ```text
//! prepare rows ─▶ both slots ─▶ the workload's changes ─▶ contestant 1 catches up ─▶ contestant 2 catches up
//!                                                          time, CPU, memory         └─▶ all three equal?
//! ```
//! # What is measured
//!
//! Time runs from the start of a stopped subscriber (`ALTER SUBSCRIPTION … ENABLE`, the start of the
//! process `pgsluice run`) until its slot's confirmed position reaches the publisher's, which is also
//! how scripts wait until a subscriber has caught up. Both consume the same WAL through slots of their
//! own, and take turns in going first. CPU is user and system time of every process that works for a
//! contestant. A run whose rows differ from the publisher's afterwards is an error.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its findings")]

mod contestant;
mod latency;
mod measure;
mod report;
mod stand;
mod subscriptions;
mod workload;

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;

use contestant::{Commits, Contestant};
use report::{Latencies, Outcome, Report};
use stand::Stand;
use workload::Workload;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// pgsluice beside the built-in subscriber, on throw-away servers.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench")]
struct Arguments {
    /// Rounds of each workload; medians are reported.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Which workloads to run, of a to h and "latency" [default: all].
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Multiplies the number of rows and transactions.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Writes the tables between this file's markers, too.
    #[arg(long)]
    write: Option<PathBuf>,
    /// Runs this command once pgsluice has started, with its process id for {}: a profiler.
    #[arg(long)]
    profile: Option<String>,
    /// Measures so many subscriptions in one process instead: how long they take to stream, and what they cost.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    subscriptions: Option<u32>,
    /// `cargo bench` passes it; it has no effect.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(subscriptions) = arguments.subscriptions {
        println!("{}", Box::pin(subscriptions::run(subscriptions.try_into()?)).await?);
        return Ok(());
    }
    let (workloads, latency) = chosen(&arguments.workloads)?;
    let stand = Stand::start().await?;
    let mut report = Report::new(&stand, arguments.scale, arguments.rounds);
    for workload in workloads {
        for round in 0..arguments.rounds {
            let outcome = run(&stand, workload, round, &arguments).await?;
            println!("{}", report::progress(workload, round, &outcome));
            report.add(workload, outcome);
        }
    }
    if latency {
        for commits in [Commits::Off, Commits::On] {
            let profile = arguments.profile.as_deref();
            let [builtin, sluice] = latency::run(&stand, arguments.scale, commits, profile).await?;
            report.latencies.push(Latencies { commits, builtin, sluice });
        }
    }
    println!("\n{}", report.text());
    if let Some(path) = &arguments.write {
        report.write(path)?;
    }
    Ok(())
}

fn chosen(names: &[String]) -> Result<(Vec<Workload>, bool)> {
    if names.is_empty() {
        return Ok((Workload::ALL.to_vec(), true));
    }
    let mut workloads = Vec::new();
    for name in names.iter().filter(|name| *name != "latency") {
        let found = Workload::ALL.into_iter().find(|workload| workload.letter() == name);
        workloads.push(found.ok_or_else(|| format!("there is no workload {name:?}: a to h, or latency"))?);
    }
    Ok((workloads, names.iter().any(|name| name == "latency")))
}

/// Runs one round of one workload: both contestants with the same changes.
async fn run(stand: &Stand, workload: Workload, round: u32, arguments: &Arguments) -> Result<Outcome> {
    stand.databases().await?;
    workload.prepare(stand, arguments.scale).await?;
    let commits = Commits::AsTheyCome;
    let builtin = Contestant::builtin(stand, workload, commits).await?;
    let sluice = Contestant::sluice(stand, workload, commits, arguments.profile.as_deref()).await?;
    workload.change(stand, arguments.scale).await?;
    let (builtin, sluice) = if round.is_multiple_of(2) {
        let builtin = builtin.catch_up(stand).await?;
        (builtin, sluice.catch_up(stand).await?)
    } else {
        let sluice = sluice.catch_up(stand).await?;
        (builtin.catch_up(stand).await?, sluice)
    };
    workload.verify(stand).await?;
    Ok(Outcome { builtin, sluice })
}
