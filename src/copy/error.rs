//! Errors of copying a table, with the server that they came from.

use std::fmt;

use crate::error::{Diagnosis, ServerError};
use crate::net::{ConnectError, server_error};
use crate::pg::QualifiedName;
use crate::schema::catalog;
use crate::target::OpenError;

/// PostgreSQL's error for a missing privilege.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// The server that an error came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Publisher,
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publisher => "publisher",
            Self::Target => "target",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("could not connect to the publisher for the copy")]
    ConnectPublisher(#[source] ConnectError),
    #[error("could not open a target session for the copy")]
    OpenTarget(#[source] OpenError),
    #[error("the connection to the {0} was lost during the copy")]
    Connection(Side, #[source] tokio_postgres::Error),
    #[error("the {0} reported an error during the copy")]
    Server(Side, #[source] Box<ServerError>),
    /// A later attempt, or another instance, copies the table.
    #[error("another attempt has taken over the copy of {0}")]
    Superseded(QualifiedName),
    /// Rows of the table may be hidden from the snapshot.
    #[error("{0} was rewritten on the publisher after the snapshot of its copy was taken")]
    Rewritten(QualifiedName),
    /// What was to be copied is not what the snapshot has.
    #[error(
        "{0} was renamed, or its columns were changed, on the publisher before the snapshot of its copy was taken"
    )]
    Changed(QualifiedName),
    /// The row was refused before it was read.
    #[error(
        "a row of {table} has {bytes} bytes as the publisher sends it, more than max_value_bytes ({bytes_max})"
    )]
    TooLarge { table: QualifiedName, bytes: usize, bytes_max: usize },
    /// The value would be lost.
    #[error("column \"{column}\" of {table} has values, and is to be ignored only while it is NULL")]
    IgnoredValue { table: QualifiedName, column: String },
    /// The rows that the target table has could not be treated as asked.
    #[error("the rows that the target table has stay as they are")]
    Existing(Box<Diagnosis>),
    /// The answer to a COMMIT was lost, and the record could not be read: the copy may be committed or not.
    #[error("it is not known whether the copy of {0} was committed")]
    Unsettled(QualifiedName),
}

impl CopyError {
    pub(super) fn on(side: Side) -> impl Fn(tokio_postgres::Error) -> Self {
        move |error| match server_error(&error) {
            Some(server) => Self::Server(side, Box::new(server)),
            None => Self::Connection(side, error),
        }
    }

    /// A failure of the publisher's session.
    #[must_use]
    pub fn publisher(error: tokio_postgres::Error) -> Self {
        Self::on(Side::Publisher)(error)
    }

    /// A failure of the target's session.
    #[must_use]
    pub fn target(error: tokio_postgres::Error) -> Self {
        Self::on(Side::Target)(error)
    }

    /// Describes the error to an operator, for `table`, which `role` reads on the publisher.
    #[must_use]
    pub fn diagnosis(&self, table: &QualifiedName, role: &str) -> Diagnosis {
        let copying = format!("the initial copy of {table} failed");
        match self {
            Self::ConnectPublisher(error) | Self::OpenTarget(OpenError::Connect(error)) => error.diagnosis(),
            Self::OpenTarget(OpenError::TooOld(diagnosis)) => diagnosis.clone(),
            Self::OpenTarget(OpenError::Prepare(error)) => Diagnosis::new(copying).detail(error.to_string()),
            Self::Connection(side, error) => {
                Diagnosis::new(copying).detail(format!("the connection to the {side} was lost: {error}"))
            }
            Self::Superseded(_) => Diagnosis::new(copying).detail(self.to_string()),
            Self::Rewritten(_) => Diagnosis::new(copying)
                .detail(format!("{self} (ALTER TABLE, TRUNCATE or VACUUM FULL), and that hides its rows"))
                .hint("it is copied again by itself, under a new snapshot"),
            Self::Changed(_) => Diagnosis::new(copying)
                .detail(self.to_string())
                .hint("it is copied again by itself, as it is now"),
            Self::TooLarge { .. } => Diagnosis::new(copying)
                .detail(self.to_string())
                .hint("raise max_value_bytes of the subscription and reload the configuration (SIGHUP)"),
            Self::IgnoredValue { .. } => Diagnosis::new(copying).detail(self.to_string()).hint(
                "let the column go to one of the target (to), or ignore its values (ignore = true), in \
                 [[subscriptions.tables]], and reload the configuration (SIGHUP)",
            ),
            Self::Existing(diagnosis) => (**diagnosis).clone(),
            Self::Unsettled(_) => Diagnosis::new(self.to_string())
                .detail(
                    "the connection to the target was lost, and its record of the table could not be asked",
                )
                .hint("the record is asked again by itself once the target is back"),
            Self::Server(Side::Publisher, error) if error.code == INSUFFICIENT_PRIVILEGE => {
                catalog::refused_copy(role, table, &error.message)
            }
            Self::Server(side, error) => {
                let mut detail = format!("{side}: {error}");
                for more in error.detail.iter().chain(&error.context) {
                    detail = format!("{detail}; {more}");
                }
                let hint = error.hint.clone().unwrap_or_else(|| remedy(*side, error, table));
                let logged = error.diagnosis().logged_as.map(|logged| format!("{copying}: {side}: {logged}"));
                let diagnosis = Diagnosis::new(copying).detail(detail).hint(hint);
                Diagnosis { logged_as: logged, ..diagnosis }
            }
        }
    }
}

fn remedy(side: Side, error: &ServerError, table: &QualifiedName) -> String {
    match (side, error.code.as_str()) {
        (Side::Target, INSUFFICIENT_PRIVILEGE) => {
            format!("on the target: GRANT INSERT ON {} TO the target role", table.quoted())
        }
        (Side::Target, "23505") => format!(
            "the target already has rows with these keys: empty the table (TRUNCATE {};) or delete them there; the \
             copy is tried again by itself",
            table.quoted()
        ),
        (Side::Target, _) if error.is_name_lost_in_function() => ServerError::NAME_LOST.to_owned(),
        _ => "the copy is tried again by itself; what it met must be fixed first".to_owned(),
    }
}
