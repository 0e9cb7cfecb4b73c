//! The driver's errors of a server as ours.

use tokio_postgres::error::DbError;

use crate::error::ServerError;

/// Returns the server's error in full; `None` for other errors (I/O, conversions).
#[must_use]
pub fn server_error(error: &tokio_postgres::Error) -> Option<ServerError> {
    error.as_db_error().map(from_db_error)
}

/// Largest text of an error that is kept, bytes. Some messages quote the whole value that was refused.
const TEXT_BYTES_MAX: usize = 8 << 10;

fn clipped(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(TEXT_BYTES_MAX)])
}

pub(super) fn from_db_error(db: &DbError) -> ServerError {
    let owned = |text: Option<&str>| text.map(clipped);
    ServerError {
        severity: db.severity().to_owned(),
        code: db.code().code().to_owned(),
        message: clipped(db.message()),
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
