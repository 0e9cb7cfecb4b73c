//! What a check found, as `check --json` shows it: part of the contract.
//!
//! Pure data. Steps stand in the order in which they are walked, every one of them.

use serde::{Serialize, Serializer};

use crate::error::{Diagnosis, Exit};
use crate::net;
use crate::pg::QualifiedName;

/// A step of the way to a running subscription. The names of the first seven are also the reasons
/// that `status` shows while the service cannot reach the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The publisher's name becomes addresses.
    Name,
    /// Packets find a way there.
    Route,
    /// Something listens and answers.
    Port,
    Tls,
    /// pg_hba.conf, password, certificate.
    Authentication,
    /// The database exists and lets the role connect.
    Database,
    /// The role may replicate.
    Replication,
    WalLevel,
    /// A replication slot is free, if one has to be made.
    Slots,
    /// A WAL sender is free.
    WalSenders,
    /// The subscription's own slot.
    Slot,
    /// They exist and publish the tables.
    Publications,
    /// USAGE and SELECT for the initial copy.
    Privileges,
    /// The target is reached and takes writes.
    Target,
    /// Schema `pgsluice` in the target.
    State,
    /// `session_replication_role`.
    ReplicaRole,
    /// Replication origins.
    Origins,
    /// Each published table fits into its target.
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

    /// What has to be reached before it.
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

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    /// It works, though not as fully as it could, or not for ever.
    Warning,
    Failed,
    /// What it needs has failed.
    NotReached,
}

impl Status {
    /// For people.
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

/// One step and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    pub step: Step,
    pub status: Status,
    #[serde(flatten)]
    pub text: Diagnosis,
}

/// Something about one table that does not fit or may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub status: Status,
    #[serde(flatten)]
    pub text: Diagnosis,
}

/// A published table beside its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    pub source: QualifiedName,
    pub target: QualifiedName,
    pub status: Status,
    /// The published columns in their order, then the target's own.
    pub columns: Vec<ColumnReport>,
    pub findings: Vec<Finding>,
}

/// A column on both sides; types as DDL has them, null where the side lacks the column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnReport {
    pub name: String,
    pub publisher: Option<String>,
    pub target: Option<String>,
    pub status: Status,
    pub note: Option<String>,
}

/// Whether both servers answered at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Reached,
    Unreachable,
}

/// One subscription's check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub name: String,
    /// Nothing failed; there may be warnings.
    pub ok: bool,
    /// Every step, in order.
    pub steps: Vec<StepReport>,
    pub tables: Vec<TableReport>,
    #[serde(skip)]
    pub reach: Reach,
}

/// Everything that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Document {
    pub subscriptions: Vec<Report>,
}

impl Document {
    /// What the command exits with (DESIGN.md, section 3).
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
