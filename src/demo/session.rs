//! A session with a throw-away server as psql would have it: statements in, text out.
//!
//! psql may be missing where only the server is installed. Only the demo and the tests use this.

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::cluster_error::ClusterError;

/// One row, every value as its text form, NULL as `None`.
pub type TextRow = Vec<Option<String>>;

/// An open session. After a drop it closes soon; [`Session::close`] waits for that.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// Runs the connection of `client` and ends with it.
    connection: JoinHandle<()>,
}

/// A result with its column names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextTable {
    pub columns: Vec<String>,
    pub rows: Vec<TextRow>,
}

impl Session {
    /// Opens a session, without TLS, by a libpq connection string.
    pub async fn connect(conninfo: &str) -> Result<Self, ClusterError> {
        let connected = tokio_postgres::connect(conninfo, NoTls).await;
        // The string itself may hold a password, so it is not shown.
        let (client, connection) =
            connected.map_err(|source| ClusterError::Sql { statement: "connecting".to_owned(), source })?;
        // The statement in progress returns the connection's error.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client, connection })
    }

    /// Runs one or more statements and ignores their rows. Several statements are one transaction.
    pub async fn batch(&self, sql: &str) -> Result<(), ClusterError> {
        self.client.batch_execute(sql).await.map_err(|source| failed(sql, source))
    }

    /// Returns the rows of `sql` with the columns' names (of the last statement, if there are several).
    pub async fn table(&self, sql: &str) -> Result<TextTable, ClusterError> {
        let messages = self.client.simple_query(sql).await.map_err(|source| failed(sql, source))?;
        let mut table = TextTable::default();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    table.columns = columns.iter().map(|column| column.name().to_owned()).collect();
                    table.rows.clear();
                }
                SimpleQueryMessage::Row(row) => {
                    let value = |index| row.try_get(index).map(|value| value.map(str::to_owned));
                    let row: Result<TextRow, _> = (0..row.len()).map(value).collect();
                    table.rows.push(row.map_err(|source| failed(sql, source))?);
                }
                _ => {}
            }
        }
        Ok(table)
    }

    /// Returns the rows of `sql`.
    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>, ClusterError> {
        Ok(self.table(sql).await?.rows)
    }

    /// Returns the first column of the first row; `None` if it is NULL or there is no row.
    pub async fn value(&self, sql: &str) -> Result<Option<String>, ClusterError> {
        Ok(self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// Ends the session and waits until it has ended.
    pub async fn close(self) {
        let Self { client, connection } = self;
        drop(client);
        let _ = connection.await;
    }

    /// Returns the driver's client.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }
}

fn failed(sql: &str, source: tokio_postgres::Error) -> ClusterError {
    ClusterError::Sql { statement: sql.trim().to_owned(), source }
}

/// Quotes a value for libpq's keyword/value connection strings.
pub(super) fn conninfo_value(value: &str) -> String {
    if !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c)) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_string_values_are_quoted_where_needed() {
        assert_eq!(conninfo_value("example"), "example");
        assert_eq!(conninfo_value(""), "''");
        assert_eq!(conninfo_value(r"it's a \ name"), r"'it\'s a \\ name'");
    }
}
