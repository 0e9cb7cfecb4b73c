//! A database of one side, accessed as superuser.

use pgsluice::demo::cluster::Cluster;
use pgsluice::demo::{Session, TextRow};
use pgsluice::pg::{quote_ident, quote_literal};

/// Rows as text, NULL as `None`.
pub(crate) type Rows = Vec<TextRow>;

/// A database accessed as superuser. Every call opens a session, so that it works across restarts of
/// the server.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) port: u16,
    superuser: String,
}

impl Database {
    /// Creates the database `name`.
    pub(crate) async fn create(server: &Cluster, name: &str) -> Self {
        server.create_database(name).await.unwrap_or_else(|error| panic!("{}", error.diagnosis()));
        Self::on(server, name)
    }

    /// The database `name` of a server that has it.
    pub(crate) fn on(server: &Cluster, name: &str) -> Self {
        let superuser = server.conninfo(name, pgsluice::demo::cluster::SUPERUSER);
        Self { name: name.to_owned(), port: server.port(), superuser }
    }

    /// The superuser's connection string.
    pub(crate) fn superuser(&self) -> &str {
        &self.superuser
    }

    /// A session of the superuser.
    pub(crate) async fn session(&self) -> Session {
        Session::connect(&self.superuser).await.unwrap_or_else(|error| panic!("{}", error.diagnosis()))
    }

    /// A session of the superuser, if the server lets it in now.
    pub(crate) async fn try_session(&self) -> Result<Session, String> {
        Session::connect(&self.superuser).await.map_err(|error| error.diagnosis().to_string())
    }

    /// The one value of a query, if the server answers now; empty if it is NULL or there is no row.
    pub(crate) async fn try_value(&self, sql: &str) -> Result<String, String> {
        let session = self.try_session().await?;
        let value = session.value(sql).await.map_err(|error| error.diagnosis().to_string())?;
        Ok(value.unwrap_or_default())
    }

    /// The rows of a query as [`Database::lines`] has them, if the server answers now.
    pub(crate) async fn try_lines(&self, sql: &str) -> Result<Vec<String>, String> {
        let session = self.try_session().await?;
        let rows = session.rows(sql).await.map_err(|error| error.diagnosis().to_string())?;
        Ok(rows.iter().map(line).collect())
    }

    /// Runs statements; several are one transaction.
    #[track_caller]
    pub(crate) fn exec(&self, sql: impl Into<String>) -> impl Future<Output = ()> {
        let (database, sql, caller) = (self.clone(), sql.into(), std::panic::Location::caller());
        async move {
            let session = database.session().await;
            if let Err(error) = session.batch(&sql).await {
                panic!("{} (called at {caller})", error.diagnosis());
            }
            session.close().await;
        }
    }

    /// Runs statements that must fail and returns the server's message.
    pub(crate) async fn exec_fails(&self, sql: &str) -> String {
        match self.session().await.batch(sql).await {
            Ok(()) => panic!("this was expected to fail: {sql}"),
            Err(error) => error.diagnosis().to_string(),
        }
    }

    /// Returns the rows of a query, every value as text.
    #[track_caller]
    pub(crate) fn query_text(&self, sql: impl Into<String>) -> impl Future<Output = Rows> {
        let (database, sql, caller) = (self.clone(), sql.into(), std::panic::Location::caller());
        async move {
            let session = database.session().await;
            let rows = session.rows(&sql).await;
            session.close().await;
            rows.unwrap_or_else(|error| panic!("{} (called at {caller})", error.diagnosis()))
        }
    }

    /// Returns the one value of a query; `None` if it is NULL or there is no row.
    pub(crate) async fn value(&self, sql: &str) -> Option<String> {
        self.query_text(sql).await.into_iter().next().and_then(|row| row.into_iter().next().flatten())
    }

    /// Returns the rows as `a|b|c` lines in the query's order, NULL as `∅`.
    pub(crate) async fn lines(&self, sql: &str) -> Vec<String> {
        self.query_text(sql).await.iter().map(line).collect()
    }

    /// Returns the columns of a table (named as in SQL) in order.
    pub(crate) async fn columns(&self, table: &str) -> Vec<String> {
        self.looks().columns(table).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns these columns of all rows of a table, sorted.
    pub(crate) async fn sorted(&self, table: &str, columns: &[String]) -> Vec<String> {
        self.looks().sorted(table, columns).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// For repeated looks at this database.
    pub(crate) fn looks(&self) -> Looks {
        Looks { database: self.clone(), session: None }
    }
}

/// Looks at a database again and again, in one session for as long as that lives: a session's start costs the
/// server more than most queries.
#[derive(Debug)]
pub(crate) struct Looks {
    database: Database,
    session: Option<Session>,
}

impl Looks {
    /// Returns the rows of a query, if the server answers now.
    pub(crate) async fn rows(&mut self, sql: &str) -> Result<Rows, String> {
        // A look that is given up in the middle takes its session with it.
        let session = match self.session.take() {
            Some(session) if !session.client().is_closed() => session,
            _ => self.database.try_session().await?,
        };
        let rows = session.rows(sql).await.map_err(|error| error.diagnosis().to_string());
        self.session = Some(session);
        rows
    }

    /// As [`Database::lines`].
    pub(crate) async fn lines(&mut self, sql: &str) -> Result<Vec<String>, String> {
        Ok(self.rows(sql).await?.iter().map(line).collect())
    }

    /// As [`Database::columns`].
    pub(crate) async fn columns(&mut self, table: &str) -> Result<Vec<String>, String> {
        let sql = format!(
            "SELECT attname FROM pg_attribute WHERE attrelid = {}::regclass AND attnum > 0 \
             AND NOT attisdropped ORDER BY attnum",
            quote_literal(table)
        );
        Ok(self.rows(&sql).await?.into_iter().flatten().flatten().collect())
    }

    /// As [`Database::sorted`].
    pub(crate) async fn sorted(&mut self, table: &str, columns: &[String]) -> Result<Vec<String>, String> {
        let list: Vec<String> = columns.iter().map(|column| quote_ident(column)).collect();
        let mut rows = self.lines(&format!("SELECT {} FROM {table}", list.join(", "))).await?;
        rows.sort();
        Ok(rows)
    }

    /// Ends the session and waits until it has ended.
    pub(crate) async fn close(self) {
        if let Some(session) = self.session {
            session.close().await;
        }
    }
}

/// Formats one row for messages and comparisons.
pub(crate) fn line(row: &TextRow) -> String {
    let values: Vec<&str> = row.iter().map(|value| value.as_deref().unwrap_or("∅")).collect();
    values.join("|")
}

/// Compares two sorted lists of rows; the error describes the difference.
pub(crate) fn compare(table: &str, publisher: &[String], target: &[String]) -> Result<(), String> {
    const SHOWN_MAX: usize = 5;
    if publisher == target {
        return Ok(());
    }
    let missing = less(publisher, target);
    let surplus = less(target, publisher);
    let shown = |rows: &[String]| rows.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join("\n    ");
    Err(format!(
        "{table}: {} rows on the publisher, {} on the target\n  on the publisher only ({}):\n    {}\n  \
         on the target only ({}):\n    {}",
        publisher.len(),
        target.len(),
        missing.len(),
        shown(&missing),
        surplus.len(),
        shown(&surplus)
    ))
}

/// Returns `left` without `right`, as multisets; both are sorted.
fn less(left: &[String], right: &[String]) -> Vec<String> {
    let mut right = right.iter().peekable();
    let mut rest = Vec::new();
    for row in left {
        while right.next_if(|other| *other < row).is_some() {}
        if right.next_if(|other| *other == row).is_none() {
            rest.push(row.clone());
        }
    }
    rest
}

#[test]
fn differences_count_duplicates() {
    let rows = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(less(&rows("a a b d"), &rows("a c d")), rows("a b"));
    assert_eq!(compare("t", &rows("a b"), &rows("a b")), Ok(()));
    let text = compare("t", &rows("a a"), &rows("a")).unwrap_err();
    assert!(text.contains("2 rows on the publisher, 1 on the target"), "{text}");
}
