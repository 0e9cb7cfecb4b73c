//! Errors of apply, with the change that failed.

use std::sync::Arc;
use std::time::Duration;

use crate::apply::TableContext;
use crate::apply::change::RowChange;
use crate::apply::end::End;
use crate::apply::rows::plan::PlanError;
use crate::error::ServerError;
use crate::net::server_error;
use crate::pg::{Lsn, QualifiedName};
use crate::schema::catalog::CatalogError;
use crate::target::{OpenError, TargetError};

/// The change that could not be applied, kept as evidence.
#[derive(Debug, Clone)]
pub struct FailedChange {
    pub table: Arc<TableContext>,
    pub change: RowChange,
    /// Its place among the transaction's row changes, from 1.
    pub index: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The target's connection broke or could not be used.
    #[error("the connection to the target was lost")]
    Connection(#[source] tokio_postgres::Error),
    /// The target refused something that is not one row's statement.
    #[error("the target reported an error")]
    Server(#[source] Box<ServerError>),
    /// The target refused a row.
    #[error("the target refused a change")]
    Refused {
        #[source]
        error: Box<ServerError>,
        change: Box<FailedChange>,
    },
    /// A statement for exactly one row changed none, or several.
    #[error("a change of one row met {found} rows")]
    RowCount { found: u64, change: Box<FailedChange> },
    /// Another writer has moved the progress row.
    #[error("another writer has moved the progress row on from {expected}")]
    ProgressMoved { expected: Lsn },
    /// A later owner has made the progress row its own.
    #[error("another instance has taken over the progress row")]
    TakenOver,
    /// DDL has changed a table of the target since its changes were planned. Nothing of the
    /// transaction was applied.
    #[error("table {0} of the target has been changed by DDL")]
    TargetChanged(QualifiedName),
    #[error("could not read the target's catalog")]
    Catalog(#[from] CatalogError),
    /// The change does not fit its Relation message.
    #[error("a change contradicts its table's description")]
    Plan(#[from] PlanError),
    /// A batch has a value that cannot be an array's element. It can be applied row by row.
    #[error("a batch cannot be applied as sets")]
    NotASet,
    /// The target refused to begin a COPY, or an earlier statement of the transaction had failed. The driver
    /// can then no longer assign answers to requests, and the session cannot be used any more.
    #[error("the target did not begin a COPY")]
    CopyRefused(#[source] Box<ServerError>),
    /// A set changed another number of rows than it was given. Row-by-row apply finds the change that failed.
    #[error("a set met another number of rows than it was given")]
    SetMissed,
    /// The target does not answer.
    #[error("the target has not answered for {} s", .0.as_secs())]
    Unresponsive(Duration),
    /// A session for catalog queries could not be opened on the target.
    #[error("could not open another session on the target")]
    Open(#[source] Box<OpenError>),
    /// The core has ended the stream.
    #[error(transparent)]
    Ended(#[from] End),
}

impl ApplyError {
    /// Turns the server's error into that of one change.
    #[must_use]
    pub(crate) fn of_change(self, change: FailedChange) -> Self {
        match self {
            Self::Server(error) => Self::Refused { error, change: Box::new(change) },
            other => other,
        }
    }

    /// The server's error response, if there is one.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) | Self::CopyRefused(error) | Self::Refused { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl From<OpenError> for ApplyError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}

impl From<TargetError> for ApplyError {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Connection(error) => Self::Connection(error),
            TargetError::Server(error) => Self::Server(error),
            TargetError::Unresponsive(waited) => Self::Unresponsive(waited),
        }
    }
}

impl From<tokio_postgres::Error> for ApplyError {
    fn from(error: tokio_postgres::Error) -> Self {
        match server_error(&error) {
            Some(server) => Self::Server(Box::new(server)),
            None => Self::Connection(error),
        }
    }
}
