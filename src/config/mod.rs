//! The configuration, validated: from here on every value is what it says.
//!
//! Raw keys, environment overrides and errors with their places live in the submodules; the rest
//! of the program sees these types only.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pg::conninfo::ConnInfo;
use crate::pg::{QualifiedName, SlotName, SubscriptionName};

#[derive(Debug, Clone)]
pub struct Config {
    pub service: Service,
    pub target: Target,
    pub subscriptions: Vec<Subscription>,
}

#[derive(Debug, Clone)]
pub struct Service {
    /// Where the HTTP service listens.
    pub listen: SocketAddr,
    pub api_token_file: Option<PathBuf>,
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone)]
pub struct Target {
    pub conninfo: ConnInfo,
}

#[derive(Debug, Clone)]
pub struct Subscription {
    pub name: SubscriptionName,
    /// `application_name` is set to the subscription's name unless the string gives one.
    pub publisher: ConnInfo,
    /// Never empty.
    pub publications: Vec<String>,
    pub slot: SlotName,
    pub create_slot: bool,
    pub copy_data: bool,
    pub enabled: bool,
    pub auto_refresh: bool,
    /// `None` is "off": a conflict waits for a person.
    pub retry_conflict_interval: Option<Duration>,
    pub binary: Auto,
    pub tables: Vec<TableRule>,
}

/// `auto | on | off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto {
    Auto,
    On,
    Off,
}

/// What differs for one table. A table without a rule keeps its name and all its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRule {
    pub source: QualifiedName,
    pub target: QualifiedName,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("reading the configuration is being built")]
pub struct ConfigErrors;

impl Config {
    /// Reads and checks a configuration.
    pub fn load(
        _path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        drop(env);
        Err(ConfigErrors)
    }
}

/// The environment, as [`Config::load`] takes it.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
