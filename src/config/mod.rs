//! The configuration, read and validated.
//!
//! ```text
//! file ──parse─▶ values ─┐
//!                        ├─layered─▶ check ─▶ RawConfig ─validate─▶ Config
//! PGSLUICE__… ─overrides─┘       (keys, types)          (values, duplicates)
//! ```
//! Every stage reports what it cannot use, removes it and goes on, so that all problems of a
//! configuration are reported at once, each with its key and its place. Only a file that is not TOML
//! ends the search early. The rest of the program sees only the types below.
//!
//! The `config` crate provides the values and their deserialization. Its builder is not used, because
//! it reads a dot in a quoted key as a path and does not know where a value comes from.
//!
//! This module does not connect to servers (`check` does) and does not read the token file.

mod budget;
mod check;
mod connect;
mod env;
mod error;
mod file;
mod keys;
mod memory;
mod path;
mod raw;
mod reload;
mod surroundings;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use budget::Budget;
pub use error::{ConfigErrors, Place, Problem};
pub use reload::Changes;
pub use surroundings::process_environment;

use crate::error::Diagnosis;
use crate::pg::conninfo::ConnInfo;
use crate::pg::{QualifiedName, SlotName, SubscriptionName};
use error::Report;
use surroundings::{ConfigFile, Surroundings};

/// Path of the configuration file if none is given.
pub const DEFAULT_PATH: &str = "config/pgsluice.toml";

/// Environment variable that names another configuration file.
pub const PATH_VARIABLE: &str = "PGSLUICE_CONFIG";

#[derive(Debug, Clone)]
pub struct Config {
    pub service: Service,
    pub target: Target,
    pub subscriptions: Vec<Subscription>,
    /// Problems that do not prevent a start; they are logged.
    pub warnings: Vec<Diagnosis>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Address of the HTTP service.
    pub listen: SocketAddr,
    /// File with the API's token; always set if `listen` is not a loopback address.
    pub api_token_file: Option<PathBuf>,
    pub log_format: LogFormat,
    /// For how long the same instances must have been there before one hands subscriptions over to another; `None` is
    /// "off": it keeps what it owns.
    pub share_after: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Connection to the target. `application_name` is `pgsluice` unless the string or `PGAPPNAME` sets
    /// it.
    pub conninfo: ConnInfo,
    /// The most sessions that a service has there; `None` is no bound.
    pub max_connections: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub name: SubscriptionName,
    /// Connection to the publisher. `application_name` is the subscription's name unless the string
    /// sets it.
    pub publisher: ConnInfo,
    /// Names of the publications; never empty.
    pub publications: Vec<String>,
    pub slot: SlotName,
    pub create_slot: bool,
    pub copy_data: bool,
    pub enabled: bool,
    pub auto_refresh: bool,
    /// Interval between attempts after a conflict. `None` is "off": a conflict waits for a person.
    pub retry_conflict_interval: Option<Duration>,
    pub binary: Auto,
    /// Whether the publisher sends transactions in progress.
    pub streaming: Auto,
    pub two_phase: bool,
    pub origin: Origin,
    /// `synchronous_commit` of the target transactions that apply changes.
    pub synchronous_commit: SynchronousCommit,
    /// How long the publisher may wait for us to read on while the target does not get anything done. Then the stream is
    /// closed until it does.
    pub stall_timeout: Duration,
    /// After this time without a sign of life, a connection to the publisher or the target counts as dead.
    pub peer_timeout: Duration,
    /// Largest row of the stream that is taken, bytes.
    pub max_value_bytes: usize,
    pub conflict_defaults: ConflictPolicies,
    pub tables: Vec<TableRule>,
}

/// A choice of `auto`, `on` and `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto {
    Auto,
    On,
    Off,
}

/// Selects the changes that the publisher sends by their origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Any,
    /// Only changes without an origin. Publishers support this from 16 on.
    None,
}

/// Values of PostgreSQL's `synchronous_commit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynchronousCommit {
    On,
    /// A commit does not wait until it is on disk. Only commits that are on disk are reported to the
    /// publisher as flushed.
    Off,
    Local,
    RemoteWrite,
    RemoteApply,
}

impl SynchronousCommit {
    pub(crate) const ALL: [Self; 5] =
        [Self::On, Self::Off, Self::Local, Self::RemoteWrite, Self::RemoteApply];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::RemoteApply => "remote_apply",
        }
    }
}

/// What the service does about a conflict of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictPolicy {
    Pause,
    ApplyRemote,
    KeepLocal,
    LastUpdateWins,
}

/// Policies by the name of the conflict type (such as `insert_exists`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConflictPolicies(BTreeMap<&'static str, ConflictPolicy>);

impl ConflictPolicies {
    /// Returns the policy for a conflict type; types that are not configured pause.
    #[must_use]
    pub fn policy(&self, conflict_type: &str) -> ConflictPolicy {
        self.0.get(conflict_type).copied().unwrap_or(ConflictPolicy::Pause)
    }
}

/// Rule for one table. A table without a rule keeps its name and all its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRule {
    pub source: QualifiedName,
    pub target: QualifiedName,
    /// Published columns whose values the target's type may change.
    pub coerced: BTreeSet<String>,
}

impl Subscription {
    /// The columns of a published table whose values the target's type may change.
    #[must_use]
    pub fn coerced(&self, source: &QualifiedName) -> &BTreeSet<String> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        self.tables.iter().find(|rule| rule.source == *source).map_or(&NONE, |rule| &rule.coerced)
    }
}

impl Config {
    /// How the sessions on the target are divided; none if they are not bounded.
    #[must_use]
    pub fn budget(&self) -> Option<Budget> {
        let enabled = self.subscriptions.iter().filter(|subscription| subscription.enabled).count();
        Budget::of(self.target.max_connections?, enabled)
    }

    /// Reads and checks a configuration: the file at `path`, else the one that `PGSLUICE_CONFIG` names,
    /// else [`DEFAULT_PATH`], overridden by `PGSLUICE__…` in `env`. The default file may be missing if
    /// the environment configures anything. libpq's variables (`PGHOST`, …), its password file and its
    /// files in the home directory supply what connection strings leave out.
    ///
    /// `env` is the result of [`process_environment`].
    ///
    /// # Errors
    ///
    /// Returns every problem at once. The process's exit code is 2.
    pub fn load(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let surroundings = Surroundings::of_process(env.collect());
        let from_env = surroundings.env.get(PATH_VARIABLE).filter(|path| !path.is_empty());
        let file = match path.map(Path::to_owned).or_else(|| from_env.map(PathBuf::from)) {
            Some(path) => ConfigFile::Given(path),
            None => ConfigFile::Default(PathBuf::from(DEFAULT_PATH)),
        };
        let mut report = Report::default();
        match read_file(file, &surroundings, &mut report) {
            Some(text) => load_text(&text, &surroundings, report),
            None => Err(report.into_errors()),
        }
    }

    /// Reads a configuration without a file, an environment or a home directory: for its fuzz target.
    ///
    /// # Errors
    ///
    /// Returns every problem at once.
    #[doc(hidden)]
    pub fn from_text(text: &str) -> Result<Self, ConfigErrors> {
        load_text(text, &Surroundings::none(), Report::default())
    }

    #[must_use]
    pub fn subscription(&self, name: &SubscriptionName) -> Option<&Subscription> {
        self.subscriptions.iter().find(|subscription| subscription.name == *name)
    }

    /// Checks that there is a subscription to run. Other commands are useful without one.
    ///
    /// # Errors
    ///
    /// No subscription is configured.
    pub fn require_subscription(&self) -> Result<(), ConfigErrors> {
        if !self.subscriptions.is_empty() {
            return Ok(());
        }
        let diagnosis = Diagnosis::new("no subscription is configured")
            .hint("add a [[subscriptions]] table to the configuration; docs/configuration.md shows its keys");
        Err(ConfigErrors::new(vec![Problem { place: None, key: "subscriptions".to_owned(), diagnosis }]))
    }
}

/// Reads the file. A missing default file counts as empty if the environment configures anything.
fn read_file(file: ConfigFile, surroundings: &Surroundings, report: &mut Report) -> Option<String> {
    let (path, given) = match file {
        ConfigFile::Given(path) => (path, true),
        ConfigFile::Default(path) => (path, false),
    };
    let error = match surroundings::read_bounded(&path) {
        Ok(text) => {
            report.file = Some(path);
            return Some(text);
        }
        Err(error) => error,
    };
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    if missing && !given && surroundings.env.keys().any(|name| name.starts_with(env::PREFIX)) {
        return Some(String::new());
    }
    let problem = if missing {
        Diagnosis::new("there is no such configuration file")
            .hint(format!("name the file with --config FILE or {PATH_VARIABLE}"))
    } else {
        Diagnosis::new("the configuration file cannot be read").detail(error.to_string())
    };
    report.problem_at(Some(Place::File(path)), problem);
    None
}

/// Loads a configuration from its text. After this point only password files are read.
fn load_text(text: &str, surroundings: &Surroundings, mut report: Report) -> Result<Config, ConfigErrors> {
    let document = match file::parse(text) {
        Ok(document) => document,
        Err(((line, column), problem)) => {
            let place = report.file.clone().map(|file| Place::Position { file, line, column });
            report.problem_at(place, problem);
            return Err(report.into_errors());
        }
    };
    report.positions = document.positions;
    let mut root = env::with_overrides(document.root, &surroundings.env, &mut report);
    check::prune(&mut root, &keys::ROOT, &mut report);
    match root.try_deserialize::<raw::RawConfig>() {
        Ok(raw) => validate::validate(raw, surroundings, report),
        Err(_) => {
            // Unreachable, since values that do not fit have been removed. The error itself may quote a
            // value.
            report.problem_at(None, Diagnosis::new("the configuration does not have the expected structure"));
            Err(report.into_errors())
        }
    }
}

#[cfg(test)]
mod docs_tests;
#[cfg(test)]
mod tests;
