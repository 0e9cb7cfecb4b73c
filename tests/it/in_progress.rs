//! Large transactions are streamed and applied before they end (`streaming`). However they end, and
//! whatever commits in between, the target has the publisher's rows.

use std::time::Duration;

use pgsluice::demo::Session;

use crate::support::wait::until;
use crate::support::world::{Servers, World};

/// Number of rows for which the publisher streams a transaction in progress.
const ROWS: u32 = 80_000;

async fn world() -> World {
    World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, a text)")
        .both_sql("CREATE TABLE other (id int PRIMARY KEY, a text)")
        .publisher_sql("INSERT INTO t VALUES (-1, 'there before')")
        .start()
        .await
}

fn fill(first: u32) -> String {
    format!("INSERT INTO t SELECT g, repeat('x', 250) FROM generate_series({first}, {}) g", first + ROWS - 1)
}

/// Opens a session on the publisher whose transaction is large enough to be streamed in progress.
async fn begin_large(world: &World) -> Session {
    let session = world.publisher.session().await;
    session.batch("BEGIN").await.unwrap();
    session.batch(&fill(1)).await.unwrap();
    session
}

/// Waits until the target's transaction holds the streamed changes.
async fn wait_applying(world: &World) {
    let sql = format!(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
         WHERE a.application_name = 'pgsluice {}' AND l.relation = 't'::regclass \
           AND l.mode = 'RowExclusiveLock'",
        world.subscription
    );
    until("the transaction in progress is being applied", async || {
        let locks = world.target.value(&sql).await;
        if locks.as_deref() == Some("1") { Ok(()) } else { Err(format!("{locks:?}")) }
    })
    .await;
}

async fn transactions(world: &World) -> Option<String> {
    world.target.value("SELECT transactions FROM pgsluice.progress").await
}

#[tokio::test]
async fn it_is_applied_before_it_ends_and_seen_when_it_has() {
    let world = world().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let open = begin_large(&world).await;
    open.batch("UPDATE t SET a = 'changed' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0").await.unwrap();
    wait_applying(&world).await;
    assert_eq!(world.target.value("SELECT count(*) FROM t").await.as_deref(), Some("1"));
    open.batch("COMMIT").await.unwrap();
    world.wait_same_rows("t").await;
    assert_eq!(transactions(&world).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_transaction_that_is_rolled_back_leaves_nothing() {
    let world = world().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let open = begin_large(&world).await;
    wait_applying(&world).await;
    open.batch("ROLLBACK").await.unwrap();
    world.publisher.exec("INSERT INTO t VALUES (5, 'after')").await;
    world.wait_same_rows("t").await;
    assert_eq!(transactions(&world).await.as_deref(), Some("1"));

    // A table whose description was rolled back is described again.
    open.batch("BEGIN; ALTER TABLE t ADD extra text").await.unwrap();
    open.batch(&fill(100)).await.unwrap();
    open.batch("ROLLBACK").await.unwrap();
    world.publisher.exec("INSERT INTO t VALUES (6, 'after that')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn what_commits_in_between_comes_first() {
    let world = world().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let open = begin_large(&world).await;
    wait_applying(&world).await;
    // The other transaction also changes the same table, and is as large.
    world.publisher.exec("INSERT INTO other VALUES (1, 'first')").await;
    world.publisher.exec("UPDATE t SET a = 'second' WHERE id = -1").await;
    let another = world.publisher.session().await;
    another.batch("BEGIN").await.unwrap();
    another.batch(&fill(200_000)).await.unwrap();
    world.wait_same_rows("other").await;
    open.batch(&fill(400_000)).await.unwrap();
    another.batch("COMMIT").await.unwrap();
    open.batch("UPDATE other SET a = 'third' WHERE id = 1; COMMIT").await.unwrap();
    world.wait_same_rows("t").await;
    world.wait_same_rows("other").await;
    assert_eq!(transactions(&world).await.as_deref(), Some("4"));
    assert!(service.log().contains("asking for whole transactions"), "it was not given up");
}

#[tokio::test]
async fn a_part_that_is_rolled_back_is_left_out() {
    let world = world().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let open = begin_large(&world).await;
    open.batch("SAVEPOINT a").await.unwrap();
    open.batch(&fill(100_000)).await.unwrap();
    open.batch("SAVEPOINT b; UPDATE t SET a = 'within' WHERE id = 1; RELEASE b").await.unwrap();
    open.batch(&fill(200_000)).await.unwrap();
    open.batch("ROLLBACK TO a; UPDATE t SET a = 'behind' WHERE id = 2; COMMIT").await.unwrap();
    world.wait_same_rows("t").await;
    assert_eq!(transactions(&world).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_conflict_within_it_is_found_once_it_has_committed() {
    let world = world().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    world.target.exec(format!("INSERT INTO t VALUES ({ROWS}, 'ours')")).await;
    let open = begin_large(&world).await;
    open.batch("COMMIT").await.unwrap();
    let conflict = world.wait_conflict().await;
    assert_eq!(conflict["kind"], "insert_exists");
    assert_eq!(conflict["change_index"], ROWS, "{conflict:#}");
    world.target.exec(format!("DELETE FROM t WHERE id = {ROWS}")).await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
}

#[tokio::test]
async fn one_that_stands_still_does_not_keep_the_targets_rows_locked() {
    let world = world().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let open = begin_large(&world).await;
    wait_applying(&world).await;
    // Apply waits for the session that has inserted the same row, until that ends.
    let ours = world.target.session().await;
    let waited = tokio::time::timeout(
        Duration::from_secs(30),
        ours.batch("INSERT INTO t VALUES (1, 'ours'); DELETE FROM t WHERE id = 1"),
    );
    waited.await.expect("the row is still locked").unwrap();
    open.batch("COMMIT").await.unwrap();
    world.wait_same_rows("t").await;
}

/// The publisher spills a subtransaction to disk while the transaction cannot be streamed yet: its changes lie
/// before the position that the stream begins at. Later, they come in a piece, and no message announces
/// that the subtransaction was rolled back. The whole transaction has to be asked for.
#[tokio::test]
async fn rows_of_a_subtransaction_that_was_spilled_and_rolled_back_stay_away() {
    for ends in ["COMMIT", "ROLLBACK"] {
        let world = World::builder()
            .servers(Servers::Separate)
            .both_sql("CREATE TABLE t (id int, a text)")
            .both_sql("CREATE TABLE other (id int PRIMARY KEY, a text)")
            .start()
            .await;
        let service = world.run();
        world.wait_state("streaming").await;
        let open = world.publisher.session().await;
        open.batch("BEGIN; INSERT INTO t VALUES (0, 'kept'); SAVEPOINT s").await.unwrap();
        open.batch(&fill(1)).await.unwrap();
        // The recorded position moves beyond these changes.
        world.publisher.exec("INSERT INTO other VALUES (1, 'in between')").await;
        world.wait_same_rows("other").await;
        world.wait_caught_up().await;
        assert_eq!(service.sigterm().await, 0);
        let _service = world.run();
        world.wait_state("streaming").await;
        open.batch("ROLLBACK TO s").await.unwrap();
        open.batch(&fill(ROWS + 1)).await.unwrap();
        open.batch(ends).await.unwrap();
        world.publisher.exec("INSERT INTO t VALUES (-2, 'after')").await;
        world.wait_caught_up().await;
        let count = "SELECT count(*), count(DISTINCT id), min(id), max(id) FROM t";
        assert_eq!(world.target.lines(count).await, world.publisher.lines(count).await, "{ends}");
    }
}

/// A table that was synchronised at a position beyond the stream's, by a copy that landed just before the
/// service ended: a large transaction that commits before that position is part of the copy, although the
/// publisher sends it in pieces, before it is known where it commits.
#[tokio::test]
async fn a_transaction_that_a_tables_copy_already_holds_is_passed_over() {
    let world = world().await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    world.wait_caught_up().await;
    assert_eq!(service.sigterm().await, 0);
    world.publisher.exec("ALTER TABLE t DROP CONSTRAINT t_pkey").await;
    world.target.exec("ALTER TABLE t DROP CONSTRAINT t_pkey").await;
    world.publisher.exec(fill(1)).await;
    // What the copy would have left: the rows, and the position of a snapshot that has them.
    let position = world.publisher.value("SELECT pg_current_wal_lsn()").await.unwrap();
    world.target.exec(fill(1)).await;
    let synced = format!("UPDATE pgsluice.table_sync SET synced_lsn = '{position}' WHERE source_table = 't'");
    world.target.exec(synced).await;
    world.publisher.exec("INSERT INTO other VALUES (7, 'beyond')").await;
    let service = world.run();
    world.wait_same_rows("other").await;
    world.publisher.exec("INSERT INTO t VALUES (-2, 'after')").await;
    world.wait_caught_up().await;
    let count = "SELECT count(*), count(DISTINCT id), min(id), max(id) FROM t";
    assert_eq!(world.target.lines(count).await, world.publisher.lines(count).await);
    assert_eq!(service.sigterm().await, 0);
}
