//! Talking to a throw-away server as a person would with psql: statements in, text out.
//!
//! psql itself may be missing where only the server is installed. For the demo and the tests only;
//! nothing of the service goes through here.

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::cluster_error::ClusterError;

/// One row, every value as its text form, NULL as `None`.
pub type TextRow = Vec<Option<String>>;

/// An open session. Dropped, it is closed soon; [`Session::close`] waits for that.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// Speaks the protocol on behalf of `client`; ends with it.
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
        // Not the string itself: it may hold a password.
        let (client, connection) =
            connected.map_err(|source| ClusterError::Sql { statement: "connecting".to_owned(), source })?;
        // Its error is the one that the statement in progress returns.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client, connection })
    }

    /// Runs one or more statements for their effect. Several are one transaction.
    pub async fn batch(&self, sql: &str) -> Result<(), ClusterError> {
        self.client.batch_execute(sql).await.map_err(|source| failed(sql, source))
    }

    /// The rows of `sql`, with its columns' names (of the last statement, if there are several).
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

    /// The rows of `sql`.
    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>, ClusterError> {
        Ok(self.table(sql).await?.rows)
    }

    /// The first column of the first row; `None` if it is NULL or there is no row.
    pub async fn value(&self, sql: &str) -> Result<Option<String>, ClusterError> {
        Ok(self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// Ends the session and waits until it has ended.
    pub async fn close(self) {
        let Self { client, connection } = self;
        drop(client);
        let _ = connection.await;
    }

    /// The driver's client, for what has no short cut here.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }
}

fn failed(sql: &str, source: tokio_postgres::Error) -> ClusterError {
    ClusterError::Sql { statement: sql.trim().to_owned(), source }
}

/// A value as libpq's keyword/value connection strings quote it.
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
