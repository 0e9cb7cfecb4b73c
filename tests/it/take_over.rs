//! A subscription whose owner hangs, or whose host is gone without a word, is taken over soon; one whose owner waits is not.
//!
//! Nobody but the new owner ends what the former one has left behind: the publisher waits for ever.

use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::demo::process::Signal;
use pgsluice::pg::{lock_keys, quote_literal};

use crate::support::copies::{promote, standby};
use crate::support::database::Database;
use crate::support::faulty_proxy::FaultyProxy;
use crate::support::service::Service;
use crate::support::wait::{until, until_within};
use crate::support::world::{
    PASSWORD, PUBLISHER_ROLE, Servers, TARGET_ROLE, World, conninfo, conninfo_through,
};

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
/// Five seconds on a machine that is not busy.
const SOON: Duration = Duration::from_secs(12);

const SILENT: &str = "the owner has shown no sign of life";
const STANDBY: &str = "standby: another instance applies";

async fn world() -> World {
    World::builder()
        .servers(Servers::Separate)
        .both_sql(T)
        .publisher_setting("wal_sender_timeout", "0")
        .start()
        .await
}

async fn logged(service: &Service, words: &str) {
    until_within(Duration::from_mins(1), words, async || {
        let log = service.log();
        log.contains(words).then_some(()).ok_or(log)
    })
    .await;
}

/// An owner that streams, as `owner` starts it, and a standby.
async fn pair(world: &World, owner: Service) -> (Service, Service) {
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1)").await;
    world.wait_same_rows("t").await;
    // The walsender is recorded once a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let standby = world.run();
    logged(&standby, STANDBY).await;
    (owner, standby)
}

/// A row arrives soon after the owner has fallen silent.
async fn taken_over_soon(world: &World, standby: &Service, row: u32) {
    let began = Instant::now();
    world.publisher.exec(format!("INSERT INTO t VALUES ({row})")).await;
    world.wait_same_rows("t").await;
    println!("taken over after {:?}", began.elapsed());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let log = standby.log();
    assert!(log.contains(SILENT), "{log}");
    assert!(
        log.contains("the walsender of the former stream still used the slot, and has been ended"),
        "{log}"
    );
}

#[tokio::test]
async fn an_owner_that_hangs_is_replaced_and_wakes_up_as_a_standby() {
    let world = world().await;
    let (mut owner, standby) = pair(&world, world.run()).await;
    owner.signal(Signal::Freeze);
    taken_over_soon(&world, &standby, 2).await;
    owner.signal(Signal::Thaw);
    logged(&owner, STANDBY).await;
    world.publisher.exec("INSERT INTO t VALUES (3)").await;
    world.wait_same_rows("t").await;
    assert_eq!(standby.sigterm().await, 0);
    world.publisher.exec("INSERT INTO t VALUES (4)").await;
    world.wait_same_rows("t").await;
    assert_eq!(owner.sigterm().await, 0);
}

/// Without a standby, nobody replaces it; `status` tells.
#[tokio::test]
async fn an_owner_that_hangs_is_told_by_status() {
    let world = world().await;
    let mut owner = world.run();
    world.wait_state("streaming").await;
    owner.signal(Signal::Freeze);
    let status = world.wait_state("retrying").await;
    assert_eq!(status.reason.as_deref(), Some("silent"), "{status:?}");
    world.pgsluice(&["status"]).await.expect(1);
    owner.signal(Signal::Thaw);
    world.wait_state("streaming").await;
    world.pgsluice(&["status"]).await.expect(0);
}

/// The walsender cannot even say that it ends.
#[tokio::test]
async fn an_owner_that_hangs_under_load_is_replaced() {
    let world = world().await;
    let (mut owner, standby) = pair(&world, world.run()).await;
    owner.signal(Signal::Freeze);
    world
        .publisher
        .exec("INSERT INTO t SELECT g, repeat(md5(g::text), 40) FROM generate_series(10, 20000) g")
        .await;
    taken_over_soon(&world, &standby, 2).await;
    owner.signal(Signal::Kill);
}

#[tokio::test]
async fn an_owner_whose_host_is_gone_is_replaced() {
    let world = world().await;
    let publisher = FaultyProxy::start(world.publisher.port).await;
    let target = FaultyProxy::start(world.target.port).await;
    let owner = world.run_with(&[
        (
            "PGSLUICE__SUBSCRIPTIONS__0__PUBLISHER",
            &conninfo_through(&world.publisher, PUBLISHER_ROLE, publisher.port()),
        ),
        ("PGSLUICE__TARGET__URL", &conninfo_through(&world.target, TARGET_ROLE, target.port())),
    ]);
    let (_owner, standby) = pair(&world, owner).await;
    publisher.stall();
    target.stall();
    publisher.strand();
    target.strand();
    taken_over_soon(&world, &standby, 2).await;
}

/// Seen: the walsender of a stream that had just begun was not on record, and held the slot for ever.
#[tokio::test]
async fn an_owner_that_hangs_as_soon_as_it_streams_is_replaced() {
    let world = world().await;
    let (mut owner, standby) = pair(&world, world.run()).await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.wait_paused("operator").await;
    world.publisher.query_text("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
    let before = owner.log().matches(" streaming subscription").count();
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    until("it streams again", async || owner.log().matches(" streaming subscription").count() > before).await;
    owner.signal(Signal::Freeze);
    taken_over_soon(&world, &standby, 2).await;
    owner.signal(Signal::Kill);
}

/// Further subscriptions of their own tables, named so.
fn further(world: &World, names: &[&str]) -> String {
    let further = |(number, name): (usize, &&str)| {
        format!(
            "[[subscriptions]]\nname = \"{name}\"\nslot = \"further_{number}\"\npublisher = {:?}\n\
             publications = [\"p{number}\"]\n",
            conninfo(&world.publisher, PUBLISHER_ROLE)
        )
    };
    names.iter().enumerate().map(further).collect()
}

async fn world_of_several(names: &[&str]) -> World {
    let each = |sql: &str| -> String {
        (0..names.len()).map(|n| sql.replace("{n}", &n.to_string())).collect::<Vec<_>>().concat()
    };
    let tables = each("CREATE TABLE f{n} (id int PRIMARY KEY, v text);");
    let publications = each("CREATE PUBLICATION p{n} FOR TABLE f{n};");
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(&format!("{T}; {tables}"))
        .publisher_sql(&format!("CREATE PUBLICATION my_publication FOR TABLE t; {publications}"))
        .publisher_setting("wal_sender_timeout", "0")
        .start()
        .await;
    let config = std::fs::read_to_string(&world.config).unwrap();
    std::fs::write(&world.config, config + &further(&world, names)).unwrap();
    world
}

async fn all_stream(world: &World, count: usize) {
    world.wait_state("streaming").await;
    let streaming = "SELECT count(*) FROM pgsluice.subscription WHERE state = 'streaming'";
    until("all stream", async || world.target.value(streaming).await == Some(count.to_string())).await;
}

/// Seen: servers replace what is not ASCII in the names of sessions, by which an owner was not found.
#[tokio::test]
async fn an_owner_of_a_subscription_whose_name_is_not_ascii_is_replaced() {
    let world = world_of_several(&["größe"]).await;
    let mut owner = world.run();
    all_stream(&world, 2).await;
    let standby = world.run();
    until("it stands by for both", async || standby.log().matches(STANDBY).count() == 2).await;
    owner.signal(Signal::Freeze);
    let began = Instant::now();
    world.publisher.exec("INSERT INTO f0 VALUES (1)").await;
    world.wait_same_rows("f0").await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    owner.signal(Signal::Kill);
}

/// Seen: while all sessions of the record waited for a lock on one of its tables, healthy owners seemed silent, and two
/// instances replaced each other again and again.
#[tokio::test]
async fn owners_whose_record_is_locked_are_not_replaced() {
    let names = ["one", "two", "three"];
    let world = world_of_several(&names).await;
    let (first, second) = (world.run(), world.run());
    all_stream(&world, 4).await;
    let terms = "SELECT subscription, term FROM pgsluice.owner ORDER BY 1";
    let before = world.target.lines(terms).await;
    for mode in ["SHARE", "ACCESS EXCLUSIVE"] {
        let locker = world.target.session().await;
        locker.batch(&format!("BEGIN; LOCK TABLE pgsluice.event IN {mode} MODE")).await.unwrap();
        // Each has to record that its stream has ended, and begins again.
        world.publisher.query_text("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
        // Not synchronisation: several times the lease.
        tokio::time::sleep(Duration::from_secs(12)).await;
        locker.batch("COMMIT").await.unwrap();
        all_stream(&world, 4).await;
        assert_eq!(world.target.lines(terms).await, before, "{mode}");
    }
    for number in 0..names.len() {
        world.publisher.exec(format!("INSERT INTO f{number} VALUES (1)")).await;
        world.wait_same_rows(&format!("f{number}")).await;
    }
    for service in [first, second] {
        assert!(!service.log().contains(SILENT), "{}", service.log());
    }
}

/// A pause is taken over, too: it has to answer commands.
#[tokio::test]
async fn a_paused_owner_that_hangs_is_replaced() {
    let world = world().await;
    let (mut owner, standby) = pair(&world, world.run()).await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.wait_paused("operator").await;
    owner.signal(Signal::Freeze);
    logged(&standby, SILENT).await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.publisher.exec("INSERT INTO t VALUES (2)").await;
    world.wait_same_rows("t").await;
    owner.signal(Signal::Kill);
}

async fn lock(world: &World, sql: &str) -> Session {
    let session = world.target.session().await;
    session.batch(&format!("BEGIN; {sql}")).await.unwrap();
    session
}

#[tokio::test]
async fn an_owner_that_waits_keeps_its_subscription() {
    let world = world().await;
    let (owner, standby) = pair(&world, world.run()).await;
    // What is applied waits.
    let locker = lock(&world, "LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    world.publisher.exec("INSERT INTO t VALUES (2)").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    locker.close().await;
    world.wait_same_rows("t").await;
    // What is reported waits.
    let locker = lock(&world, "LOCK TABLE pgsluice.subscription IN ACCESS EXCLUSIVE MODE").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    locker.close().await;
    // Both of them.
    let locker = lock(&world, "LOCK TABLE t, pgsluice.subscription IN ACCESS EXCLUSIVE MODE").await;
    world.publisher.exec("INSERT INTO t VALUES (3)").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    locker.close().await;
    world.wait_same_rows("t").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!standby.log().contains(SILENT), "{}", standby.log());
    assert_eq!(owner.log().matches("this instance no longer owns").count(), 0, "{}", owner.log());
}

/// A report cannot come while somebody has locked the row that it writes: then nobody knows whether the owner lives.
#[tokio::test]
async fn an_owner_whose_report_is_locked_out_is_judged_after_that() {
    for row in ["SELECT FROM pgsluice.subscription FOR UPDATE", "SELECT FROM pgsluice.owner FOR UPDATE"] {
        let world = world().await;
        let (mut owner, standby) = pair(&world, world.run()).await;
        let locker = lock(&world, row).await;
        owner.signal(Signal::Freeze);
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(!standby.log().contains(SILENT), "{row}: {}", standby.log());
        locker.close().await;
        taken_over_soon(&world, &standby, 2).await;
        owner.signal(Signal::Kill);
    }
}

/// A copy of the target has the same record of the walsender, which is not its own.
#[tokio::test]
async fn a_copy_of_the_target_does_not_end_the_stream() {
    let mut world = world().await;
    let copy = standby(world.target_server(), &[]).await;
    let (_owner, _standby) = pair(&world, world.run()).await;
    let walsender = "SELECT active_pid FROM pg_replication_slots";
    let before = world.publisher.value(walsender).await;
    promote(&copy).await;
    let on_copy = Database::on(&copy, &world.target.name);
    let other = world.run_with(&[("PGSLUICE__TARGET__URL", &conninfo(&on_copy, TARGET_ROLE))]);
    logged(&other, "is active for PID").await;
    assert_eq!(world.publisher.value(walsender).await, before);
    world.publisher.exec("INSERT INTO t VALUES (2)").await;
    world.wait_same_rows("t").await;
    assert_eq!(world.publisher.value(walsender).await, before, "{}", other.log());
}

/// A prepared transaction has no process, and stays when the server is restarted.
#[tokio::test]
async fn a_prepared_transaction_that_holds_a_lock_does_not_stop_it() {
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(T)
        .target_setting("max_prepared_transactions", "8")
        .start()
        .await;
    let hold = async |number: usize, key: i64| {
        let session = world.target.session().await;
        let sql = format!("BEGIN; SELECT pg_advisory_xact_lock({key}); PREPARE TRANSACTION 'held {number}'");
        session.batch(&sql).await.unwrap();
    };
    let [first, others @ ..] = lock_keys(&world.subscription);
    hold(0, first).await;
    let owner = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1)").await;
    world.wait_same_rows("t").await;
    assert_eq!(owner.sigterm().await, 0);
    for (number, key) in (1..).zip(others) {
        hold(number, key).await;
    }
    let obstructed = world.run();
    logged(&obstructed, "ROLLBACK PREPARED 'held ").await;
    for number in 0..=others.len() {
        world.target.exec(format!("ROLLBACK PREPARED 'held {number}'")).await;
    }
    world.wait_state("streaming").await;
}

/// Anybody who can connect can take an advisory lock.
#[tokio::test]
async fn locks_that_others_hold_do_not_stop_it() {
    let world = world().await;
    let password = quote_literal(PASSWORD);
    world.target.exec(format!("CREATE ROLE neighbour LOGIN PASSWORD {password}")).await;
    let (keys, conninfo) = (lock_keys(&world.subscription), conninfo(&world.target, "neighbour"));
    let neighbour = async |held: &[usize]| {
        let locks = held.iter().map(|&number| format!("SELECT pg_advisory_lock({});", keys[number]));
        let session =
            Session::connect(&conninfo).await.unwrap_or_else(|error| panic!("{}", error.diagnosis()));
        session.batch(&locks.collect::<String>()).await.unwrap();
        session
    };
    let first = neighbour(&[0]).await;
    let owner = world.run();
    world.wait_state("streaming").await;
    // The one that is free now is no other subscription's.
    first.close().await;
    let standby = world.run();
    logged(&standby, STANDBY).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!owner.log().contains("no longer owns"), "{}", owner.log());
    assert_eq!((owner.sigterm().await, standby.sigterm().await), (0, 0));
    let all = neighbour(&[0, 1, 2, 3]).await;
    let obstructed = world.run();
    logged(&obstructed, "the locks of the subscription are held by sessions that are not pgsluice's").await;
    assert!(obstructed.log().contains("neighbour"), "{}", obstructed.log());
    all.close().await;
    until("it streams", async || {
        let status = world.status().await?;
        if status.state == "streaming" { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}
