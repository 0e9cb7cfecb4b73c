//! Converts between the columns of schema `pgsluice` and the types of the program: positions, times, counts, words.

use jiff::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::pg::Lsn;

use super::codec::Time;

/// Converts to PostgreSQL's signed bigint; a larger value becomes the maximum.
pub(super) fn saturate(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(row: &PgRow, column: &str) -> Result<Option<u64>, sqlx::Error> {
    let value: Option<i64> = row.try_get(column)?;
    value.map(u64::try_from).transpose().map_err(|error| undecodable(column, error))
}

/// A position that was selected as text.
pub(super) fn lsn(row: &PgRow, column: &str) -> Result<Option<Lsn>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    text.map(str::parse).transpose().map_err(|error| undecodable(column, error))
}

pub(super) fn time(row: &PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<Time>, _>(column)?.map(|time| time.0))
}

/// A column of one of the fixed sets of words.
pub(super) fn word<T>(row: &PgRow, column: &str) -> Result<T, sqlx::Error>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.try_get::<&str, _>(column)?.parse().map_err(|error| undecodable(column, error))
}

fn undecodable(column: &str, source: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(source) }
}
