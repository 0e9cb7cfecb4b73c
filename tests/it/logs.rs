//! The log of a complete run: each event is logged once, without secrets and without rows.

use serde_json::Value;

use pgsluice::demo::cluster::StopMode;
use pgsluice::demo::process::{Guarded, Signal};

use crate::support::cli;
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{PASSWORD, Servers, World};

/// Values that occur nowhere else, one for each way in which a row could get into a log.
const VALUES: &[&str] = &[
    "kopiert-4711",
    "gestreamt-4712",
    "im-weg-4713",
    "einlaufend-4714",
    "4715471547154715",
    "ausgeloest-4716",
    "kopierfehler-4717",
    "424242",
];

/// Runs with both formats and all levels through copy, stream, conflict, an error of a trigger, a
/// failed copy, and a lost target.
#[tokio::test]
async fn a_whole_run_logs_no_password_and_no_row() {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .both_sql("CREATE TABLE widgets (id int PRIMARY KEY, name text, size bigint)")
        .both_sql("CREATE TABLE gadgets (id int PRIMARY KEY, name text)")
        .publisher_sql("INSERT INTO widgets VALUES (1, 'kopiert-4711', 1)")
        // The target refuses this row during the copy, and the server's message quotes it.
        .publisher_sql("INSERT INTO gadgets VALUES (424242, 'kopierfehler-4717')")
        .target_sql("INSERT INTO gadgets VALUES (424242, 'im-weg-4713')")
        .target_sql("ALTER TABLE widgets ALTER size TYPE smallint")
        .target_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.name LIKE 'ausgeloest%' THEN RAISE EXCEPTION 'no % here', NEW.name \
             USING DETAIL = NEW.name, HINT = NEW.name; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON widgets FOR EACH ROW EXECUTE FUNCTION refuse(); \
             ALTER TABLE widgets ENABLE ALWAYS TRIGGER refuse",
        )
        .start()
        .await;
    let mut logs = Vec::new();
    for (format, rust_log) in [("text", "debug"), ("json", "debug")] {
        let service = world.run_with(&[("PGSLUICE__SERVICE__LOG_FORMAT", format), ("RUST_LOG", rust_log)]);
        live_through(&mut world, &service).await;
        logs.push((format, service.log()));
        assert_eq!(service.sigterm().await, 0);
        world.pgsluice(&["drop", &world.subscription]).await.expect(0);
        world
            .target
            .exec("TRUNCATE widgets; DELETE FROM gadgets; INSERT INTO gadgets VALUES (424242, 'im-weg-4713')")
            .await;
        world.publisher.exec("DELETE FROM widgets WHERE id > 1").await;
    }
    for (format, log) in logs {
        for secret in VALUES.iter().chain(&[PASSWORD, "pa'ss", "\\word"]) {
            let found = log.lines().find(|line| line.contains(secret));
            assert_eq!(found, None, "{secret} is in the {format} log");
        }
        // The log is not empty: each event is logged with its fixed fields.
        for told in ["paused on a conflict", "table copied", "streaming", "SQLSTATE 23505", "will try again"]
        {
            assert!(
                log.contains(told),
                "{told:?} is missing in the {format} log:
{log}"
            );
        }
        if format == "json" {
            every_line_is_json(&log, &world.subscription);
        } else {
            // Each event is one line, even if its hint contains DDL.
            for line in log.lines() {
                let levels = [" INFO ", " WARN ", " DEBUG ", "ERROR "];
                assert!(
                    line.starts_with("20") && levels.iter().any(|level| line.contains(level)),
                    "{line:?}"
                );
            }
        }
    }
}

async fn live_through(world: &mut World, service: &Service) {
    until("the copy of gadgets has failed", async || {
        let view = world.status().await?;
        let told = view.json.to_string();
        if told.contains("gadgets") && told.contains("23505") { Ok(()) } else { Err(told) }
    })
    .await;
    world.target.exec("DELETE FROM gadgets").await;
    world.wait_same_rows("gadgets").await;
    world.publisher.exec("INSERT INTO widgets VALUES (2, 'gestreamt-4712', 2)").await;
    world.wait_caught_up().await;

    world.target.exec("INSERT INTO widgets VALUES (3, 'im-weg-4713', 3)").await;
    world.publisher.exec("INSERT INTO widgets VALUES (3, 'einlaufend-4714', 3)").await;
    world.wait_paused("conflict").await;
    world.target.exec("DELETE FROM widgets WHERE id = 3").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_caught_up().await;

    // A value that does not fit, and an error that a trigger raises for a row. Each may be a conflict
    // or an error of the target; in both cases the transaction waits and is passed over.
    for (id, row) in [(4, "'unpassend', 4715471547154715"), (5, "'ausgeloest-4716', 5")] {
        world.publisher.exec(format!("INSERT INTO widgets VALUES ({id}, {row})")).await;
        world.wait_state("paused").await;
        // The target is changed so that everything that waits can be applied.
        world
            .target
            .exec("ALTER TABLE widgets DISABLE TRIGGER refuse; ALTER TABLE widgets ALTER size TYPE bigint")
            .await;
        world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        world.wait_caught_up().await;
        world.target.exec("ALTER TABLE widgets ENABLE ALWAYS TRIGGER refuse").await;
    }
    world.target.exec("DELETE FROM widgets WHERE id = 4; ALTER TABLE widgets ALTER size TYPE smallint").await;
    world.target_server().restart(StopMode::Immediate).await.unwrap();
    world.publisher.exec("UPDATE widgets SET name = 'gestreamt-4712' WHERE id = 2").await;
    until("the lost target is told of", async || service.log().contains("will try again")).await;
    world.wait_state("streaming").await;
}

fn every_line_is_json(log: &str, subscription: &str) {
    let mut conflicts = 0;
    for line in log.lines() {
        let event: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
        for field in ["timestamp", "level", "target", "message"] {
            // Events of libraries may lack a message, those of pgsluice always have one.
            let ours = event["target"].as_str().is_some_and(|target| target.starts_with("pgsluice"));
            assert!(!ours || event[field].is_string(), "{field} is missing: {line}");
        }
        if event["message"] == "paused on a conflict" {
            conflicts += 1;
            for field in ["subscription", "relation", "lsn", "kind", "hint"] {
                assert!(event[field].is_string(), "{field} is missing: {line}");
            }
            assert_eq!(event["subscription"], subscription, "{line}");
            assert!(event["conflict"].is_i64() && event["xid"].is_u64(), "{line}");
        }
    }
    assert!(conflicts >= 1, "no conflict was told of");
}

/// `pgsluice run` in a terminal (script(1) makes one) shows bars while a table is copied and complete
/// log lines above them.
#[tokio::test]
async fn a_copy_in_a_terminal_shows_its_progress_and_whole_log_lines() {
    const ROWS: u32 = 100_000;
    let load =
        format!("INSERT INTO widgets SELECT n, 'x' FROM generate_series(1, {ROWS}) n; ANALYZE widgets");
    let world = World::builder()
        .both_sql("CREATE TABLE widgets (id int PRIMARY KEY, name text)")
        .publisher_sql(&load)
        // The copy is slowed down so that it can be watched: two seconds for the whole table.
        .target_sql(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.id % 10000 = 0 THEN PERFORM pg_sleep(0.2); END IF; RETURN NEW; END $$; \
             CREATE TRIGGER slowly BEFORE INSERT ON widgets FOR EACH ROW EXECUTE FUNCTION slowly(); \
             ALTER TABLE widgets ENABLE ALWAYS TRIGGER slowly",
        )
        .start()
        .await;
    let output = tempfile::NamedTempFile::new().unwrap();
    let port = pgsluice::demo::cluster::free_port().unwrap();
    let program = cli::executable().get_program().to_str().unwrap().to_owned();
    let line = format!("stty cols 200; exec {program} --config {} run", world.config.display());
    let mut command = std::process::Command::new("script");
    command.args(["-q", "-f", "-e", "-c", &line, "/dev/null"]);
    command.env("NO_COLOR", "1").env("TERM", "xterm");
    command.env("PGSLUICE__SERVICE__LISTEN", format!("127.0.0.1:{port}"));
    let process = Guarded::spawn(&mut command, output.as_file(), Signal::Kill, None).unwrap();
    let told = || String::from_utf8_lossy(&std::fs::read(output.path()).unwrap()).into_owned();
    let name = format!("{}: public.widgets", world.subscription);
    until("a bar is drawn", async || {
        let told = told();
        if told.contains(&name) && told.contains("of about 100,000 rows") { Ok(()) } else { Err(told) }
    })
    .await;
    until("the copy has been told of", async || told().contains("table copied")).await;
    drop(process);
    let told = told();
    // A log line begins at the left edge, after the sequence that clears the bars, and is complete.
    for line in told.lines().filter(|line| line.contains("pgsluice::")) {
        let visible = last_drawn(line);
        assert!(visible.starts_with("20") && !visible.contains("of about"), "{line:?}\n{told:?}");
    }
    assert!(!told.contains("\x1b[3"), "colours in spite of NO_COLOR: {told:?}");
}

/// Returns what a terminal's line shows finally: the text after the last control sequence, which
/// cleared the bars.
fn last_drawn(line: &str) -> &str {
    match line.rsplit_once('\x1b') {
        None => line,
        Some((_, sequence)) => {
            sequence.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, text)| text)
        }
    }
}
