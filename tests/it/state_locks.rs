//! Locks of others on tables of schema `pgsluice`, and on user tables that nothing is written to, do not delay rows.
//!
//! Only `pgsluice.progress` is part of what is applied.

use std::time::{Duration, Instant};

use crate::support::wait::until;
use crate::support::world::{Servers, World};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE locked (id int PRIMARY KEY); \
    CREATE TABLE first_seen (id int PRIMARY KEY)";
/// For how long each lock is held: longer than most of the service's own intervals.
const HELD: Duration = Duration::from_secs(5);
/// Much less than any time-out of the store.
const SOON: Duration = Duration::from_secs(2);

async fn streaming() -> (World, crate::support::service::Service) {
    let world = World::builder().servers(Servers::Separate).both_sql(TABLES).start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (0)").await;
    world.wait_same_rows("t").await;
    (world, service)
}

/// A row arrives, and how long that took.
async fn arrives(world: &World, table: &str, row: u32) -> Duration {
    let began = Instant::now();
    world.publisher.exec(format!("INSERT INTO {table} VALUES ({row})")).await;
    let there = format!("SELECT count(*) FROM {table} WHERE id = {row}");
    until("the row arrives", async || world.target.value(&there).await.as_deref() == Some("1")).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_table_of_the_record_does_not_delay_rows() {
    let (world, service) = streaming().await;
    let tables = "SELECT c.oid::regclass FROM pg_class c WHERE c.relkind = 'r' \
        AND c.relnamespace = 'pgsluice'::regnamespace AND c.relname <> 'progress' ORDER BY 1";
    let mut row = 0;
    for table in world.target.lines(tables).await {
        let locker = world.target.session().await;
        locker.batch(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await.unwrap();
        let began = Instant::now();
        while began.elapsed() < HELD {
            row += 1;
            let took = arrives(&world, "t", row).await;
            assert!(took < SOON, "{table} is locked, and a row took {took:?}: {}", service.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        locker.batch("COMMIT").await.unwrap();
    }
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_one_table_does_not_hold_up_the_first_change_of_another() {
    let (world, service) = streaming().await;
    let locker = world.target.session().await;
    locker.batch("BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let took = arrives(&world, "first_seen", 1).await;
    assert!(took < SOON, "{took:?}: {}", service.log());
    locker.batch("COMMIT").await.unwrap();
}
