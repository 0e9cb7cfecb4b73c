//! Which tables are followed is decided by the stream's history, and not by what the publications say now.
//!
//! The built-in subscriber applies what it is sent for a table of its own, whatever the publications say
//! meanwhile. It stands beside in the tests of what has to arrive.

use std::time::Duration;

use pgsluice::demo::binaries::ServerBinaries;
use serde_json::Value;

use crate::publications::subscribe;
use crate::support::beside::Beside;
use crate::support::clusters::publisher_binaries;
use crate::support::wait::until;
use crate::support::world::{Builder, World};

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);";
const K: &str = "CREATE TABLE k (id int PRIMARY KEY);";

/// Statements that publish `k` and `t` by `p`.
const P: &str = "CREATE PUBLICATION p FOR TABLE k, t; INSERT INTO t VALUES (1, 'one')";

/// Tables `k` and `t`, published by `my_publication`.
fn two_tables() -> Builder {
    World::builder()
        .both_sql(T)
        .both_sql(K)
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE k, t; INSERT INTO t VALUES (1, 'one')")
}

/// Tables `k` and `t`, published with all others.
fn all_tables() -> Builder {
    World::builder().both_sql(T).both_sql(K).publisher_sql("INSERT INTO t VALUES (1, 'one')")
}

/// The table's entry in `status --json`.
pub(crate) async fn table(world: &World, source: &str) -> Result<Value, String> {
    let view = world.status().await?;
    let tables = view.json["tables"].as_array().cloned().unwrap_or_default();
    tables.into_iter().find(|table| table["source"] == source).ok_or_else(|| format!("{:#}", view.json))
}

pub(crate) async fn wait_table(world: &World, source: &str, state: &str) {
    until(&format!("{source} is {state}"), async || {
        let table = table(world, source).await?;
        if table["state"] == state { Ok(()) } else { Err(format!("{table:#}")) }
    })
    .await;
}

/// Kind, table and range of the open gaps.
pub(crate) async fn gaps(world: &World) -> Vec<String> {
    let sql = "SELECT kind, source_table, holds, from_lsn <= to_lsn FROM pgsluice.gap WHERE settled_at IS NULL ORDER BY 2, 1";
    world.target.lines(sql).await
}

/// Waits until exactly these gaps are open.
pub(crate) async fn wait_gaps(world: &World, expected: &[&str]) {
    until(&format!("the gaps are {expected:?}"), async || {
        let found = gaps(world).await;
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// Waits until the monitor has looked at the publications as they are now.
async fn wait_for_a_look(world: &World) {
    let now = world.publisher.value("SELECT clock_timestamp()").await.unwrap();
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '% monitor' AND query_start > '{now}' \
         AND state = 'idle' AND query LIKE '%pg_publication_rel%'"
    );
    until("the publications are looked at", async || world.publisher.value(&sql).await).await;
}

/// Synchronises the tables again, and waits until they have the same rows and no gap.
pub(crate) async fn resync(world: &World, tables: &[&str], how: Option<&str>) {
    let names: Vec<String> = tables.iter().map(|table| format!("public.{table}")).collect();
    let mut command = vec!["resync", &world.subscription];
    command.extend(names.iter().map(String::as_str));
    command.extend(how);
    world.pgsluice(&command).await.expect(0);
    wait_gaps(world, &[]).await;
    for table in tables {
        world.wait_same_rows(table).await;
    }
}

async fn events(world: &World) -> Vec<String> {
    world.target.lines("SELECT message FROM pgsluice.event WHERE kind IN ('table', 'gap') ORDER BY id").await
}

/// Inserts into `k`, and waits until that has arrived: everything before has been applied or passed over.
pub(crate) async fn pass(world: &World, id: u32) {
    world.publisher.exec(format!("INSERT INTO k VALUES ({id})")).await;
    until(&format!("row {id} of k arrives"), async || {
        let sql = format!("SELECT 1 FROM k WHERE id = {id}");
        world.target.value(&sql).await
    })
    .await;
}

/// The publications no longer have the table when its changes are applied.
#[tokio::test]
async fn what_was_sent_for_a_table_that_has_left_is_applied() {
    for refresh in ["auto_refresh = true", "auto_refresh = false"] {
        let builder = World::builder().subscription_line(refresh);
        let beside = Beside::start(builder, &[T, K].concat(), P, &["p"]).await;
        let world = &beside.world;
        let service = world.run();
        world.wait_same_rows("t").await;
        // The target is busy: a lock on another table holds the stream up.
        let locker = world.target.session().await;
        locker.batch("BEGIN; LOCK TABLE k IN ACCESS EXCLUSIVE MODE").await.unwrap();
        world.publisher.exec("INSERT INTO k VALUES (1)").await;
        for from in (0..3000).step_by(100) {
            let last = from + 100;
            world
                .publisher
                .exec(format!("INSERT INTO t SELECT i, 'x' FROM generate_series({from} + 2, {last} + 1) i"))
                .await;
        }
        world.publisher.exec("ALTER PUBLICATION p DROP TABLE t").await;
        wait_for_a_look(world).await;
        locker.batch("COMMIT").await.unwrap();
        world.wait_same_rows("t").await;
        wait_table(world, "public.t", "left").await;
        // What is changed after it left is not sent.
        world.publisher.exec("INSERT INTO t VALUES (0, 'later')").await;
        pass(world, 2).await;
        assert_eq!(beside.wait_like_builtin("t").await.len(), 3001, "{refresh}");
        let said = events(world).await;
        // If the stream has passed that by the time it is seen, only this is said.
        assert!(said.iter().any(|event| event.contains("public.t has been let go")), "{said:?}");
        assert!(gaps(world).await.is_empty());
        assert_eq!(service.sigterm().await, 0);
        beside.end().await;
    }
}

/// Stopped, insert, dropped from the publication, started.
#[tokio::test]
async fn a_table_that_left_while_nobody_ran_keeps_what_came_before() {
    let beside = Beside::new(&[T, K].concat(), P, &["p"]).await;
    let world = &beside.world;
    world.take_up().await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
    // A transaction that is open when the table leaves commits later.
    let open = world.publisher.session().await;
    open.batch(
        "BEGIN; INSERT INTO t VALUES (3, 'before'); SAVEPOINT s; INSERT INTO t VALUES (4, 'sub'); RELEASE s",
    )
    .await
    .unwrap();
    world.publisher.exec("ALTER PUBLICATION p DROP TABLE t").await;
    let service = world.run();
    pass(world, 1).await;
    wait_table(world, "public.t", "left").await;
    open.batch("COMMIT").await.unwrap();
    world.publisher.exec("INSERT INTO t VALUES (5, 'after')").await;
    pass(world, 2).await;
    let expected = ["1|one", "2|two", "3|before", "4|sub"];
    assert_eq!(beside.wait_like_builtin("t").await, expected);
    // Also after a restart of the service.
    let open = world.publisher.session().await;
    open.batch("BEGIN; INSERT INTO t VALUES (6, 'unpublished')").await.unwrap();
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    open.batch("COMMIT").await.unwrap();
    pass(world, 3).await;
    assert_eq!(beside.wait_like_builtin("t").await, expected);
    wait_table(world, "public.t", "left").await;
    assert_eq!(service.sigterm().await, 0);
    beside.end().await;
}

/// A table that leaves and comes back has missed changes: it is held, and not copied again.
async fn leave_and_come_back(keyed: &str, wait: bool, running: bool) {
    let world = World::builder()
        .both_sql(&format!("CREATE TABLE t (id int{keyed}, v text); ALTER TABLE t REPLICA IDENTITY FULL"))
        .both_sql(K)
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE k, t; INSERT INTO t VALUES (1, 'one')")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("t").await;
    if !running {
        assert_eq!(service.sigterm().await, 0);
    }
    let position = "SELECT pg_current_wal_insert_lsn()";
    let before = world.publisher.value(position).await.unwrap();
    world.publisher.exec("ALTER PUBLICATION my_publication SET TABLE k").await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'missed')").await;
    let after = world.publisher.value(position).await.unwrap();
    if wait && running {
        wait_table(&world, "public.t", "left").await;
    }
    world.publisher.exec("ALTER PUBLICATION my_publication SET TABLE k, t").await;
    let _service = if running { None } else { Some(world.run()) };
    wait_gaps(&world, &["returned|t|t|t"]).await;
    let covers = format!("SELECT from_lsn <= '{before}' AND to_lsn >= '{after}' FROM pgsluice.gap");
    assert_eq!(world.target.value(&covers).await.as_deref(), Some("t"), "{keyed} {wait} {running}");
    world.publisher.exec("UPDATE t SET v = 'changed' WHERE id = 2").await;
    pass(&world, 1).await;
    // The others go on, nothing is copied, and nothing is changed.
    wait_table(&world, "public.t", "paused").await;
    let view = world.wait_state("streaming").await;
    assert!(view.json["conflict_id"].is_null(), "{:#}", view.json);
    assert_eq!(
        world.target.lines("SELECT * FROM t ORDER BY id").await,
        ["1|one"],
        "{keyed} {wait} {running}"
    );
    resync(&world, &["t"], (!keyed.is_empty()).then_some("--merge")).await;
    world.publisher.exec("UPDATE t SET v = 'followed again'").await;
    world.wait_same_rows("t").await;
}

#[tokio::test]
async fn a_table_that_leaves_and_comes_back_is_held() {
    for keyed in ["", " PRIMARY KEY"] {
        for (wait, running) in [(true, true), (false, true), (false, false)] {
            leave_and_come_back(keyed, wait, running).await;
        }
    }
}

/// The first change behind the missing ones meets a conflict before the publications are looked at.
#[tokio::test]
async fn a_conflict_of_a_table_that_came_back_is_its_gap() {
    let world = two_tables().start().await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.publisher.exec("ALTER PUBLICATION my_publication SET TABLE k").await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'missed')").await;
    world.publisher.exec("ALTER PUBLICATION my_publication SET TABLE k, t").await;
    world.publisher.exec("UPDATE t SET v = 'changed' WHERE id = 2").await;
    pass(&world, 1).await;
    wait_gaps(&world, &["returned|t|t|t"]).await;
    assert_eq!(world.target.value("SELECT count(*) FROM pgsluice.conflict").await.as_deref(), Some("0"));
    world.wait_state("streaming").await;
    wait_table(&world, "public.t", "paused").await;
}

#[tokio::test]
async fn a_table_that_is_renamed_on_both_sides_goes_on() {
    let world = two_tables().start().await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.publisher.exec("ALTER TABLE t RENAME TO u").await;
    let view = world.wait_paused("schema").await;
    let told = view.told();
    assert!(told.contains("public.u was renamed on the publisher"), "{told}");
    assert!(told.contains(r#"ALTER TABLE "public"."t" RENAME TO "u";"#), "{told}");
    world.publisher.exec("INSERT INTO u VALUES (2, 'two')").await;
    world.target.exec("ALTER TABLE t RENAME TO u").await;
    world.wait_state("streaming").await;
    world.wait_same_rows("u").await;
    assert!(gaps(&world).await.is_empty());
    assert_eq!(service.sigterm().await, 0);
    // Changes from before the rename carry the former name.
    world.publisher.exec("UPDATE u SET v = 'before' WHERE id = 2").await;
    world.publisher.exec("CREATE SCHEMA s; ALTER TABLE u SET SCHEMA s").await;
    world.publisher.exec("INSERT INTO s.u VALUES (3, 'three')").await;
    world
        .target
        .exec("CREATE SCHEMA s; ALTER TABLE u SET SCHEMA s; GRANT USAGE ON SCHEMA s TO pgsluice_apply")
        .await;
    let _service = world.run();
    world.wait_same_rows("s.u").await;
    assert_eq!(
        world
            .target
            .lines("SELECT source_schema, source_table, state FROM pgsluice.table_sync ORDER BY 1")
            .await,
        ["public|k|ready", "s|u|ready"]
    );
    assert!(gaps(&world).await.is_empty());
}

#[tokio::test]
async fn a_table_that_is_renamed_or_moved_and_back_goes_on() {
    let world = World::builder()
        .both_sql(T)
        .both_sql(K)
        .both_sql("CREATE SCHEMA s")
        .publisher_sql("INSERT INTO t VALUES (1, 'one')")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("t").await;
    for (away, back, moved) in [
        ("ALTER TABLE t RENAME TO u", "ALTER TABLE u RENAME TO t", "u"),
        ("ALTER TABLE t SET SCHEMA s", "ALTER TABLE s.t SET SCHEMA public", "s.t"),
    ] {
        world.publisher.exec(away).await;
        world.publisher.exec(format!("UPDATE {moved} SET v = v || '+'")).await;
        world.publisher.exec(back).await;
        world.publisher.exec("UPDATE t SET v = v || '-'").await;
        world.wait_same_rows("t").await;
        // The same, seen in between.
        world.publisher.exec(away).await;
        world.wait_paused("schema").await;
        world.publisher.exec(format!("UPDATE {moved} SET v = v || '*'")).await;
        world.publisher.exec(back).await;
        world.wait_state("streaming").await;
        world.wait_same_rows("t").await;
    }
    assert!(gaps(&world).await.is_empty());
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn tables_that_exchange_their_names_keep_their_rows() {
    let swap = "ALTER TABLE a RENAME TO x; ALTER TABLE b RENAME TO a; ALTER TABLE x RENAME TO b";
    let world = World::builder()
        .both_sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)")
        .publisher_sql("INSERT INTO a VALUES (1, 'of a'); INSERT INTO b VALUES (2, 'of b')")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
    world.publisher.exec(swap).await;
    world.publisher.exec("UPDATE a SET v = v || '+'; UPDATE b SET v = v || '+'").await;
    let view = world.wait_paused("schema").await;
    let hint = view.json["hint"].as_str().unwrap_or_default().to_owned();
    // The hint's statements are what is needed.
    let ddl: Vec<&str> = hint.lines().filter(|line| line.starts_with("ALTER")).collect();
    world.target.exec(ddl.join("\n")).await;
    world.wait_state("streaming").await;
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
    assert_eq!(service.sigterm().await, 0);
    // On both sides, while nobody runs.
    world.publisher.exec("UPDATE a SET v = v || '-'; UPDATE b SET v = v || '-'").await;
    world.publisher.exec(swap).await;
    world.publisher.exec("UPDATE a SET v = v || '*'; UPDATE b SET v = v || '*'").await;
    world.target.exec(swap).await;
    let _service = world.run();
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
    assert!(gaps(&world).await.is_empty());
}

#[tokio::test]
async fn a_table_that_took_the_name_of_another_is_held() {
    for wait in [false, true] {
        let world = all_tables().start().await;
        let _service = world.run();
        world.wait_same_rows("t").await;
        if wait {
            world.publisher.exec("DROP TABLE t").await;
            wait_table(&world, "public.t", "left").await;
            world.publisher.exec(format!("{T} INSERT INTO t VALUES (1, 'another')")).await;
        } else {
            let replace =
                "CREATE TABLE t_new (id int PRIMARY KEY, v text); INSERT INTO t_new VALUES (7, 'new');
                 DROP TABLE t; ALTER TABLE t_new RENAME TO t";
            world.publisher.exec(replace).await;
        }
        world.publisher.exec("INSERT INTO t VALUES (8, 'newer')").await;
        wait_gaps(&world, &["replaced|t|t|t"]).await;
        pass(&world, 1).await;
        wait_table(&world, "public.t", "paused").await;
        world.wait_state("streaming").await;
        assert_eq!(world.target.lines("SELECT * FROM t").await, ["1|one"], "seen in between: {wait}");
        resync(&world, &["t"], None).await;
    }
}

/// Its name was never seen, because it was replaced before the next look.
#[tokio::test]
async fn a_table_that_was_renamed_on_both_sides_and_replaced_is_held() {
    let world = all_tables().start().await;
    let service = world.run();
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
    world.target.exec("ALTER TABLE t RENAME TO r").await;
    let replace = "ALTER TABLE t RENAME TO r; CREATE TABLE r_new (id int PRIMARY KEY, v text); \
        INSERT INTO r_new VALUES (7, 'new'); DROP TABLE r; ALTER TABLE r_new RENAME TO r";
    world.publisher.exec(replace).await;
    let _service = world.run();
    wait_gaps(&world, &["replaced|r|t|t"]).await;
    wait_table(&world, "public.r", "paused").await;
    world.wait_state("streaming").await;
    assert_eq!(world.target.lines("SELECT * FROM r").await, ["1|one"]);
    resync(&world, &["r"], None).await;
}

/// It was seen under another name first, and could not be copied there. The name that it gets back has the former table's
/// rows on the target.
#[tokio::test]
async fn a_replaced_table_that_gets_its_name_later_is_not_copied_on_top() {
    let world = all_tables().start().await;
    let service = world.run();
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
    let replace =
        "CREATE TABLE r (id int PRIMARY KEY, v text); INSERT INTO r VALUES (7, 'new'); DROP TABLE t";
    world.publisher.exec(replace).await;
    let service = world.run();
    wait_table(&world, "public.r", "pending").await;
    assert_eq!(service.sigterm().await, 0);
    world.publisher.exec("ALTER TABLE r RENAME TO t; INSERT INTO t VALUES (8, 'later')").await;
    let _service = world.run();
    wait_gaps(&world, &["occupied|t|t|t"]).await;
    world.wait_state("streaming").await;
    assert_eq!(world.target.lines("SELECT * FROM t").await, ["1|one"]);
    world.pgsluice(&["resync", &world.subscription, "public.t"]).await.expect(0);
    world.wait_same_rows("t").await;
}

/// The look that misses the table is the first one after its target was renamed as well.
#[tokio::test]
async fn a_table_that_was_renamed_on_both_sides_and_left_is_applied() {
    let world = two_tables().start().await;
    let service = world.run();
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
    world.target.exec("ALTER TABLE t RENAME TO r").await;
    let leave = "INSERT INTO t VALUES (2, 'before'); ALTER TABLE t RENAME TO r; INSERT INTO r VALUES (3, 'after'); \
        ALTER PUBLICATION my_publication SET TABLE k; INSERT INTO r VALUES (4, 'not published'); \
        INSERT INTO k VALUES (1)";
    world.publisher.exec(leave).await;
    let _service = world.run();
    world.wait_same_rows("k").await;
    world.wait_state("streaming").await;
    assert_eq!(world.target.lines("SELECT * FROM r ORDER BY 1").await, ["1|one", "2|before", "3|after"]);
}

#[tokio::test]
async fn a_changed_definition_is_a_gap_that_holds_nothing() {
    if publisher_binaries().major() < 15 {
        return;
    }
    let world = two_tables().start().await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.publisher.exec("ALTER PUBLICATION my_publication SET (publish = 'insert, update')").await;
    wait_gaps(&world, &["operations|k|f|t", "operations|t|f|t"]).await;
    world.publisher.exec("ALTER PUBLICATION my_publication SET TABLE k, t WHERE (id > 0)").await;
    wait_gaps(&world, &["operations|k|f|t", "operations|t|f|t", "row_filter|t|f|t"]).await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
    world.wait_same_rows("t").await;
    wait_table(&world, "public.t", "ready").await;
    world.wait_state("streaming").await;
}

/// A table that leaves through its schema, and one that does as a partition.
#[tokio::test]
async fn tables_that_leave_otherwise_are_held_when_they_come_back() {
    if publisher_binaries().major() < 15 {
        return;
    }
    let tables = "CREATE SCHEMA s; CREATE SCHEMA other; CREATE TABLE s.t (id int PRIMARY KEY, v text);
        CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF r FOR VALUES FROM (0) TO (100);";
    let world = World::builder()
        .both_sql(tables)
        .both_sql(K)
        .target_sql(
            "GRANT USAGE ON SCHEMA s TO pgsluice_apply; GRANT USAGE ON SCHEMA other TO pgsluice_apply",
        )
        .publisher_sql(
            "CREATE PUBLICATION my_publication FOR TABLES IN SCHEMA s; CREATE PUBLICATION two FOR TABLE k, r;
             INSERT INTO s.t VALUES (1, 'one'); INSERT INTO r VALUES (1, 'one');
             GRANT USAGE ON SCHEMA s TO sammy",
        )
        .start()
        .await;
    subscribe(&world, &["my_publication", "two"]);
    let _service = world.run();
    world.wait_same_rows("s.t").await;
    world.wait_same_rows("low").await;
    for sql in [
        "ALTER TABLE s.t SET SCHEMA other",
        "INSERT INTO other.t VALUES (2, 'missed')",
        "ALTER TABLE other.t SET SCHEMA s",
        "ALTER TABLE r DETACH PARTITION low",
        "INSERT INTO low VALUES (2, 'missed')",
        "ALTER TABLE r ATTACH PARTITION low FOR VALUES FROM (0) TO (100)",
    ] {
        world.publisher.exec(sql).await;
    }
    wait_gaps(&world, &["returned|low|t|t", "returned|t|t|t"]).await;
    pass(&world, 1).await;
    world.wait_state("streaming").await;
    assert_eq!(world.target.lines("SELECT * FROM s.t").await, ["1|one"]);
    assert_eq!(world.target.lines("SELECT * FROM low").await, ["1|one"]);
}

/// Server programs of another version, if they are there.
fn binaries(major: u32) -> Option<ServerBinaries> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/pg/{major}/bin"));
    ServerBinaries::at(&dir).ok()
}

/// The publishers on which publications are dropped: one that fails at a missing one, and one that goes on.
fn publishers() -> Vec<ServerBinaries> {
    let mut found = vec![publisher_binaries()];
    let other = if found[0].major() < 18 { binaries(18) } else { binaries(15) };
    found.extend(other);
    found
}

#[tokio::test]
async fn a_publication_that_was_made_again_is_a_gap() {
    for binaries in publishers() {
        let major = binaries.major();
        let world = two_tables().publisher_binaries(binaries).start().await;
        world.take_up().await;
        world.publisher.exec("INSERT INTO t VALUES (2, 'before')").await;
        world.publisher.exec("DROP PUBLICATION my_publication").await;
        world.publisher.exec("INSERT INTO t VALUES (3, 'missed')").await;
        world.publisher.exec("CREATE PUBLICATION my_publication FOR TABLE k, t").await;
        world.publisher.exec("INSERT INTO t VALUES (4, 'after')").await;
        let _service = world.run();
        wait_gaps(&world, &["publication|k|t|t", "publication|t|t|t"]).await;
        world.wait_state("streaming").await;
        world.wait_caught_up().await;
        wait_table(&world, "public.t", "paused").await;
        let rows = world.target.lines("SELECT id FROM t ORDER BY id").await;
        assert!(rows.starts_with(&["1".to_owned()]) && !rows.contains(&"3".to_owned()), "{major}: {rows:?}");
        assert!(!rows.contains(&"4".to_owned()), "{major}: {rows:?}");
        resync(&world, &["k", "t"], Some("--merge")).await;
    }
}

#[tokio::test]
async fn a_publication_that_is_renamed_and_back_is_a_gap() {
    for binaries in publishers() {
        let major = binaries.major();
        let world = two_tables().publisher_binaries(binaries).start().await;
        let service = world.run();
        world.wait_same_rows("t").await;
        assert_eq!(service.sigterm().await, 0);
        world.publisher.exec("ALTER PUBLICATION my_publication RENAME TO q").await;
        world.publisher.exec("INSERT INTO t VALUES (3, 'missed')").await;
        let service = world.run();
        let view = world.wait_state("retrying").await;
        assert_eq!(view.reason.as_deref(), Some("publications"), "{:#}", view.json);
        assert_eq!(service.sigterm().await, 0);
        world.publisher.exec("ALTER PUBLICATION q RENAME TO my_publication").await;
        let _service = world.run();
        world.wait_state("streaming").await;
        until("there is a gap", async || {
            let found = gaps(&world).await;
            let told =
                found.iter().any(|gap| gap.starts_with("publication|t") || gap.starts_with("operations|t"));
            if told { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        world.wait_caught_up().await;
        assert!(!world.target.lines("SELECT id FROM t").await.contains(&"3".to_owned()), "{major}");
    }
}

/// The publication is renamed, and the configuration follows.
#[tokio::test]
async fn a_configuration_that_follows_a_renamed_publication_is_told_what_it_missed() {
    for binaries in publishers() {
        let major = binaries.major();
        let world = two_tables().publisher_binaries(binaries).start().await;
        world.take_up().await;
        world.publisher.exec("INSERT INTO t VALUES (2, 'before')").await;
        world.publisher.exec("ALTER PUBLICATION my_publication RENAME TO q").await;
        world.publisher.exec("INSERT INTO t VALUES (3, 'after')").await;
        subscribe(&world, &["q"]);
        let _service = world.run();
        world.wait_state("streaming").await;
        wait_gaps(&world, &["returned|k|t|t", "returned|t|t|t"]).await;
        world.wait_caught_up().await;
        assert!(!gaps(&world).await.is_empty(), "{major}");
    }
}

#[tokio::test]
async fn one_of_several_publications_that_does_not_exist_is_a_warning() {
    for binaries in publishers() {
        let major = binaries.major();
        let world = two_tables().publisher_binaries(binaries).start().await;
        subscribe(&world, &["my_publication", "missing"]);
        let checked = world.pgsluice(&["check"]).await;
        assert!(
            checked.stdout.contains("publications do not exist on the publisher: missing"),
            "{checked:?}"
        );
        let _service = world.run();
        world.wait_same_rows("t").await;
        let view = world.wait_state("streaming").await;
        let warnings = view.json["warnings"].to_string();
        assert!(
            warnings.contains("publications do not exist on the publisher: missing"),
            "{major}: {warnings}"
        );
        world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
        world.wait_same_rows("t").await;
        // It is made, with a table of its own.
        world.publisher.exec("CREATE TABLE late (id int PRIMARY KEY)").await;
        world.publisher.exec("INSERT INTO late VALUES (1); GRANT SELECT ON late TO sammy").await;
        world
            .target
            .exec("CREATE TABLE late (id int PRIMARY KEY); GRANT ALL ON late TO pgsluice_apply")
            .await;
        world.publisher.exec("CREATE PUBLICATION missing FOR TABLE late").await;
        world.wait_same_rows("late").await;
        world.publisher.exec("INSERT INTO late VALUES (2); INSERT INTO t VALUES (3, 'three')").await;
        world.wait_same_rows("late").await;
        world.wait_same_rows("t").await;
        // It is dropped: its table is let go, the others go on.
        world.publisher.exec("INSERT INTO late VALUES (3)").await;
        // Before version 18, what has not been sent by then is not sent, and the gap below tells that.
        world.wait_same_rows("late").await;
        world.publisher.exec("DROP PUBLICATION missing").await;
        world.publisher.exec("INSERT INTO t VALUES (4, 'four')").await;
        world.wait_same_rows("t").await;
        wait_table(&world, "public.late", "left").await;
        world.wait_same_rows("late").await;
        world.wait_state("streaming").await;
        // Before version 18, changes of transactions that were open then are not sent.
        let kinds: Vec<String> =
            gaps(&world).await.iter().filter_map(|gap| gap.split('|').next()).map(str::to_owned).collect();
        assert_eq!(kinds, if major < 18 { vec!["last_changes"] } else { Vec::new() }, "{major}");
    }
}

/// A transaction changes a table before it leaves, and commits where its former publication is missing.
#[tokio::test]
async fn the_last_changes_of_a_table_arrive_or_are_a_gap() {
    for binaries in publishers() {
        let major = binaries.major();
        let world = two_tables().publisher_binaries(binaries).start().await;
        world.publisher.exec("CREATE PUBLICATION other FOR TABLE k").await;
        subscribe(&world, &["my_publication", "other"]);
        let _service = world.run();
        world.wait_same_rows("t").await;
        let open = world.publisher.session().await;
        open.batch("BEGIN; INSERT INTO t VALUES (2, 'before it left')").await.unwrap();
        world.publisher.exec("ALTER PUBLICATION my_publication DROP TABLE t").await;
        wait_table(&world, "public.t", "left").await;
        world.publisher.exec("DROP PUBLICATION my_publication").await;
        open.batch("INSERT INTO k VALUES (1); COMMIT").await.unwrap();
        world.wait_same_rows("k").await;
        if major < 18 {
            until("there is a gap", async || {
                let found = gaps(&world).await;
                if found == ["last_changes|t|f|∅"] { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await;
            let view = world.status().await.unwrap();
            let text = view.json.to_string();
            assert!(text.contains("public.t may lack its last changes"), "{text}");
            world.pgsluice(&["accept", &world.subscription, "--gap", "1"]).await.expect(0);
            until("it is accepted", async || {
                let found = gaps(&world).await;
                if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await;
        } else {
            world.wait_same_rows("t").await;
        }
        world.wait_state("streaming").await;
    }
}

/// A new table waits for `refresh`, and that is said.
#[tokio::test]
async fn a_new_table_that_is_not_followed_is_a_warning() {
    let world = two_tables().subscription_line("auto_refresh = false").start().await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    let create = "CREATE TABLE n (id int PRIMARY KEY);";
    world.target.exec(format!("{create} GRANT ALL ON n TO pgsluice_apply")).await;
    world.publisher.exec(format!("{create} INSERT INTO n VALUES (1); GRANT SELECT ON n TO sammy")).await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE n").await;
    until("there is a warning", async || {
        let view = world.status().await?;
        let warnings = view.json["warnings"].to_string();
        if warnings.contains("table public.n is published, and not followed") {
            Ok(())
        } else {
            Err(warnings)
        }
    })
    .await;
    world.pgsluice(&["refresh", &world.subscription]).await.expect(0);
    world.wait_same_rows("n").await;
}

/// A record of an older version is taken as it is first seen.
#[tokio::test]
async fn a_record_of_an_older_version_is_adopted() {
    let world = two_tables().start().await;
    world.take_up().await;
    let older = "UPDATE pgsluice.table_sync SET source_oid = NULL, target_oid = NULL, marks = NULL;
        UPDATE pgsluice.subscription SET publication_record = '[]', publications_seen_lsn = NULL";
    world.target.exec(older).await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'two')").await;
    world.publisher.exec("ALTER PUBLICATION my_publication DROP TABLE t").await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    wait_table(&world, "public.t", "left").await;
    let known =
        "SELECT source_table, source_oid IS NOT NULL, marks IS NOT NULL FROM pgsluice.table_sync ORDER BY 1";
    assert_eq!(world.target.lines(known).await, ["k|t|t", "t|t|f"]);
    assert!(gaps(&world).await.is_empty());
    tokio::time::timeout(Duration::from_mins(1), pass(&world, 1)).await.unwrap();
}
