//! The walk-through with the real process: what users of `CREATE SUBSCRIPTION` expect. `scripts/matrix`
//! runs it with publishers of several versions.

use pgsluice::demo::process::{Guarded, Signal};

use crate::support::clusters::{publisher_binaries, target_binaries};
use crate::support::database::Database;
use crate::support::wait::until;
use crate::support::world::{Servers, World};
use crate::support::{cli, shown};

const PUBLISHER_TABLE: &str =
    "CREATE TABLE widgets (id serial, name text, price decimal, CONSTRAINT widgets_pkey PRIMARY KEY (id))";
/// A table with more columns than the publisher's, each of a kind that a new row can do without.
const TARGET_TABLE: &str = "CREATE TABLE widgets (id serial, name text, price decimal, note text, \
     shelf text NOT NULL DEFAULT 'A1', loaded_at timestamptz DEFAULT now(), \
     CONSTRAINT widgets_pkey PRIMARY KEY (id))";
const ALL: &str = "SELECT id, name, price, note, shelf FROM widgets ORDER BY id";

async fn world() -> World {
    World::builder()
        .servers(Servers::Separate)
        .publisher_sql(PUBLISHER_TABLE)
        .publisher_sql("INSERT INTO widgets (name, price) VALUES ('Desk Lamp', 12.90), ('Notebook', 2.75)")
        .publisher_sql(
            "CREATE PUBLICATION my_publication; ALTER PUBLICATION my_publication ADD TABLE widgets",
        )
        .target_sql(TARGET_TABLE)
        .start()
        .await
}

async fn wait_lines(database: &Database, sql: &str, expected: &[&str]) {
    let what = format!("{sql} gives {expected:#?}");
    until(&what, async || {
        let seen = database.lines(sql).await;
        if seen == expected { Ok(()) } else { Err(format!("{seen:#?}")) }
    })
    .await;
}

#[tokio::test]
async fn walkthrough() {
    println!("publisher: PostgreSQL {}", publisher_binaries().version());
    let world = world().await;
    let service = world.run();

    rows_are_copied_and_a_slot_is_made(&world).await;
    changes_follow_in_one_direction(&world).await;
    a_conflict_waits_for_a_person(&world).await;
    a_missing_column_is_refused_with_its_ddl(&world).await;

    // Nothing is applied twice or lost, whatever happens to the service in between.
    service.kill9().await;
    world.publisher.exec("INSERT INTO widgets (name, price) VALUES ('Ruler', 1.10)").await;
    let service = world.run();
    world.wait_same_rows("widgets").await;
    assert_eq!(service.sigterm().await, 0, "a clean stop exits with 0");

    starting_over(&world).await;
}

async fn rows_are_copied_and_a_slot_is_made(world: &World) {
    wait_lines(&world.target, ALL, &["1|Desk Lamp|12.90|∅|A1", "2|Notebook|2.75|∅|A1"]).await;
    let view = world.wait_state("streaming").await;
    let table = &view.json["tables"][0];
    assert_eq!(table["state"], "ready", "{table:#}");
    assert_eq!(table["rows_copied"], 2, "{table:#}");
    let slots = "SELECT slot_name, plugin, active FROM pg_replication_slots";
    assert_eq!(world.publisher.lines(slots).await, [format!("{}|pgoutput|t", world.subscription)]);
    let names = "SELECT application_name FROM pg_stat_replication";
    assert_eq!(world.publisher.lines(names).await, std::slice::from_ref(&world.subscription));
}

async fn changes_follow_in_one_direction(world: &World) {
    world.target.exec("UPDATE widgets SET note = 'ours' WHERE id = 1").await;
    world
        .publisher
        .exec(
            "INSERT INTO widgets (name, price) VALUES ('Hammer', 4.50), ('Coffee Mug', 6.20), ('Cupholder', 3.80)",
        )
        .await;
    world.publisher.exec("UPDATE widgets SET price = price + 1 WHERE id IN (1, 3)").await;
    world.publisher.exec("DELETE FROM widgets WHERE name = 'Notebook'").await;
    let expected = [
        "1|Desk Lamp|13.90|ours|A1",
        "3|Hammer|5.50|∅|A1",
        "4|Coffee Mug|6.20|∅|A1",
        "5|Cupholder|3.80|∅|A1",
    ];
    wait_lines(&world.target, ALL, &expected).await;
    world.wait_caught_up().await;
    assert_eq!(world.publisher.value("SELECT count(*) FROM widgets").await.as_deref(), Some("4"));
    let defaults = "SELECT count(*) FROM widgets WHERE loaded_at IS NULL";
    assert_eq!(world.target.value(defaults).await.as_deref(), Some("0"));
}

async fn a_conflict_waits_for_a_person(world: &World) {
    world.target.exec("INSERT INTO widgets (id, name, price) VALUES (6, 'Local', 1.00)").await;
    world
        .publisher
        .exec("BEGIN; INSERT INTO widgets (name) VALUES ('Six'); INSERT INTO widgets (name) VALUES ('Seven'); COMMIT")
        .await;
    world.publisher.exec("INSERT INTO widgets (name) VALUES ('Eight')").await;
    let view = world.wait_paused("conflict").await;
    let id = view.conflict_id().unwrap_or_else(|| panic!("no conflict_id: {:#}", view.json));

    // The whole offending transaction is held back, and so is what follows it.
    let held = "SELECT name FROM widgets WHERE id >= 6 ORDER BY id";
    assert_eq!(world.target.lines(held).await, ["Local"]);
    let evidence = world.pgsluice(&["conflicts", "show", &id]).await;
    assert!(evidence.stdout.contains("insert_exists"), "{evidence:#?}");
    assert!(evidence.stdout.contains("widgets_pkey"), "{evidence:#?}");
    assert!(evidence.stdout.contains("Local") && evidence.stdout.contains("Six"), "{evidence:#?}");

    // A resume without a fix meets the same conflict and does not record a second one.
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    let again = until("the same conflict holds it again", async || {
        let view = world.status().await?;
        let seen = world.target.value("SELECT max(occurrences) FROM pgsluice.conflict").await;
        match (view.state.as_str(), seen.as_deref()) {
            ("paused", Some("2")) => Ok(view),
            _ => Err(format!("{seen:?} {:#}", view.json)),
        }
    })
    .await;
    assert_eq!(again.conflict_id(), Some(id));

    world.target.exec("DELETE FROM widgets WHERE id = 6").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    wait_lines(&world.target, held, &["Six", "Seven", "Eight"]).await;
    world.wait_state("streaming").await;
    world.assert_same_rows("widgets").await;
}

async fn a_missing_column_is_refused_with_its_ddl(world: &World) {
    world.publisher.exec("ALTER TABLE widgets ADD COLUMN colour text").await;
    world.publisher.exec("INSERT INTO widgets (name, colour) VALUES ('Paint', 'green')").await;
    let view = world.wait_paused("schema").await;
    assert!(view.told().contains("colour"), "{:#}", view.json);
    let hint = view.json["hint"].as_str().unwrap_or_default().to_owned();
    let start = hint.find("ALTER TABLE").unwrap_or_else(|| panic!("no DDL in the hint: {hint}"));
    let end = hint[start..].find(';').unwrap_or_else(|| panic!("no whole DDL in the hint: {hint}"));
    assert_eq!(world.target.lines("SELECT id FROM widgets WHERE name = 'Paint'").await, [""; 0]);
    world.target.exec(&hint[start..=start + end]).await;
    // The subscription resumes by itself.
    world.wait_same_rows("widgets").await;
    world.wait_state("streaming").await;
}

async fn starting_over(world: &World) {
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(world.publisher.value(slots).await.as_deref(), Some("0"));
    assert_eq!(world.target.value("SELECT count(*) > 0 FROM widgets").await.as_deref(), Some("t"));
    world.target.exec("TRUNCATE widgets").await;
    let service = world.run();
    world.wait_same_rows("widgets").await;
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
}

/// README.md's statements for comparing a table give equal results for equal rows, and others otherwise.
#[tokio::test]
async fn the_readmes_comparison_of_a_table_tells_equal_rows_from_others() {
    let world = world().await;
    let service = world.run();
    world.wait_same_rows("widgets").await;
    let sql = shown::blocks(include_str!("../../README.md"), "sql: verify").concat();
    let expected = world.publisher.lines(&sql).await;
    assert!(expected.concat().starts_with("2|"), "{expected:?}");
    assert_eq!(world.target.lines(&sql).await, expected);
    world.target.exec("UPDATE widgets SET price = 12.91 WHERE id = 1").await;
    assert_ne!(world.target.lines(&sql).await, expected);
    assert_eq!(service.sigterm().await, 0);
}

/// Runs the demo as a user does, to its end, and checks that it leaves nothing.
#[tokio::test]
async fn the_demo_tells_the_whole_story_and_leaves_nothing() {
    let world = Demo::start(&[]);
    let (code, told) = world.ended().await;
    assert_eq!(code, Some(0), "{told}");
    for expected in ["Two servers", "Coffee Mug", "insert_exists", "ADD COLUMN", "is removed"] {
        assert!(told.contains(expected), "{expected:?} is missing in:\n{told}");
    }
    // README.md shows a part of this output.
    let readme = include_str!("../../README.md");
    let recorded = shown::blocks(readme, "recorded: pgsluice demo").concat();
    shown::was_said(&recorded, &told).unwrap();
}

#[tokio::test]
async fn the_demo_cleans_up_when_it_is_interrupted() {
    for (signal, chapter) in [(Signal::Interrupt, "Two tables"), (Signal::Terminate, "Every change follows")]
    {
        let mut demo = Demo::start(&[]);
        until(&format!("the demo has come to {chapter:?}"), async || demo.told().contains(chapter)).await;
        demo.process.signal(signal).unwrap();
        let (code, told) = demo.ended().await;
        assert_ne!(code, None, "killed instead of ended: {told}");
        assert!(told.contains("stopped and removed"), "{told}");
    }
}

#[tokio::test]
async fn the_demo_stays_up_when_it_is_asked_to() {
    let mut demo = Demo::start(&["--keep"]);
    until("the demo says how to connect", async || demo.told().contains("psql \"host=")).await;
    demo.process.signal(Signal::Interrupt).unwrap();
    let (code, told) = demo.ended().await;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("is removed"), "{told}");
}

/// `pgsluice demo` with its own temporary directory, so that what it leaves can be seen.
struct Demo {
    process: Guarded,
    temporary: tempfile::TempDir,
    output: tempfile::NamedTempFile,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let temporary = tempfile::Builder::new().prefix("pgsluice-tmp-").tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(temporary.path(), open).unwrap();
        let output = tempfile::NamedTempFile::new().unwrap();
        let mut command = cli::executable();
        command.arg("demo").args(arguments).env("TMPDIR", temporary.path());
        // Both of its servers have one version, which must be supported as a target.
        command.env("PGSLUICE_PG_BIN", target_binaries().dir());
        let process = Guarded::spawn(&mut command, output.as_file(), Signal::Terminate, None).unwrap();
        Self { process, temporary, output }
    }

    fn told(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.output.path()).unwrap()).into_owned()
    }

    /// Waits for its end and checks that it has left nothing.
    async fn ended(mut self) -> (Option<i32>, String) {
        let status = self.process.wait(std::time::Duration::from_mins(2)).await.unwrap();
        let told = self.told();
        let status = status.unwrap_or_else(|| panic!("the demo has not ended:\n{told}"));
        let left: Vec<_> = std::fs::read_dir(self.temporary.path()).unwrap().flatten().collect();
        assert!(left.is_empty(), "it has left {left:?}\n{told}");
        (status.code(), told)
    }
}
