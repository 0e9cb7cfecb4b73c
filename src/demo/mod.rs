//! `pgsluice demo`: the walk-through on two throw-away servers.
//!
//! ```text
//! walk (the chapters) ─▶ stage (two clusters, `pgsluice run`, its command line) ─▶ cluster, process
//!      └────────────────▶ narrator (texts, fitted to the terminal)
//! ```
//! # Why it runs the real program
//!
//! The demo writes a configuration file, starts this executable with `run`, and calls `status`,
//! `conflicts show`, `resume` and `drop`, as a user would. It shows what a user gets, because it uses
//! no internals of the service.
//!
//! # Invariants
//! - Everything it starts is stopped and removed: at the end, on an error, on a signal, and (by the
//!   watchdogs of `process`) when it is killed.
//! - Every wait is for a condition and has a deadline.
//!
//! The integration tests use the same clusters.

mod account;
pub mod binaries;
pub mod cluster;
mod cluster_error;
mod narrator;
pub mod process;
mod session;
mod stage;
mod template;
mod walk;

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use account::Account;
pub use session::{Session, TextRow, TextTable};

use crate::error::Diagnosis;
use cluster::ClusterError;
use narrator::Narrator;

/// Options of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DemoOptions {
    /// What happens after the last chapter.
    pub afterwards: Afterwards,
}

/// What happens after the last chapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Afterwards {
    /// Everything is stopped and removed.
    #[default]
    Remove,
    /// Everything stays up until a signal comes (`--keep`).
    Keep,
}

/// Runs the walk-through and prints it on stdout.
pub async fn run(options: DemoOptions) -> Result<(), DemoError> {
    let mut signals = Signals::new().map_err(|source| io_error("listen for", "signals", source))?;
    let mut narrator = Narrator::on_stdout();
    // If a signal comes first, the walk is dropped together with what it has started.
    let walked = tokio::select! {
        walked = walk::chapters(&mut narrator) => Some(walked),
        () = signals.next() => None,
    };
    let stage = walked.ok_or(DemoError::Interrupted)??;
    if options.afterwards == Afterwards::Keep {
        walk::how_to_connect(&mut narrator, &stage)?;
        signals.next().await;
    }
    walk::farewell(&mut narrator, stage).await
}

/// The signals that end the demo.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = self.hangup.recv() => (),
        }
    }
}

/// Why the demo ended early.
#[derive(Debug, Error)]
pub enum DemoError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("could not {doing} {what}")]
    Io { doing: &'static str, what: &'static str, source: io::Error },
    #[error("nothing more can be written to the terminal")]
    Output(#[source] io::Error),
    #[error("pgsluice did not get there: {what}")]
    TimedOut { what: String, patience: Duration, seen: String, log: String },
    #[error("`pgsluice {command}` failed ({status})")]
    Command { command: String, status: std::process::ExitStatus, output: String },
    #[error("`pgsluice {command}` answered something else than expected")]
    Answer { command: String, output: String },
    #[error("the demo was interrupted")]
    Interrupted,
}

impl DemoError {
    /// Text for the operator.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let diagnosis = Diagnosis::new(self.to_string());
        match self {
            Self::Cluster(error) => error.diagnosis(),
            Self::Io { source, .. } | Self::Output(source) => diagnosis.detail(source.to_string()),
            Self::TimedOut { patience, seen, log, .. } => diagnosis.detail(format!(
                "waited {} seconds; last seen: {seen}\nthe service's log ends:\n{log}",
                patience.as_secs()
            )),
            Self::Command { output, .. } | Self::Answer { output, .. } => diagnosis.detail(output.clone()),
            Self::Interrupted => diagnosis.detail("everything that it had started is stopped and removed"),
        }
    }
}

fn io_error(doing: &'static str, what: &'static str, source: io::Error) -> DemoError {
    DemoError::Io { doing, what, source }
}
