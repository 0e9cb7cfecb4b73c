//! Publications have the same effect in the copy and in the stream: row filters, column lists,
//! inheritance, partitions, and tables that are or are not published.

use crate::support::clusters::publisher_binaries;
use crate::support::database::Database;
use crate::support::wait::until;
use crate::support::world::{Builder, PUBLISHER_ROLE, TARGET_ROLE, World, conninfo, unique};

/// First version with row filters, column lists and `FOR TABLES IN SCHEMA`.
const FILTERS_SINCE: u32 = 15;

/// Makes the subscription use these publications in this order.
pub(crate) fn subscribe(world: &World, publications: &[&str]) {
    let quoted: Vec<String> = publications.iter().map(|name| format!("\"{name}\"")).collect();
    let config = std::fs::read_to_string(&world.config).unwrap();
    let lines: Vec<String> = config
        .lines()
        .map(|line| {
            if line.starts_with("publications = ") {
                format!("publications = [{}]", quoted.join(", "))
            } else {
                line.to_owned()
            }
        })
        .collect();
    std::fs::write(&world.config, lines.join("\n")).unwrap();
}

/// Creates a world with several publications, without the default one.
async fn world(builder: Builder, publications: &[&str]) -> World {
    let world = builder.publisher_sql("CREATE PUBLICATION my_publication").start().await;
    subscribe(&world, publications);
    world
}

async fn wait_lines(database: &Database, sql: &str, expected: &[&str]) {
    until(&format!("{sql} gives {expected:?}"), async || {
        let seen = database.lines(sql).await;
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Returns the sources of the tables that the subscription knows, sorted.
pub(crate) async fn known_tables(world: &World) -> Result<Vec<String>, String> {
    let view = world.status().await?;
    let tables = view.json["tables"].as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> =
        tables.iter().filter_map(|table| table["source"].as_str().map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn row_filters_and_column_lists_hold_in_copy_and_stream() {
    if publisher_binaries().major() < FILTERS_SINCE {
        return;
    }
    let world = world(
        World::builder()
            .publisher_sql(
                "CREATE TABLE listed (id int, region text, secret text, PRIMARY KEY (id, region));
                 CREATE TABLE ored (id int PRIMARY KEY, v int);
                 INSERT INTO listed VALUES (1, 'eu', 's1'), (2, 'us', 's2'), (3, 'eu', 's3');
                 INSERT INTO ored SELECT i, 0 FROM generate_series(1, 100) i;
                 CREATE PUBLICATION p1 FOR TABLE listed (id, region) WHERE (region = 'eu'), ored WHERE (id <= 10);
                 CREATE PUBLICATION p2 FOR TABLE ored WHERE (id > 90)",
            )
            .target_sql(
                "CREATE TABLE listed (id int, region text, secret text DEFAULT 'ours', PRIMARY KEY (id, region));
                 CREATE TABLE ored (id int PRIMARY KEY, v int)",
            ),
        &["p1", "p2"],
    )
    .await;
    let _service = world.run();
    let listed = "SELECT * FROM listed ORDER BY id";
    wait_lines(&world.target, listed, &["1|eu|ours", "3|eu|ours"]).await;
    wait_lines(&world.target, "SELECT count(*), min(id), max(id) FROM ored", &["20|1|100"]).await;

    world.publisher.exec("INSERT INTO listed VALUES (4, 'eu', 's4'), (5, 'us', 's5')").await;
    // An update into the filter becomes an insert, one out of it a delete.
    world.publisher.exec("UPDATE listed SET region = 'eu' WHERE id = 2").await;
    world.publisher.exec("UPDATE listed SET region = 'us' WHERE id = 3").await;
    world.publisher.exec("UPDATE ored SET v = 1; DELETE FROM ored WHERE id IN (1, 50, 100)").await;
    world.wait_caught_up().await;
    wait_lines(&world.target, listed, &["1|eu|ours", "2|eu|ours", "4|eu|ours"]).await;
    wait_lines(&world.target, "SELECT count(*), min(id), max(id), min(v) FROM ored", &["18|2|99|1"]).await;
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn a_publication_without_a_filter_voids_those_of_the_others() {
    if publisher_binaries().major() < FILTERS_SINCE {
        return;
    }
    let tables = "CREATE TABLE plain (id int PRIMARY KEY);
         CREATE SCHEMA s; CREATE TABLE s.of_schema (id int PRIMARY KEY)";
    let builder = World::builder()
        .both_sql(tables)
        .publisher_sql(
            "INSERT INTO plain SELECT generate_series(1, 10);
             INSERT INTO s.of_schema SELECT generate_series(1, 10);
             CREATE PUBLICATION filtered FOR TABLE plain WHERE (id > 5), s.of_schema WHERE (id > 5);
             CREATE PUBLICATION unfiltered FOR TABLE plain;
             CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA s;
             CREATE PUBLICATION all_tables FOR ALL TABLES",
        )
        .config_lines("copy_data = true");
    let world = world(builder, &["filtered", "unfiltered", "of_schema"]).await;
    let service = world.run();
    for table in ["plain", "s.of_schema"] {
        world.wait_same_rows(table).await;
        world
            .publisher
            .exec(format!("INSERT INTO {table} VALUES (0); DELETE FROM {table} WHERE id = 3"))
            .await;
    }
    for table in ["plain", "s.of_schema"] {
        world.wait_same_rows(table).await;
    }
    assert_eq!(service.sigterm().await, 0);

    // FOR ALL TABLES does the same from the start.
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    world.target.exec("TRUNCATE plain, s.of_schema").await;
    subscribe(&world, &["filtered", "all_tables"]);
    let _service = world.run();
    for table in ["plain", "s.of_schema"] {
        world.wait_same_rows(table).await;
        world
            .publisher
            .exec(format!("INSERT INTO {table} VALUES (-1); DELETE FROM {table} WHERE id = 4"))
            .await;
        world.wait_same_rows(table).await;
    }
}

#[tokio::test]
async fn column_lists_that_contradict_each_other_are_told() {
    if publisher_binaries().major() < FILTERS_SINCE {
        return;
    }
    let world = world(
        World::builder()
            .both_sql("CREATE TABLE t (id int PRIMARY KEY, a int)")
            .publisher_sql("CREATE PUBLICATION p1 FOR TABLE t (id); CREATE PUBLICATION p2 FOR TABLE t"),
        &["p1", "p2"],
    )
    .await;
    let _service = world.run();
    let view = world.wait_state("retrying").await;
    assert_eq!(view.reason.as_deref(), Some("publications"));
    let told = view.told();
    assert!(told.contains("column list") && told.contains("public.t"), "{told}");
}

#[tokio::test]
async fn an_inheritance_parent_is_copied_without_its_children() {
    let tables = "CREATE TABLE alone (id int PRIMARY KEY); CREATE TABLE alone_child () INHERITS (alone);
         CREATE TABLE family (id int PRIMARY KEY); CREATE TABLE family_child () INHERITS (family);
         ALTER TABLE alone_child ADD PRIMARY KEY (id); ALTER TABLE family_child ADD PRIMARY KEY (id)";
    let world = world(
        World::builder().both_sql(tables).publisher_sql(
            "INSERT INTO alone VALUES (1); INSERT INTO alone_child VALUES (2);
             INSERT INTO family VALUES (1); INSERT INTO family_child VALUES (2);
             CREATE PUBLICATION p FOR TABLE ONLY alone, family",
        ),
        &["p"],
    )
    .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world
        .publisher
        .exec(
            "INSERT INTO alone VALUES (3); INSERT INTO alone_child VALUES (4);
             INSERT INTO family VALUES (3); INSERT INTO family_child VALUES (4)",
        )
        .await;
    world.wait_caught_up().await;
    let rows = "SELECT tableoid::regclass, id FROM alone UNION ALL SELECT tableoid::regclass, id FROM family ORDER BY 1, 2";
    let expected = ["alone|1", "alone|3", "family|1", "family|3", "family_child|2", "family_child|4"];
    wait_lines(&world.target, rows, &expected).await;
}

/// Statements for a partitioned table `name` with two partitions and rows in both.
fn partitioned(name: &str) -> String {
    format!(
        "CREATE TABLE {name} (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE {name}_low PARTITION OF {name} FOR VALUES FROM (0) TO (100);
         CREATE TABLE {name}_high PARTITION OF {name} FOR VALUES FROM (100) TO (200);
         INSERT INTO {name} VALUES (1, 'a'), (2, 'b'), (101, 'c'), (102, 'd');"
    )
}

/// Statements for changes of every kind, one of them across partitions.
fn change(name: &str) -> String {
    format!(
        "INSERT INTO {name} VALUES (3, 'e'), (103, 'f');
         UPDATE {name} SET v = v || '!' WHERE id IN (1, 101);
         UPDATE {name} SET id = 150 WHERE id = 2;
         DELETE FROM {name} WHERE id = 102"
    )
}

const CHANGED: [&str; 5] = ["1|a!", "3|e", "101|c!", "103|f", "150|b"];
const CHANGED_LOW: [&str; 2] = ["1|a!", "3|e"];
const CHANGED_HIGH: [&str; 3] = ["101|c!", "103|f", "150|b"];

fn all(table: &str) -> String {
    format!("SELECT id, v FROM ONLY {table} ORDER BY id")
}

#[tokio::test]
async fn partitions_are_published_as_themselves_or_as_their_root() {
    if publisher_binaries().major() < 13 {
        return;
    }
    let plain = |name: &str| format!("CREATE TABLE {name} (id int PRIMARY KEY, v text);");
    // In the target, roots and leaves are plain tables, which shows the names that the stream used.
    let names = ["as_leaves", "as_root", "root_first", "leaf_first", "two_roots"];
    let mut publisher_sql: String = names.iter().map(|name| partitioned(name)).collect();
    let mut target_sql: String = names
        .iter()
        .map(|name| plain(name) + &plain(&format!("{name}_low")) + &plain(&format!("{name}_high")))
        .collect();
    publisher_sql +=
        "CREATE PUBLICATION leaves FOR TABLE as_leaves WITH (publish_via_partition_root = false);
         CREATE PUBLICATION roots FOR TABLE as_root, root_first WITH (publish_via_partition_root = true);
         CREATE PUBLICATION leaves_after FOR TABLE root_first_low, leaf_first_low;
         CREATE PUBLICATION roots_after FOR TABLE leaf_first WITH (publish_via_partition_root = true);
         CREATE TABLE top (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         ALTER TABLE top ATTACH PARTITION two_roots FOR VALUES FROM (0) TO (200);
         CREATE PUBLICATION middle FOR TABLE two_roots WITH (publish_via_partition_root = true);
         CREATE PUBLICATION topmost FOR TABLE top WITH (publish_via_partition_root = true);";
    target_sql += &plain("top");
    let order = ["leaves", "roots", "leaves_after", "roots_after", "middle", "topmost"];
    let world = world(World::builder().publisher_sql(&publisher_sql).target_sql(&target_sql), &order).await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for name in names {
        world.publisher.exec(change(name)).await;
    }
    world.wait_caught_up().await;
    let expect = async |table: &str, rows: &[&str]| {
        assert_eq!(world.target.lines(&all(table)).await, rows, "{table}");
    };
    expect("as_leaves", &[]).await;
    expect("as_leaves_low", &CHANGED_LOW).await;
    expect("as_leaves_high", &CHANGED_HIGH).await;
    for root in ["as_root", "root_first", "leaf_first", "top"] {
        expect(root, &CHANGED).await;
    }
    for root in ["as_root", "root_first", "leaf_first", "two_roots"] {
        expect(&format!("{root}_low"), &[]).await;
        expect(&format!("{root}_high"), &[]).await;
    }
    expect("two_roots", &[]).await;
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn updates_cross_the_targets_partitions_by_the_leaves_keys() {
    let long = "repeat('long', 5000)";
    let world = World::builder()
        .publisher_sql(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, part int, v text, big text);
             ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, i % 3, 'copied', {long} FROM generate_series(1, 30) i"
        ))
        .target_sql(
            // The key cannot be the root's, because it does not contain the partitioning column.
            "CREATE TABLE t (id int, part int, v text, big text, note text) PARTITION BY LIST (part);
             CREATE TABLE t_0 (note text, big text, id int PRIMARY KEY, v text, part int);
             CREATE TABLE t_1 PARTITION OF t (PRIMARY KEY (id)) FOR VALUES IN (1);
             CREATE TABLE t_2 PARTITION OF t (PRIMARY KEY (id)) FOR VALUES IN (2);
             ALTER TABLE t ATTACH PARTITION t_0 FOR VALUES IN (0)",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.target.exec("UPDATE t SET note = 'ours'").await;
    world.publisher.exec("UPDATE t SET part = (part + 1) % 3, v = 'moved' WHERE id <= 15").await;
    world.publisher.exec("UPDATE t SET id = id + 100 WHERE id > 25").await;
    world.publisher.exec("UPDATE t SET id = id + 100, part = 2 - part WHERE id BETWEEN 20 AND 25").await;
    world.publisher.exec("DELETE FROM t WHERE id IN (1, 2, 3, 16)").await;
    world.wait_caught_up().await;
    world.assert_same_rows("t").await;
    let lost = "SELECT count(*) FROM t WHERE note IS DISTINCT FROM 'ours'";
    assert_eq!(world.target.value(lost).await.as_deref(), Some("0"), "a move keeps the target's own columns");
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn a_table_that_is_not_published_is_left_alone() {
    let tables = "CREATE TABLE published (id int PRIMARY KEY); CREATE TABLE private (id int PRIMARY KEY)";
    let world = World::builder()
        .both_sql(tables)
        .publisher_sql(
            "CREATE PUBLICATION my_publication FOR TABLE published; INSERT INTO private VALUES (1)",
        )
        .target_sql("INSERT INTO private VALUES (77)")
        .subscription_line("auto_refresh = false")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO private VALUES (2); INSERT INTO published VALUES (1)").await;
    world.wait_same_rows("published").await;

    // The table is added to the publication but not to the subscription: its changes arrive and are
    // dropped, also after a restart.
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE private").await;
    world.publisher.exec("INSERT INTO private VALUES (3); INSERT INTO published VALUES (2)").await;
    world.wait_caught_up().await;
    world.wait_same_rows("published").await;
    assert_eq!(service.sigterm().await, 0);
    world.publisher.exec("INSERT INTO private VALUES (4); INSERT INTO published VALUES (3)").await;
    let _service = world.run();
    world.wait_same_rows("published").await;
    world.publisher.exec("DELETE FROM private; INSERT INTO published VALUES (4)").await;
    world.wait_caught_up().await;
    world.wait_same_rows("published").await;
    assert_eq!(world.target.lines("SELECT id FROM private").await, ["77"]);
    assert_eq!(known_tables(&world).await.unwrap(), ["public.published"]);
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn the_state_of_a_pgsluice_upstream_is_not_replicated() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let world = World::builder().both_sql(table).publisher_sql("INSERT INTO t VALUES (1, 'a')").start().await;
    let mut world = world;
    let further_name = unique("further");
    let further = Database::create(world.target_server(), &further_name).await;
    world
        .target
        .exec(format!(
            "CREATE PUBLICATION everything FOR ALL TABLES; ALTER ROLE {PUBLISHER_ROLE} LOGIN REPLICATION;
             ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {PUBLISHER_ROLE};
             GRANT SELECT ON t TO {PUBLISHER_ROLE}; GRANT USAGE ON SCHEMA public TO {PUBLISHER_ROLE};"
        ))
        .await;
    further
        .exec(format!(
            "GRANT CONNECT, CREATE ON DATABASE {further_name} TO {TARGET_ROLE}; {table};
             GRANT USAGE ON SCHEMA public TO {TARGET_ROLE};
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON t TO {TARGET_ROLE};"
        ))
        .await;
    let _first = world.run();
    world.wait_same_rows("t").await;
    let name = unique("sub");
    let literal = |text: String| format!("'''{text}'''");
    let config = world.dir().join("further.toml");
    let text = format!(
        "[target]\nurl = {}\n\n[[subscriptions]]\nname = \"{name}\"\npublisher = {}\npublications = [\"everything\"]\n",
        literal(conninfo(&further, TARGET_ROLE)),
        literal(conninfo(&world.target, PUBLISHER_ROLE)),
    );
    std::fs::write(&config, text).unwrap();
    let log = world.dir().join("further.log");
    let _second = crate::support::service::Service::start(&config, log, &[]);
    wait_lines(&further, "SELECT * FROM t ORDER BY id", &["1|a"]).await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'b'); UPDATE t SET v = 'c' WHERE id = 1").await;
    wait_lines(&further, "SELECT * FROM t ORDER BY id", &["1|c", "2|b"]).await;
    // The state of the other instance is not replicated: one subscription, one table.
    let own = "SELECT subscription, source_schema, source_table, state FROM pgsluice.table_sync";
    assert_eq!(further.lines(own).await, [format!("{name}|public|t|ready")]);
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.publisher.exec("DELETE FROM t WHERE id = 2").await;
    wait_lines(&further, "SELECT * FROM t ORDER BY id", &["1|c"]).await;
}

/// A failure or a crash after the slot's creation and before the tables are marked leaves tables that
/// wait for a copy.
#[tokio::test]
async fn without_a_copy_an_interrupted_beginning_copies_nothing() {
    let world = World::builder()
        .both_sql("CREATE TABLE keyless (a int); ALTER TABLE keyless REPLICA IDENTITY FULL")
        .publisher_sql("INSERT INTO keyless VALUES (1)")
        .target_sql("INSERT INTO keyless VALUES (1)")
        .subscription_line("copy_data = false")
        .start()
        .await;
    world.take_up().await;
    world.target.exec("UPDATE pgsluice.table_sync SET state = 'pending', synced_lsn = NULL").await;
    world.publisher.exec("INSERT INTO keyless VALUES (2)").await;
    let _service = world.run();
    world.wait_caught_up().await;
    assert_eq!(world.target.lines("SELECT a FROM keyless ORDER BY a").await, ["1", "2"]);
    let states = "SELECT state, attempt FROM pgsluice.table_sync";
    assert_eq!(world.target.lines(states).await, ["ready|0"]);
}
