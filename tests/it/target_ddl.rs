//! DDL on the target while the service runs, about which no message is sent. What still fits goes on
//! without a person. What does not fit pauses with reason `schema`, never with a false conflict, and no
//! value is changed.

use crate::support::world::World;

/// Checks that there was no conflict and that no person was needed.
async fn assert_quiet(world: &World, after: &str) {
    let paused = "SELECT message FROM pgsluice.event WHERE message LIKE '%paused%' OR kind = 'conflict'";
    assert_eq!(world.target.lines(paused).await, [""; 0], "after {after}");
}

#[tokio::test]
async fn changed_tables_are_planned_afresh_without_a_person() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE t (id int PRIMARY KEY, a int, b varchar(20), c int)")
        .target_sql("CREATE TABLE t (id int PRIMARY KEY, a int, b varchar(20), c text)")
        .publisher_sql("CREATE TABLE whole (id int, a int)")
        .target_sql("CREATE TABLE whole (id int, a text)")
        .publisher_sql("ALTER TABLE whole REPLICA IDENTITY FULL")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let mut id = 0;
    let mut change = async |after: &str| {
        // Each kind of change is made in one transaction and by itself, so that sets and single rows
        // are tested.
        id += 10;
        world
            .publisher
            .exec(format!("INSERT INTO t SELECT n, n, 'b' || n, n FROM generate_series({id}, {id} + 5) n"))
            .await;
        world
            .publisher
            .exec(format!(
                "UPDATE t SET a = a + 1, c = c + 1 WHERE id >= {id}; DELETE FROM t WHERE id = {id}"
            ))
            .await;
        world
            .publisher
            .exec(format!(
                "INSERT INTO whole VALUES ({id}, 1), ({id} + 1, NULL); UPDATE whole SET a = 7 WHERE id = {id}"
            ))
            .await;
        world.publisher.exec(format!("DELETE FROM whole WHERE id = {id} + 1")).await;
        world.wait_caught_up().await;
        for table in ["t", "whole"] {
            world.same_rows(table).await.unwrap_or_else(|difference| panic!("after {after}: {difference}"));
        }
        assert_quiet(&world, after).await;
    };
    change("the start").await;
    for ddl in [
        "ALTER TABLE t ADD COLUMN ours text DEFAULT 'x'",
        "ALTER TABLE t ALTER a TYPE bigint, ALTER b TYPE text",
        "ALTER TABLE t ALTER c TYPE int USING c::int; ALTER TABLE whole ALTER a TYPE int USING a::int",
        "ALTER TABLE t ALTER c TYPE text; ALTER TABLE whole ALTER a TYPE numeric",
        "ALTER TABLE t DROP COLUMN ours; ALTER TABLE t ADD COLUMN ours int",
        "BEGIN; ALTER TABLE t RENAME c TO old_c; ALTER TABLE t ADD c bigint; UPDATE t SET c = old_c::bigint; ALTER TABLE t DROP old_c; COMMIT",
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "BEGIN; ALTER TABLE t RENAME TO old_t; CREATE TABLE t (c int, b text, a int, id int CONSTRAINT t_key PRIMARY KEY); INSERT INTO t SELECT c, b, a, id FROM old_t; DROP TABLE old_t; COMMIT",
        "ALTER TABLE t DROP CONSTRAINT t_key; ALTER TABLE t ADD UNIQUE (id)",
        "CREATE UNIQUE INDEX whole_id ON whole (id); ALTER TABLE whole ALTER id SET NOT NULL",
        "DROP INDEX whole_id",
    ] {
        world.target.exec(ddl).await;
        change(ddl).await;
    }
}

/// A new trigger must not be missed by sets, nor make rows look missing.
#[tokio::test]
async fn triggers_that_come_later_are_taken_into_account() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, a int)")
        .target_sql("CREATE TABLE seen (a int)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1, 0), (2, 0)").await;
    world.wait_same_rows("t").await;
    world
        .target
        .exec(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO public.seen VALUES (NEW.a); RETURN CASE WHEN NEW.id = 1 THEN NULL ELSE NEW END; END $$;
             CREATE TRIGGER see BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see();
             ALTER TABLE t ENABLE ALWAYS TRIGGER see",
        )
        .await;
    // As a set, these would be one update of one row.
    world.publisher.exec("BEGIN; UPDATE t SET a = 1 WHERE id = 2; UPDATE t SET a = 2 WHERE id = 2; UPDATE t SET a = 3 WHERE id = 1; COMMIT").await;
    world.wait_caught_up().await;
    assert_eq!(world.target.lines("SELECT a FROM seen ORDER BY a").await, ["1", "2", "3"]);
    assert_eq!(world.target.lines("SELECT id, a FROM t ORDER BY id").await, ["1|0", "2|2"]);
    assert_quiet(&world, "a new trigger").await;
}

#[tokio::test]
async fn what_no_longer_fits_pauses_on_the_schema_and_goes_on_once_it_fits() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, price numeric(12,2), name text)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let mut id = 0;
    for (broken, told, cured) in [
        ("ALTER TABLE t DROP COLUMN name", "ADD COLUMN \"name\"", "ALTER TABLE t ADD COLUMN name text"),
        ("ALTER TABLE t RENAME name TO title", "ADD COLUMN \"name\"", "ALTER TABLE t RENAME title TO name"),
        // None of these makes a prepared statement fail: values would be rounded, cut or left out silently.
        ("ALTER TABLE t ALTER price TYPE bigint", "price", "ALTER TABLE t ALTER price TYPE numeric(12,2)"),
        ("ALTER TABLE t ALTER name TYPE name", "name", "ALTER TABLE t ALTER name TYPE text"),
        ("ALTER TABLE t ALTER name TYPE \"char\"", "name", "ALTER TABLE t ALTER name TYPE text"),
        ("ALTER TABLE t RENAME TO elsewhere", "CREATE TABLE", "ALTER TABLE elsewhere RENAME TO t"),
        (
            "ALTER TABLE t ADD ours int NOT NULL DEFAULT 1; ALTER TABLE t ALTER ours DROP DEFAULT",
            "ours",
            "ALTER TABLE t DROP ours",
        ),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "PRIMARY KEY", "ALTER TABLE t ADD PRIMARY KEY (id)"),
    ] {
        id += 1;
        world.publisher.exec(format!("INSERT INTO t VALUES ({id}, {id}.55, 'before')")).await;
        world.wait_caught_up().await;
        world.target.exec(broken).await;
        world.publisher.exec(format!(
            "BEGIN; INSERT INTO t VALUES (100 + {id}, 1.55, 'name'), (200 + {id}, 2.55, 'name'); UPDATE t SET price = 9.99 WHERE id = {id}; COMMIT"
        )).await;
        let view = world.wait_state("paused").await;
        assert_eq!(view.reason.as_deref(), Some("schema"), "after {broken}: {:#}", view.json);
        assert!(view.told().contains(told), "after {broken}: {}", view.told());
        world.target.exec(cured).await;
        // The DDL itself may have changed the rows that existed before.
        let new = format!("SELECT * FROM t WHERE id > 100 AND id % 100 = {id} ORDER BY id");
        crate::support::wait::until(&format!("it goes on after {cured}"), async || {
            let (publisher, target) = (world.publisher.lines(&new).await, world.target.lines(&new).await);
            if publisher == target && target.len() == 2 {
                Ok(())
            } else {
                Err(format!("{publisher:?} {target:?}"))
            }
        })
        .await;
        world.wait_state("streaming").await;
    }
    assert_eq!(world.target.value("SELECT count(*) FROM pgsluice.conflict").await.as_deref(), Some("0"));
}

/// A single row is applied by a statement that checks the number of the server's plan, not the catalog.
/// This holds for the first statement, which learns the plan's number, and for later ones. DDL commits
/// while the statement waits for it.
#[tokio::test]
async fn a_single_row_meets_the_table_as_it_is() {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, price numeric(12,2))")
        .publisher_sql("INSERT INTO t VALUES (0, 0)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let mut id = 0;
    let (insert, update) = ("INSERT INTO t VALUES (ID, 1.55)", "UPDATE t SET price = 1.55 WHERE id = 0");
    // The first type fits no published value. The second would round this one, which is refused.
    let reasons = [("bigint", "schema"), ("numeric(12,0)", "conflict")];
    let cases = reasons.into_iter().flat_map(|reason| {
        [("no plan", insert), ("no plan", update), ("the plan", insert), ("the plan", update)]
            .map(|(known, change)| (reason, known, change))
    });
    for ((ty, reason), known, change) in cases {
        if known == "the plan" {
            for price in ["2.55", "3.55", "4.55"] {
                id += 1;
                world.publisher.exec(change.replace("ID", &id.to_string()).replace("1.55", price)).await;
                world.wait_caught_up().await;
            }
        }
        let ddl = world.target.session().await;
        ddl.batch(&format!("BEGIN; ALTER TABLE t ALTER price TYPE {ty}")).await.unwrap();
        id += 1;
        world.publisher.exec(change.replace("ID", &id.to_string())).await;
        let waits = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
        crate::support::wait::until("the row waits for the table", async || {
            world.target.value(waits).await.as_deref() == Some("1")
        })
        .await;
        ddl.batch("COMMIT").await.unwrap();
        let view = world.wait_state("paused").await;
        assert_eq!(view.reason.as_deref(), Some(reason), "{ty}, {change}, knowing {known}: {:#}", view.json);
        assert!(view.told().contains("price"), "{ty}, {change}, knowing {known}: {}", view.told());
        ddl.batch("ALTER TABLE t ALTER price TYPE numeric(12,2)").await.unwrap();
        ddl.close().await;
        if reason == "conflict" {
            world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        }
        world.wait_state("streaming").await;
        world.wait_caught_up().await;
        // The DDL has rounded existing values, but not that of the row that waited.
        let row = format!("SELECT * FROM t WHERE id = {}", if change.starts_with("INSERT") { id } else { 0 });
        assert_eq!(world.target.lines(&row).await, world.publisher.lines(&row).await);
    }
    let others = "SELECT count(*) FROM pgsluice.conflict WHERE kind <> 'value_error'";
    assert_eq!(world.target.value(others).await.as_deref(), Some("0"));
}

/// A new plan for an unchanged table causes no replay.
#[tokio::test]
async fn a_plan_made_anew_for_the_same_table_is_taken() {
    let world = World::builder().both_sql("CREATE TABLE t (id int PRIMARY KEY, a int)").start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let mut id = 0;
    for again in
        ["ANALYZE t", "ALTER TABLE t ALTER a SET STATISTICS 7", "CREATE INDEX t_a ON t (a)", "VACUUM t"]
    {
        for _ in 0..3 {
            id += 1;
            world.publisher.exec(format!("INSERT INTO t VALUES ({id}, 0)")).await;
            world.publisher.exec(format!("UPDATE t SET a = {id} WHERE id = {id}")).await;
            world.wait_caught_up().await;
        }
        world.target.exec(again).await;
    }
    world.publisher.exec("DELETE FROM t WHERE id = 1").await;
    world.wait_caught_up().await;
    world.wait_same_rows("t").await;
    assert_quiet(&world, "new plans").await;
}
