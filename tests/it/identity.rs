//! Updates and deletes change the row that they mean, however the publisher identifies it.
//!
//! Where it matters, the target's rows are changed in columns that must not be compared: if a row is
//! still found, it was found by the right columns.

use crate::support::world::World;

/// Without a key, of several equal rows a change affects one, and NULL equals NULL.
#[tokio::test]
async fn of_equal_rows_exactly_one_changes_and_nulls_are_equal() {
    let table = "(a int, b text, c numeric)";
    let world = World::builder()
        .publisher_sql(&format!("CREATE TABLE plain {table}; CREATE TABLE parts {table}"))
        .publisher_sql("ALTER TABLE plain REPLICA IDENTITY FULL; ALTER TABLE parts REPLICA IDENTITY FULL")
        .target_sql(
            "CREATE TABLE plain (note text DEFAULT 'n', c numeric, b text, a int);
             CREATE TABLE parts (a int, b text, c numeric, note text DEFAULT 'n') PARTITION BY LIST (a);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
             CREATE TABLE parts_rest PARTITION OF parts DEFAULT",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for table in ["plain", "parts"] {
        let insert = format!(
            "INSERT INTO {table} VALUES (1, 'x', 1), (1, 'x', 1), (1, 'x', 1), (NULL, NULL, NULL), \
             (NULL, NULL, NULL), (NULL, 'y', 2), (NULL, 'y', NULL), (2, NULL, 2)"
        );
        world.publisher.exec(insert).await;
        world.wait_same_rows(table).await;
        // Only the target has this column, whose values must not be compared.
        world.target.exec(format!("UPDATE {table} SET note = a::text || b")).await;
        for change in [
            format!("UPDATE {table} SET b = 'z' WHERE ctid = (SELECT ctid FROM {table} WHERE a = 1 LIMIT 1)"),
            format!("DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} WHERE b = 'x' LIMIT 1)"),
            format!(
                "DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} WHERE a IS NULL AND b IS NULL LIMIT 1)"
            ),
            format!("UPDATE {table} SET a = 1, b = NULL WHERE b = 'y' AND c IS NULL"),
            format!(
                "UPDATE {table} SET c = NULL WHERE a IS NULL AND b = 'y'; UPDATE {table} SET a = 1 WHERE a = 2"
            ),
        ] {
            world.publisher.exec(&change).await;
            world.wait_caught_up().await;
            world.same_rows(table).await.unwrap_or_else(|difference| panic!("{change}: {difference}"));
        }
        // A change of all equal rows at once is sent as one change for each row.
        world
            .publisher
            .exec(format!("INSERT INTO {table} SELECT 7, 'same', 7 FROM generate_series(1, 50)"))
            .await;
        world
            .publisher
            .exec(format!(
                "UPDATE {table} SET c = 8 WHERE a = 7; DELETE FROM {table} WHERE ctid IN
            (SELECT ctid FROM {table} WHERE a = 7 LIMIT 20)"
            ))
            .await;
        world.wait_caught_up().await;
        world.assert_same_rows(table).await;
    }
}

/// Rows may be equal for the target's operators and differ all the same. The one that is the same is changed; where
/// there is none, one that is equal is.
#[tokio::test]
async fn a_row_that_is_the_same_goes_before_one_that_is_equal() {
    let tables = ["sets", "rows", "parts"];
    let columns = "(f float8, n numeric, i interval, c char(4), j numeric[], a text)";
    let mut builder = World::builder();
    for table in tables {
        builder = builder.publisher_sql(&format!(
            "CREATE TABLE {table} {columns}; ALTER TABLE {table} REPLICA IDENTITY FULL"
        ));
    }
    let world = builder
        .target_sql(&format!(
            "CREATE TABLE sets {columns}; CREATE TABLE rows {columns}; \
             CREATE UNIQUE INDEX ON rows ((a || 'x')) WHERE a = 'never'; \
             CREATE TABLE parts {columns} PARTITION BY LIST (a); CREATE TABLE rest PARTITION OF parts DEFAULT"
        ))
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let rows = "('0', '1.0', '30 days', 'x', '{1.0}', 'a'), ('-0', '1.0', '30 days', 'x', '{1.0}', 'a'), \
                ('0', '1.00', '30 days', 'x', '{1.0}', 'a'), ('0', '1.0', '1 mon', 'x', '{1.0}', 'a'), \
                ('0', '1.0', '30 days', 'x', '{1.00}', 'a'), (NULL, '1.00', NULL, NULL, NULL, 'b')";
    for table in tables {
        world.publisher.exec(format!("INSERT INTO {table} VALUES {rows}, {rows}")).await;
        world.wait_same_rows(table).await;
        for condition in [
            "f::text = '-0'",
            "n::text = '1.00' AND i IS NOT NULL",
            "i::text = '1 mon'",
            "j::text = '{1.00}'",
            "f::text = '0' AND n::text = '1.0' AND i::text = '30 days' AND j::text = '{1.0}'",
        ] {
            let one = format!("ctid = (SELECT ctid FROM {table} WHERE a = 'a' AND {condition} LIMIT 1)");
            for change in [
                format!("UPDATE {table} SET a = 'c' WHERE {one}"),
                format!("DELETE FROM {table} WHERE {one}"),
            ] {
                world.publisher.exec(&change).await;
                world.wait_caught_up().await;
                world.same_rows(table).await.unwrap_or_else(|difference| panic!("{change}: {difference}"));
            }
        }
        // On the target, no row is the same.
        world.target.exec(format!("UPDATE {table} SET n = '1.000' WHERE a = 'b'")).await;
        world.publisher.exec(format!("DELETE FROM {table} WHERE a = 'b'")).await;
        world.wait_same_rows(table).await;
    }
}

/// The target's equality operators decide which rows are equal, not the texts.
#[tokio::test]
async fn rows_are_equal_by_the_targets_operators() {
    let types = "
        CREATE EXTENSION citext SCHEMA public; CREATE EXTENSION hstore SCHEMA public;
        CREATE SCHEMA shop;
        CREATE COLLATION shop.no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    let table = |text: &str| {
        format!(
            "CREATE TABLE whole (n numeric, c public.citext, t {text}, ch char(5), f float8, i interval, h public.hstore,
                j jsonb, ns numeric[], d int)"
        )
    };
    let world = World::builder()
        .both_sql(types)
        .publisher_sql(&table("text"))
        .target_sql(&table("text COLLATE shop.no_case"))
        .publisher_sql("ALTER TABLE whole REPLICA IDENTITY FULL")
        .publisher_sql(
            "INSERT INTO whole SELECT 1.0, 'Abc', 'Groß', 'a', '-0', '1 day', 'a=>1, b=>2', '{\"a\": 1.0}', '{1.0}', n
                FROM generate_series(1, 3) n",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("whole").await;
    world.wait_state("streaming").await;
    // The values equal the publisher's but are written differently.
    world
        .target
        .exec(
            "UPDATE whole SET n = 1.000, c = 'aBC', t = 'groß', ch = 'a    ', f = 0, i = '24:00', j = '{\"a\": 1}',
                ns = '{1.00}'",
        )
        .await;
    world.publisher.exec("DELETE FROM whole WHERE d = 1; UPDATE whole SET n = 2, d = 20 WHERE d = 2").await;
    world.wait_caught_up().await;
    assert_eq!(
        world.target.lines("SELECT n, c, t, d FROM whole ORDER BY d").await,
        ["1.000|aBC|groß|3", "2|Abc|Groß|20"]
    );
    // The values are not equal, so the row is missing.
    world.target.exec("UPDATE whole SET n = 1.001 WHERE d = 3").await;
    world.publisher.exec("DELETE FROM whole WHERE d = 3").await;
    let view = world.wait_paused("conflict").await;
    assert!(view.told().contains("delete_missing"), "{}", view.told());
}

/// A key that did not change is not sent, and the other fields of a sent key are meaningless NULLs.
#[tokio::test]
async fn old_keys_count_where_they_were_sent_and_nothing_else_does() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (a int, b text, v int, w text, PRIMARY KEY (a, b))")
        .both_sql(
            "CREATE TABLE u (id int PRIMARY KEY, k int NOT NULL, v text); CREATE UNIQUE INDEX u_k ON u (k)",
        )
        .publisher_sql("ALTER TABLE u REPLICA IDENTITY USING INDEX u_k")
        .publisher_sql("INSERT INTO t SELECT n, 'b', n, 'w' FROM generate_series(1, 6) n")
        .publisher_sql("INSERT INTO u SELECT n, n * 10, 'v' FROM generate_series(1, 4) n")
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.wait_same_rows("u").await;
    world.wait_state("streaming").await;
    // On the target, everything but the keys differs.
    world.target.exec("UPDATE t SET v = -v, w = NULL; UPDATE u SET id = -id, v = NULL").await;
    world
        .publisher
        .exec(
            "UPDATE t SET v = 100 WHERE a = 1; UPDATE t SET b = 'c' WHERE a = 2; UPDATE t SET a = 30, v = NULL WHERE a = 3;
             UPDATE t SET a = a WHERE a = 4; DELETE FROM t WHERE a = 5; UPDATE t SET a = 5 WHERE a = 6;
             UPDATE u SET v = 'w' WHERE k = 10; UPDATE u SET k = 21, id = 22 WHERE k = 20; DELETE FROM u WHERE k = 30",
        )
        .await;
    world.wait_caught_up().await;
    world.assert_same_rows("t").await;
    assert_eq!(world.target.lines("SELECT * FROM u ORDER BY k").await, ["1|10|w", "22|21|v", "-4|40|∅"]);
    // Keys are exchanged through a third value.
    world.publisher.exec("BEGIN; UPDATE t SET a = 99 WHERE a = 1; UPDATE t SET a = 1 WHERE a = 2; UPDATE t SET a = 2 WHERE a = 99; COMMIT").await;
    world.wait_caught_up().await;
    world.assert_same_rows("t").await;
}

/// The replica identity may change within a transaction and differ between the sides.
#[tokio::test]
async fn the_identity_may_change_at_any_time_and_differ_between_the_sides() {
    let world = World::builder()
        .publisher_sql(
            "CREATE TABLE t (id int PRIMARY KEY, k int NOT NULL, v text); CREATE UNIQUE INDEX t_k ON t (k)",
        )
        .target_sql(
            "CREATE TABLE t (id int NOT NULL, k int PRIMARY KEY, v text); CREATE UNIQUE INDEX t_id ON t (id);
             ALTER TABLE t REPLICA IDENTITY NOTHING",
        )
        .publisher_sql("INSERT INTO t SELECT n, n * 10, 'v' FROM generate_series(1, 9) n")
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    world
        .publisher
        .exec(
            "BEGIN;
             UPDATE t SET v = 'by id' WHERE id = 1; UPDATE t SET id = 11, k = 111 WHERE id = 1;
             ALTER TABLE t REPLICA IDENTITY FULL;
             UPDATE t SET v = 'by all', k = 21 WHERE id = 2; DELETE FROM t WHERE id = 3;
             ALTER TABLE t REPLICA IDENTITY USING INDEX t_k;
             UPDATE t SET v = 'by k', id = 44 WHERE k = 40; UPDATE t SET k = 51 WHERE k = 50; DELETE FROM t WHERE k = 60;
             ALTER TABLE t REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (70, 700, 'new');
             ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = NULL, k = 71 WHERE id = 7; DELETE FROM t WHERE id = 8;
             COMMIT",
        )
        .await;
    world.wait_caught_up().await;
    world.assert_same_rows("t").await;
    // Without a key on the target within the columns of the publisher's, no row could be found.
    world.target.exec("DROP INDEX t_id").await;
    world.publisher.exec("UPDATE t SET v = 'unfound' WHERE id = 9").await;
    let view = world.wait_paused("schema").await;
    assert!(view.told().contains("UNIQUE") && view.told().contains("\"id\""), "{}", view.told());
    world.target.exec("CREATE UNIQUE INDEX again ON t (id)").await;
    world.wait_same_rows("t").await;
}

/// A failed change is reported correctly even if a later change of its transaction makes apply read the
/// target's catalog, because the stream then describes a new table or identity.
#[tokio::test]
async fn a_conflict_is_named_although_another_table_first_appears_behind_it() {
    let world = World::builder()
        .both_sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)")
        .both_sql("CREATE TABLE whole (id int, v text)")
        .publisher_sql("ALTER TABLE whole REPLICA IDENTITY FULL")
        .target_sql("INSERT INTO a VALUES (1, 'local')")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE a, b, whole")
        .subscription_line("copy_data = false")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world
        .publisher
        .exec(
            "BEGIN; INSERT INTO whole VALUES (1, 'x'); UPDATE whole SET v = 'y'; INSERT INTO a VALUES (1, 'remote');
             INSERT INTO b VALUES (1, 'b'); COMMIT",
        )
        .await;
    let view = world.wait_paused("conflict").await;
    assert!(view.told().contains("insert_exists") && view.told().contains("public.a"), "{}", view.told());
    world.target.exec("DELETE FROM a").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    for table in ["a", "b", "whole"] {
        world.wait_same_rows(table).await;
    }
}
