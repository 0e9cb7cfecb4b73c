//! The driver's errors of a server as ours.

use tokio_postgres::error::DbError;

use crate::error::ServerError;
use crate::text::kept;

/// Returns the server's error in full; `None` for other errors (I/O, conversions).
#[must_use]
pub fn server_error(error: &tokio_postgres::Error) -> Option<ServerError> {
    error.as_db_error().map(from_db_error)
}

pub(super) fn from_db_error(db: &DbError) -> ServerError {
    let owned = |text: Option<&str>| text.map(kept);
    ServerError {
        severity: kept(db.severity()),
        code: kept(db.code().code()),
        message: kept(db.message()),
        detail: owned(db.detail()),
        hint: owned(db.hint()),
        context: owned(db.where_()),
        schema: owned(db.schema()),
        table: owned(db.table()),
        column: owned(db.column()),
        data_type: owned(db.datatype()),
        constraint: owned(db.constraint()),
    }
}
