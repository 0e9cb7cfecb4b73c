//! Who has lost a subscription writes nothing more, and what has landed is not done again: copies whose
//! COMMIT is not answered, owners that wake up late, and other writers of the progress row.
//!
//! `PGSLUICE_SEED` replays the choices of the random moments. `PGSLUICE_TURNS` is how often two instances take
//! over from each other, `PGSLUICE_FROZEN_MS` for how long the former owner sleeps on.

use std::time::Duration;

use pgsluice::demo::process::Signal;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::wait::{until, until_within};
use crate::support::world::{Origins, PUBLISHER_ROLE, Servers, World};

/// A table whose rows tell if they came twice only by their number.
fn keyless(name: &str) -> String {
    format!("CREATE TABLE {name} (a int, b text); ALTER TABLE {name} REPLICA IDENTITY FULL;")
}

fn keyed(name: &str) -> String {
    format!("CREATE TABLE {name} (a int PRIMARY KEY, b text);")
}

fn rows(name: &str, count: u32) -> String {
    format!("INSERT INTO {name} SELECT n, 'copied' FROM generate_series(1, {count}) n;")
}

async fn wait_all_ready(world: &World) {
    let sql = "SELECT source_table, state, attempt, error FROM pgsluice.table_sync WHERE state <> 'ready'";
    world.wait_state_within(Duration::from_mins(2), "streaming").await;
    until_within(Duration::from_mins(2), "every table is synchronised", async || {
        let waiting = world.target.lines(sql).await;
        if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
}

/// How often each table's copy was begun.
async fn attempts(world: &World) -> Vec<String> {
    world.target.lines("SELECT source_table, attempt FROM pgsluice.table_sync ORDER BY 1").await
}

async fn published(world: &World, count: usize) {
    let sql = "SELECT count(*) FROM pgsluice.table_sync";
    until("the tables are taken up", async || {
        world.target.value(sql).await.as_deref() == Some(count.to_string().as_str())
    })
    .await;
}

#[tokio::test]
async fn a_copy_needs_no_publisher_once_its_rows_have_come() {
    let names = ["logged", "rows", "late_logged", "late_rows"];
    let tables = [keyless("logged"), keyed("rows"), keyless("late_logged"), keyed("late_rows")];
    // The end of each COPY takes longer than the publisher leaves a session within a transaction.
    let slow = names.map(|name| {
        format!(
            "CREATE TRIGGER slow AFTER INSERT ON {name} EXECUTE FUNCTION slow(); \
             ALTER TABLE {name} ENABLE ALWAYS TRIGGER slow;"
        )
    });
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&tables.concat())
        .publisher_sql(&names.map(|name| rows(name, 1000)).concat())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE logged, rows")
        .target_sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF current_query() LIKE 'COPY%' THEN PERFORM pg_sleep(2); END IF; RETURN NULL; END $$",
        )
        .target_sql(&slow.concat())
        .start()
        .await;
    let timeout = format!("ALTER ROLE {PUBLISHER_ROLE} SET idle_in_transaction_session_timeout = '500ms'");
    world.publisher.exec(timeout).await;
    let service = world.run();
    wait_all_ready(&world).await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late_logged, late_rows").await;
    published(&world, 4).await;
    wait_all_ready(&world).await;
    for name in names {
        world.wait_same_rows(name).await;
    }
    assert_eq!(attempts(&world).await, ["late_logged|1", "late_rows|1", "logged|1", "rows|1"]);
    assert!(!service.log().contains("copy of public"), "{}", service.log());
}

/// The backends of copies whose COMMIT waits for a standby that there is not: it has been written, and is not
/// answered.
const UNANSWERED: &str = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
    AND application_name ~ '( copy| sync)$'";

/// A world whose copies' COMMITs, and nothing else, wait for a standby.
async fn unanswered(tables: &str, contents: &str) -> World {
    let mut world = World::builder()
        .servers(Servers::Separate)
        // To make an origin is a commit, too.
        .origins(Origins::Withheld)
        .subscription_line("synchronous_commit = \"local\"")
        .both_sql(tables)
        .publisher_sql(contents)
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE early")
        .start()
        .await;
    world.target.exec(format!("ALTER DATABASE {} SET synchronous_commit = local", world.target.name)).await;
    world.target_server().set("synchronous_standby_names", "nobody").unwrap();
    world.target_server().reload().unwrap();
    world
}

/// Ends the backend of a copy whose COMMIT has landed, so that nobody hears of it.
async fn lose_an_answer(world: &World) {
    let ended = format!("SELECT pg_terminate_backend(pid) FROM ({UNANSWERED}) AS a");
    until("a copy's COMMIT waits", async || world.target.value(&ended).await.as_deref() == Some("t")).await;
}

#[tokio::test]
async fn a_copy_whose_commit_landed_is_done_although_its_answer_is_lost() {
    let tables = [keyless("early"), keyless("late")].concat();
    let world = unanswered(&tables, &[rows("early", 3000), rows("late", 3000)].concat()).await;
    let service = world.run();
    lose_an_answer(&world).await;
    world.wait_state("streaming").await;
    world.assert_same_rows("early").await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
    lose_an_answer(&world).await;
    wait_all_ready(&world).await;
    world
        .publisher
        .exec("INSERT INTO early VALUES (0, 'streamed'); INSERT INTO late VALUES (0, 'streamed')")
        .await;
    for name in ["early", "late"] {
        world.wait_same_rows(name).await;
    }
    assert_eq!(attempts(&world).await, ["early|1", "late|1"]);
    let told = "the copy's COMMIT has landed, although its answer was lost";
    assert_eq!(service.log().matches(told).count(), 2, "{}", service.log());
}

#[tokio::test]
async fn a_copy_whose_commit_is_under_way_when_the_service_dies_is_adopted() {
    let tables = [keyless("early"), keyless("late")].concat();
    let world = unanswered(&tables, &[rows("early", 3000), rows("late", 3000)].concat()).await;
    for name in ["early", "late"] {
        let service = world.run();
        if name == "late" {
            world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
        }
        until("a copy's COMMIT waits", async || world.target.value(UNANSWERED).await).await;
        assert_eq!(attempts(&world).await.last().unwrap(), &format!("{name}|1"));
        service.kill9().await;
        // What has been published meanwhile is the stream's.
        world.publisher.exec(format!("INSERT INTO {name} VALUES (0, 'streamed')")).await;
        let service = world.run();
        let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        until("its successor waits for it", async || {
            world.target.value(blocked).await.as_deref() == Some("1")
        })
        .await;
        lose_an_answer(&world).await;
        wait_all_ready(&world).await;
        world.wait_same_rows(name).await;
        assert_eq!(service.sigterm().await, 0);
    }
    assert_eq!(attempts(&world).await, ["early|1", "late|1"]);
}

#[tokio::test]
async fn a_copy_whose_commit_did_not_land_is_made_again() {
    let check = "CREATE FUNCTION check_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
        IF EXISTS (SELECT FROM public.waits) THEN PERFORM pg_sleep(60); END IF; RETURN NULL; END $$; \
        CREATE TABLE waits AS SELECT 1; GRANT SELECT ON waits TO PUBLIC;";
    let late = ["early", "late"].map(|name| {
        format!(
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {name} DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION check_late(); ALTER TABLE {name} ENABLE ALWAYS TRIGGER late;"
        )
    });
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&[keyless("early"), keyless("late")].concat())
        .publisher_sql(&[rows("early", 30), rows("late", 30)].concat())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE early")
        .target_sql(&[check, &late.concat()].concat())
        .start()
        .await;
    let _service = world.run();
    let sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    for name in ["early", "late"] {
        if name == "late" {
            world.target.exec("INSERT INTO waits VALUES (1)").await;
            world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
        }
        let pid = until("a COMMIT sleeps", async || world.target.value(sleeping).await).await;
        // The next one does not.
        world.target.exec("DELETE FROM waits").await;
        world.target.query_text(format!("SELECT pg_terminate_backend({pid})")).await;
        published(&world, if name == "late" { 2 } else { 1 }).await;
        wait_all_ready(&world).await;
        world.wait_same_rows(name).await;
    }
    let attempts = attempts(&world).await;
    assert!(attempts.iter().all(|attempt| !attempt.ends_with("|1")), "{attempts:?}");
}

/// The run's choices, by a seed that is told.
fn seeded() -> StdRng {
    let seed: u64 = number("PGSLUICE_SEED").unwrap_or_else(rand::random);
    println!("PGSLUICE_SEED={seed} replays the moments of this run");
    StdRng::seed_from_u64(seed)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().unwrap())
}

const KILLS: usize = 10;
const JOINING: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_join_while_the_service_is_killed_are_there_once() {
    let seed: u64 =
        std::env::var("PGSLUICE_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("PGSLUICE_SEED={seed} replays the moments of this run's kills");
    let mut random = StdRng::seed_from_u64(seed);
    let names: Vec<String> = (0..=JOINING).map(|number| format!("t{number}")).collect();
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&names.iter().map(|name| keyless(name)).collect::<String>())
        .publisher_sql(&names.iter().map(|name| rows(name, 20_000)).collect::<String>())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t0")
        .start()
        .await;
    world.take_up().await;
    for kill in 0..KILLS {
        let service = world.run();
        for name in names.iter().skip(1 + kill).take(1) {
            world.publisher.exec(format!("ALTER PUBLICATION my_publication ADD TABLE {name}")).await;
        }
        let insert = |name| format!("INSERT INTO {name} VALUES (-{kill}, 'streamed');");
        let busy = names.iter().map(insert).collect::<Vec<_>>().concat();
        let until_kill = Duration::from_millis(random.random_range(300..6000));
        let writing = async {
            loop {
                world.publisher.exec(&busy).await;
                // Not synchronisation: the load's pace.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let ended: Result<(), _> = tokio::time::timeout(until_kill, writing).await;
        assert!(ended.is_err());
        service.kill9().await;
    }
    let service = world.run();
    published(&world, names.len()).await;
    wait_all_ready(&world).await;
    world.wait_caught_up_within(Duration::from_mins(2)).await;
    println!("{KILLS} kills; copies begun: {:?}", attempts(&world).await);
    for name in &names {
        world.assert_same_rows(name).await;
    }
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn what_another_writer_has_recorded_is_not_applied_again() {
    let world = World::builder().servers(Servers::Separate).both_sql(&keyless("t")).start().await;
    let mut service = world.run();
    wait_all_ready(&world).await;
    world.publisher.exec("INSERT INTO t VALUES (1, 'ours')").await;
    world.wait_same_rows("t").await;
    let term = "SELECT term FROM pgsluice.owner";
    let before = world.target.value(term).await;

    // While it does not look, another one applies the next transaction and records that.
    service.signal(Signal::Freeze);
    world.publisher.exec("INSERT INTO t VALUES (2, 'theirs')").await;
    let end = world.publisher.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let theirs = "INSERT INTO t VALUES (2, 'theirs'); UPDATE pgsluice.progress SET applied_lsn = ";
    world.target.exec(format!("{theirs} '{end}'")).await;
    service.signal(Signal::Thaw);
    world.publisher.exec("INSERT INTO t VALUES (3, 'ours')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    world.assert_same_rows("t").await;
    assert!(service.log().contains("another writer has moved the subscription on"), "{}", service.log());
    assert_ne!(world.target.value(term).await, before, "it has asked for the lock again");

    // A record that is another owner's is not adopted either.
    world.target.exec("UPDATE pgsluice.progress SET term = term + 1").await;
    world.publisher.exec("INSERT INTO t VALUES (4, 'ours')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
}

/// How a second instance comes to own what the first one still believes to be its own.
async fn end_backends(world: &World, applications: &str) {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '{applications}'"
    );
    world.target.query_text(sql.as_str()).await;
    // A walsender keeps the slot for as long as its receiver's connection is there.
    world.publisher.query_text("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
}

/// All that instances write, but for what an owner reports at any time though nothing happens: that it lives, and the
/// position up to which there was nothing to apply.
const WRITTEN: &str = "SELECT jsonb_build_array(\
    (SELECT jsonb_agg(to_jsonb(t) - 'updated_at' ORDER BY source_table) FROM pgsluice.table_sync t), \
    (SELECT jsonb_agg(to_jsonb(o)) FROM pgsluice.owner o), \
    (SELECT jsonb_agg(to_jsonb(p) - 'updated_at' - 'applied_lsn') FROM pgsluice.progress p), \
    (SELECT jsonb_agg(to_jsonb(e) ORDER BY id) FROM pgsluice.event e), \
    (SELECT jsonb_agg(jsonb_build_array(state, reason, detail, instance, warnings)) FROM pgsluice.subscription))";

/// What is written once the owner has told all that it had to tell: nothing changes for longer than it reports behind.
async fn settled(world: &World) -> Option<String> {
    let mut last = world.target.value(WRITTEN).await;
    until("the owner writes nothing more", async || {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = world.target.value(WRITTEN).await;
        now == std::mem::replace(&mut last, now.clone())
    })
    .await;
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_wakes_up_late_writes_nothing() {
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&[keyless("t"), keyless("late")].concat())
        .publisher_sql(&[rows("t", 1000), rows("late", 50_000)].concat())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t")
        .start()
        .await;
    let mut former = world.run();
    wait_all_ready(&world).await;
    // In the middle of a table that joins, with changes on their way.
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
    let copying = "SELECT count(*) FROM pgsluice.table_sync WHERE state IN ('copying', 'catching_up')";
    until("the copy has begun", async || world.target.value(copying).await.as_deref() == Some("1")).await;
    former.signal(Signal::Freeze);
    world
        .publisher
        .exec("INSERT INTO t VALUES (0, 'streamed'); INSERT INTO late VALUES (0, 'streamed')")
        .await;
    // Only the session with the lock: its copy's and its state's sessions live on.
    end_backends(&world, "^pgsluice sub").await;
    let successor = world.run();
    wait_all_ready(&world).await;
    for name in ["t", "late"] {
        world.wait_same_rows(name).await;
    }
    world.wait_caught_up().await;
    let before = settled(&world).await;
    former.signal(Signal::Thaw);
    until("it has noticed", async || {
        let log = former.log();
        log.contains("standby: another instance applies").then_some(()).ok_or(log)
    })
    .await;
    // What it had on its way has arrived by now: it polls the lock every second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.target.value(WRITTEN).await, before);
    world
        .publisher
        .exec("INSERT INTO t VALUES (1, 'streamed'); INSERT INTO late VALUES (1, 'streamed')")
        .await;
    for name in ["t", "late"] {
        world.wait_same_rows(name).await;
    }
    assert_eq!(successor.sigterm().await, 0);
    // And it takes over again, under a new term.
    world
        .publisher
        .exec("INSERT INTO t VALUES (2, 'streamed'); INSERT INTO late VALUES (2, 'streamed')")
        .await;
    for name in ["t", "late"] {
        world.wait_same_rows(name).await;
    }
    assert_eq!(former.sigterm().await, 0);
}

const TURNS_DEFAULT: u64 = 4;
const FROZEN_MS_DEFAULT: u64 = 500;

/// Two instances, stopped by turns at random moments while rows are written and tables join; what the other one
/// had on its way comes late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_owners_that_are_stopped_by_turns_apply_everything_once() {
    let turns = number("PGSLUICE_TURNS").unwrap_or(TURNS_DEFAULT);
    let frozen = Duration::from_millis(number("PGSLUICE_FROZEN_MS").unwrap_or(FROZEN_MS_DEFAULT));
    let mut random = seeded();
    let names: Vec<String> = (0..=turns).map(|number| format!("t{number}")).collect();
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&names.iter().map(|name| keyless(name)).collect::<String>())
        .publisher_sql(&names.iter().map(|name| rows(name, 20_000)).collect::<String>())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t0")
        .start()
        .await;
    let mut owner = world.run();
    wait_all_ready(&world).await;
    let mut other = world.run();
    let term = "SELECT term FROM pgsluice.owner";
    for turn in 1..=turns {
        world.publisher.exec(format!("ALTER PUBLICATION my_publication ADD TABLE t{turn}")).await;
        let insert = |name| format!("INSERT INTO {name} VALUES (-{turn}, 'streamed');");
        let busy = names.iter().map(insert).collect::<Vec<_>>().concat();
        let writing = async {
            loop {
                world.publisher.exec(&busy).await;
            }
        };
        let before = world.target.value(term).await;
        let moment = Duration::from_millis(random.random_range(500..5000));
        let ended: Result<(), _> = tokio::time::timeout(moment, writing).await;
        assert!(ended.is_err());
        owner.signal(Signal::Freeze);
        world.publisher.exec(&busy).await;
        until("the other one owns it", async || {
            end_backends(&world, "^pgsluice sub").await;
            world.target.value(term).await != before
        })
        .await;
        // Not synchronisation: how long it sleeps is what is tried.
        tokio::time::sleep(frozen).await;
        owner.signal(Signal::Thaw);
        std::mem::swap(&mut owner, &mut other);
    }
    published(&world, names.len()).await;
    wait_all_ready(&world).await;
    world.wait_caught_up_within(Duration::from_mins(2)).await;
    println!("{turns} turns; copies begun: {:?}", attempts(&world).await);
    for name in &names {
        world.assert_same_rows(name).await;
    }
    assert_eq!(owner.sigterm().await, 0);
    assert_eq!(other.sigterm().await, 0);
}
