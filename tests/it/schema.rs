//! `schema` against real servers: the catalogs' content, the walsender's behaviour, and the DDL that
//! corrects misfits.
//!
//! The server is the newest that is installed, or the one in `PGSLUICE_TEST_PG_BIN`. What a version
//! does not support is left out of its test, which says so.

use pgsluice::pg::QualifiedName;
use pgsluice::schema::catalog;
use pgsluice::schema::{PublishedTable, TargetTable};
use tokio_postgres::Client;

use self::server::Database;

mod oracle;
mod publisher;
mod server;
mod target;
mod values;

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn name(text: &str) -> QualifiedName {
    text.parse().expect("a table name")
}

async fn published(database: &Database, publications: &[&str]) -> Vec<PublishedTable> {
    let found = catalog::published(&database.client, database.version, &strings(publications)).await;
    found.expect("published tables").tables
}

async fn targets(client: &Client, names: &[QualifiedName]) -> Vec<Option<TargetTable>> {
    catalog::target_tables(client, names).await.expect("target tables")
}

async fn target(client: &Client, table: &str) -> TargetTable {
    targets(client, &[name(table)]).await.remove(0).expect("the table exists")
}

/// Prints past the capture of output, so that a test that was skipped does not look like one that
/// passed.
fn skipped(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
