//! `target.max_connections`: a service keeps to it, copies wait for a session and say so, and what streams does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::database::Database;
use crate::support::wait::{until, until_within};
use crate::support::world::{PUBLICATION, Servers, TARGET_ROLE, World};

/// The fewest for two subscriptions.
const SESSIONS: usize = 10;
const SETTING: &str = "PGSLUICE__TARGET__MAX_CONNECTIONS";
/// For copies that take some time, on a slow machine.
const COPIED: Duration = Duration::from_mins(2);

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE slow (id int PRIMARY KEY); \
    CREATE TABLE b (id int PRIMARY KEY)";
/// Two hundred rows take twenty seconds.
const SLOW: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN PERFORM pg_sleep(0.1); RETURN new; END'; \
    CREATE TRIGGER slow BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION slow(); \
    ALTER TABLE slow ENABLE ALWAYS TRIGGER slow";

/// The first subscription has tables `a` and `slow`, the second one, which is returned, `b`.
async fn world() -> (World, String) {
    let world = World::builder()
        .servers(Servers::Separate)
        .both_sql(TABLES)
        .target_sql(SLOW)
        .publisher_sql("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
        .publisher_sql(&format!(
            "CREATE PUBLICATION {PUBLICATION} FOR TABLE a, slow; CREATE PUBLICATION second FOR TABLE b"
        ))
        .start()
        .await;
    let second = world.subscribe("second");
    (world, second)
}

/// Counts the sessions on the target, until it is told to stop.
struct Count {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Count {
    async fn start(target: &Database) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (session, asked) = (target.session().await, Arc::clone(&stop));
        // A command's process has sessions of its own, and none runs here.
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE usename = '{TARGET_ROLE}'");
        let task = tokio::spawn(async move {
            let (mut most, mut before) = (0, Vec::new());
            while !asked.load(Ordering::Relaxed) {
                let now = session.rows(&sql).await.unwrap();
                // A server needs a moment until a session that has been closed has gone.
                most = most.max(now.iter().filter(|pid| before.contains(*pid)).count());
                before = now;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            most
        });
        Self { stop, task }
    }

    async fn most(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn state(world: &World, name: &str, expected: &str) {
    let sql = format!(
        "SELECT state || coalesce(' ' || reason, '') FROM pgsluice.subscription WHERE name = '{name}'"
    );
    until_within(COPIED, expected, async || {
        let made = world.target.value("SELECT to_regclass('pgsluice.owner') IS NOT NULL").await;
        let found = if made.as_deref() == Some("t") { world.target.value(&sql).await } else { None };
        if found.as_deref() == Some(expected) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// Rows of the subscription that streams arrive while copies wait.
async fn rows_arrive(world: &World, table: &str, ids: std::ops::Range<u32>) {
    for id in ids {
        let began = Instant::now();
        world.publisher.exec(format!("INSERT INTO {table} VALUES ({id})")).await;
        let there = format!("SELECT count(*) FROM {table} WHERE id = {id}");
        until("the row arrives", async || world.target.value(&there).await.as_deref() == Some("1")).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_wait_for_a_session_and_what_streams_does_not() {
    let (world, second) = world().await;
    world.publisher.exec("INSERT INTO slow SELECT generate_series(1, 200)").await;
    let count = Count::start(&world.target).await;
    let service = world.run_with(&[(SETTING, &SESSIONS.to_string())]);
    until("one copies, the other waits for a session", async || {
        let made = world.target.value("SELECT to_regclass('pgsluice.owner') IS NOT NULL").await;
        if made.as_deref() != Some("t") {
            return Err("no schema".to_owned());
        }
        let sql = "SELECT state || coalesce(' ' || reason, '') FROM pgsluice.subscription ORDER BY 1";
        let found = world.target.lines(sql).await;
        let first = found.iter().any(|state| state == "copying");
        let waits = found.iter().any(|state| state == "starting sessions");
        // If the small one came first, it has been copied by now, and the other one goes on alone.
        let alone = first && found.iter().any(|state| state == "streaming");
        if (first && waits) || alone { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    state(&world, &world.subscription, "streaming").await;
    state(&world, &second, "streaming").await;
    for table in ["a", "b", "slow"] {
        world.wait_same_rows(table).await;
    }
    let log = service.log();
    assert!(log.contains("sessions on the target are bounded"), "{log}");
    let most = count.most().await;
    assert!((5..=SESSIONS).contains(&most), "{most} sessions");
    println!("{most} sessions at most for the first copies");
    // Two tables are synchronised again: the second one waits, and says so at its table.
    world.pgsluice(&["resync", &world.subscription, "public.slow"]).await.expect(0);
    until("it is copied", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'sync$' AND wait_event = 'PgSleep'";
        world.target.value(sql).await.as_deref() == Some("1")
    })
    .await;
    world.pgsluice(&["resync", &second, "public.b"]).await.expect(0);
    let count = Count::start(&world.target).await;
    let waits = "SELECT count(*) FROM pgsluice.table_sync WHERE error::text LIKE '%waits for a session on the target%'";
    until("its table says that it waits", async || world.target.value(waits).await.as_deref() == Some("1"))
        .await;
    assert!(service.log().contains("the copy waits for a session on the target"), "{}", service.log());
    rows_arrive(&world, "a", 10..20).await;
    let ready = "SELECT count(*) FROM pgsluice.table_sync WHERE state = 'ready' AND error IS NULL";
    until_within(COPIED, "all are ready", async || world.target.value(ready).await.as_deref() == Some("3"))
        .await;
    rows_arrive(&world, "b", 10..20).await;
    for table in ["a", "b", "slow"] {
        world.wait_same_rows(table).await;
    }
    let most = count.most().await;
    assert!((5..=SESSIONS).contains(&most), "{most} sessions");
    println!("{most} sessions at most");
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn too_few_sessions_are_an_error_of_the_configuration() {
    let (world, _) = world().await;
    let mut service = world.run_with(&[(SETTING, "9")]);
    assert_eq!(service.ended().await, 2, "{}", service.log());
    let log = service.log();
    assert!(log.contains("9 sessions are too few: 10 are needed"), "{log}");
    assert!(log.contains("set max_connections to 10 or more"), "{log}");
}
