//! Grants the roles' privileges with the statements in docs/security.md, so that the tests run what
//! operators are told to run.

use pgsluice::pg::{quote_ident, quote_literal};

const PAGE: &str = include_str!("../../../docs/security.md");
/// The page's placeholder for a password.
const PASSWORD: &str = "'…'";
/// The page's name of the database.
const DATABASE: &str = "DATABASE example";

/// Returns the page's block of this name (`<!-- sql: NAME -->` above it) for a database and a password.
#[track_caller]
pub(crate) fn documented(name: &str, database: &str, password: &str) -> String {
    block(name)
        .replace(PASSWORD, &quote_literal(password))
        .replace(DATABASE, &format!("DATABASE {}", quote_ident(database)))
}

#[track_caller]
fn block(name: &str) -> &'static str {
    let start = format!("<!-- sql: {name} -->\n```sql\n");
    let mut found = PAGE.split(&start).skip(1);
    let block = found.next().and_then(|rest| rest.split("```").next());
    assert!(found.next().is_none(), "docs/security.md has two blocks {name}");
    block.unwrap_or_else(|| panic!("docs/security.md has no block {name}"))
}

/// Returns every block's name in the page's order.
pub(crate) fn names() -> Vec<&'static str> {
    PAGE.split("<!-- sql: ").skip(1).map(|rest| rest.split(" -->").next().unwrap()).collect()
}

#[test]
fn a_block_is_for_a_database_and_a_password() {
    let sql = documented("publisher-role", "other \"one\"", "it's");
    assert!(sql.starts_with("CREATE ROLE sammy LOGIN REPLICATION PASSWORD 'it''s';\n"), "{sql}");
    assert!(sql.contains("GRANT CONNECT ON DATABASE \"other \"\"one\"\"\" TO sammy;"), "{sql}");
    assert_eq!(PAGE.matches("```sql").count(), names().len(), "every statement of the page has a name");
}
