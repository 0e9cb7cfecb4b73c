//! Subscriptions with thousands of tables: their targets are described together, and what was learned of them is
//! kept as long as their catalog rows are the same.

use std::time::{Duration, Instant};

use crate::support::wait::until;
use crate::support::world::World;

const TABLES: usize = 4000;
/// Limit for one transaction over all tables. It is generous because the tests run unoptimised and together;
/// one table at a time takes two minutes.
const TRANSACTION_MAX: Duration = Duration::from_secs(30);

fn for_all(statement: &str) -> String {
    format!("DO $$ BEGIN FOR i IN 1..{TABLES} LOOP EXECUTE format({statement}, i); END LOOP; END $$")
}

/// The number of times that the target was asked to describe tables, and for their fingerprints.
fn looks(log: &str) -> (usize, usize) {
    let count = |marker: &str| {
        let sql = |entry: &&str| entry.starts_with("SELECT") && entry.contains(marker);
        log.split("execute <unnamed>: ").filter(sql).count()
    };
    (count("AS can_truncate"), count("AS fingerprint"))
}

async fn reconnect(world: &World) {
    let holder = format!(
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}' AND active_pid IS NOT NULL",
        world.subscription
    );
    let before = world.publisher.value(&holder).await.expect("the slot is in use");
    world.publisher.exec(format!("SELECT pg_terminate_backend({before})")).await;
    until("another session streams", async || {
        world.publisher.value(&holder).await.is_some_and(|now| now != before)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tables_are_described_together_and_once() {
    let mut world = World::builder()
        .target_setting("log_statement", "all")
        .target_setting("max_locks_per_transaction", "512")
        .both_sql(&for_all("'CREATE TABLE t%s (id int PRIMARY KEY, n int)'"))
        .subscription_line("copy_data = false")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let log = world.target_server().log().unwrap();
    assert_eq!(looks(&log).1, 0, "nothing is looked at before it is needed");
    let mut seen = log.len();
    let mut touch = async |world: &mut World, id: usize| {
        let began = Instant::now();
        world.publisher.exec(for_all(&format!("'INSERT INTO t%s VALUES ({id}, 1)'"))).await;
        world.wait_caught_up().await;
        let took = began.elapsed();
        println!("transaction {id} over {TABLES} tables: {took:?}");
        assert!(took < TRANSACTION_MAX, "{took:?}");
        let log = world.target_server().log().unwrap();
        let looks = looks(&log[seen..]);
        seen = log.len();
        looks
    };

    // 32 tables are looked at, 128, 512, 1024 and so on, which makes seven looks. On a slow machine, what was read
    // early becomes too old and is looked at again.
    let (described, looked_at) = touch(&mut world, 1).await;
    assert!((7..=16).contains(&described) && looked_at <= 40, "{described}, {looked_at}");
    assert_eq!(touch(&mut world, 2).await, (0, 0));
    reconnect(&world).await;
    let (described, looked_at) = touch(&mut world, 3).await;
    assert_eq!(described, 0, "what was learned is still so");
    assert!((4..=40).contains(&looked_at), "{looked_at}");
    world.target.exec("ALTER TABLE t17 ADD COLUMN note text DEFAULT 'ours'").await;
    reconnect(&world).await;
    assert_eq!(touch(&mut world, 4).await.0, 1, "one of them has changed");

    // It fails with a division by zero at the first table that has other rows.
    let check = "'SELECT 1 / (count(*) = 4 AND min(id) = 1 AND max(id) = 4)::int FROM t%s'";
    world.target.exec(for_all(check)).await;
    assert_eq!(world.target.lines("SELECT DISTINCT note FROM t17").await, ["ours"]);
}

/// The description of a table that was read along with another one's is outdated when the table is announced.
#[tokio::test(flavor = "multi_thread")]
async fn a_description_that_was_read_early_is_not_applied_by_after_ddl() {
    let world = World::builder()
        .both_sql("CREATE TABLE a (id int PRIMARY KEY, n numeric(12,2))")
        .both_sql("CREATE TABLE b (id int PRIMARY KEY, n numeric(12,2))")
        .both_sql("CREATE TABLE c (id int PRIMARY KEY, n numeric(12,2))")
        .both_sql("CREATE TABLE d (id int PRIMARY KEY, n numeric(12,2))")
        .subscription_line("copy_data = false")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO a VALUES (1, 1.25)").await;
    world.wait_same_rows("a").await;
    // A column that has come on both sides fits at once, although the early description lacks it.
    world.target.exec("ALTER TABLE b ADD COLUMN note text").await;
    world.publisher.exec("ALTER TABLE b ADD COLUMN note text").await;
    world.publisher.exec("INSERT INTO b VALUES (1, 1.25, 'new')").await;
    world.wait_same_rows("b").await;
    // The early description still fits, but the target would round.
    world.target.exec("ALTER TABLE c ALTER COLUMN n TYPE numeric(12,0)").await;
    world.publisher.exec("INSERT INTO c VALUES (1, 1.25)").await;
    world.wait_paused("schema").await;
    assert_eq!(world.target.value("SELECT count(*) FROM c").await.as_deref(), Some("0"));
    world.target.exec("ALTER TABLE c ALTER COLUMN n TYPE numeric(12,2)").await;
    world.wait_same_rows("c").await;
    world.publisher.exec("INSERT INTO d VALUES (1, 1.25)").await;
    world.wait_same_rows("d").await;
}

/// Some of the functions that describe a table wait for its locks.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_does_not_hold_up_others() {
    let world = World::builder()
        .both_sql("CREATE TABLE a (id int PRIMARY KEY, n int DEFAULT 1 CHECK (n > 0))")
        .both_sql("CREATE TABLE b (id int PRIMARY KEY, n int DEFAULT 1 CHECK (n > 0))")
        .subscription_line("copy_data = false")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let locker = world.target.session().await;
    locker.batch("BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE").await.unwrap();
    world.publisher.exec("INSERT INTO a VALUES (1, 2)").await;
    world.wait_same_rows("a").await;
    world.publisher.exec("INSERT INTO b VALUES (1, 2)").await;
    locker.batch("COMMIT").await.unwrap();
    world.wait_same_rows("b").await;
}
