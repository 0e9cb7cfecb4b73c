//! Feedback to the publisher is prompt and never ahead of the target, whatever blocks the target; and
//! either server can be stopped and started again at any time.

use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::demo::cluster::StopMode;

use crate::support::faulty_proxy::FaultyProxy;
use crate::support::wait::{until, until_within};
use crate::support::world::{Servers, TARGET_ROLE, World, conninfo_through};

/// Bound for "promptly" on a busy machine.
const PROMPTLY: Duration = Duration::from_secs(5);

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// Returns the process id of the walsender that serves the subscription.
async fn walsender(world: &World) -> Option<String> {
    let sql = format!(
        "SELECT pid FROM pg_stat_replication WHERE application_name = '{}' AND state = 'streaming'",
        world.subscription
    );
    world.publisher.value(&sql).await
}

async fn wait_walsender(world: &World) -> String {
    until("a walsender streams", async || walsender(world).await).await
}

/// Returns the process id of the target's backend that applies.
async fn apply_backend(world: &World) -> Option<String> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgsluice {}'",
        world.subscription
    );
    world.target.value(&sql).await
}

/// Opens another session's transaction that holds the key `id` of the target's table.
async fn hold_key(world: &World, id: u32) -> Session {
    let session = world.target.session().await;
    session.batch(&format!("BEGIN; INSERT INTO t VALUES ({id}, 'held')")).await.unwrap();
    session
}

async fn wait_blocked(world: &World) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'pgsluice {}'",
        world.subscription
    );
    until("apply waits for a lock", async || world.target.value(&sql).await.as_deref() == Some("1")).await;
}

#[tokio::test]
async fn wal_that_concerns_nobody_is_confirmed_promptly() {
    let world = World::builder()
        .both_sql(TABLE)
        .publisher_sql(
            "CREATE TABLE unpublished (id int); CREATE PUBLICATION my_publication FOR TABLE t;
             INSERT INTO t VALUES (1, 'a')",
        )
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    for sql in [
        "INSERT INTO unpublished SELECT generate_series(1, 10000)",
        "SELECT pg_logical_emit_message(true, 'somebody', 'else')",
        "CREATE TABLE also_unpublished AS SELECT * FROM unpublished",
        "SELECT pg_switch_wal()",
        "CHECKPOINT",
        "UPDATE t SET v = 'b'",
        "BEGIN; INSERT INTO t VALUES (2, 'c'); ROLLBACK",
    ] {
        world.publisher.exec(sql).await;
        world.wait_caught_up_within(PROMPTLY).await;
    }
    // The progress row need not move for transactions without published changes.
    world.assert_same_rows("t").await;
    let transactions = world.target.value("SELECT transactions FROM pgsluice.progress").await;
    assert_eq!(transactions.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_synchronous_commit_returns_with_the_row_in_the_target_and_soon() {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .both_sql(TABLE)
        .publisher_sql("CREATE TABLE unpublished (id int); CREATE PUBLICATION my_publication FOR TABLE t")
        .start()
        .await;
    let service = world.run();
    wait_walsender(&world).await;
    let name = format!("\"{}\"", world.subscription);
    world.publisher_server().set("synchronous_standby_names", &name).unwrap();
    world.publisher_server().reload().unwrap();
    until("commits are synchronous", async || {
        let state = world.publisher.value("SELECT sync_state FROM pg_stat_replication").await;
        if state.as_deref() == Some("sync") { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    let session = world.publisher.session().await;
    let target = world.target.session().await;
    let begun = Instant::now();
    for id in 0..50 {
        session.batch(&format!("INSERT INTO t VALUES ({id}, 'x')")).await.unwrap();
        let there = target.value(&format!("SELECT count(*) FROM t WHERE id = {id}")).await.unwrap();
        assert_eq!(there.as_deref(), Some("1"), "row {id} was not there when its commit returned");
        session.batch("INSERT INTO unpublished VALUES (1)").await.unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "100 commits took {:?}", begun.elapsed());

    // While the target cannot commit, the publisher's synchronous commit waits.
    let held = hold_key(&world, 1000).await;
    let waiting = tokio::spawn(async move {
        session.batch("INSERT INTO t VALUES (1000, 'waits')").await.unwrap();
    });
    wait_blocked(&world).await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the commit waits", async || world.publisher.value(sql).await.as_deref() == Some("1")).await;
    assert!(!waiting.is_finished());
    held.batch("ROLLBACK").await.unwrap();
    waiting.await.unwrap();
    world.assert_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
}

/// Stops the publisher as an operator would, which waits for every walsender.
async fn stop_publisher_promptly(world: &mut World, when: &str) {
    let begun = Instant::now();
    world.publisher_server().stop(StopMode::Fast).await.unwrap();
    assert!(begun.elapsed() < PROMPTLY, "a fast shutdown {when} took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_lost_target_does_not_keep_the_publisher_from_stopping() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(TABLE).start().await;
    let _service = world.run();
    world.wait_state("streaming").await;

    // The target is lost while nothing happens.
    world.target_server().stop(StopMode::Fast).await.unwrap();
    stop_publisher_promptly(&mut world, "without a target").await;
    world.publisher_server().launch().await.unwrap();
    world.target_server().launch().await.unwrap();
    world.publisher.exec("INSERT INTO t VALUES (1, 'after both came back')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;

    // The target is lost while there is something to apply.
    wait_walsender(&world).await;
    world.target_server().stop(StopMode::Immediate).await.unwrap();
    world.publisher.exec("INSERT INTO t SELECT i, 'unapplied' FROM generate_series(2, 5000) i").await;
    stop_publisher_promptly(&mut world, "with rows that the lost target lacks").await;
    world.target_server().launch().await.unwrap();
    world.publisher_server().launch().await.unwrap();
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;

    // The subscription is paused on a conflict, with the target and without it.
    world.target.exec("INSERT INTO t VALUES (9000, 'ours')").await;
    world.publisher.exec("INSERT INTO t VALUES (9000, 'theirs')").await;
    world.wait_paused("conflict").await;
    stop_publisher_promptly(&mut world, "during a conflict").await;
    world.publisher_server().launch().await.unwrap();
    world.wait_paused("conflict").await;
    world.target_server().stop(StopMode::Fast).await.unwrap();
    stop_publisher_promptly(&mut world, "during a conflict without a target").await;
    world.target_server().launch().await.unwrap();
    world.wait_paused("conflict").await;
    world.publisher_server().launch().await.unwrap();
    world.target.exec("DELETE FROM t WHERE id = 9000").await;
    until("the service takes commands again", async || {
        world.pgsluice(&["resume", &world.subscription]).await.code == 0
    })
    .await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn rows_that_wait_for_a_lock_do_not_keep_the_publisher_from_stopping() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(TABLE).start().await;
    let _service = world.run();
    world.wait_state("streaming").await;
    // All that the queues hold is a few MB: the second time, the stream is not read to its end.
    for (first, last) in [(1, 10), (11, 60_000)] {
        wait_walsender(&world).await;
        let held = hold_key(&world, last).await;
        let fill =
            format!("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series({first}, {last}) i");
        world.publisher.exec(fill).await;
        wait_blocked(&world).await;
        let begun = Instant::now();
        world.publisher_server().stop(StopMode::Fast).await.unwrap();
        assert!(begun.elapsed() < PROMPTLY * 3, "it took {:?} to stop", begun.elapsed());
        world.publisher_server().launch().await.unwrap();
        held.batch("ROLLBACK").await.unwrap();
        world.wait_same_rows("t").await;
        world.wait_state("streaming").await;
    }
}

#[tokio::test]
async fn a_silent_target_does_not_keep_the_publisher_from_stopping() {
    let mut world = World::builder().servers(Servers::Separate).both_sql(TABLE).start().await;
    let to_target = FaultyProxy::start(world.target.port).await;
    let target = conninfo_through(&world.target, TARGET_ROLE, to_target.port());
    let _service = world.run_with(&[("PGSLUICE__TARGET__URL", &target)]);
    world.wait_state("streaming").await;
    for round in 1..=2 {
        wait_walsender(&world).await;
        to_target.stall();
        world.publisher.exec(format!("INSERT INTO t VALUES ({round}, 'not yet')")).await;
        let begun = Instant::now();
        world.publisher_server().stop(StopMode::Fast).await.unwrap();
        assert!(begun.elapsed() < PROMPTLY * 3, "it took {:?} to stop", begun.elapsed());
        to_target.open();
        world.publisher_server().launch().await.unwrap();
        world.wait_same_rows("t").await;
        world.wait_state("streaming").await;
    }
}

/// Checks for `span` that the same walsender serves the subscription.
async fn same_walsender_for(world: &World, pid: &str, span: Duration, when: &str) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert_eq!(walsender(world).await.as_deref(), Some(pid), "{when}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test]
async fn keepalives_are_answered_while_the_target_is_held_up() {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .publisher_setting("wal_sender_timeout", "2s")
        .both_sql(TABLE)
        .start()
        .await;
    let service = world.run();
    let pid = wait_walsender(&world).await;

    // Apply is blocked by a lock while more arrives than the queues hold.
    let held = hold_key(&world, 5).await;
    world.publisher.exec("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i").await;
    wait_blocked(&world).await;
    same_walsender_for(&world, &pid, Duration::from_secs(8), "while blocked by a lock").await;
    held.batch("ROLLBACK").await.unwrap();
    world.wait_same_rows("t").await;
    assert_eq!(walsender(&world).await.as_deref(), Some(pid.as_str()));

    // The subscription is paused by an operator, also during a statement that waits.
    let held = hold_key(&world, 70_000).await;
    world.publisher.exec("INSERT INTO t VALUES (70000, 'blocked')").await;
    wait_blocked(&world).await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.wait_paused("operator").await;
    world
        .publisher
        .exec("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(100000, 160000) i")
        .await;
    same_walsender_for(&world, &pid, Duration::from_secs(5), "while paused by an operator").await;
    held.batch("ROLLBACK").await.unwrap();
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;

    // The subscription is paused on a conflict.
    world.target.exec("INSERT INTO t VALUES (80000, 'ours')").await;
    world.publisher.exec("INSERT INTO t VALUES (80000, 'theirs')").await;
    world.publisher.exec("UPDATE t SET v = repeat('y', 500) WHERE id < 60000").await;
    world.wait_paused("conflict").await;
    // For the evidence, the transaction was streamed again as text.
    let pid = wait_walsender(&world).await;
    same_walsender_for(&world, &pid, Duration::from_secs(5), "while paused on a conflict").await;
    let log = world.publisher_server().log().unwrap();
    assert!(!log.contains("due to replication timeout"), "{log}");
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_statement_that_waits_in_the_target_keeps_nobody_from_stopping_or_taking_over() {
    let world = World::builder().servers(Servers::Separate).both_sql(TABLE).start().await;
    let service = world.run();
    wait_walsender(&world).await;
    let held = hold_key(&world, 1).await;
    world.publisher.exec("INSERT INTO t VALUES (1, 'blocked')").await;
    wait_blocked(&world).await;
    let begun = Instant::now();
    assert_eq!(service.sigterm().await, 0);
    assert!(begun.elapsed() < PROMPTLY, "it took {:?} to stop", begun.elapsed());
    let gone = async || apply_backend(&world).await.is_none();
    until_within(PROMPTLY, "the stopped service's backend has gone", gone).await;

    // After a kill, the backend notices by itself that its client is gone, and releases the lock.
    let service = world.run();
    wait_blocked(&world).await;
    service.kill9().await;
    until_within(Duration::from_secs(15), "the killed service's backend has gone", gone).await;
    let _service = world.run();
    wait_blocked(&world).await;
    held.batch("ROLLBACK").await.unwrap();
    world.wait_same_rows("t").await;
}

#[tokio::test]
async fn whoever_goes_away_comes_back_and_nothing_is_lost_or_doubled() {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .both_sql("CREATE TABLE t (id serial PRIMARY KEY, v text)")
        .start()
        .await;
    let _service = world.run();
    world.wait_state("streaming").await;
    let insert = "INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 200)";

    for mode in [StopMode::Fast, StopMode::Immediate] {
        world.publisher.exec(insert).await;
        world.publisher_server().restart(mode).await.unwrap();
        world.publisher.exec(insert).await;
        world.wait_same_rows("t").await;
        world.publisher.exec(insert).await;
        world.target_server().restart(mode).await.unwrap();
        world.publisher.exec("UPDATE t SET v = v || '!'").await;
        world.wait_same_rows("t").await;
    }
    // Each connection is ended while idle and while busy.
    let walsenders = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    let clients = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE usename IN ('sammy', 'pgsluice_apply') AND backend_type = 'client backend'";
    for _ in 0..3 {
        world.wait_state("streaming").await;
        world.publisher.exec(walsenders).await;
        world.publisher.exec("UPDATE t SET v = 'a'").await;
        world.publisher.exec(walsenders).await;
        world.wait_same_rows("t").await;
        world.publisher.exec("UPDATE t SET v = 'b'").await;
        world.target.exec(clients).await;
        world.publisher.exec(clients).await;
        world.publisher.exec(insert).await;
        world.wait_same_rows("t").await;
    }
    let counts = "SELECT count(*), count(DISTINCT id) FROM t";
    assert_eq!(world.target.lines(counts).await, world.publisher.lines(counts).await);

    // The lock is gone with its session, which is noticed at once and not at the next transaction.
    world.wait_state("streaming").await;
    let lost = until("apply has a backend", async || apply_backend(&world).await).await;
    world.target.exec(format!("SELECT pg_terminate_backend({lost})")).await;
    until_within(PROMPTLY, "apply has another backend", async || {
        apply_backend(&world).await.is_some_and(|pid| pid != lost)
    })
    .await;
    world.wait_state("streaming").await;
}
