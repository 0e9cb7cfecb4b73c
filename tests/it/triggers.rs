//! Triggers, foreign keys and TRUNCATE: what acts on replicated rows in the target.

use std::fmt::Write as _;

use crate::support::world::{ReplicaRole, World};

/// A table to which triggers write what they saw.
const LOG: &str = "
    CREATE TABLE seen (n int GENERATED ALWAYS AS IDENTITY, what text);
    CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.seen (what) VALUES (TG_NAME || ' ' || TG_OP);
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$;";
const SEEN: &str = "SELECT what, count(*) FROM seen GROUP BY what ORDER BY what";

/// TRUNCATE is replayed as one statement for all tables, with RESTART IDENTITY only if it was given.
#[tokio::test]
async fn truncate_is_one_statement_for_all_tables_and_restarts_only_what_it_was_told_to() {
    let tables = "
        CREATE TABLE parent (id int PRIMARY KEY, n serial);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, n serial);
        CREATE TABLE grandchild (id int PRIMARY KEY, child int REFERENCES child);
        CREATE TABLE base (id int PRIMARY KEY); CREATE TABLE derived () INHERITS (base);
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);";
    let own = "ALTER TABLE parent OWNER TO pgsluice_apply; ALTER TABLE child OWNER TO pgsluice_apply;
               ALTER TABLE grandchild OWNER TO pgsluice_apply";
    let world = World::builder()
        .both_sql(tables)
        .target_sql(own)
        .publisher_sql(
            "CREATE PUBLICATION my_publication FOR ALL TABLES WITH (publish_via_partition_root = true)",
        )
        .publisher_sql("ALTER TABLE derived ADD PRIMARY KEY (id)")
        .start()
        .await;
    world.target.exec("ALTER TABLE derived ADD PRIMARY KEY (id)").await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let fill = "INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 1), (2, 2); INSERT INTO grandchild VALUES (1, 1);
                INSERT INTO base VALUES (1); INSERT INTO derived VALUES (2); INSERT INTO parts VALUES (1)";
    let all = ["parent", "child", "grandchild", "ONLY base", "derived", "parts"];
    let same = async |what: &str| {
        world.wait_caught_up().await;
        for table in all {
            let sql = format!("SELECT id FROM {table} ORDER BY id");
            assert_eq!(
                world.publisher.lines(&sql).await,
                world.target.lines(&sql).await,
                "{table} after {what}"
            );
        }
    };
    world.publisher.exec(fill).await;
    same("INSERT").await;
    world.target.exec("SELECT setval('parent_n_seq', 40), setval('child_n_seq', 50)").await;
    let sequences = "SELECT (SELECT last_value FROM parent_n_seq), (SELECT last_value FROM child_n_seq)";

    world.publisher.exec("TRUNCATE parent, child, grandchild").await;
    same("TRUNCATE").await;
    assert_eq!(world.target.lines(sequences).await, ["40|50"], "sequences go on");
    world.publisher.exec(fill.split("INSERT INTO base").next().unwrap()).await;
    world.publisher.exec("BEGIN; INSERT INTO parent VALUES (3); TRUNCATE parent CASCADE; INSERT INTO parent VALUES (4); COMMIT").await;
    same("TRUNCATE CASCADE").await;
    world.publisher.exec("TRUNCATE parent, child, grandchild RESTART IDENTITY").await;
    same("TRUNCATE RESTART IDENTITY").await;
    assert_eq!(world.target.lines(sequences).await, ["1|1"], "sequences begin anew");
    world.publisher.exec("TRUNCATE ONLY base; TRUNCATE parts").await;
    same("TRUNCATE ONLY").await;
    world.publisher.exec("INSERT INTO base VALUES (7); INSERT INTO parts VALUES (7); TRUNCATE base").await;
    same("TRUNCATE of a whole family").await;

    // A table that only the target has references a truncated one; CASCADE is not replayed.
    world.target.exec("CREATE TABLE ours (id int REFERENCES parent)").await;
    world.publisher.exec("TRUNCATE parent CASCADE").await;
    let view = world.wait_paused("conflict").await;
    assert!(
        view.told().contains("constraint_violation") && view.told().contains("foreign key"),
        "{}",
        view.told()
    );
    world.target.exec("DROP TABLE ours").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    same("the foreign key has gone").await;
}

/// RESTART IDENTITY needs the ownership of the sequence. Without it, the subscription pauses and
/// nothing is applied.
#[tokio::test]
async fn restart_identity_without_ownership_pauses_with_the_reason() {
    let world = World::builder().both_sql("CREATE TABLE t (id serial PRIMARY KEY, v text)").start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t (v) VALUES ('a')").await;
    world.wait_same_rows("t").await;
    world.publisher.exec("TRUNCATE t RESTART IDENTITY").await;
    let view = world.wait_paused("conflict").await;
    assert!(view.told().contains("permission_denied") && view.told().contains("owner"), "{}", view.told());
    assert_eq!(world.target.value("SELECT count(*) FROM t").await.as_deref(), Some("1"));
    world.target.exec("ALTER TABLE t OWNER TO pgsluice_apply").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
}

/// Statements for the triggers of a test's table, one of each kind, and a foreign key that its rows
/// violate.
fn acting(timing: &str) -> String {
    let mut sql = format!(
        "{LOG}
         CREATE TABLE others (id int PRIMARY KEY);
         CREATE TABLE t (id int PRIMARY KEY, a int, b text, other int REFERENCES others);"
    );
    for (name, enable) in [
        ("ordinary", "ENABLE"),
        ("replica", "ENABLE REPLICA"),
        ("always", "ENABLE ALWAYS"),
        ("off", "DISABLE"),
    ] {
        let _ = write!(
            sql,
            "CREATE TRIGGER \"{name}\" {timing} INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION see();
             ALTER TABLE t {enable} TRIGGER \"{name}\";"
        );
    }
    sql
}

const PLAIN: &str = "CREATE TABLE t (id int PRIMARY KEY, a int, b text, other int)";

/// In a replica session, only triggers with ENABLE REPLICA or ENABLE ALWAYS act.
#[tokio::test]
async fn replica_and_always_triggers_fire_and_nothing_else_acts() {
    for timing in ["AFTER", "BEFORE"] {
        let world = World::builder()
            .publisher_sql(PLAIN)
            .publisher_sql("INSERT INTO t VALUES (0, 0, 'copied', 77)")
            .target_sql(&acting(timing))
            .start()
            .await;
        let _service = world.run();
        world.wait_same_rows("t").await;
        world.wait_state("streaming").await;
        assert_eq!(
            world.target.lines(SEEN).await,
            ["always INSERT|1", "replica INSERT|1"],
            "the copy is replicated, too"
        );
        world.publisher.exec("INSERT INTO t VALUES (1, 1, 'b', 77), (2, 2, 'b', 77)").await;
        world
            .publisher
            .exec("UPDATE t SET a = a + 1; UPDATE t SET a = a + 1 WHERE id = 1; DELETE FROM t WHERE id = 2")
            .await;
        world.wait_caught_up().await;
        world.assert_same_rows("t").await;
        let expected = [
            "always DELETE|1",
            "always INSERT|3",
            "always UPDATE|4",
            "replica DELETE|1",
            "replica INSERT|3",
            "replica UPDATE|4",
        ];
        assert_eq!(world.target.lines(SEEN).await, expected);
        let view = world.status().await.unwrap();
        assert!(!view.json.to_string().contains("session_replication_role"), "{:#}", view.json);
    }
}

/// Without the privilege to set `session_replication_role`, everything acts as for any client, and
/// `status` says so.
#[tokio::test]
async fn without_the_privilege_everything_acts_and_status_says_so() {
    let world = World::builder()
        .replica_role(ReplicaRole::Withheld)
        .publisher_sql(PLAIN)
        .target_sql(&acting("AFTER"))
        .target_sql("INSERT INTO others VALUES (77)")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t")
        .start()
        .await;
    let _service = world.run();
    let view = world.wait_state("streaming").await;
    let warnings = view.json["warnings"].to_string();
    assert!(warnings.contains("session_replication_role") && warnings.contains("GRANT SET"), "{warnings}");
    world
        .publisher
        .exec("INSERT INTO t VALUES (1, 1, 'b', 77); UPDATE t SET a = 2; UPDATE t SET a = 3")
        .await;
    world.wait_caught_up().await;
    world.assert_same_rows("t").await;
    let expected = ["always INSERT|1", "always UPDATE|2", "ordinary INSERT|1", "ordinary UPDATE|2"];
    assert_eq!(world.target.lines(SEEN).await, expected);
    world.publisher.exec("INSERT INTO t VALUES (2, 2, 'b', 78)").await;
    let view = world.wait_paused("conflict").await;
    assert!(
        view.told().contains("constraint_violation") && view.told().contains("t_other_fkey"),
        "{}",
        view.told()
    );
    world.target.exec("INSERT INTO others VALUES (78)").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
}

/// A trigger `UPDATE OF` some columns fires for any replicated update.
#[tokio::test]
async fn triggers_for_an_update_of_some_column_fire_for_any_replicated_update() {
    let world = World::builder()
        .publisher_sql(PLAIN)
        .publisher_sql("INSERT INTO t VALUES (1, 1, 'b', 1)")
        .target_sql(LOG)
        .target_sql(PLAIN)
        .target_sql(
            "ALTER TABLE t ADD ours int;
             CREATE TRIGGER of_b AFTER UPDATE OF b ON t FOR EACH ROW EXECUTE FUNCTION see();
             CREATE TRIGGER of_ours AFTER UPDATE OF ours ON t FOR EACH ROW EXECUTE FUNCTION see();
             CREATE TRIGGER changed AFTER UPDATE ON t FOR EACH ROW WHEN (OLD.b IS DISTINCT FROM NEW.b) EXECUTE FUNCTION see();
             ALTER TABLE t ENABLE ALWAYS TRIGGER of_b; ALTER TABLE t ENABLE ALWAYS TRIGGER of_ours;
             ALTER TABLE t ENABLE ALWAYS TRIGGER changed",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    world.publisher.exec("UPDATE t SET a = 2; UPDATE t SET a = 3; UPDATE t SET b = 'c'").await;
    world.wait_caught_up().await;
    world.assert_same_rows("t").await;
    assert_eq!(world.target.lines(SEEN).await, ["changed UPDATE|1", "of_b UPDATE|3"]);
}

/// A trigger may suppress a row, so that the count is 0 although the row exists. A missing row is still
/// detected.
#[tokio::test]
async fn a_trigger_that_swallows_rows_is_no_conflict() {
    let swallow = |enable: &str| {
        format!(
            "{PLAIN};
             CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF COALESCE(NEW.b, OLD.b) = 'kept out' THEN RETURN NULL; END IF;
                RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$;
             CREATE TRIGGER swallow BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION swallow();
             ALTER TABLE t {enable} TRIGGER swallow"
        )
    };
    for (role, enable) in [(ReplicaRole::Granted, "ENABLE ALWAYS"), (ReplicaRole::Withheld, "ENABLE")] {
        let world = World::builder()
            .replica_role(role)
            .publisher_sql(PLAIN)
            .publisher_sql("INSERT INTO t VALUES (1, 1, 'b', 1), (2, 2, 'b', 1), (3, 3, 'kept out', 1)")
            .target_sql(&swallow(enable))
            .start()
            .await;
        let _service = world.run();
        world.wait_state("streaming").await;
        world.publisher.exec("INSERT INTO t VALUES (4, 4, 'kept out', 1), (5, 5, 'b', 1)").await;
        world
            .publisher
            .exec("UPDATE t SET b = 'kept out' WHERE id = 1; UPDATE t SET a = 20 WHERE id = 2")
            .await;
        world.wait_caught_up().await;
        world
            .target
            .exec("ALTER TABLE t DISABLE TRIGGER swallow; UPDATE t SET b = 'kept out' WHERE id = 2")
            .await;
        world.target.exec(format!("ALTER TABLE t {enable} TRIGGER swallow")).await;
        world.wait_caught_up().await;
        world.publisher.exec("DELETE FROM t WHERE id = 2; UPDATE t SET a = 50 WHERE id = 5").await;
        world.wait_caught_up().await;
        let rows = "SELECT id, a, b FROM t ORDER BY id";
        assert_eq!(world.target.lines(rows).await, ["1|1|b", "2|20|kept out", "5|50|b"], "{enable}");
        world.publisher.exec("UPDATE t SET a = 40 WHERE id = 4").await;
        let view = world.wait_paused("conflict").await;
        assert!(view.told().contains("update_missing"), "{}", view.told());
    }
}

/// Seen: two rows with the same primary key, without a word. A replica session does not check DEFERRABLE keys.
#[tokio::test]
async fn constraints_that_replicated_rows_are_not_held_to_are_told() {
    let world = World::builder()
        .publisher_sql("CREATE TABLE u (id int PRIMARY KEY, k int)")
        .target_sql("CREATE TABLE u (id int PRIMARY KEY, k int CONSTRAINT one_k UNIQUE DEFERRABLE)")
        .start()
        .await;
    let check = world.pgsluice(&["check", "--json"]).await.expect(0).json().to_string();
    assert!(check.contains("does not hold replicated rows to \\\"one_k\\\""), "{check}");
    let hint =
        check.split("as a superuser: ").nth(1).unwrap().split(" (rows").next().unwrap().replace("\\\"", "\"");
    world.target.exec(hint.as_str()).await;
    let check = world.pgsluice(&["check", "--json"]).await.expect(0).json().to_string();
    assert!(!check.contains("does not hold"), "{check}");
    let _service = world.run();
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO u VALUES (10, 5)").await;
    world.publisher.exec("INSERT INTO u VALUES (1, 5)").await;
    let conflict = world.wait_conflict().await;
    assert!(conflict.to_string().contains("one_k"), "{conflict:#}");
}
