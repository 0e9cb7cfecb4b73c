//! Subscriptions with thousands of tables: their targets are described together, and what was learned of them is
//! kept as long as their catalog rows are the same.

use std::time::{Duration, Instant};

use pgsluice::pg::quote_ident;

use crate::support::clusters::target_binaries;
use crate::support::wait::until;
use crate::support::world::{TARGET_ROLE, World};

const TABLES: usize = 4000;
/// Limit for one transaction over all tables. It is generous because the tests run unoptimised and together;
/// one table at a time takes two minutes.
const TRANSACTION_MAX: Duration = Duration::from_secs(30);

fn for_all(statement: &str) -> String {
    for_each(TABLES, statement)
}

/// Runs the statement for each of so many tables; `%s` is the table's number.
fn for_each(tables: usize, statement: &str) -> String {
    format!("DO $$ BEGIN FOR i IN 1..{tables} LOOP EXECUTE format('{statement}', i); END LOOP; END $$")
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
        .both_sql(&for_all("CREATE TABLE t%s (id int PRIMARY KEY, n int)"))
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
        world.publisher.exec(for_all(&format!("INSERT INTO t%s VALUES ({id}, 1)"))).await;
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
    // On a slow machine, it is described twice, as above.
    let described = touch(&mut world, 4).await.0;
    assert!((1..=2).contains(&described), "one of them has changed: {described}");

    // It fails with a division by zero at the first table that has other rows.
    let check = "SELECT 1 / (count(*) = 4 AND min(id) = 1 AND max(id) = 4)::int FROM t%s";
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
    // The early description still fits, but no published value fits the target's type any more.
    world.target.exec("ALTER TABLE c ALTER COLUMN n TYPE bigint").await;
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

/// The owner of a database is a member of `pg_database_owner`, which no row of a catalog says that fingerprints cover.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_change_from_being_applied_is_read_anew() {
    if target_binaries().major() < 14 {
        return;
    }
    let world = World::builder().both_sql("CREATE TABLE t (id int PRIMARY KEY, n int)").start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let grants = format!("REVOKE UPDATE ON t FROM {TARGET_ROLE}; GRANT UPDATE ON t TO pg_database_owner");
    world.target.exec(grants).await;
    world.publisher.exec("INSERT INTO t VALUES (1, 1)").await;
    world.wait_same_rows("t").await;
    world.publisher.exec("UPDATE t SET n = 2").await;
    world.wait_paused("schema").await;
    world
        .target
        .exec(format!("ALTER DATABASE {} OWNER TO {TARGET_ROLE}", quote_ident(&world.target.name)))
        .await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
}

/// A kept description has the names of indexes, by which the rows that a conflict met are found.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_renamed_meanwhile_names_its_conflict() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, n int)")
        .target_sql("CREATE UNIQUE INDEX t_n ON t (n)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1, 1)").await;
    world.wait_same_rows("t").await;
    for name in ["after_a_reconnect", "within_an_attempt"] {
        let before: i32 = world.target.value("SELECT max(id) FROM t").await.unwrap().parse().unwrap();
        let id = before + 1;
        world
            .target
            .exec(format!("ALTER INDEX t_n RENAME TO {name}; INSERT INTO t VALUES (100, {id})"))
            .await;
        if name == "after_a_reconnect" {
            reconnect(&world).await;
        }
        world.publisher.exec(format!("INSERT INTO t VALUES ({id}, {id})")).await;
        let conflict = world.wait_conflict().await;
        assert_eq!(conflict["constraint"], name, "{conflict:#}");
        assert_eq!(conflict["local_rows"][0]["id"], "100", "{conflict:#}");
        world.target.exec(format!("DELETE FROM t WHERE id = 100; ALTER INDEX {name} RENAME TO t_n")).await;
        world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        world.wait_same_rows("t").await;
    }
}

/// A table of the same name is another table, whatever was learned of the one before it.
#[tokio::test(flavor = "multi_thread")]
async fn tables_made_again_between_attempts_are_other_tables() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, a int, b text)")
        .both_sql("CREATE TABLE u (id int PRIMARY KEY, a int, b text)")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1, 1, 'one'); INSERT INTO u VALUES (1, 1, 'one')").await;
    world.wait_same_rows("u").await;
    let made_again = "BEGIN; ALTER TABLE t RENAME TO old; \
        CREATE TABLE t (b varchar(30), ours text DEFAULT 'ours', a bigint, id bigint PRIMARY KEY); \
        INSERT INTO t (id, a, b) SELECT id, a, b FROM old; DROP TABLE old; \
        ALTER TABLE u RENAME TO old; ALTER TABLE t RENAME TO u; \
        CREATE TABLE t (a numeric, b text, id int PRIMARY KEY); \
        INSERT INTO t (id, a, b) SELECT id, a, b FROM old; DROP TABLE old; COMMIT";
    for id in [2, 3] {
        world.target.exec(made_again).await;
        reconnect(&world).await;
        let rows = format!("INSERT INTO t VALUES ({id}, 2, 'two'); INSERT INTO u VALUES ({id}, 2, 'two')");
        world.publisher.exec(format!("{rows}; UPDATE t SET a = a + 1; UPDATE u SET a = a + 1")).await;
        world.wait_same_rows("t").await;
        world.wait_same_rows("u").await;
    }
    world.target.exec("DROP TABLE u").await;
    reconnect(&world).await;
    world.publisher.exec("INSERT INTO t VALUES (4, 4, 'four')").await;
    world.wait_same_rows("t").await;
    world.publisher.exec("INSERT INTO u VALUES (4, 4, 'four')").await;
    world.wait_paused("schema").await;
    world
        .target
        .exec("CREATE TABLE u AS SELECT 4 id, 3 a, 'x' b LIMIT 0; ALTER TABLE u ADD PRIMARY KEY (id)")
        .await;
    until("its row has come", async || {
        world.target.value("SELECT b FROM u").await.as_deref() == Some("four")
    })
    .await;
    assert!(!service.log().contains("panicked"));
}

/// While transactions over many tables are applied, their targets are altered without being made unfit.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_in_the_middle_of_transactions_over_many_tables_changes_nothing() {
    const ALTERED: usize = 400;
    let all = |statement: &str| for_each(ALTERED, statement);
    let world = World::builder()
        .target_setting("max_locks_per_transaction", "512")
        .both_sql(&all("CREATE TABLE t%s (id int PRIMARY KEY, n int)"))
        .subscription_line("copy_data = false")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    let alter = async {
        let session = world.target.session().await;
        for number in 0..150 {
            let table = format!("t{}", number * 37 % ALTERED + 1);
            let ddl = match number % 5 {
                0 => format!("ALTER TABLE {table} ADD COLUMN ours text DEFAULT 'ours'"),
                1 => format!("ALTER TABLE {table} ALTER n TYPE bigint"),
                2 => format!("ALTER TABLE {table} ALTER n TYPE numeric"),
                3 => format!("CREATE INDEX ON {table} (n)"),
                _ => format!(
                    "BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; ALTER TABLE {table} RENAME TO old; \
                     CREATE TABLE {table} (n int, id int PRIMARY KEY); \
                     INSERT INTO {table} SELECT n, id FROM old; DROP TABLE old; COMMIT"
                ),
            };
            session.batch(&ddl).await.unwrap_or_else(|error| panic!("{ddl}: {}", error.diagnosis()));
        }
    };
    let publish = async {
        for id in 1..=8 {
            world.publisher.exec(all(&format!("INSERT INTO t%s VALUES ({id}, 1)"))).await;
            world
                .publisher
                .exec(all("UPDATE t%s SET n = n + 1 WHERE id % 2 = 0").replace("id %", "id %%"))
                .await;
        }
    };
    tokio::join!(alter, publish);
    world.wait_caught_up_within(Duration::from_mins(3)).await;
    let rows = "SELECT string_agg(id || ' ' || n, ',' ORDER BY id) FROM";
    for table in 1..=ALTERED {
        let of = format!("{rows} t{table}");
        assert_eq!(world.target.value(&of).await, world.publisher.value(&of).await, "t{table}");
    }
    let paused = "SELECT message FROM pgsluice.event WHERE message LIKE '%paused%' OR kind = 'conflict'";
    assert_eq!(world.target.lines(paused).await, [""; 0], "{}", service.log());
}

/// The catalog's answer about many tables comes in several parts, and the first row of the replay is sent meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_in_the_first_of_many_tables_does_not_hold_up_the_others() {
    const TABLES: u32 = 200;
    let tables = |length: &dyn Fn(u32) -> u32| -> String {
        let table = |n| format!("CREATE TABLE d{n} (id int PRIMARY KEY, c varchar({}));", length(n));
        (0..TABLES).map(table).collect()
    };
    let world = World::builder()
        .publisher_sql(&tables(&|_| 10))
        .target_sql(&tables(&|n| if n == 0 { 4 } else { 10 }))
        .subscription_line("copy_data = false")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for round in 1..4 {
        let session = world.publisher.session().await;
        for n in 0..TABLES {
            session.batch(&format!("INSERT INTO d{n} VALUES ({round}, 'abcd  ')")).await.unwrap();
        }
        session.close().await;
        let paused = world.wait_paused("conflict").await;
        let id = paused.json["conflict_id"].to_string();
        world.pgsluice(&["conflicts", "resolve", &id, "--with", "skip-transaction"]).await.expect(0);
        world.wait_state("streaming").await;
        world.wait_caught_up().await;
        world.wait_same_rows("d199").await;
    }
}

/// The rows of a batch of many tables are counted by its answers, before its COMMIT is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_missing_in_one_of_many_tables_is_found_and_nothing_is_committed_behind_it() {
    const TABLES: usize = 600;
    let all = |statement: &str| for_each(TABLES, statement);
    let world = World::builder()
        .both_sql(&all("CREATE TABLE t%s (id int PRIMARY KEY, n int)"))
        .both_sql(&all("INSERT INTO t%s VALUES (1, 1), (2, 2)"))
        .subscription_line("copy_data = false")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
    world.publisher.exec(all("INSERT INTO t%s VALUES (3, 3), (4, 4), (5, 5)")).await;
    world.publisher.exec(all("UPDATE t%s SET n = 10 WHERE id = 1")).await;
    world.publisher.exec(all("DELETE FROM t%s WHERE id = 2")).await;
    world.target.exec("DELETE FROM t300 WHERE id = 1").await;
    let _service = world.run();
    let conflict = world.wait_conflict().await;
    assert_eq!(
        (&conflict["kind"], &conflict["target"]),
        (&"update_missing".into(), &"public.t300".into()),
        "{conflict:#}"
    );
    let rows = "SELECT string_agg(id || ' ' || n, ',' ORDER BY id) FROM";
    for (table, expected) in
        [("t1", "1 1,2 2,3 3,4 4,5 5"), ("t300", "2 2,3 3,4 4,5 5"), ("t600", "1 1,2 2,3 3,4 4,5 5")]
    {
        assert_eq!(
            world.target.value(&format!("{rows} {table}")).await.as_deref(),
            Some(expected),
            "{table}"
        );
    }
    world.target.exec("INSERT INTO t300 VALUES (1, 1)").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_caught_up().await;
    let check = "SELECT 1 / (count(*) = 4 AND min(id) = 1 AND sum(n) = 22)::int FROM t%s";
    world.target.exec(all(check)).await;
    world.wait_state("streaming").await;
}
