//! What others do on the two servers, and what they see of pgsluice: their logs, roles, open transactions,
//! unlogged tables, and a configuration that changes before anything runs.

use std::time::{Duration, Instant};

use pgsluice::demo::cluster::{Cluster, StopMode};
use pgsluice::demo::process::Signal;

use crate::support::wait::until;
use crate::support::world::{PUBLISHER_ROLE, Servers, TARGET_ROLE, World};

const WIDGETS: &str = "CREATE TABLE widgets (id int PRIMARY KEY, name text)";

/// The lines of a server's log, without those of its own upkeep.
fn complaints(server: &Cluster) -> Vec<String> {
    let log = server.log().unwrap();
    let told = ["WARNING", "ERROR", "FATAL", "PANIC"];
    log.lines().filter(|line| told.iter().any(|word| line.contains(word))).map(str::to_owned).collect()
}

/// Longer than every interval at which a paused or streaming subscription looks at something.
async fn some_rounds() {
    let until_then = Instant::now() + Duration::from_secs(7);
    until("some rounds have passed", async || Instant::now() > until_then).await;
}

#[tokio::test]
async fn nothing_is_written_to_the_servers_logs_repeatedly() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(WIDGETS).start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let before: Vec<_> = world.servers().map(|(_, server)| complaints(server)).collect();
    some_rounds().await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.wait_paused("operator").await;
    some_rounds().await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_state("streaming").await;
    let after: Vec<_> = world.servers().map(|(_, server)| complaints(server)).collect();
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_publisher_that_is_away_is_no_reason_for_warnings_on_the_target() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(WIDGETS).start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher_server().stop(StopMode::Fast).await.unwrap();
    world.wait_state("retrying").await;
    let before = complaints(world.target_server());
    some_rounds().await;
    assert_eq!(complaints(world.target_server()), before);
    world.publisher_server().launch().await.unwrap();
    world.wait_state("streaming").await;
}

/// The built-in subscriber copies the visible rows without a word.
#[tokio::test]
async fn rows_that_a_policy_hides_are_not_left_out_of_the_copy_in_silence() {
    let world = World::builder()
        .both_sql(WIDGETS)
        .publisher_sql(
            "INSERT INTO widgets SELECT g, 'w' FROM generate_series(1, 10) g; \
             ALTER TABLE widgets ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY half ON widgets FOR SELECT USING (id % 2 = 0)",
        )
        .start()
        .await;
    let cure = "ALTER ROLE \"sammy\" BYPASSRLS;";
    let check = world.pgsluice(&["check", "--json"]).await.expect(1).json().to_string();
    assert!(check.contains("row-level security would hide rows"), "{check}");
    let _service = world.run();
    let view = until("the copy is refused", async || {
        let view = world.status().await?;
        if view.reason.as_deref() == Some("copy") { Ok(view) } else { Err(format!("{:#}", view.json)) }
    })
    .await;
    assert_eq!(view.state, "retrying", "{:#}", view.json);
    assert!(view.told().contains(cure), "{:#}", view.json);
    assert_eq!(world.target.value("SELECT count(*) FROM widgets").await.as_deref(), Some("0"));
    world.publisher.exec("ALTER ROLE sammy BYPASSRLS").await;
    world.wait_same_rows("widgets").await;
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn an_unlogged_target_is_warned_of_with_what_makes_it_safe() {
    let world = World::builder()
        .publisher_sql(WIDGETS)
        .target_sql("CREATE UNLOGGED TABLE widgets (id int PRIMARY KEY, name text)")
        .publisher_sql("CREATE TABLE parts (id int PRIMARY KEY)")
        .target_sql("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        .target_sql("CREATE UNLOGGED TABLE parts_1 PARTITION OF parts DEFAULT")
        .start()
        .await;
    let cures = ["ALTER TABLE public.parts_1 SET LOGGED;", "ALTER TABLE public.widgets SET LOGGED;"];
    let has_cures = |text: &str| cures.iter().all(|cure| text.contains(cure));
    let check = world.pgsluice(&["check"]).await.expect(0);
    assert!(check.stdout.contains("2 target tables are unlogged"), "{check:#?}");
    let service = world.run();
    world.wait_state("streaming").await;
    let warnings = world.status().await.unwrap().json["warnings"].to_string();
    assert!(has_cures(&warnings), "{warnings}");
    assert!(service.log().contains("2 target tables are unlogged"));
    assert_eq!(service.sigterm().await, 0);
    for cure in cures {
        world.target.exec(cure).await;
    }
    let _service = world.run();
    world.wait_state("streaming").await;
    until("the warning is gone", async || {
        let warnings = world.status().await?.json["warnings"].to_string();
        if warnings.contains("unlogged") { Err(warnings) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn a_configuration_is_taken_over_while_the_target_is_down_at_the_start() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(WIDGETS).start().await;
    let text = std::fs::read_to_string(&world.config).unwrap();
    let name = format!("name = \"{}\"", world.subscription);
    assert!(text.contains(&name), "{text}");
    std::fs::write(&world.config, text.replace(&name, &format!("{name}\nenabled = false"))).unwrap();
    world.target_server().stop(StopMode::Fast).await.unwrap();
    let mut service = world.run();
    until("it waits for the target", async || service.log().contains("waiting for the target")).await;
    std::fs::write(&world.config, "nonsense = 1").unwrap();
    service.signal(Signal::Reload);
    until("the bad one is refused", async || service.log().contains("was not taken over")).await;
    std::fs::write(&world.config, &text).unwrap();
    service.signal(Signal::Reload);
    until("it is taken over", async || service.log().contains("reloaded while waiting for the target")).await;
    world.target_server().launch().await.unwrap();
    world.wait_state("streaming").await;
}

/// A role's attribute that flips and returns before the first look leaves no trace that the applying role could
/// read.
#[tokio::test]
async fn a_pause_ends_although_its_reason_was_gone_before_it_was_looked_at() {
    let world = World::builder()
        .both_sql(WIDGETS)
        .target_sql("ALTER TABLE widgets ENABLE ROW LEVEL SECURITY")
        .target_sql(&format!("ALTER ROLE {TARGET_ROLE} BYPASSRLS"))
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    for id in 1..3 {
        // The next stream announces the table, which is then compared. The second pause begins with the first one's
        // fingerprint.
        world.pgsluice(&["pause", &world.subscription]).await.expect(0);
        world.target.exec(format!("ALTER ROLE {TARGET_ROLE} NOBYPASSRLS")).await;
        world.publisher.exec(format!("INSERT INTO widgets VALUES ({id}, 'w')")).await;
        world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        until("the pause is logged", async || service.log().matches("paused subscription=").count() >= id)
            .await;
        world.target.exec(format!("ALTER ROLE {TARGET_ROLE} BYPASSRLS")).await;
        world.wait_same_rows("widgets").await;
        world.wait_state("streaming").await;
    }
}

#[tokio::test]
async fn it_is_said_for_whom_a_slot_waits() {
    let world = World::builder()
        .servers(Servers::Separate)
        .publisher_setting("max_prepared_transactions", "5")
        .both_sql(WIDGETS)
        .both_sql("CREATE TABLE others (id int PRIMARY KEY)")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE widgets")
        .publisher_sql("CREATE TABLE aside (id int)")
        .start()
        .await;
    let open = world.publisher.session().await;
    open.batch("SET application_name = 'the old one'; BEGIN; INSERT INTO aside VALUES (1)").await.unwrap();
    let pid = open.value("SELECT pg_backend_pid()").await.unwrap().unwrap();
    let service = world.run();
    let view = until("it says for whom", async || {
        let view = world.status().await?;
        if view.reason.as_deref() == Some("slot") { Ok(view) } else { Err(format!("{:#}", view.json)) }
    })
    .await;
    assert_eq!(view.state, "starting");
    for word in ["older transaction", &format!("process {pid}"), "the old one", "role postgres"] {
        assert!(view.json.to_string().contains(word), "{word}: {:#}", view.json);
    }
    open.batch("COMMIT").await.unwrap();
    let view = world.wait_state("streaming").await;
    assert_eq!(view.reason, None);

    // The same for the slot of a table that joins.
    world.publisher.exec("BEGIN; INSERT INTO aside VALUES (2); PREPARE TRANSACTION 'left behind'").await;
    world
        .publisher
        .exec("ALTER PUBLICATION my_publication ADD TABLE others; INSERT INTO others VALUES (1)")
        .await;
    let told = until("the table says for whom", async || {
        let tables = world.status().await?.json["tables"].to_string();
        if tables.contains("left behind") { Ok(tables) } else { Err(tables) }
    })
    .await;
    assert!(told.contains("ROLLBACK PREPARED 'left behind'"), "{told}");
    assert_eq!(service.log().matches("prepared transaction 'left behind'").count(), 1, "logged once");
    world.publisher.exec("ROLLBACK PREPARED 'left behind'").await;
    world.wait_same_rows("others").await;
    until("the note is gone", async || {
        let tables = world.status().await?.json["tables"].to_string();
        if tables.contains("left behind") { Err(tables) } else { Ok(()) }
    })
    .await;
}

/// A service that dies while its slot is being created leaves a walsender that goes on waiting. The next one says for
/// whom, ends with one slot, and has every row.
#[tokio::test]
async fn a_service_that_dies_while_its_slot_waits_leaves_nothing_wrong() {
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(WIDGETS)
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE widgets")
        .publisher_sql("CREATE TABLE aside (id int); INSERT INTO widgets VALUES (1, 'before')")
        .start()
        .await;
    let open = world.publisher.session().await;
    open.batch("SET application_name = 'the old one'; BEGIN; INSERT INTO aside VALUES (1)").await.unwrap();
    for _ in 0..2 {
        let service = world.run();
        until("it says for whom", async || {
            let view = world.status().await?;
            if view.told().contains("the old one") { Ok(()) } else { Err(format!("{:#}", view.json)) }
        })
        .await;
        world.publisher.exec("INSERT INTO widgets SELECT count(*) + 1, 'during' FROM widgets").await;
        service.kill9().await;
    }
    let _service = world.run();
    open.batch("INSERT INTO widgets VALUES (100, 'of the old one'); COMMIT").await.unwrap();
    world.wait_same_rows("widgets").await;
    world.publisher.exec("INSERT INTO widgets VALUES (101, 'after')").await;
    world.wait_same_rows("widgets").await;
    world.wait_state("streaming").await;
    let slots = "SELECT slot_name FROM pg_replication_slots";
    assert_eq!(world.publisher.lines(slots).await, std::slice::from_ref(&world.subscription));
}

#[tokio::test]
async fn an_operators_pause_does_not_hide_the_conflict_behind_it() {
    let world = World::builder()
        .both_sql(WIDGETS)
        .target_sql("INSERT INTO widgets VALUES (1, 'in the way')")
        .subscription_line("copy_data = false")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO widgets VALUES (1, 'new')").await;
    let conflict = world.wait_paused("conflict").await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    let check = |view: crate::support::cli::StateView| {
        assert_eq!(view.reason.as_deref(), Some("operator"), "{:#}", view.json);
        assert_eq!(view.conflict_id(), conflict.conflict_id(), "{:#}", view.json);
        assert!(view.told().contains("paused by an operator; before that (conflict)"), "{}", view.told());
        assert!(view.told().contains("pgsluice conflicts show"), "{}", view.told());
    };
    let paused = until("the operator's pause is shown", async || {
        let view = world.status().await?;
        if view.reason.as_deref() == Some("operator") { Ok(view) } else { Err(format!("{:#}", view.json)) }
    })
    .await;
    check(paused);
    assert_eq!(service.sigterm().await, 0);
    let _service = world.run();
    check(world.wait_state("paused").await);
    world.target.exec("DELETE FROM widgets").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("widgets").await;
}

/// An event trigger's function that refuses the DDL may say anything; none of it is a row.
#[tokio::test]
async fn a_target_that_refuses_our_schema_is_quoted_in_the_log() {
    let world = World::builder()
        .both_sql(WIDGETS)
        .target_sql(
            "CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'ask the committee first'; END $$; \
             CREATE EVENT TRIGGER committee ON ddl_command_start EXECUTE FUNCTION no_ddl()",
        )
        .start()
        .await;
    let service = world.run();
    until("the log has the reason", async || {
        let log = service.log();
        if log.contains("ask the committee first") { Ok(()) } else { Err(log) }
    })
    .await;
    assert!(service.log().contains("pg_event_trigger"));
    let told = world.status().await.unwrap().told();
    assert!(told.contains("could not make schema pgsluice in the target yet, and its log"), "{told}");
    world.target.exec("ALTER EVENT TRIGGER committee DISABLE").await;
    world.wait_state("streaming").await;
}

/// A table that joins needs sessions of its own on both sides, which the role may not have.
#[tokio::test]
async fn a_connection_limit_that_is_met_is_told() {
    let world = World::builder().both_sql(WIDGETS).start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for (side, role) in [(&world.publisher, PUBLISHER_ROLE), (&world.target, TARGET_ROLE)] {
        side.exec(format!("ALTER ROLE {role} CONNECTION LIMIT 2")).await;
        let table = format!("later_{role}");
        for side in [&world.target, &world.publisher] {
            side.exec(format!("CREATE TABLE {table} (id int PRIMARY KEY)")).await;
        }
        world.publisher.exec(format!("INSERT INTO {table} VALUES (1)")).await;
        // The command line needs a session on the target itself.
        until("status says which limit", async || {
            let told = world.status().await.map_or_else(|refused| refused, |view| view.told());
            let limit = told.contains("too many connections for role") && told.contains(role);
            if limit && told.contains("CONNECTION LIMIT") { Ok(()) } else { Err(told) }
        })
        .await;
        side.exec(format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await;
        world.wait_same_rows(&table).await;
        world.wait_state("streaming").await;
    }
}

/// Somebody holds the subscription's record for longer than the service waits for it, and the statement that still waits
/// for it ends with its session.
#[tokio::test]
async fn a_state_that_could_not_be_written_is_written_later() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY)")
        .publisher_sql("INSERT INTO t VALUES (1)")
        .start()
        .await;
    let copy = world.target.session().await;
    copy.batch("BEGIN; LOCK TABLE t IN SHARE MODE").await.unwrap();
    let _service = world.run();
    world.wait_state("copying").await;
    let record = world.target.session().await;
    record.batch("BEGIN; SELECT FROM pgsluice.subscription FOR UPDATE").await.unwrap();
    copy.batch("COMMIT").await.unwrap();
    world.wait_same_rows("t").await;
    // The attempt to write the state is given up after three seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let end =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgsluice state'";
    world.target.exec(end).await;
    record.batch("COMMIT").await.unwrap();
    world.wait_state("streaming").await;
}
