//! The chapters of the walk-through.
//!
//! Each chapter changes something on one side, waits until pgsluice has done what it should, and shows
//! the result.

use super::DemoError;
use super::cluster::{SUPERUSER, StopMode};
use super::narrator::{Narrator, Side};
use super::stage::{DATABASE, PUBLISHER_ROLE, SUBSCRIPTION, Stage, TARGET_ROLE};
use crate::pg::quote_literal;

/// The published columns, which both sides have.
const PUBLISHED: &str = "SELECT id, name, price FROM widgets ORDER BY id";
/// All columns but the target's time stamp.
const EVERYTHING: &str = "SELECT id, name, price, shelf, note FROM widgets ORDER BY id";

const PUBLISHER_TABLE: &str = "CREATE TABLE widgets (\n  id serial PRIMARY KEY, name text, price decimal);";
const TARGET_TABLE: &str = "CREATE TABLE widgets (
  id serial PRIMARY KEY, name text, price decimal,
  shelf text NOT NULL DEFAULT 'A1', note text);";

/// Runs every chapter but the last and returns the stage with the service running.
pub(super) async fn chapters(narrator: &mut Narrator) -> Result<Stage, DemoError> {
    narrator.title(
        "pgsluice, the walk-through",
        "Logical replication between two PostgreSQL servers, live, with what goes wrong and how it is \
         put right. Both servers are made for this demo; no other server is touched, and nothing of it \
         stays.",
    )?;
    let mut stage = two_servers(narrator).await?;
    two_tables(narrator, &stage).await?;
    subscription(narrator, &mut stage).await?;
    changes(narrator, &mut stage).await?;
    conflict(narrator, &mut stage).await?;
    missing_column(narrator, &mut stage).await?;
    Ok(stage)
}

async fn two_servers(narrator: &mut Narrator) -> Result<Stage, DemoError> {
    narrator.chapter("Two servers")?;
    let stage = Stage::set_up(narrator.output_width()).await?;
    for side in [Side::Publisher, Side::Target] {
        stage.server(side).create_database(DATABASE).await?;
    }
    narrator.done(&format!(
        "PostgreSQL {} on 127.0.0.1: the publisher on port {}, the target on port {}",
        stage.publisher.binaries().version(),
        stage.publisher.port(),
        stage.target.port()
    ))?;
    Ok(stage)
}

/// Prints a statement and runs it.
async fn act(narrator: &mut Narrator, stage: &Stage, side: Side, sql: &str) -> Result<(), DemoError> {
    narrator.statement(side, sql)?;
    stage.execute(side, sql).await
}

/// Waits until the target has the publisher's rows and shows them.
async fn arrived(narrator: &mut Narrator, stage: &mut Stage) -> Result<(), DemoError> {
    let expected = stage.query(Side::Publisher, PUBLISHED).await?;
    stage.wait_rows(PUBLISHED, &expected).await?;
    narrator.table(Side::Target, "widgets", &stage.query(Side::Target, EVERYTHING).await?)
}

async fn two_tables(narrator: &mut Narrator, stage: &Stage) -> Result<(), DemoError> {
    narrator.chapter("Two tables that need not be the same")?;
    narrator.say(
        "The target's table must have every published column. What it has besides is its own, as long as \
         a new row can do without: a column that is nullable, or has a default.",
    )?;
    act(narrator, stage, Side::Publisher, PUBLISHER_TABLE).await?;
    act(
        narrator,
        stage,
        Side::Publisher,
        "INSERT INTO widgets (name, price)\n  VALUES ('Desk Lamp', 12.90), ('Notebook', 2.75);",
    )
    .await?;
    act(narrator, stage, Side::Publisher, "CREATE PUBLICATION my_publication FOR TABLE widgets;").await?;
    act(narrator, stage, Side::Target, TARGET_TABLE).await?;
    narrator.say("Neither role is a superuser:")?;
    for (side, shown) in role_statements(stage) {
        // The password belongs to this run only, and is not shown.
        narrator.statement(side, &shown.replace(stage.password(), "…"))?;
        stage.execute(side, &shown).await?;
    }
    Ok(())
}

fn role_statements(stage: &Stage) -> Vec<(Side, String)> {
    let password = quote_literal(stage.password());
    let mut statements = vec![
        (
            Side::Publisher,
            format!(
                "CREATE ROLE {PUBLISHER_ROLE} LOGIN REPLICATION PASSWORD {password};\n\
                 GRANT SELECT ON widgets TO {PUBLISHER_ROLE};"
            ),
        ),
        (
            Side::Target,
            format!(
                "CREATE ROLE {TARGET_ROLE} LOGIN PASSWORD {password};\n\
                 GRANT CREATE ON DATABASE {DATABASE} TO {TARGET_ROLE};\n\
                 GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON widgets TO {TARGET_ROLE};"
            ),
        ),
    ];
    let functions = ["oid(text)", "create(text)", "drop(text)", "session_setup(text)", "session_reset()"];
    let functions = functions.map(|function| format!("  pg_replication_origin_{function}")).join(",\n");
    let grant = format!("GRANT EXECUTE ON FUNCTION\n{functions}\n  TO {TARGET_ROLE};");
    statements.push((Side::Target, grant));
    // The privilege to set a parameter can be granted only from 15 on.
    if stage.target.binaries().major() >= 15 {
        let grant = format!("GRANT SET ON PARAMETER session_replication_role TO {TARGET_ROLE};");
        statements.push((Side::Target, grant));
    }
    statements
}

async fn subscription(narrator: &mut Narrator, stage: &mut Stage) -> Result<(), DemoError> {
    narrator.chapter("The subscription")?;
    narrator.say("One file says what comes from where; one process does it.")?;
    let config = stage.write_config()?;
    narrator.command("cat pgsluice.toml")?;
    narrator.output(&config)?;
    narrator.command("pgsluice run")?;
    stage.start_service()?;
    stage.wait_state("streaming", None).await?;
    let slots = "SELECT slot_name, plugin, active FROM pg_replication_slots";
    narrator.table(Side::Publisher, "pg_replication_slots", &stage.query(Side::Publisher, slots).await?)?;
    arrived(narrator, stage).await?;
    narrator.done(
        "It has made a replication slot, copied the rows that were there already, and streams what comes \
         from now on",
    )
}

async fn changes(narrator: &mut Narrator, stage: &mut Stage) -> Result<(), DemoError> {
    narrator.chapter("Every change follows")?;
    let statements = [
        "INSERT INTO widgets (name, price)\n  VALUES ('Hammer', 4.50), ('Coffee Mug', 6.20), ('Cupholder', 3.80);",
        "UPDATE widgets SET price = 5.25 WHERE name = 'Hammer';",
        "DELETE FROM widgets WHERE name = 'Notebook';",
    ];
    // A column that only the target has keeps its value.
    act(
        narrator,
        stage,
        Side::Target,
        "UPDATE widgets SET note = 'the last one'\n  WHERE name = 'Desk Lamp';",
    )
    .await?;
    for statement in statements {
        act(narrator, stage, Side::Publisher, statement).await?;
        arrived(narrator, stage).await?;
    }
    narrator.done("Three inserts, an update and a delete, each applied exactly once, in order")
}

async fn conflict(narrator: &mut Narrator, stage: &mut Stage) -> Result<(), DemoError> {
    narrator.chapter("A conflict closes the gate")?;
    narrator.say(
        "Somebody writes to the target a row that the publisher is about to send under the same key. \
         pgsluice neither overwrites nor skips it: it stops, keeps the evidence, and waits for a person.",
    )?;
    let local = "INSERT INTO widgets (id, name, price)\n  VALUES (6, 'Somebody''s own', 1.00);";
    act(narrator, stage, Side::Target, local).await?;
    let incoming = "INSERT INTO widgets (name, price)\n  VALUES ('Screwdriver', 7.40);";
    act(narrator, stage, Side::Publisher, incoming).await?;
    let status = stage.wait_state("paused", Some("conflict")).await?;
    // Transactions behind the conflict wait and are not lost.
    act(
        narrator,
        stage,
        Side::Publisher,
        "INSERT INTO widgets (name, price)\n  VALUES ('Spirit Level', 9.99);",
    )
    .await?;
    let Some(id) = status.conflict_id() else {
        return Err(DemoError::Answer { command: "status --json".to_owned(), output: format!("{status:?}") });
    };
    narrator.command(&format!("pgsluice conflicts show {id}"))?;
    narrator.output(&stage.look(&["conflicts", "show", &id]).await?)?;
    narrator
        .say("Here, the row on the target was the mistake. It is taken away, and pgsluice told to go on.")?;
    act(narrator, stage, Side::Target, "DELETE FROM widgets WHERE id = 6;").await?;
    narrator.command(&format!("pgsluice resume {SUBSCRIPTION}"))?;
    narrator.output(&stage.tell(&["resume", SUBSCRIPTION]).await?)?;
    arrived(narrator, stage).await?;
    stage.wait_state("streaming", None).await?;
    narrator.done("It went on from where it had stopped: nothing lost, nothing twice")
}

async fn missing_column(narrator: &mut Narrator, stage: &mut Stage) -> Result<(), DemoError> {
    narrator.chapter("A column that the target lacks")?;
    narrator.say(
        "The publisher's table gets a column. pgsluice will not drop its values on the floor: it closes \
         the gate before the first row that has it, and says which statement would open it again.",
    )?;
    act(narrator, stage, Side::Publisher, "ALTER TABLE widgets ADD COLUMN colour text;").await?;
    let insert = "INSERT INTO widgets (name, price, colour)\n  VALUES ('Paint', 15.00, 'green');";
    act(narrator, stage, Side::Publisher, insert).await?;
    let status = stage.wait_state("paused", Some("schema")).await?;
    narrator.command(&format!("pgsluice status {SUBSCRIPTION}"))?;
    narrator.output(&stage.look(&["status", SUBSCRIPTION]).await?)?;
    let Some(ddl) = status.hint.as_deref().and_then(ddl_in) else {
        return Err(DemoError::Answer { command: "status --json".to_owned(), output: format!("{status:?}") });
    };
    narrator.say("That statement, as it stands there:")?;
    act(narrator, stage, Side::Target, ddl).await?;
    stage.wait_state("streaming", None).await?;
    let columns = "SELECT id, name, price, colour FROM widgets ORDER BY id";
    let expected = stage.query(Side::Publisher, columns).await?;
    stage.wait_rows(columns, &expected).await?;
    narrator.table(Side::Target, "widgets", &stage.query(Side::Target, columns).await?)?;
    narrator.done("The gate opened by itself as soon as the table fitted")
}

/// Returns the statement in a hint: from `ALTER TABLE` to its semicolon. A quoted name may contain a
/// semicolon, too.
fn ddl_in(hint: &str) -> Option<&str> {
    let statement = &hint[hint.find("ALTER TABLE ")?..];
    let mut quoted = false;
    let end = statement.find(|c| {
        quoted ^= c == '"';
        c == ';' && !quoted
    });
    Some(&statement[..=end?])
}

/// Prints how to connect while everything stays up (`--keep`).
pub(super) fn how_to_connect(narrator: &mut Narrator, stage: &Stage) -> Result<(), DemoError> {
    narrator.chapter("Yours to try")?;
    narrator.say("Everything stays up until Ctrl-C. Look around, break it, mend it:")?;
    for (name, server) in [("the publisher", &stage.publisher), ("the target", &stage.target)] {
        narrator.command(&format!("psql \"{}\"    # {name}", server.conninfo(DATABASE, SUPERUSER)))?;
    }
    let pgsluice = format!("{} --config {}", stage.executable().display(), stage.config_path().display());
    narrator.command(&format!("{pgsluice} status"))?;
    narrator.command(&format!("tail -f {}", stage.log_path().display()))
}

/// Stops and removes everything, in order.
pub(super) async fn farewell(narrator: &mut Narrator, mut stage: Stage) -> Result<(), DemoError> {
    narrator.chapter("And gone")?;
    let status = stage.stop_service().await?;
    if !status.success() {
        return Err(DemoError::Command { command: "run".to_owned(), status, output: String::new() });
    }
    narrator.done("pgsluice has stopped cleanly")?;
    narrator.command(&format!("pgsluice drop {SUBSCRIPTION}"))?;
    narrator.output(&stage.tell(&["drop", SUBSCRIPTION]).await?)?;
    let slots = stage.query(Side::Publisher, "SELECT slot_name FROM pg_replication_slots").await?;
    if !slots.rows.is_empty() {
        let output = format!("these replication slots are still there: {:?}", slots.rows);
        return Err(DemoError::Answer { command: format!("drop {SUBSCRIPTION}"), output });
    }
    narrator.done("Its replication slot is gone, its rows stay")?;
    stage.publisher.stop(StopMode::Fast).await?;
    stage.target.stop(StopMode::Fast).await?;
    let dir = stage.dir().to_owned();
    drop(stage);
    narrator.done(&format!("Both servers are stopped, and {} is removed", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_is_taken_out_of_the_hint() {
        let hint = "run on the target: ALTER TABLE \"a;b\".widgets ADD COLUMN colour text; then wait";
        assert_eq!(ddl_in(hint), Some("ALTER TABLE \"a;b\".widgets ADD COLUMN colour text;"));
        assert_eq!(ddl_in("nothing to run"), None);
        assert_eq!(ddl_in("ALTER TABLE without an end"), None);
    }
}
