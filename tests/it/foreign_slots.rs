//! Slots that are not the subscription's, or that it cannot use, and databases that are not the one it comes from.

use std::time::Duration;

use crate::support::database::Database;
use crate::support::wait::until;
use crate::support::world::{Servers, World};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

async fn slots(world: &World) -> Vec<String> {
    world.publisher.lines("SELECT slot_name FROM pg_replication_slots ORDER BY 1").await
}

/// Seen: `drop` removed another subscription's slot, and a standby's, which had rightly been refused.
#[tokio::test]
async fn a_removal_leaves_slots_alone_that_are_not_its_own() {
    for elsewhere in [false, true] {
        let mut world = World::builder().both_sql(TABLE).subscription_line("slot = \"theirs\"").start().await;
        if elsewhere {
            let other = Database::create(world.publisher_server(), "other").await;
            other.exec("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')").await;
        } else {
            world.publisher.exec("SELECT pg_create_physical_replication_slot('theirs', true)").await;
        }
        let service = world.run();
        let view = world.wait_paused("publisher_error").await;
        assert!(view.told().contains("is not this subscription's"), "{:#}", view.json);
        assert_eq!(service.sigterm().await, 0);
        world.pgsluice(&["drop", &world.subscription]).await.expect(0);
        assert_eq!(slots(&world).await, ["theirs"], "elsewhere: {elsewhere}");
    }
}

/// Seen: the stream paused at the first PREPARE TRANSACTION with "unknown message", for ever.
#[tokio::test]
async fn a_slot_that_sends_prepared_transactions_is_refused_beforehand() {
    let world = World::builder().both_sql(TABLE).start().await;
    if world.publisher.value("SHOW server_version_num").await.unwrap().parse::<u32>().unwrap() < 140_000 {
        return;
    }
    let name = world.subscription.replace('-', "_");
    let make = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput', false, true)");
    world.publisher.exec(make).await;
    let check = world.pgsluice(&["check"]).await.expect(1);
    assert!(check.stdout.contains("was created with two_phase"), "{}", check.stdout);
    let service = world.run();
    let view = world.wait_paused("publisher_error").await;
    assert!(view.told().contains("pg_drop_replication_slot"), "{:#}", view.json);
    world.publisher.exec(format!("SELECT pg_drop_replication_slot('{name}')")).await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
}

/// Seen: a clone of the publisher's database, on the same server and with a slot made by hand, was streamed from: a row
/// was missing, and one came from elsewhere.
#[tokio::test]
async fn another_database_of_the_same_server_is_another_publisher() {
    let world = World::builder().servers(Servers::Separate).both_sql(TABLE).start().await;
    let service = world.run();
    world.publisher.exec("INSERT INTO t VALUES (1, 'blue')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
    let record = "SELECT publisher_database FROM pgsluice.subscription";
    let own = world.publisher.value("SELECT oid FROM pg_database WHERE datname = current_database()").await;
    assert_eq!(world.target.value(record).await, own);
    // As if it had been recorded from another database.
    world.target.exec("UPDATE pgsluice.subscription SET publisher_database = publisher_database - 1").await;
    let check = world.pgsluice(&["check"]).await.expect(1);
    assert!(check.stdout.contains("the publisher's database is not the one"), "{}", check.stdout);
    world.publisher.exec("INSERT INTO t VALUES (2, 'green')").await;
    let service = world.run();
    let view = world.wait_paused("diverged").await;
    assert!(view.told().contains("has OID"), "{:#}", view.json);
    assert_eq!(world.target.lines("SELECT id FROM t").await, ["1"]);
    assert_eq!(service.sigterm().await, 0);
}

/// Seen: `pause` was acknowledged, and gone after a crash of a target whose role has `synchronous_commit = off`.
#[tokio::test]
async fn what_an_operator_was_told_outlives_a_crash_of_the_target() {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .both_sql(TABLE)
        .target_setting("wal_writer_delay", "10s")
        .target_sql("ALTER ROLE pgsluice_apply SET synchronous_commit = off")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.target_server().stop(pgsluice::demo::cluster::StopMode::Immediate).await.unwrap();
    world.target_server().launch().await.unwrap();
    until("it is paused again", async || {
        let view = world.status().await?;
        if view.state == "paused" { Ok(()) } else { Err(format!("{:#}", view.json)) }
    })
    .await;
    world.publisher.exec("INSERT INTO t VALUES (1, 'later')").await;
    // Not synchronisation: nothing must come.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.target.lines("SELECT id FROM t").await, [""; 0]);
    assert_eq!(service.sigterm().await, 0);
}
