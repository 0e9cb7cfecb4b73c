//! Errors of the state in the target, and what the caller does about them.

mod connecting;

use std::fmt;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;

use crate::error::{Diagnosis, Disposition, Exit, Failure, PauseReason, ServerError};
use crate::pg::{Lsn, QualifiedName};
use crate::text::kept;

pub(super) use connecting::{connecting, meeting};
use connecting::{refused_diagnosis, unreachable_diagnosis};

/// A failed operation on the state, with what was being done and why it failed.
#[derive(Debug)]
pub struct StoreError {
    action: &'static str,
    kind: StoreErrorKind,
}

/// Why an operation on the state failed.
#[derive(Debug)]
pub enum StoreErrorKind {
    /// No session could be opened on the target, because of its name, the network, TLS or a time-out.
    Unreachable {
        endpoint: String,
        source: sqlx::Error,
    },
    /// The server answered, but refused the session: authentication, database, role.
    Refused {
        endpoint: String,
        server: Box<ServerError>,
    },
    /// A statement failed.
    Server(Box<ServerError>),
    /// The connection broke, or did not answer in time.
    Lost(Option<sqlx::Error>),
    /// A connection parameter that sqlx does not support, or a pooler between pgsluice and the server.
    Unsupported(Diagnosis),
    /// Schema `pgsluice` is missing or older than this version needs.
    NotMigrated {
        found: Option<i64>,
        required: i64,
    },
    /// Schema `pgsluice` was upgraded by a newer pgsluice.
    Newer {
        found: i64,
        required: i64,
    },
    /// The migrations that were installed are not the ones that this version carries.
    Foreign {
        version: i64,
    },
    /// Another instance has taken the subscription over, or the target is in another run. Nothing was written.
    NotOwner {
        subscription: String,
    },
    /// A later copy of the table has begun than the one that the write was about. Nothing was written.
    CopySuperseded {
        source: QualifiedName,
    },
    UnknownSubscription(String),
    UnknownTable {
        subscription: String,
        source: QualifiedName,
    },
    UnknownConflict(i64),
    /// The conflict has been settled before.
    AlreadyResolved(i64),
    SkipRefused(SkipRefusal),
    /// A command about tables or gaps cannot be carried out as they are.
    CommandRefused(Diagnosis),
    /// A row has a value that this version does not know.
    Undecodable(sqlx::Error),
}

/// Why a skip was not armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipRefusal {
    /// Everything up to `applied` has been applied.
    AlreadyApplied { lsn: Lsn, applied: Lsn },
    /// The subscription is paused on a conflict in another transaction.
    OtherConflict { lsn: Lsn, conflict: Lsn },
}

impl StoreError {
    pub(super) const fn new(action: &'static str, kind: StoreErrorKind) -> Self {
        Self { action, kind }
    }

    pub(super) fn into_kind(self) -> StoreErrorKind {
        self.kind
    }

    #[must_use]
    pub const fn kind(&self) -> &StoreErrorKind {
        &self.kind
    }

    /// Errors that may pass by themselves are retried; the subscription pauses for those that an operator
    /// must repair.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        use StoreErrorKind as K;
        let pause = Disposition::Pause(PauseReason::TargetError);
        match &self.kind {
            K::Unreachable { source, .. } if !is_of_the_settings(source) => Disposition::Retry,
            K::Lost(_) | K::NotOwner { .. } | K::CopySuperseded { .. } => Disposition::Retry,
            K::Refused { server, .. } | K::Server(server) => {
                if server.is_transient() || is_read_only(server) { Disposition::Retry } else { pause }
            }
            K::Unreachable { .. }
            | K::Unsupported(_)
            | K::NotMigrated { .. }
            | K::Newer { .. }
            | K::Foreign { .. }
            | K::UnknownSubscription(_)
            | K::UnknownTable { .. }
            | K::UnknownConflict(_)
            | K::AlreadyResolved(_)
            | K::SkipRefused(_)
            | K::CommandRefused(_)
            | K::Undecodable(_) => pause,
        }
    }

    /// Whether another instance has taken the subscription over.
    #[must_use]
    pub const fn is_not_owner(&self) -> bool {
        matches!(self.kind, StoreErrorKind::NotOwner { .. })
    }

    /// The exit code of the command line.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        use StoreErrorKind as K;
        match &self.kind {
            K::Unreachable { .. } | K::Refused { .. } | K::Lost(_) => Exit::Unreachable,
            K::Unsupported(_)
            | K::UnknownSubscription(_)
            | K::UnknownTable { .. }
            | K::UnknownConflict(_) => Exit::Usage,
            K::Server(_)
            | K::NotMigrated { .. }
            | K::Newer { .. }
            | K::Foreign { .. }
            | K::NotOwner { .. }
            | K::CopySuperseded { .. }
            | K::AlreadyResolved(_)
            | K::SkipRefused(_)
            | K::CommandRefused(_)
            | K::Undecodable(_) => Exit::No,
        }
    }

    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        use StoreErrorKind as K;
        match &self.kind {
            K::Unreachable { endpoint, source } => unreachable_diagnosis(endpoint, source),
            K::Refused { endpoint, server } => refused_diagnosis(endpoint, server),
            K::Server(server) => server_diagnosis(self.action, server),
            K::Lost(source) => {
                let diagnosis = Diagnosis::new("the connection to the target database was lost")
                    .hint("check the target server and the network to it; the operation can be repeated");
                diagnosis.detail(source.as_ref().map_or_else(
                    || format!("no answer in time while trying to {}", self.action),
                    |source| format!("while trying to {}: {}", self.action, describe(source)),
                ))
            }
            K::Unsupported(diagnosis) => diagnosis.clone(),
            K::NotMigrated { found, required } => not_migrated_diagnosis(*found, *required),
            K::Newer { found, required } => {
                Diagnosis::new("schema pgsluice in the target was upgraded by a newer pgsluice")
                    .detail(format!("the target has version {found}, this pgsluice knows up to {required}"))
                    .hint("run the newer pgsluice; state is never downgraded")
            }
            K::Foreign { version } => {
                Diagnosis::new("schema pgsluice in the target was not installed by a release of pgsluice")
                    .detail(format!("migration {version} differs from the one that this pgsluice carries"))
                    .hint("run the pgsluice that installed it, or drop schema pgsluice to start over")
            }
            K::NotOwner { subscription } => {
                Diagnosis::new(format!("this instance no longer owns subscription \"{subscription}\""))
                    .detail(format!(
                        "another one has taken it over, or the target was restarted; while trying to {}, and nothing was \
                         written",
                        self.action
                    ))
                    .hint("this instance lets go and stands by")
            }
            K::CopySuperseded { source } => {
                Diagnosis::new(format!("the record of table {source} has moved on to another copy"))
                    .detail(format!("while trying to {}; nothing was written", self.action))
                    .hint("the record is read again by itself")
            }
            K::UnknownSubscription(name) => Diagnosis::new(format!("there is no subscription \"{name}\""))
                .hint("\"pgsluice status\" lists them"),
            K::UnknownTable { subscription, source } => {
                Diagnosis::new(format!("{source} is not a table of subscription \"{subscription}\""))
                    .hint(format!("\"pgsluice status {subscription}\" lists its tables"))
            }
            K::UnknownConflict(id) => {
                Diagnosis::new(format!("there is no conflict {id}")).hint("\"pgsluice conflicts\" lists them")
            }
            K::AlreadyResolved(id) => Diagnosis::new(format!("conflict {id} has been settled already"))
                .hint(format!("\"pgsluice conflicts show {id}\" says how")),
            K::SkipRefused(refusal) => refusal.diagnosis(),
            K::CommandRefused(refusal) => refusal.clone(),
            K::Undecodable(source) => {
                Diagnosis::new("the state in the target holds what this pgsluice does not understand")
                    .detail(format!("while trying to {}: {}", self.action, describe(source)))
                    .hint("schema pgsluice must only be written by pgsluice; report this if it was")
            }
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnosis().primary)
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            StoreErrorKind::Unreachable { source, .. }
            | StoreErrorKind::Lost(Some(source))
            | StoreErrorKind::Undecodable(source) => Some(source),
            StoreErrorKind::Refused { server, .. } | StoreErrorKind::Server(server) => Some(&**server),
            _ => None,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error.exit(), error.diagnosis())
    }
}

impl SkipRefusal {
    fn diagnosis(self) -> Diagnosis {
        match self {
            Self::AlreadyApplied { lsn, applied } => {
                Diagnosis::new(format!("no transaction that finishes at {lsn} is ahead"))
                    .detail(format!("everything up to {applied} has been applied already"))
                    .hint("a skip takes the finish LSN that \"pgsluice conflicts\" shows")
            }
            Self::OtherConflict { lsn, conflict } => Diagnosis::new(format!(
                "the transaction that holds the subscription does not finish at {lsn}"
            ))
            .detail(format!("the conflict's transaction finishes at {conflict}"))
            .hint(format!("skip that one with --lsn {conflict}, or settle the conflict first")),
        }
    }
}

/// Converts sqlx's errors of statements on an open session.
impl From<sqlx::Error> for StoreErrorKind {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(ref database) => match database.try_downcast_ref::<PgDatabaseError>() {
                Some(database) => Self::Server(Box::new(server_error(database))),
                None => Self::Lost(Some(error)),
            },
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::RowNotFound
            | sqlx::Error::InvalidArgument(_) => Self::Undecodable(error),
            other => Self::Lost(Some(other)),
        }
    }
}

impl From<MigrateError> for StoreErrorKind {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => source.into(),
            MigrateError::VersionMismatch(version)
            | MigrateError::VersionMissing(version)
            | MigrateError::Dirty(version) => Self::Foreign { version },
            other => Self::Undecodable(sqlx::Error::Migrate(Box::new(other))),
        }
    }
}

/// Whether the operation may succeed on another server, or on the same one a moment later.
pub(super) fn is_of_the_connection(kind: &StoreErrorKind) -> bool {
    match kind {
        StoreErrorKind::Lost(_) | StoreErrorKind::Unreachable { .. } => true,
        StoreErrorKind::Server(server) | StoreErrorKind::Refused { server, .. } => {
            matches!(server.class(), "08" | "57") || is_read_only(server)
        }
        _ => false,
    }
}

/// Whether the error lies in certificates or keys, so that waiting does not help.
const fn is_of_the_settings(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Tls(_) | sqlx::Error::Configuration(_))
}

/// Whether the server is read-only (25006): it has become a standby, or is about to be promoted.
fn is_read_only(server: &ServerError) -> bool {
    server.code == "25006"
}

fn server_error(error: &PgDatabaseError) -> ServerError {
    let owned = |text: Option<&str>| text.map(kept);
    ServerError {
        severity: format!("{:?}", error.severity()).to_uppercase(),
        code: kept(error.code()),
        message: kept(error.message()),
        detail: owned(error.detail()),
        hint: owned(error.hint()),
        context: owned(error.r#where()),
        schema: owned(error.schema()),
        table: owned(error.table()),
        column: owned(error.column()),
        data_type: owned(error.data_type()),
        constraint: owned(error.constraint()),
    }
}

/// Returns the innermost cause; sqlx's errors around it add nothing.
fn describe(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(source) => source.to_string(),
        sqlx::Error::Tls(source) => format!("TLS: {source}"),
        sqlx::Error::PoolTimedOut => "no connection became free in time".to_owned(),
        other => other.to_string(),
    }
}

fn server_diagnosis(action: &str, server: &ServerError) -> Diagnosis {
    let mut diagnosis = server.diagnosis();
    let context = format!("while trying to {action}");
    diagnosis.detail = Some(match diagnosis.detail {
        Some(detail) => format!("{detail} ({context})"),
        None => context,
    });
    if action == super::migrate::ACTION {
        // DDL of pgsluice's own schema has no row, so whatever a function of the target says may be logged.
        diagnosis.logged_as = None;
        if server.class() == "P0" && diagnosis.hint.is_none() {
            diagnosis.hint = Some(
                "a function of the target refuses pgsluice's DDL, such as an event trigger's (SELECT evtname, \
                 evtfoid::regproc FROM pg_event_trigger;): let it pass schema pgsluice, or disable it while \
                 \"pgsluice migrate\" runs"
                    .to_owned(),
            );
        }
    }
    if server.code == "42501" && diagnosis.hint.is_none() {
        diagnosis.hint = Some(
            "the first \"pgsluice migrate\" needs CREATE on the database and later ones ownership of schema \
             pgsluice; everything else needs GRANT USAGE ON SCHEMA pgsluice and GRANT SELECT, INSERT, UPDATE, \
             DELETE ON ALL TABLES IN SCHEMA pgsluice"
                .to_owned(),
        );
    }
    diagnosis
}

fn not_migrated_diagnosis(found: Option<i64>, required: i64) -> Diagnosis {
    let diagnosis = match found {
        None => Diagnosis::new("schema pgsluice is not there in the target database"),
        Some(found) => Diagnosis::new("schema pgsluice in the target is older than this pgsluice")
            .detail(format!("the target has version {found}, this pgsluice needs {required}")),
    };
    diagnosis.hint("run \"pgsluice migrate\" (\"pgsluice run\" does it too)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: StoreErrorKind, disposition: Disposition, exit: Exit) -> String {
        let error = StoreError::new("read the subscriptions", kind);
        assert_eq!((error.disposition(), error.exit()), (disposition, exit), "{error:?}");
        error.diagnosis().to_string()
    }

    const PAUSE: Disposition = Disposition::Pause(PauseReason::TargetError);

    #[test]
    fn a_connection_that_breaks_is_tried_again() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        insta::assert_snapshot!(
            check(connecting("db:5432", refused.into()), Disposition::Retry, Exit::Unreachable),
            @r"
        the target at db:5432 could not be reached
          detail: connection refused
          hint: check that the server runs and listens there (listen_addresses, port), and [target] url
        "
        );
        insta::assert_snapshot!(
            check(StoreErrorKind::Lost(None), Disposition::Retry, Exit::Unreachable),
            @r"
        the connection to the target database was lost
          detail: no answer in time while trying to read the subscriptions
          hint: check the target server and the network to it; the operation can be repeated
        "
        );
    }

    #[test]
    fn a_missing_privilege_needs_a_person() {
        let server = ServerError {
            code: "42501".into(),
            message: "permission denied for table subscription".into(),
            ..ServerError::default()
        };
        let text = check(StoreErrorKind::Server(Box::new(server)), PAUSE, Exit::No);
        assert!(text.contains("GRANT USAGE ON SCHEMA pgsluice"), "{text}");
    }

    #[test]
    fn a_newer_schema_is_named() {
        insta::assert_snapshot!(
            check(StoreErrorKind::Newer { found: 9, required: 3 }, PAUSE, Exit::No),
            @r"
        schema pgsluice in the target was upgraded by a newer pgsluice
          detail: the target has version 9, this pgsluice knows up to 3
          hint: run the newer pgsluice; state is never downgraded
        "
        );
    }
}
