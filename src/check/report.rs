//! The result of a check, as `check --json` prints it. The format is part of the interface.
//!
//! Pure data. Every step is present, in the order in which steps are checked.

use serde::{Serialize, Serializer};

use crate::error::{Diagnosis, Exit};
use crate::net;
use crate::pg::QualifiedName;

/// A step towards a running subscription. The names of the first seven are also the reasons in `status`
/// while the service cannot reach the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The publisher's name is resolved to addresses.
    Name,
    /// The address is reachable.
    Route,
    /// A server listens on the port and answers.
    Port,
    Tls,
    /// The role is authenticated: pg_hba.conf, password, certificate.
    Authentication,
    /// The database exists and admits the role.
    Database,
    /// The role may replicate.
    Replication,
    WalLevel,
    /// A replication slot is free, if one has to be created.
    Slots,
    /// A WAL sender is free.
    WalSenders,
    /// The subscription's own slot can be used.
    Slot,
    /// The publications exist and publish tables.
    Publications,
    /// The role has USAGE and SELECT for the initial copy.
    Privileges,
    /// The target can be reached and accepts writes.
    Target,
    /// Schema `pgsluice` exists in the target or can be created.
    State,
    /// The role may set `session_replication_role`.
    ReplicaRole,
    /// The role may use replication origins.
    Origins,
    /// Each published table fits its target table.
    Tables,
    Versions,
}

impl Step {
    pub const ALL: [Self; 19] = [
        Self::Name,
        Self::Route,
        Self::Port,
        Self::Tls,
        Self::Authentication,
        Self::Database,
        Self::Replication,
        Self::WalLevel,
        Self::Slots,
        Self::WalSenders,
        Self::Slot,
        Self::Publications,
        Self::Privileges,
        Self::Target,
        Self::State,
        Self::ReplicaRole,
        Self::Origins,
        Self::Tables,
        Self::Versions,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => net::Step::Name.as_str(),
            Self::Route => net::Step::Route.as_str(),
            Self::Port => net::Step::Port.as_str(),
            Self::Tls => net::Step::Tls.as_str(),
            Self::Authentication => net::Step::Authentication.as_str(),
            Self::Database => net::Step::Database.as_str(),
            Self::Replication => net::Step::Replication.as_str(),
            Self::WalLevel => "wal_level",
            Self::Slots => "slots",
            Self::WalSenders => "wal_senders",
            Self::Slot => "slot",
            Self::Publications => "publications",
            Self::Privileges => "privileges",
            Self::Target => "target",
            Self::State => "state",
            Self::ReplicaRole => "replica_role",
            Self::Origins => "origins",
            Self::Tables => "tables",
            Self::Versions => "versions",
        }
    }

    /// The steps that have to succeed before this one.
    pub(super) const fn needs(self) -> &'static [Self] {
        match self {
            Self::Name | Self::Target => &[],
            Self::Route => &[Self::Name],
            Self::Port => &[Self::Route],
            Self::Tls => &[Self::Port],
            Self::Authentication => &[Self::Tls],
            Self::Database => &[Self::Authentication],
            Self::Replication | Self::WalLevel | Self::Slots | Self::WalSenders | Self::Publications => {
                &[Self::Database]
            }
            Self::Slot => &[Self::Database, Self::State],
            Self::Privileges => &[Self::Publications],
            Self::State | Self::ReplicaRole | Self::Origins => &[Self::Target],
            Self::Tables => &[Self::Publications, Self::Target],
            Self::Versions => &[Self::Database, Self::Target],
        }
    }
}

impl From<net::Step> for Step {
    fn from(step: net::Step) -> Self {
        match step {
            net::Step::Name => Self::Name,
            net::Step::Route => Self::Route,
            net::Step::Port => Self::Port,
            net::Step::Tls => Self::Tls,
            net::Step::Authentication => Self::Authentication,
            net::Step::Database => Self::Database,
            net::Step::Replication => Self::Replication,
        }
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// The step works, but with a restriction or only for now.
    Warning,
    Failed,
    /// A step that it needs has failed.
    NotReached,
}

impl Status {
    /// Returns the status as people read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotReached => "not reached",
        }
    }
}

/// A step and its finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    pub step: Step,
    pub status: Status,
    #[serde(flatten)]
    pub text: Diagnosis,
}

/// A problem of one table, or a possible one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub status: Status,
    #[serde(flatten)]
    pub text: Diagnosis,
}

/// A published table and its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub status: Status,
    /// The published columns in their order, then those that only the target has.
    pub columns: Vec<ColumnReport>,
    pub findings: Vec<Finding>,
}

/// A column on both sides. Types are written as in DDL; null if the side lacks the column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnReport {
    pub name: String,
    pub publisher: Option<String>,
    pub target: Option<String>,
    pub status: Status,
    pub note: Option<String>,
}

/// Whether both servers answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Reached,
    Unreachable,
}

/// The result for one subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub name: String,
    /// Whether no step failed; there may be warnings.
    pub ok: bool,
    /// Every step, in order.
    pub steps: Vec<StepReport>,
    pub tables: Vec<TableReport>,
    #[serde(skip)]
    pub reach: Reach,
}

/// The result of the whole check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Document {
    pub subscriptions: Vec<Report>,
}

impl Document {
    /// The command's exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if self.subscriptions.iter().any(|report| report.reach == Reach::Unreachable) {
            Exit::Unreachable
        } else if self.subscriptions.iter().all(|report| report.ok) {
            Exit::Fine
        } else {
            Exit::No
        }
    }
}
