//! As which role rows are written: the code that a table brings along has its owner's privileges, not ours.

use crate::support::wait::until;
use crate::support::world::{TARGET_ROLE, World};

/// Tables of role `shop`, which triggers that fire for replicated rows belong to.
fn shops(grant: &str) -> String {
    format!(
        "CREATE ROLE shop NOLOGIN; {grant} GRANT USAGE ON SCHEMA public TO shop; \
         ALTER TABLE t OWNER TO shop; ALTER TABLE k OWNER TO shop; \
         REVOKE ALL ON t, k FROM {TARGET_ROLE}; CREATE TABLE ours (id int PRIMARY KEY, v text); \
         CREATE TABLE theirs (who name, what text); GRANT INSERT ON theirs TO shop; \
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ours TO {TARGET_ROLE}; \
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO public.theirs VALUES (current_user, TG_TABLE_NAME || ' ' || TG_OP); RETURN NULL; END $$"
    )
}

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text, a int[]); CREATE TABLE k (v text); \
    ALTER TABLE k REPLICA IDENTITY FULL;";

const SEEN: &str = "SELECT who, what, count(*) FROM theirs GROUP BY 1, 2 ORDER BY 1, 2";

/// Each way by which rows are written: copy, sets, slices, single statements, row by row, TRUNCATE, resync, tables that
/// join. The role itself has no privileges on the tables.
#[tokio::test]
async fn rows_are_written_as_the_owner_of_their_table() {
    let world = World::builder()
        .both_sql(TABLES)
        .both_sql("CREATE TABLE ours_too (id int PRIMARY KEY, v text)")
        .target_sql(&shops(&format!("GRANT shop TO {TARGET_ROLE};")))
        .publisher_sql("INSERT INTO t SELECT n, 'old', ARRAY[n] FROM generate_series(1, 100) n; INSERT INTO k VALUES ('x'), ('x')")
        .publisher_sql("CREATE PUBLICATION my_publication FOR TABLE t, ours_too")
        .start()
        .await;
    let check = world.pgsluice(&["check"]).await.expect(0);
    assert!(!check.stdout.contains("GRANT"), "{}", check.stdout);
    let service = world.run();
    world.wait_state("streaming").await;
    let same = async |what: &str| {
        world.wait_caught_up().await;
        for table in ["t", "k", "ours_too"] {
            assert_eq!(
                world.publisher.lines(&format!("SELECT * FROM {table} ORDER BY 1")).await,
                world.target.lines(&format!("SELECT * FROM {table} ORDER BY 1")).await,
                "{table} after {what}"
            );
        }
    };
    world.publisher.exec("ALTER PUBLICATION my_publication ADD TABLE k").await;
    world.wait_same_rows("k").await;
    for (what, change) in [
        ("one row", "INSERT INTO t VALUES (0, 'one', '{1,2}')"),
        (
            "both roles",
            "BEGIN; INSERT INTO ours_too VALUES (1, 'a'); UPDATE t SET v = 'b' WHERE id < 50; \
            UPDATE ours_too SET v = 'b'; DELETE FROM t WHERE id = 7; INSERT INTO k VALUES ('y'); COMMIT",
        ),
        ("no key", "DELETE FROM k WHERE ctid = (SELECT min(ctid) FROM k)"),
        ("slices", "INSERT INTO t SELECT n, repeat('s', 100), NULL FROM generate_series(1000, 150000) n"),
        ("TRUNCATE", "TRUNCATE t, k, ours_too; INSERT INTO t VALUES (1, 'after', NULL)"),
    ] {
        world.publisher.exec(change).await;
        same(what).await;
    }
    // What the statements were made from is read again, as the owner.
    let log = service.log();
    world.target.exec("ANALYZE t; ALTER TABLE t SET (fillfactor = 90)").await;
    world.publisher.exec("BEGIN; INSERT INTO ours_too VALUES (3, 'x'); UPDATE t SET a = '{7,8}', v = 'again'; INSERT INTO t VALUES (9, 'new', '{9}'), (10, 'new', '{9}'); COMMIT").await;
    same("statements that are planned again").await;
    assert!(!service.log()[log.len()..].contains("row by row"), "{}", service.log());
    // Row by row, with triggers that fire, and the evidence of a conflict.
    world
        .target
        .exec(
            "CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION see(); \
             ALTER TABLE t ENABLE ALWAYS TRIGGER see",
        )
        .await;
    world.publisher.exec("BEGIN; INSERT INTO ours_too VALUES (5, 'x'); UPDATE t SET v = 'row'; COMMIT").await;
    same("a trigger").await;
    assert_eq!(world.target.lines(SEEN).await, ["shop|t UPDATE|3"]);
    world.target.exec("INSERT INTO t VALUES (2, 'local', NULL)").await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'remote', NULL)").await;
    let conflict = world.wait_conflict().await;
    assert_eq!(conflict["kind"], "insert_exists", "{conflict:#}");
    assert_eq!(conflict["local_rows"][0]["v"], "local", "{conflict:#}");
    world.target.exec("DELETE FROM t WHERE id = 2").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    same("a conflict").await;
    for how in ["--truncate", "--merge"] {
        world.target.exec("UPDATE t SET v = 'astray'").await;
        world.pgsluice(&["resync", &world.subscription, "public.t", how]).await.expect(0);
        world.wait_same_rows("t").await;
        world.wait_state("streaming").await;
    }
    // A new owner, who is another role: rows go on as that.
    world
        .target
        .exec(format!(
            "CREATE ROLE other NOLOGIN; GRANT other TO {TARGET_ROLE}; GRANT USAGE ON SCHEMA public TO other; \
        GRANT INSERT ON theirs TO other; ALTER TABLE t OWNER TO other"
        ))
        .await;
    world.target.exec("TRUNCATE theirs").await;
    world.publisher.exec("INSERT INTO t VALUES (3, 'other', NULL)").await;
    world.wait_same_rows("t").await;
    assert_eq!(world.target.lines(SEEN).await, ["other|t INSERT|1"]);
    assert_eq!(service.sigterm().await, 0);
}

/// Seen: a trigger that fires always deleted another table's rows and rewrote `pgsluice.progress`. The owner of the
/// table may do neither.
#[tokio::test]
async fn a_trigger_cannot_do_what_its_owner_may_not() {
    let world = World::builder()
        .both_sql(TABLES)
        .target_sql(&shops(&format!("GRANT shop TO {TARGET_ROLE};")))
        .target_sql(
            "INSERT INTO ours VALUES (1, 'kept'); \
             CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 IF NEW.v = 'delete' THEN DELETE FROM public.ours; END IF; \
                 IF NEW.v = 'progress' THEN UPDATE pgsluice.progress SET applied_lsn = '0/1'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER steal BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION steal(); \
             ALTER TABLE t ENABLE ALWAYS TRIGGER steal",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for (id, what) in [(1, "delete"), (2, "progress")] {
        world.publisher.exec(format!("INSERT INTO t VALUES ({id}, '{what}', NULL)")).await;
        let conflict = world.wait_conflict().await;
        assert!(conflict.to_string().contains("permission denied"), "{conflict:#}");
        let finish = conflict["commit_lsn"].as_str().unwrap();
        world.pgsluice(&["skip", &world.subscription, "--lsn", finish]).await.expect(0);
        world.wait_state("streaming").await;
    }
    assert_eq!(world.target.lines("SELECT v FROM ours").await, ["kept"]);
}

/// Where the role may not become the owner, or `run_as = "role"` asks for it, rows are written as the role, and `check`
/// warns if code of the owner runs.
#[tokio::test]
async fn what_runs_as_the_role_is_told() {
    for (grant, line, told) in [
        ("", "run_as = \"owner\"", true),
        ("", "run_as = \"role\"", false),
        ("GRANT shop TO pgsluice_apply;", "run_as = \"role\"", false),
    ] {
        let world = World::builder()
            .both_sql(TABLES)
            .target_sql(&shops(grant))
            .target_sql(&format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON t, k TO {TARGET_ROLE}; GRANT INSERT ON theirs TO {TARGET_ROLE}; \
                 CREATE TRIGGER see AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION see(); ALTER TABLE t ENABLE ALWAYS TRIGGER see"
            ))
            .subscription_line(line)
            .start()
            .await;
        let check = world.pgsluice(&["check"]).await.expect(0);
        let warned = check.stdout.contains("run with the privileges of role \"pgsluice_apply\"");
        assert_eq!(warned, told, "{line}: {}", check.stdout);
        let _service = world.run();
        world.wait_state("streaming").await;
        world.publisher.exec("INSERT INTO t VALUES (1, 'a', NULL)").await;
        world.wait_same_rows("t").await;
        assert_eq!(world.target.lines(SEEN).await, ["pgsluice_apply|t INSERT|1"], "{line}");
        if told {
            // Once it may, the next plan of the table is as its owner.
            world.target.exec(format!("GRANT shop TO {TARGET_ROLE}; COMMENT ON COLUMN t.v IS 'x'; ALTER TABLE t ALTER v SET STATISTICS 50")).await;
            world.publisher.exec("INSERT INTO t VALUES (2, 'b', NULL)").await;
            until("the owner writes", async || {
                world.target.lines(SEEN).await.contains(&"shop|t INSERT|1".to_owned())
            })
            .await;
        }
    }
}
