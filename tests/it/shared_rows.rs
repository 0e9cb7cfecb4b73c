//! Tables that go into the same rows of the target: a table that joins is not copied on top of rows that others have
//! brought, and one of them is not synchronised again at the cost of the others.

use crate::membership::{gaps, pass, resync, table, wait_gaps, wait_table};
use crate::publications::subscribe;
use crate::support::clusters::publisher_binaries;
use crate::support::wait::until;
use crate::support::world::{Builder, World, unique};

const K: &str = "CREATE TABLE k (id int PRIMARY KEY);";

/// First version with `publish_via_partition_root`.
const VIA_ROOT_SINCE: u32 = 13;

/// A partitioned table with two partitions.
fn tree(keyed: &str) -> String {
    let full = |table: &str| format!("ALTER TABLE {table} REPLICA IDENTITY FULL; ");
    format!(
        "CREATE TABLE r (id int{keyed}, v text) PARTITION BY RANGE (id); \
         CREATE TABLE low PARTITION OF r FOR VALUES FROM (0) TO (100); \
         CREATE TABLE high PARTITION OF r FOR VALUES FROM (100) TO (1000); {}",
        ["r", "low", "high"].map(full).concat()
    )
}

fn builder(keyed: &str) -> Builder {
    World::builder()
        .both_sql(&tree(keyed))
        .both_sql(K)
        .publisher_sql("INSERT INTO r VALUES (1, 'one'), (101, 'two')")
}

/// The partitioned table is published by `my_publication`, and `k` by another one.
async fn start(builder: Builder, on: bool) -> World {
    let create = format!(
        "CREATE PUBLICATION my_publication FOR TABLE r WITH {}; CREATE PUBLICATION other FOR TABLE k",
        via_root(on)
    );
    let world = builder.publisher_sql(&create).start().await;
    subscribe(&world, &["my_publication", "other"]);
    world
}

fn via_root(on: bool) -> String {
    format!("(publish_via_partition_root = {on})")
}

/// The rows of the partitioned table on the target.
async fn rows(world: &World) -> Vec<String> {
    world.target.lines("SELECT id, v FROM r ORDER BY 1, 2").await
}

/// The switch makes other tables of the same rows: they are held, and nothing is doubled.
async fn switch(keyed: &str, on: bool, running: bool) -> World {
    let world = start(builder(keyed), !on).await;
    let service = world.run();
    world.wait_same_rows("r").await;
    world.wait_state("streaming").await;
    let mut service = Some(service);
    if !running {
        assert_eq!(service.take().unwrap().sigterm().await, 0);
    }
    world.publisher.exec("INSERT INTO r VALUES (2, 'before')").await;
    world.publisher.exec(format!("ALTER PUBLICATION my_publication SET {}", via_root(on))).await;
    world.publisher.exec("INSERT INTO r VALUES (3, 'after'), (103, 'after')").await;
    let service = service.unwrap_or_else(|| world.run());
    let (expected, new, left): (&[&str], &[&str], _) = if on {
        (&["occupied|r|t|t"], &["r"], "public.low")
    } else {
        (&["occupied|high|t|t", "occupied|low|t|t"], &["low", "high"], "public.r")
    };
    wait_gaps(&world, expected).await;
    pass(&world, 1).await;
    wait_table(&world, left, "left").await;
    for table in new {
        wait_table(&world, &format!("public.{table}"), "paused").await;
    }
    assert_eq!(rows(&world).await, ["1|one", "2|before", "101|two"], "{keyed} {on} {running}");
    world.wait_state("streaming").await;
    resync(&world, new, (running && !keyed.is_empty()).then_some("--merge")).await;
    world.wait_same_rows("r").await;
    world.publisher.exec("UPDATE r SET v = v || '+' WHERE id IN (2, 103); DELETE FROM r WHERE id = 1").await;
    world.wait_same_rows("r").await;
    assert!(gaps(&world).await.is_empty());
    assert_eq!(service.sigterm().await, 0);
    world
}

#[tokio::test]
async fn a_switch_to_the_root_copies_nothing_on_top_of_the_partitions() {
    if publisher_binaries().major() < VIA_ROOT_SINCE {
        return;
    }
    switch("", true, true).await;
    let world = switch(" PRIMARY KEY", true, false).await;
    // What the partitions have brought comes with the root now.
    assert!(table(&world, "public.low").await.is_err());
}

#[tokio::test]
async fn a_switch_to_the_partitions_copies_nothing_on_top_of_the_root() {
    if publisher_binaries().major() < VIA_ROOT_SINCE {
        return;
    }
    switch("", false, false).await;
    switch(" PRIMARY KEY", false, true).await;
}

/// What was changed between the switch and the answer is missing, and the accepted gap covers it.
#[tokio::test]
async fn a_switch_may_be_accepted_as_it_is() {
    if publisher_binaries().major() < VIA_ROOT_SINCE {
        return;
    }
    let world = start(builder(" PRIMARY KEY"), false).await;
    world.take_up().await;
    world.publisher.exec(format!("ALTER PUBLICATION my_publication SET {}", via_root(true))).await;
    let from = world.publisher.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    world.publisher.exec("INSERT INTO r VALUES (3, 'passed over')").await;
    let service = world.run();
    wait_gaps(&world, &["occupied|r|t|t"]).await;
    pass(&world, 1).await;
    let text = world.pgsluice(&["status"]).await.expect(1).stdout;
    assert!(text.contains("public.r was not copied") && text.contains("goes into public.high"), "{text}");
    let gap = world.target.value("SELECT id FROM pgsluice.gap").await.unwrap();
    world.pgsluice(&["accept", &world.subscription, "--gap", &gap]).await.expect(0);
    wait_table(&world, "public.r", "ready").await;
    world.publisher.exec("INSERT INTO r VALUES (4, 'after')").await;
    until("changes arrive", async || rows(&world).await == ["1|one", "4|after", "101|two"]).await;
    let covers = format!(
        "SELECT settlement, from_lsn <= '{from}' AND resumed_lsn > '{from}' FROM pgsluice.gap WHERE id = {gap}"
    );
    assert_eq!(world.target.lines(&covers).await, ["accepted|t"]);
    assert_eq!(service.sigterm().await, 0);
}

/// The partitions leave one publication, and the root joins by another one.
#[tokio::test]
async fn a_table_that_moves_to_a_publication_via_its_root_is_held() {
    if publisher_binaries().major() < VIA_ROOT_SINCE {
        return;
    }
    let create = format!(
        "CREATE PUBLICATION my_publication FOR TABLE k, low, high; CREATE PUBLICATION two FOR TABLE k WITH {}",
        via_root(true)
    );
    let world = builder(" PRIMARY KEY").publisher_sql(&create).start().await;
    subscribe(&world, &["my_publication", "two"]);
    let service = world.run();
    world.wait_same_rows("r").await;
    let moves =
        "BEGIN; ALTER PUBLICATION my_publication SET TABLE k; ALTER PUBLICATION two SET TABLE k, r; COMMIT";
    world.publisher.exec(moves).await;
    world.publisher.exec("INSERT INTO r VALUES (3, 'after')").await;
    wait_gaps(&world, &["occupied|r|t|t"]).await;
    pass(&world, 1).await;
    assert_eq!(rows(&world).await, ["1|one", "101|two"]);
    resync(&world, &["r"], Some("--merge")).await;
    assert_eq!(service.sigterm().await, 0);
}

/// A partition that is detached is a table of its own on the publisher, while the target's is still a partition.
#[tokio::test]
async fn a_detached_partition_is_not_copied_into_the_roots_rows() {
    if publisher_binaries().major() < VIA_ROOT_SINCE {
        return;
    }
    let create = format!("CREATE PUBLICATION my_publication FOR ALL TABLES WITH {}", via_root(true));
    let world = builder("").publisher_sql(&create).start().await;
    let service = world.run();
    world.wait_same_rows("r").await;
    world.publisher.exec("ALTER TABLE r DETACH PARTITION low").await;
    world.publisher.exec("INSERT INTO low VALUES (2, 'detached')").await;
    wait_gaps(&world, &["occupied|low|t|t"]).await;
    pass(&world, 1).await;
    assert_eq!(rows(&world).await, ["1|one", "101|two"]);
    // It would take rows of the root with it.
    let refused = world.pgsluice(&["resync", &world.subscription, "public.low"]).await.expect(1).stderr;
    for said in ["public.low cannot be synchronised again", "public.r goes into public.r", "accept"] {
        assert!(refused.contains(said), "{said} in {refused}");
    }
    assert_eq!(rows(&world).await, ["1|one", "101|two"]);
    world.target.exec("ALTER TABLE r DETACH PARTITION low").await;
    resync(&world, &["low"], None).await;
    world.wait_same_rows("r").await;
    assert_eq!(service.sigterm().await, 0);
}

/// The configuration sends a partition into the root of the target, where the publisher's root goes, too.
#[tokio::test]
async fn a_partition_that_goes_into_the_root_is_not_doubled_by_the_root() {
    if publisher_binaries().major() < VIA_ROOT_SINCE {
        return;
    }
    let rule = "[[subscriptions.tables]]\nsource = \"public.low\"\ntarget = \"public.r\"\n";
    let world = start(builder(" PRIMARY KEY").config_lines(rule), false).await;
    let checked = world.pgsluice(&["check"]).await.stdout;
    assert!(checked.contains("2 tables go into rows of public.r"), "{checked}");
    let service = world.run();
    world.wait_same_rows("r").await;
    let view = world.wait_state("streaming").await;
    let warnings = view.json["warnings"].to_string();
    assert!(
        warnings.contains("2 tables go into rows of public.r") && warnings.contains("TRUNCATE"),
        "{warnings}"
    );
    for (table, told) in
        [("low", "public.high goes into public.high"), ("high", "public.low goes into public.r")]
    {
        let table = format!("public.{table}");
        for how in ["--merge", "--truncate"] {
            let refused =
                world.pgsluice(&["resync", &world.subscription, &table, how]).await.expect(1).stderr;
            assert!(refused.contains(told), "{refused}");
        }
    }
    world.publisher.exec(format!("ALTER PUBLICATION my_publication SET {}", via_root(true))).await;
    world.publisher.exec("INSERT INTO r VALUES (3, 'after')").await;
    wait_gaps(&world, &["replaced|r|t|t"]).await;
    pass(&world, 1).await;
    assert_eq!(rows(&world).await, ["1|one", "101|two"]);
    resync(&world, &["r"], None).await;
    assert_eq!(service.sigterm().await, 0);
}

/// A table that joins, and goes into the target of one that is followed, is not copied on top of its rows either.
#[tokio::test]
async fn a_table_that_joins_the_target_of_another_is_held() {
    let tables = "CREATE TABLE t (id int, v text); CREATE TABLE u (id int, v text)";
    let world = World::builder()
        .publisher_sql(tables)
        .publisher_sql("INSERT INTO t VALUES (1, 'of t'); INSERT INTO u VALUES (1, 'of t'), (2, 'of u')")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t")
        .target_sql("CREATE TABLE t (id int, v text)")
        .config_lines("[[subscriptions.tables]]\nsource = \"public.u\"\ntarget = \"public.t\"\n")
        .start()
        .await;
    let service = world.run();
    world.wait_same_rows("t").await;
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE u").await;
    wait_gaps(&world, &["occupied|u|t|t"]).await;
    world.publisher.exec("INSERT INTO t VALUES (3, 'of t')").await;
    world.wait_same_rows("t").await;
    let told = world.pgsluice(&["status"]).await.expect(1).stdout;
    assert!(told.contains("public.t goes into public.t, too"), "{told}");
    assert_eq!(service.sigterm().await, 0);
}

/// Two subscriptions write one table: neither is synchronised again at the other's cost.
#[tokio::test]
async fn a_table_of_two_subscriptions_is_not_synchronised_again() {
    let world = World::builder()
        .publisher_sql(
            "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)",
        )
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .publisher_sql("INSERT INTO t VALUES (1, 'of t'); INSERT INTO u VALUES (2, 'of u')")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t; CREATE PUBLICATION two FOR TABLE u")
        .start()
        .await;
    let config = std::fs::read_to_string(&world.config).unwrap();
    let publisher = config.lines().find(|line| line.starts_with("publisher = ")).unwrap();
    let second = unique("second");
    let more = format!(
        "{config}\n[[subscriptions]]\nname = \"{second}\"\n{publisher}\npublications = [\"two\"]\n\
         [[subscriptions.tables]]\nsource = \"public.u\"\ntarget = \"public.t\"\n"
    );
    std::fs::write(&world.config, more).unwrap();
    let service = world.run();
    let all = "SELECT id, v FROM t ORDER BY 1";
    until("both have been copied", async || world.target.lines(all).await == ["1|of t", "2|of u"]).await;
    world.wait_state("streaming").await;
    let with = format!("public.u (subscription {second}) goes into public.t, too");
    for how in [None, Some("--truncate"), Some("--merge")] {
        let mut command = vec!["resync", &world.subscription, "public.t"];
        command.extend(how);
        let refused = world.pgsluice(&command).await.expect(1).stderr;
        assert!(refused.contains(&with), "{refused}");
    }
    assert_eq!(world.target.lines(all).await, ["1|of t", "2|of u"]);
    let checked = world.pgsluice(&["check", &world.subscription]).await.stdout;
    for said in [format!("public.u (subscription {second})"), "SET (publish = 'insert".to_owned()] {
        assert!(checked.contains(&said), "{said} in {checked}");
    }
    assert_eq!(service.sigterm().await, 0);
}

/// It was asked for when it was harmless, and failed; now it would take the rows of a table that has joined since.
#[tokio::test]
async fn a_synchronisation_that_waits_is_refused_once_it_would_take_the_rows_of_others() {
    if publisher_binaries().major() < VIA_ROOT_SINCE {
        return;
    }
    let world = start(builder(" PRIMARY KEY"), true).await;
    let _service = world.run();
    world.wait_same_rows("r").await;
    world.publisher.exec("INSERT INTO r VALUES (102, 'bad')").await;
    world.wait_same_rows("r").await;
    world.target.exec("ALTER TABLE high ADD CONSTRAINT nope CHECK (v <> 'bad') NOT VALID").await;
    world.pgsluice(&["resync", &world.subscription, "public.r"]).await.expect(0);
    let error = "SELECT error::text FROM pgsluice.table_sync WHERE source_table = 'r'";
    let fails = |with: &'static str| {
        let world = &world;
        async move {
            until(with, async || {
                let told = world.target.value(error).await.unwrap_or_default();
                if told.contains(with) { Ok(()) } else { Err(told) }
            })
            .await;
        }
    };
    fails("nope").await;
    world
        .publisher
        .exec("ALTER TABLE r DETACH PARTITION low; ALTER PUBLICATION my_publication ADD TABLE low")
        .await;
    // Since when the rows are the same is not known, because the other copy has not been made.
    wait_gaps(&world, &["occupied|low|t|∅"]).await;
    let number = world.target.value("SELECT id FROM pgsluice.gap WHERE settled_at IS NULL").await.unwrap();
    world.pgsluice(&["accept", &world.subscription, "--gap", &number]).await.expect(0);
    wait_table(&world, "public.low", "ready").await;
    world.target.exec("ALTER TABLE high DROP CONSTRAINT nope").await;
    fails("has rows of other tables").await;
    world.publisher.exec("INSERT INTO low VALUES (3, 'three')").await;
    until("the row has come", async || {
        world.target.value("SELECT 1 FROM low WHERE id = 3").await.ok_or("not yet".to_owned())
    })
    .await;
    assert_eq!(world.target.lines("SELECT id FROM low ORDER BY 1").await, ["1", "3"]);
}
