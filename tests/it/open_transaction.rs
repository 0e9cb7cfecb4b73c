//! A table is announced anew within a transaction that is open on the target and has locked that table.
//! The catalog's functions lock the table, too, so the question must not wait for the transaction, which
//! waits for the answer.

use crate::support::wait::until;
use crate::support::world::{Builder, World};

/// The target's definition of `a` has an expression to be deparsed, and fits before and after the
/// publisher's change.
fn world() -> Builder {
    World::builder()
        .both_sql("CREATE TABLE a (id int PRIMARY KEY, x int DEFAULT 5 + length(current_user))")
        .both_sql("CREATE TABLE b (id int PRIMARY KEY, v text)")
        .target_sql("ALTER TABLE a ADD y int DEFAULT 3 + length(current_user), ADD CHECK (x IS NOT NULL)")
}

/// A transaction that locks `a` by TRUNCATE, fills `b`, and has `a` announced once more.
fn announces_what_it_has_locked(rows: u32) -> String {
    format!(
        "BEGIN; TRUNCATE a; INSERT INTO b SELECT g, 'v' FROM generate_series(1, {rows}) g; \
         ALTER TABLE a ADD y int; INSERT INTO a VALUES (2, 2, 2); COMMIT"
    )
}

#[tokio::test]
async fn a_table_that_rows_have_locked_is_described() {
    // Slow triggers keep rows under way while the table is announced.
    let world = world()
        .target_sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql \
             AS 'BEGIN PERFORM pg_sleep(0.005); RETURN NULL; END'",
        )
        .target_sql("CREATE TRIGGER slow AFTER INSERT ON b FOR EACH ROW EXECUTE FUNCTION slow()")
        .target_sql("ALTER TABLE b ENABLE ALWAYS TRIGGER slow")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO a VALUES (1, 1)").await;
    world.publisher.exec(announces_what_it_has_locked(100)).await;
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
}

#[tokio::test]
async fn a_table_that_slices_have_locked_is_described() {
    let world = world().start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO a VALUES (1, 1)").await;
    world.wait_same_rows("a").await;
    // Holds a slice up while the table is announced.
    let session = world.target.session().await;
    session.batch("BEGIN; INSERT INTO b VALUES (60000)").await.unwrap();
    world.publisher.exec(announces_what_it_has_locked(80_000)).await;
    until("a slice waits for the session", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let waiting = world.target.value(waiting).await;
        if waiting.as_deref() == Some("0") { Err("none waits") } else { Ok(()) }
    })
    .await;
    session.batch("ROLLBACK").await.unwrap();
    world.wait_same_rows("a").await;
    world.wait_same_rows("b").await;
}
