//! A publisher does not wait for a target that gets nothing done, or for an operator: its process ends, its checkpoints
//! and its stop go through, and nothing is lost.

use std::time::{Duration, Instant};

use pgsluice::demo::cluster::StopMode;

use crate::support::wait::until;
use crate::support::world::{Builder, Servers, World};

/// Longer than a stall of 2 s and what it takes to notice it, on a slow machine.
const SOON: Duration = Duration::from_secs(10);

fn world() -> Builder {
    World::builder()
        .servers(Servers::Separate)
        .both_sql(
            "CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL; \
                   CREATE TABLE other (id int PRIMARY KEY)",
        )
        .subscription_line("stall_timeout = \"2s\"")
        .publisher_setting("wal_sender_timeout", "0")
}

/// Rows of 16 MB, which are more than all buffers between the two servers hold.
fn rows(from: u32) -> String {
    format!("INSERT INTO t SELECT g, repeat(md5(g::text), 60) FROM generate_series({from}, {from} + 8499) g")
}

/// Waits until no walsender of the subscription is left.
async fn wait_let_go(world: &World) {
    let sql =
        format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{}' AND active", world.subscription);
    until("the stream is let go", async || match world.publisher.value(&sql).await {
        None => Ok(()),
        Some(_) => Err("active".to_owned()),
    })
    .await;
}

/// Runs the statement, and fails unless that is soon done.
async fn soon(world: &World, sql: &str) {
    let began = Instant::now();
    world.publisher.exec(sql).await;
    assert!(began.elapsed() < SOON, "{sql}: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_target_that_is_locked_holds_up_neither_a_stop_nor_a_terminated_walsender() {
    let mut world = world().start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let locker = world.target.session().await;
    for (round, from) in [("terminated", 1), ("stopped", 20_001)] {
        locker.batch("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
        world.publisher.exec(rows(from)).await;
        world.publisher.exec(rows(from + 8500)).await;
        let view = world.wait_state("retrying").await;
        assert_eq!(view.reason.as_deref(), Some("target"), "{:#}", view.json);
        assert!(view.told().contains("pg_blocking_pids"), "{:#}", view.json);
        wait_let_go(&world).await;
        if round == "terminated" {
            soon(&world, "CHECKPOINT").await;
        } else {
            let began = Instant::now();
            world.publisher_server().stop(StopMode::Fast).await.unwrap();
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
            world.publisher_server().launch().await.unwrap();
        }
        locker.batch("COMMIT").await.unwrap();
        world.wait_same_rows("t").await;
        world.wait_state("streaming").await;
    }
    assert_eq!(service.log().matches("the target has got nothing done").count(), 2, "{}", service.log());
}

#[tokio::test]
async fn a_walsender_that_waits_ends_soon_when_it_is_told_to() {
    let world = world().start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let locker = world.target.session().await;
    locker.batch("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    world.publisher.exec(rows(1)).await;
    let end = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
        world.subscription
    );
    world.publisher.exec(end).await;
    let began = Instant::now();
    wait_let_go(&world).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    locker.batch("COMMIT").await.unwrap();
    world.wait_same_rows("t").await;
}

/// The slot is given up by a checkpoint, which waits for the walsender to end.
#[tokio::test]
async fn a_pause_does_not_stop_the_publishers_checkpoints() {
    let world = world()
        .publisher_setting("max_slot_wal_keep_size", "32MB")
        .publisher_setting("max_wal_size", "64MB")
        .publisher_setting("min_wal_size", "32MB")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.target.exec("INSERT INTO other VALUES (1)").await;
    world.publisher.exec("INSERT INTO other VALUES (1)").await;
    world.wait_paused("conflict").await;
    for from in [1, 10_001, 20_001, 30_001, 40_001] {
        world.publisher.exec(rows(from)).await;
        soon(&world, "CHECKPOINT").await;
    }
    let lost =
        format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{}'", world.subscription);
    assert_eq!(world.publisher.value(&lost).await.as_deref(), Some("lost"));
    assert_eq!(service.sigterm().await, 0);
}

/// What was received, and is not applied, is streamed again after the pause.
#[tokio::test]
async fn a_stream_that_was_let_go_in_a_pause_is_taken_up_by_resume() {
    let world = world().start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.wait_paused("operator").await;
    world.publisher.exec(rows(1)).await;
    world.publisher.exec(rows(10_001)).await;
    wait_let_go(&world).await;
    let log = || service.log().contains("the stream is closed while the subscription is paused");
    until("it is told", async || if log() { Ok(()) } else { Err("not yet") }).await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
}

/// Streams a large transaction into a table whose trigger runs `slows`, and returns how often the stream was closed.
async fn stalls(slows: &str, stall_timeout: &str) -> usize {
    let world = World::builder()
        .both_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .target_sql(&format!(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {slows}; RETURN NEW; END $$; \
             CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow(); \
             ALTER TABLE t ENABLE ALWAYS TRIGGER slow"
        ))
        .subscription_line(&format!("stall_timeout = \"{stall_timeout}\""))
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec(rows(1)).await;
    world.wait_same_rows("t").await;
    service.log().matches("the target has got nothing done").count()
}

/// A row that takes longer than the publisher may wait, in a transaction that has to be streamed whole: it gets through,
/// because the publisher waits longer each time.
#[tokio::test]
async fn a_row_that_takes_longer_than_the_publisher_waits_gets_through() {
    let stalls = stalls("IF NEW.id = 3 THEN PERFORM pg_catalog.pg_sleep(5); END IF", "1s").await;
    assert!((1..=6).contains(&stalls), "{stalls}");
}

/// A target that is slow and gets on is not taken for one that is stuck.
#[tokio::test]
async fn a_slow_target_keeps_its_stream() {
    let stalls = stalls("IF NEW.id <= 60 THEN PERFORM pg_catalog.pg_sleep(0.1); END IF", "2s").await;
    assert_eq!(stalls, 0);
}
