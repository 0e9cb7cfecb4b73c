//! A connection that shows no sign of life counts as dead after `peer_timeout`; one of a server that is slow, or waits for a
//! lock, does not.
//!
//! The proxy between keeps the sockets open, so TCP notices nothing, as with a proxy that has lost what is behind it.

use std::time::{Duration, Instant};

use pgsluice::demo::cluster::StopMode;

use crate::support::faulty_proxy::FaultyProxy;
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{PUBLISHER_ROLE, Servers, TARGET_ROLE, World, conninfo_through};

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const PEER_TIMEOUT: Duration = Duration::from_secs(4);
/// A time-out, the end of what is left of the former connection, and a new start, on a slow machine.
const SOON: Duration = Duration::from_secs(25);

async fn world() -> World {
    World::builder()
        .servers(Servers::Separate)
        .both_sql(T)
        .subscription_line("peer_timeout = \"4s\"")
        // Nobody else ends what has lost its client.
        .publisher_setting("wal_sender_timeout", "0")
        .start()
        .await
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Publisher,
    Target,
}

/// Starts a service that reaches one side through a proxy.
async fn run_through(world: &World, side: Side) -> (FaultyProxy, Service) {
    let (database, role, variable) = match side {
        Side::Publisher => (&world.publisher, PUBLISHER_ROLE, "PGSLUICE__SUBSCRIPTIONS__0__PUBLISHER"),
        Side::Target => (&world.target, TARGET_ROLE, "PGSLUICE__TARGET__URL"),
    };
    let proxy = FaultyProxy::start(database.port).await;
    let through = conninfo_through(database, role, proxy.port());
    let service = world.run_with(&[(variable, &through)]);
    (proxy, service)
}

async fn arrives_soon(world: &World, row: u32) {
    let began = Instant::now();
    world.publisher.exec(format!("INSERT INTO t VALUES ({row})")).await;
    world.wait_same_rows("t").await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    world.wait_state("streaming").await;
}

#[tokio::test]
async fn a_stream_that_is_silent_is_begun_again() {
    let world = world().await;
    let (proxy, service) = run_through(&world, Side::Publisher).await;
    world.wait_state("streaming").await;
    arrives_soon(&world, 1).await;
    for row in 2..=3 {
        // After a table's first changes, its columns are looked at over another connection.
        tokio::time::sleep(Duration::from_secs(2)).await;
        proxy.strand();
        arrives_soon(&world, row).await;
    }
    let log = service.log();
    assert!(log.contains("the publisher has sent nothing for 4 s"), "{log}");
    assert!(
        log.contains("the walsender of the former stream still used the slot, and has been ended"),
        "{log}"
    );
}

#[tokio::test]
async fn a_target_session_that_is_cut_off_is_opened_again() {
    let world = world().await;
    let (proxy, service) = run_through(&world, Side::Target).await;
    world.wait_state("streaming").await;
    arrives_soon(&world, 1).await;
    for row in 2..=3 {
        proxy.strand();
        arrives_soon(&world, row).await;
    }
    assert!(service.log().contains("the target has not answered for"), "{}", service.log());
}

/// Also while nothing is sent: the lock on the subscription is not held by a session that is cut off.
#[tokio::test]
async fn an_idle_target_session_that_is_cut_off_is_noticed() {
    let world = world().await;
    let (proxy, service) = run_through(&world, Side::Target).await;
    world.wait_state("streaming").await;
    proxy.strand();
    until("it is noticed", async || {
        let log = service.log();
        if log.contains("the target has not answered for") { Ok(()) } else { Err(log) }
    })
    .await;
    arrives_soon(&world, 1).await;
}

#[tokio::test]
async fn a_target_that_is_locked_for_long_is_not_taken_for_dead() {
    let world = world().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let sessions = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pgsluice sub%'";
    let before = world.target.lines(sessions).await;
    let locker = world.target.session().await;
    locker.batch("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // More than the buffers between hold.
    world
        .publisher
        .exec("INSERT INTO t SELECT g, repeat(md5(g::text), 60) FROM generate_series(1, 8500) g")
        .await;
    tokio::time::sleep(PEER_TIMEOUT * 4).await;
    assert_eq!(world.target.lines(sessions).await, before, "{}", service.log());
    locker.batch("COMMIT").await.unwrap();
    world.wait_same_rows("t").await;
    assert!(!service.log().contains("the target has not answered for"), "{}", service.log());
}

/// What is left of a session that was given up, in whatever state, is ended: it would hold the lock on the subscription.
#[tokio::test]
async fn a_paused_or_waiting_subscription_whose_session_is_cut_off_goes_on() {
    let mut world = world().await;
    let (proxy, _service) = run_through(&world, Side::Target).await;
    world.wait_state("streaming").await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.wait_paused("operator").await;
    proxy.strand();
    tokio::time::sleep(PEER_TIMEOUT).await;
    world.pgsluice(&["resume", &world.subscription]).await;
    arrives_soon(&world, 1).await;

    world.publisher_server().stop(StopMode::Fast).await.unwrap();
    world.wait_state("retrying").await;
    proxy.strand();
    tokio::time::sleep(PEER_TIMEOUT).await;
    world.publisher_server().launch().await.unwrap();
    arrives_soon(&world, 2).await;
}

#[tokio::test]
async fn a_standby_whose_session_is_cut_off_takes_over() {
    let world = world().await;
    let owner = world.run();
    world.wait_state("streaming").await;
    let (proxy, standby) = run_through(&world, Side::Target).await;
    // It has read the record by then: a question that is under way is given up after 30 s only.
    until("it stands by", async || {
        let log = standby.log();
        if log.contains("state=Standby") { Ok(()) } else { Err(log) }
    })
    .await;
    proxy.strand();
    assert_eq!(owner.sigterm().await, 0);
    arrives_soon(&world, 1).await;
}
