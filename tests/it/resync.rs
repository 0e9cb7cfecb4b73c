//! Tables are synchronised again while everybody writes: replaced, truncated, merged; refused where that makes no
//! sense; and a failure leaves the rows as they were.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use crate::support::wait::until;
use crate::support::world::{Builder, ReplicaRole, Servers, World};

const TABLES: &str = "CREATE TABLE t (id bigint PRIMARY KEY, v numeric, note text); \
    CREATE TABLE other (id bigint PRIMARY KEY, v numeric, note text)";

fn builder() -> Builder {
    World::builder()
        .both_sql(TABLES)
        .target_sql("ALTER TABLE t ADD COLUMN own text")
        .publisher_sql("INSERT INTO t SELECT n, 1.0, 'copied' FROM generate_series(1, 2000) n")
}

/// A session that changes both tables until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writer {
    async fn start(world: &World) -> Self {
        let (session, stop) = (world.publisher.session().await, Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut round = 0;
            while !stopped.load(Ordering::Relaxed) {
                let (new, old) = (1_000_000 + round, 1000 + round % 1000);
                let sql = ["t", "other"].map(|table| {
                    format!(
                        "INSERT INTO {table} VALUES ({new}, {round}, 'new'); \
                         UPDATE {table} SET v = v + 1 WHERE id IN ({old}, {new}); \
                         DELETE FROM {table} WHERE id = {new} - 3;"
                    )
                });
                session.batch(&format!("BEGIN; {} COMMIT", sql.concat())).await.unwrap();
                round += 1;
            }
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Waits until a copy of the table that is later than `attempt` has been committed.
async fn wait_synchronised(world: &World, table: &str, attempt: i32) {
    let sql = format!(
        "SELECT state, attempt > {attempt}, resync, error FROM pgsluice.table_sync WHERE source_table = '{table}'"
    );
    until(&format!("{table} is synchronised again"), async || {
        let rows = world.target.lines(&sql).await;
        if rows == ["ready|t|∅|∅"] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
}

async fn attempt(world: &World, table: &str) -> i32 {
    let sql = format!("SELECT attempt FROM pgsluice.table_sync WHERE source_table = '{table}'");
    world.target.value(&sql).await.unwrap().parse().unwrap()
}

/// Waits until the table's copy has failed, and returns what `status` says about it.
async fn wait_failed(world: &World, source: &str) -> String {
    until(&format!("{source} cannot be synchronised"), async || {
        let view = world.status().await?;
        let tables = view.json["tables"].as_array().cloned().unwrap_or_default();
        let table = tables.iter().find(|table| table["source"] == source).cloned().unwrap_or_default();
        if table["error"].is_null() {
            Err(format!("{:#}", view.json))
        } else {
            Ok(table["error"].to_string())
        }
    })
    .await
}

#[tokio::test]
async fn rows_are_replaced_truncated_or_merged_while_everybody_writes() {
    let world = builder().start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let writer = Writer::start(&world).await;
    for how in ["", "--truncate", "--merge"] {
        // Rows that the writer leaves alone; 1.0 and 1.00 are equal numbers with different images.
        let damage = "UPDATE t SET note = 'wrong' WHERE id <= 10; UPDATE t SET v = 1.00 WHERE id = 11; \
            UPDATE t SET own = 'mine' WHERE id = 12; DELETE FROM t WHERE id BETWEEN 13 AND 20; \
            INSERT INTO t SELECT -n, 1, 'too much' FROM generate_series(1, 10) n";
        world.target.exec(damage).await;
        let untouched = "SELECT xmin FROM t WHERE id = 12";
        let before = world.target.value(untouched).await;
        let latest = attempt(&world, "t").await;
        let mut command = vec!["resync", &world.subscription, "public.t"];
        command.extend(Some(how).filter(|how| !how.is_empty()));
        let told = world.pgsluice(&command).await.expect(0).stdout;
        assert!(told.contains("public.t will be synchronised again"), "{told}");
        wait_synchronised(&world, "t", latest).await;
        let kept = (
            world.target.value(untouched).await == before,
            world.target.value("SELECT own FROM t WHERE id = 12").await,
        );
        let expected = if how == "--merge" { (true, Some("mine".to_owned())) } else { (false, None) };
        assert_eq!(kept, expected, "{how}");
        let wrong =
            "SELECT count(*) FROM t WHERE note IN ('wrong', 'too much') OR id = 11 AND v::text = '1.00'";
        assert_eq!(world.target.value(wrong).await.as_deref(), Some("0"), "{how}");
    }
    writer.stop().await;
    for table in ["t", "other"] {
        world.wait_same_rows(table).await;
    }
    let events =
        "SELECT count(*) FROM pgsluice.event WHERE message LIKE 'public.t is to be synchronised again%'";
    assert_eq!(world.target.value(events).await.as_deref(), Some("3"));
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn readers_see_the_former_rows_until_the_new_ones_are_there() {
    // On one server, the publisher's new slot would wait for the reader.
    let world = builder().servers(Servers::Separate).start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    let latest = attempt(&world, "t").await;
    // The copy waits for the lock of a reader's transaction that has locked a row.
    let holder = world.target.session().await;
    holder.batch("BEGIN; SELECT FROM t WHERE id = 2000 FOR UPDATE").await.unwrap();
    world.pgsluice(&["resync", &world.subscription, "public.t"]).await.expect(0);
    until("it waits for the lock", async || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%DELETE FROM%'";
        world.target.value(waits).await.as_deref() == Some("1")
    })
    .await;
    assert_eq!(world.target.value("SELECT count(*) FROM t").await.as_deref(), Some("2000"));
    // The others go on meanwhile.
    world.publisher.exec("INSERT INTO other VALUES (1, 1, 'meanwhile')").await;
    world.wait_same_rows("other").await;
    holder.batch("ROLLBACK").await.unwrap();
    wait_synchronised(&world, "t", latest).await;
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn several_tables_go_together_and_a_partitioned_one_keeps_its_partitions() {
    let partitioned = "CREATE TABLE p (id int, note text, PRIMARY KEY (id)) PARTITION BY RANGE (id); \
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); \
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (1000)";
    let world = builder()
        .publisher_sql("CREATE TABLE p (id int PRIMARY KEY, note text)")
        .publisher_sql("INSERT INTO p SELECT n * 10, 'copied' FROM generate_series(1, 50) n")
        .target_sql(partitioned)
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    for how in ["--merge", "--truncate", ""] {
        world
            .target
            .exec("UPDATE p SET note = 'wrong'; DELETE FROM p WHERE id = 10; DELETE FROM t WHERE id > 9")
            .await;
        let latest = [attempt(&world, "p").await, attempt(&world, "t").await];
        let mut command = vec!["resync", &world.subscription, "public.p", "public.t"];
        command.extend(Some(how).filter(|how| !how.is_empty()));
        world.pgsluice(&command).await.expect(0);
        wait_synchronised(&world, "p", latest[0]).await;
        wait_synchronised(&world, "t", latest[1]).await;
        for table in ["p", "t"] {
            world.assert_same_rows(table).await;
        }
    }
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_what_to_do() {
    let world = builder().both_sql("CREATE TABLE keyless (id int, note text)").start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let before =
        world.target.lines("SELECT source_table, state, attempt FROM pgsluice.table_sync ORDER BY 1").await;
    for (command, told) in [
        (vec!["public.missing"], "public.missing is not a table of subscription"),
        (vec!["public.t", "public.missing"], "public.missing is not a table of subscription"),
        (vec!["public.keyless", "--merge"], "has no unique key"),
    ] {
        let arguments = [vec!["resync", &world.subscription], command].concat();
        let outcome = world.pgsluice(&arguments).await.expect(1);
        assert!(outcome.stderr.contains(told), "{outcome:?}");
    }
    let after =
        world.target.lines("SELECT source_table, state, attempt FROM pgsluice.table_sync ORDER BY 1").await;
    assert_eq!(before, after);
    assert_eq!(world.status().await.unwrap().state, "streaming");
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn foreign_keys_that_cannot_be_suppressed_do_not_take_rows_with_them() {
    let children = "CREATE TABLE child (id int PRIMARY KEY, t bigint REFERENCES t ON DELETE CASCADE)";
    let world = builder()
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t")
        .target_sql(children)
        .replica_role(ReplicaRole::Withheld)
        .subscription_line("copy_data = false")
        .start()
        .await;
    world
        .target
        .exec("INSERT INTO t (id, v, note) SELECT n, 1.0, 'wrong' FROM generate_series(1, 2000) n")
        .await;
    world.target.exec("INSERT INTO child VALUES (1, 5)").await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.pgsluice(&["resync", &world.subscription, "public.t"]).await.expect(0);
    let told = wait_failed(&world, "public.t").await;
    assert!(told.contains("child_t_fkey of") && told.contains("--merge"), "{told}");
    world.pgsluice(&["resync", &world.subscription, "public.t", "--truncate"]).await.expect(0);
    until("truncating fails as well", async || {
        wait_failed(&world, "public.t").await.contains("without --truncate")
    })
    .await;
    let latest = attempt(&world, "t").await;
    world.pgsluice(&["resync", &world.subscription, "public.t", "--merge"]).await.expect(0);
    wait_synchronised(&world, "t", latest).await;
    world.assert_same_rows("t").await;
    assert_eq!(world.target.value("SELECT count(*) FROM child").await.as_deref(), Some("1"));
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn tables_are_taken_up_on_request_with_and_without_their_rows() {
    let world = builder()
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE other")
        .subscription_line("auto_refresh = false")
        .start()
        .await;
    world.take_up().await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE t").await;
    world.target.exec("INSERT INTO t (id, v, note) VALUES (1, 1.0, 'here already')").await;
    // Recorded while no service runs.
    let told = world.pgsluice(&["refresh", &world.subscription, "--no-copy"]).await.expect(0).stdout;
    assert!(told.contains("is recorded; no service runs"), "{told}");
    // The row is not copied, and was committed after that was asked for.
    world.publisher.exec("INSERT INTO t VALUES (4000, 1, 'meanwhile')").await;
    let service = world.run();
    until("t is ready", async || {
        let rows = world
            .target
            .lines("SELECT state, attempt FROM pgsluice.table_sync WHERE source_table = 't'")
            .await;
        if rows == ["ready|0"] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
    world.publisher.exec("INSERT INTO t VALUES (5000, 1, 'after')").await;
    until("changes arrive", async || {
        world.target.lines("SELECT id FROM t ORDER BY 1").await == ["1", "4000", "5000"]
    })
    .await;
    world
        .publisher
        .exec(
            "CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1); \
        GRANT SELECT ON late TO sammy; ALTER PUBLICATION my_publication ADD TABLE late",
        )
        .await;
    world.target.exec("CREATE TABLE late (id int PRIMARY KEY); GRANT ALL ON late TO pgsluice_apply").await;
    world.pgsluice(&["refresh", &world.subscription]).await.expect(0);
    world.wait_same_rows("late").await;
    assert_eq!(service.sigterm().await, 0);
}

/// A row of the target is locked, so that the merge waits long after the publisher's rows have been read.
#[tokio::test]
async fn a_merge_that_waits_on_the_target_holds_up_no_ddl_on_the_publisher() {
    let world = builder().servers(Servers::Separate).start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    wait_synchronised(&world, "t", 0).await;
    let before = attempt(&world, "t").await;
    world.target.exec("UPDATE t SET note = 'differs' WHERE id = 7").await;
    let holder = world.target.session().await;
    holder.batch("BEGIN; SELECT FROM t WHERE id = 7 FOR UPDATE").await.unwrap();
    world.pgsluice(&["resync", &world.subscription, "public.t", "--merge"]).await.expect(0);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% sync' AND wait_event_type = 'Lock'";
    until("the merge waits", async || world.target.value(waits).await.as_deref() == Some("1")).await;
    world.publisher.exec("SET lock_timeout = '10s'; ALTER TABLE t ALTER note TYPE varchar(300)").await;
    holder.batch("COMMIT").await.unwrap();
    wait_synchronised(&world, "t", before).await;
    world.wait_caught_up().await;
    let rows = "SELECT id, v, note FROM t ORDER BY id";
    assert_eq!(world.target.lines(rows).await, world.publisher.lines(rows).await);
}

/// Waits until the slot of a copy waits for a transaction.
async fn wait_for_slot(world: &World) {
    let waits = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND wait_event_type = 'Lock'";
    until("a slot waits", async || world.publisher.value(waits).await).await;
}

/// The values are neither in the stream, because they are older than the snapshot, nor among the columns of the copy that
/// was planned.
#[tokio::test]
async fn a_column_that_comes_while_a_copy_waits_is_copied() {
    let world = World::builder()
        .both_sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)")
        .publisher_sql("INSERT INTO a VALUES (1, 'one'); INSERT INTO b VALUES (1, 'one')")
        .start()
        .await;
    let holder = world.publisher.session().await;
    holder.batch("BEGIN; SELECT txid_current()").await.unwrap();
    let _service = world.run();
    // The first copy waits.
    wait_for_slot(&world).await;
    let change = |table: &str| {
        format!(
            "ALTER TABLE {table} ADD COLUMN w text; INSERT INTO {table} VALUES (2, 'two'); UPDATE {table} SET w = 'new'"
        )
    };
    world.target.exec("ALTER TABLE a ADD COLUMN w text").await;
    world.publisher.exec(change("a")).await;
    holder.batch("COMMIT").await.unwrap();
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
    world.wait_state("streaming").await;
    // A copy of a running stream waits.
    holder.batch("BEGIN; SELECT txid_current()").await.unwrap();
    world.pgsluice(&["resync", &world.subscription, "public.b"]).await.expect(0);
    wait_for_slot(&world).await;
    world.target.exec("ALTER TABLE b ADD COLUMN w text").await;
    world.publisher.exec(change("b")).await;
    holder.batch("COMMIT").await.unwrap();
    world.wait_same_rows("b").await;
    world.wait_state("streaming").await;
}

/// COPY would find the other table under the name.
#[tokio::test]
async fn tables_that_exchange_their_names_while_a_copy_waits_keep_their_rows() {
    let world = World::builder()
        .both_sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)")
        .publisher_sql("INSERT INTO a VALUES (1, 'of a'); INSERT INTO b VALUES (2, 'of b')")
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
    world.wait_state("streaming").await;
    let swap = "ALTER TABLE a RENAME TO c; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b";
    let holder = world.publisher.session().await;
    holder.batch("BEGIN; SELECT txid_current()").await.unwrap();
    world.pgsluice(&["resync", &world.subscription, "public.a"]).await.expect(0);
    wait_for_slot(&world).await;
    holder.batch(&format!("{swap}; COMMIT")).await.unwrap();
    world.wait_paused("schema").await;
    world.target.exec(swap).await;
    world.wait_state("streaming").await;
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
    assert_eq!(world.target.lines("SELECT * FROM b").await, ["1|of a"]);
}
