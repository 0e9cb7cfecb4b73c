//! The configuration as it is written in the file. Everything is optional here; `validate` reports what
//! is missing.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::pg::Secret;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawConfig {
    pub(super) service: RawService,
    pub(super) target: RawTarget,
    pub(super) subscriptions: Vec<RawSubscription>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawService {
    pub(super) listen: Option<String>,
    pub(super) api_token_file: Option<String>,
    pub(super) log_format: Option<String>,
    pub(super) password_requires_tls: Option<bool>,
    pub(super) share_after: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawTarget {
    pub(super) url: Option<ConnectionString>,
    pub(super) max_connections: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawSubscription {
    pub(super) name: Option<String>,
    pub(super) publisher: Option<ConnectionString>,
    pub(super) publications: Option<Vec<String>>,
    pub(super) slot: Option<String>,
    pub(super) create_slot: Option<bool>,
    pub(super) copy_data: Option<bool>,
    pub(super) enabled: Option<bool>,
    pub(super) auto_refresh: Option<bool>,
    pub(super) retry_conflict_interval: Option<String>,
    pub(super) binary: Option<String>,
    pub(super) streaming: Option<String>,
    pub(super) two_phase: Option<bool>,
    pub(super) origin: Option<String>,
    pub(super) synchronous_commit: Option<String>,
    pub(super) stall_timeout: Option<String>,
    pub(super) peer_timeout: Option<String>,
    pub(super) max_value_bytes: Option<i64>,
    pub(super) conflict_defaults: BTreeMap<String, String>,
    pub(super) tables: Vec<RawTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawTable {
    pub(super) source: Option<String>,
    pub(super) target: Option<String>,
    pub(super) columns: BTreeMap<String, RawColumn>,
    pub(super) set: BTreeMap<String, String>,
    pub(super) on_delete: Option<RawOnDelete>,
    pub(super) conflicts: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawColumn {
    pub(super) to: Option<String>,
    pub(super) ignore: Option<bool>,
    pub(super) ignore_if_null: Option<bool>,
    pub(super) coerce: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawOnDelete {
    Word(String),
    Mark { mark: Option<String> },
}

/// A connection string, which may hold a password.
#[derive(Debug)]
pub(super) struct ConnectionString(pub(super) Secret);

impl<'de> Deserialize<'de> for ConnectionString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Secret::new(String::deserialize(deserializer)?)))
    }
}
