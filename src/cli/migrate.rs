//! `pgsluice migrate`: creates or upgrades schema `pgsluice` in the target.

use std::fmt::Write as _;

use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::store::{AppliedMigration, SCHEMA_VERSION, Store};

use super::output;

pub(super) async fn run(config: &Config) -> Result<Exit, Failure> {
    let store = Store::connect(&config.target.conninfo).await?;
    let applied = store.migrate().await?;
    store.close().await;
    output::print(&render(&applied))?;
    Ok(Exit::Fine)
}

fn render(applied: &[AppliedMigration]) -> String {
    let mut text = String::new();
    for AppliedMigration { version, description } in applied {
        let _ = writeln!(text, "applied {version:04} {description}");
    }
    let done = if applied.is_empty() { "was already" } else { "is now" };
    let _ = writeln!(text, "schema pgsluice {done} at version {SCHEMA_VERSION}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_listed() {
        let applied = [AppliedMigration { version: 5, description: "plan_id" }];
        insta::assert_snapshot!(render(&applied), @r"
        applied 0005 plan_id
        schema pgsluice is now at version 18
        ");
        insta::assert_snapshot!(render(&[]), @"schema pgsluice was already at version 18");
    }
}
