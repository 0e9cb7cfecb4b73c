//! From copy to stream no row is lost or applied twice, despite concurrent writes and failures, for
//! tables that are there from the start and for those that join later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pgsluice::demo::Session;
use tokio::task::JoinSet;

use crate::publications::known_tables;
use crate::support::wait::{until, until_within};
use crate::support::world::{Origins, Servers, TARGET_ROLE, World};

/// Number of sessions that write on the publisher at the same time.
const WRITERS: u64 = 4;

/// Sessions that insert, update and delete in some tables until they are stopped.
struct Writers {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Writers {
    async fn start(world: &World, tables: &'static [&'static str]) -> Self {
        let mut writers = Self { stop: Arc::default(), transactions: Arc::default(), tasks: JoinSet::new() };
        for writer in 0..WRITERS {
            let session = world.publisher.session().await;
            let (stop, transactions) = (Arc::clone(&writers.stop), Arc::clone(&writers.transactions));
            writers.tasks.spawn(async move {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    session.batch(&transaction(writer, round, tables)).await.unwrap();
                    transactions.fetch_add(1, Ordering::Relaxed);
                    round += 1;
                }
            });
        }
        writers
    }

    /// Waits until `count` more transactions have committed.
    async fn more(&self, count: u64) {
        let goal = self.transactions.load(Ordering::Relaxed) + count;
        until("the writers go on", async || self.transactions.load(Ordering::Relaxed) >= goal).await;
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// Returns a writer's transaction. A writer owns the ids that are its number modulo [`WRITERS`], so
/// there are no deadlocks, and each row is changed by one session. Some transactions roll a part of
/// themselves back.
fn transaction(writer: u64, round: u64, tables: &[&str]) -> String {
    let changes = tables.iter().map(|table| {
        let new = 1_000_000 + round * WRITERS + writer;
        let old = 1 + (round * WRITERS + writer) % 2000;
        let more = match round % 4 {
            0 => format!("DELETE FROM {table} WHERE id = {old};"),
            1 => format!("UPDATE {table} SET id = id + 500000 WHERE id = {old};"),
            2 => format!("SAVEPOINT s; DELETE FROM {table} WHERE id = {new}; ROLLBACK TO s;"),
            _ => format!("DELETE FROM {table} WHERE id = {new};"),
        };
        format!(
            "INSERT INTO {table} VALUES ({new}, {round}, 'inserted');
             UPDATE {table} SET v = v + 1 WHERE id = {old}; {more}"
        )
    });
    format!("BEGIN; {} COMMIT", changes.collect::<Vec<_>>().concat())
}

fn table(name: &str) -> String {
    format!("CREATE TABLE {name} (id bigint PRIMARY KEY, v bigint, note text);")
}

fn rows(name: &str, count: u32) -> String {
    format!("INSERT INTO {name} SELECT i, 0, 'copied' FROM generate_series(1, {count}) i;")
}

/// Returns one table of `status --json`.
async fn table_status(world: &World, source: &str) -> Result<serde_json::Value, String> {
    let view = world.status().await?;
    let tables = view.json["tables"].as_array().cloned().unwrap_or_default();
    tables.into_iter().find(|table| table["source"] == source).ok_or_else(|| format!("{:#}", view.json))
}

async fn wait_table_state(world: &World, source: &str, state: &str) {
    until(&format!("{source} is {state}"), async || {
        let table = table_status(world, source).await?;
        if table["state"] == state { Ok(()) } else { Err(format!("{table:#}")) }
    })
    .await;
}

/// Waits until these are the only slots on the publisher.
async fn wait_slots(world: &World, expected: &[&str]) {
    until_within(Duration::from_secs(15), &format!("the slots are {expected:?}"), async || {
        let slots = world.publisher.lines("SELECT slot_name FROM pg_replication_slots ORDER BY 1").await;
        if slots == expected { Ok(()) } else { Err(format!("{slots:?}")) }
    })
    .await;
}

/// Opens a session on the target whose transaction holds a key, so that a writer of that row waits.
async fn hold_key(world: &World, table: &str, id: u32) -> Session {
    let session = world.target.session().await;
    session.batch(&format!("BEGIN; INSERT INTO {table} VALUES ({id}, 0, 'held')")).await.unwrap();
    session
}

/// Waits until a session of pgsluice waits for a lock in the target.
async fn wait_blocked(world: &World, application: &str) {
    let name = format!("{application} {}", world.subscription);
    let names = [name, format!("{} {application}", world.subscription)];
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name IN ('{}', '{}')",
        names[0], names[1]
    );
    until(&format!("{names:?} waits for a lock"), async || {
        if world.target.value(&sql).await.as_deref() == Some("1") {
            return Ok(());
        }
        let seen = "SELECT application_name, wait_event_type, query FROM pg_stat_activity";
        Err(format!("{:#?}", world.target.lines(seen).await))
    })
    .await;
}

#[tokio::test]
async fn the_copy_hands_over_to_the_stream_while_everybody_writes() {
    const TABLES: &[&str] = &["a", "b", "c"];
    let mut builder = World::builder();
    for name in TABLES {
        builder = builder.both_sql(&table(name)).publisher_sql(&rows(name, 20_000));
    }
    let world = builder.start().await;
    let writers = Writers::start(&world, TABLES).await;
    writers.more(20).await;
    let _service = world.run();
    world.wait_state("streaming").await;
    writers.more(50).await;
    writers.stop().await;
    world.wait_caught_up().await;
    for name in TABLES {
        world.assert_same_rows(name).await;
    }
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn tables_join_and_leave_a_running_stream_while_everybody_writes() {
    const TABLES: &[&str] = &["first", "joins", "joins_too"];
    let mut builder = World::builder();
    for name in TABLES {
        builder = builder.both_sql(&table(name)).publisher_sql(&rows(name, 20_000));
    }
    let world = builder.publisher_sql("CREATE PUBLICATION my_publication FOR TABLE first").start().await;
    let writers = Writers::start(&world, TABLES).await;
    let _service = world.run();
    world.wait_state("streaming").await;
    writers.more(20).await;
    assert_eq!(known_tables(&world).await.unwrap(), ["public.first"]);
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE joins, joins_too").await;
    for name in ["public.joins", "public.joins_too"] {
        wait_table_state(&world, name, "ready").await;
    }
    writers.more(50).await;
    writers.stop().await;
    world.wait_caught_up().await;
    for name in TABLES {
        world.assert_same_rows(name).await;
    }
    wait_slots(&world, &[&world.subscription]).await;
    world.wait_state("streaming").await;

    // The table is no longer replicated.
    world.publisher.exec("ALTER PUBLICATION my_publication DROP TABLE joins").await;
    wait_table_state(&world, "public.joins", "left").await;
    let before = world.target.value("SELECT count(*) FROM joins").await;
    world
        .publisher
        .exec("DELETE FROM joins WHERE id < 10000; INSERT INTO first VALUES (-1, 0, 'last')")
        .await;
    world.wait_caught_up().await;
    world.wait_same_rows("first").await;
    assert_eq!(world.target.value("SELECT count(*) FROM joins").await, before);

    // Added again, the table is held, because it has missed changes.
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE joins").await;
    wait_table_state(&world, "public.joins", "paused").await;
    world.publisher.exec("INSERT INTO first VALUES (-2, 0, 'others go on')").await;
    world.wait_same_rows("first").await;
    assert_eq!(world.target.value("SELECT count(*) FROM joins").await, before);
    world.pgsluice(&["resync", &world.subscription, "public.joins"]).await.expect(0);
    world.wait_same_rows("joins").await;
    wait_table_state(&world, "public.joins", "ready").await;
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn a_failing_copy_is_told_holds_nobody_up_and_heals_by_itself() {
    let names = ["fine", "denied", "occupied", "late"];
    let tables: String = names.iter().map(|name| table(name) + &rows(name, 10)).collect();
    let world = World::builder()
        .publisher_sql(&tables)
        .target_sql(&names.map(table).concat())
        .target_sql("INSERT INTO occupied VALUES (5, 0, 'ours')")
        .publisher_sql("REVOKE SELECT ON denied, late FROM sammy")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE fine, denied, occupied")
        .start()
        .await;
    let _service = world.run();
    let view = world.wait_state("retrying").await;
    assert_eq!(view.reason.as_deref(), Some("copy"), "{:#}", view.json);
    let error_of = async |source: &str, expected: [&str; 2]| {
        until(&format!("{source} tells its error"), async || {
            let table = table_status(&world, source).await?;
            let told = table["error"].to_string();
            let all = expected.iter().all(|word| told.contains(word));
            if all { Ok(()) } else { Err(format!("{table:#}")) }
        })
        .await;
    };
    error_of("public.denied", ["permission denied", "GRANT SELECT"]).await;
    error_of("public.occupied", ["occupied_pkey", "TRUNCATE"]).await;
    world
        .publisher
        .exec(
            "INSERT INTO fine VALUES (11, 1, ''); UPDATE denied SET v = 7; DELETE FROM occupied WHERE id = 1",
        )
        .await;
    world.wait_same_rows("fine").await;
    assert_eq!(world.target.lines("SELECT id, note FROM occupied").await, ["5|ours"]);

    world.publisher.exec("GRANT SELECT ON denied TO sammy").await;
    world.wait_same_rows("denied").await;
    assert_eq!(world.status().await.unwrap().state, "retrying");
    world.target.exec("TRUNCATE occupied").await;
    world.wait_same_rows("occupied").await;
    world.wait_state("streaming").await;
    assert!(table_status(&world, "public.occupied").await.unwrap()["error"].is_null());
    wait_slots(&world, &[&world.subscription]).await;

    // This also holds for a table that joins; a drop in between leaves no slot.
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
    world.wait_state("retrying").await;
    error_of("public.late", ["permission denied", "GRANT SELECT"]).await;
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    wait_slots(&world, &[]).await;
}

#[tokio::test]
async fn a_drop_in_the_middle_of_a_tables_copy_leaves_no_slot() {
    let names = ["first", "late"];
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&names.map(table).concat())
        .publisher_sql(&rows("late", 5000))
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE first")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let held = hold_key(&world, "late", 4000).await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
    wait_blocked(&world, "sync").await;
    let slots = world.publisher.value("SELECT count(*) FROM pg_replication_slots WHERE temporary").await;
    assert_eq!(slots.as_deref(), Some("1"));
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    wait_slots(&world, &[]).await;
    held.close().await;
    until("nothing of the copy is left", async || {
        let sessions =
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'pgsluice_apply' AND state <> 'idle'";
        world.target.value(sessions).await.as_deref() == Some("0")
    })
    .await;
    assert_eq!(world.target.value("SELECT count(*) FROM late").await.as_deref(), Some("0"));
}

/// A walsender that waits for old transactions does not notice that its client is gone.
#[tokio::test]
async fn a_slot_that_waits_for_old_transactions_is_not_left_behind() {
    let names = ["first", "late"];
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&names.map(table).concat())
        .publisher_sql(&names.map(|name| rows(name, 10)).concat())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE first")
        .start()
        .await;
    let creating = async |count: &str| {
        let sql = "SELECT count(*) FROM pg_replication_slots WHERE active AND confirmed_flush_lsn IS NULL";
        until(&format!("{count} slots are being created"), async || {
            world.publisher.value(sql).await.as_deref() == Some(count)
        })
        .await;
    };
    let old = world.publisher.session().await;
    old.batch("BEGIN; INSERT INTO first VALUES (100, 0, 'old')").await.unwrap();
    let service = world.run();
    creating("1").await;
    // After a drop nothing is left.
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    wait_slots(&world, &[]).await;
    drop(service);
    // After a kill, the next service resumes as soon as the old transaction has ended.
    let service = world.run();
    creating("1").await;
    service.kill9().await;
    let service = world.run();
    creating("1").await;
    old.batch("COMMIT").await.unwrap();
    world.wait_same_rows("first").await;
    world.wait_state("streaming").await;

    // This also holds for a table that joins.
    old.batch("BEGIN; INSERT INTO first VALUES (101, 0, 'old')").await.unwrap();
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
    creating("1").await;
    service.kill9().await;
    let _service = world.run();
    creating("1").await;
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    wait_slots(&world, &[]).await;
    old.batch("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn a_copy_that_is_killed_starts_over_and_leaves_nothing() {
    let names = ["first", "other", "late", "later"];
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&names.map(table).concat())
        .publisher_sql(&names.map(|name| rows(name, 5000)).concat())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE first, other")
        .start()
        .await;
    // The service is killed during the initial copy.
    let held = hold_key(&world, "first", 4000).await;
    let service = world.run();
    wait_blocked(&world, "copy").await;
    world.wait_same_rows("other").await;
    service.kill9().await;
    world.publisher.exec("UPDATE first SET v = 1 WHERE id < 2000; DELETE FROM other WHERE id > 10").await;
    held.close().await;
    let service = world.run();
    for name in ["first", "other"] {
        world.wait_same_rows(name).await;
    }
    world.wait_state("streaming").await;

    // The service is killed during the copy of a table that joins.
    let held = hold_key(&world, "late", 4000).await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
    wait_blocked(&world, "sync").await;
    world.publisher.exec("INSERT INTO first VALUES (7777, 0, 'streamed meanwhile')").await;
    world.wait_same_rows("first").await;
    service.kill9().await;
    world.publisher.exec("UPDATE late SET v = 2 WHERE id < 1000").await;
    held.close().await;
    let service = world.run();
    world.wait_same_rows("late").await;
    wait_table_state(&world, "public.late", "ready").await;

    // The service is killed while the table catches up: the stream that it waits for is blocked.
    let held = hold_key(&world, "first", 8888).await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE later").await;
    until("the sync has begun", async || known_tables(&world).await.is_ok_and(|known| known.len() == 4))
        .await;
    world
        .publisher
        .exec("INSERT INTO first VALUES (8888, 0, ''); UPDATE later SET v = 3 WHERE id < 500")
        .await;
    wait_blocked(&world, "pgsluice").await;
    service.kill9().await;
    world.publisher.exec("DELETE FROM later WHERE id < 100").await;
    held.close().await;
    let _service = world.run();
    for name in names {
        world.wait_same_rows(name).await;
    }
    wait_table_state(&world, "public.later", "ready").await;
    world.wait_state("streaming").await;
    wait_slots(&world, &[&world.subscription]).await;
}

/// Returns what logical decoding of the target shows of user tables: everything or, with `only-local`,
/// what a subscriber with `origin = none` receives.
async fn decoded(world: &World, only_local: &str) -> Vec<String> {
    let sql = format!(
        "SELECT data FROM pg_logical_slot_peek_changes('downstream', NULL, NULL, 'only-local', '{only_local}') \
         WHERE data LIKE 'table public.%'"
    );
    world.target.lines(&sql).await
}

#[tokio::test]
async fn everything_that_is_replicated_carries_an_origin() {
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&["t", "late"].map(table).concat())
        .publisher_sql(&["t", "late"].map(|name| rows(name, 3)).concat())
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t")
        .target_sql("SELECT pg_create_logical_replication_slot('downstream', 'test_decoding')")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.publisher.exec("DELETE FROM t WHERE id = 1").await;
    world.wait_same_rows("t").await;
    world.publisher.exec("TRUNCATE t").await;
    world.wait_same_rows("t").await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE late").await;
    world.wait_same_rows("late").await;
    world.publisher.exec("UPDATE late SET v = 1").await;
    world.wait_same_rows("late").await;
    let view = world.wait_state("streaming").await;
    assert!(!view.json.to_string().contains("origin"), "{:#}", view.json);
    assert_eq!(decoded(&world, "true").await, [""; 0]);
    let all = decoded(&world, "false").await;
    for change in ["t: INSERT", "t: DELETE", "t: TRUNCATE", "late: INSERT", "late: UPDATE"] {
        let change = format!("table public.{change}");
        assert!(all.iter().any(|line| line.starts_with(&change)), "{change} is not in {all:#?}");
    }
    world.target.exec("INSERT INTO t VALUES (99, 0, 'local')").await;
    assert_eq!(decoded(&world, "true").await.len(), 1);

    // A drop leaves no origins, which would occupy the target's slots for them.
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    assert_eq!(world.target.lines("SELECT roname FROM pg_replication_origin").await, [""; 0]);
    drop(service);
}

#[tokio::test]
async fn without_the_privilege_the_missing_origin_is_told() {
    let world = World::builder()
        .origins(Origins::Withheld)
        .both_sql(&table("t"))
        .publisher_sql(&rows("t", 3))
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    let view = world.wait_state("streaming").await;
    let text = view.json.to_string();
    assert!(text.contains("carry no replication origin"), "{:#}", view.json);
    assert!(
        text.contains("pg_replication_origin_session_setup") && text.contains(TARGET_ROLE),
        "{:#}",
        view.json
    );
}
