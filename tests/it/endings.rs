//! Whatever a subscription does: its walsender ends when it is told to, and both servers stop and checkpoint within seconds.
//! After that everything goes on, and the rows are equal.

use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::demo::cluster::StopMode;

use crate::support::service::Service;
use crate::support::wait::{until, until_within};
use crate::support::world::{Servers, World};

/// Much less than any server's own time-outs, on a slow machine.
const SOON: Duration = Duration::from_secs(12);
/// For a shutdown that waits for all clients, which is noticed by a session that is refused.
const SMART: Duration = Duration::from_secs(15);
/// For everything to be as before again, after a stop of a server.
const RECOVERY: Duration = Duration::from_secs(90);

/// What the subscription does when it is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Copying,
    Idle,
    /// Under load.
    Streaming,
    /// A slice of a large transaction is open on the target.
    Slices,
    /// What is applied waits for a lock.
    Locked,
    PausedByOperator,
    PausedOnConflict,
    StandingBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The walsender, if there is one.
    Terminate,
    Checkpoint,
    StopPublisher,
    StopTarget,
    /// They wait for all clients.
    StopPublisherSmart,
    StopTargetSmart,
}

const ENDINGS: [Ending; 4] =
    [Ending::Terminate, Ending::Checkpoint, Ending::StopPublisher, Ending::StopTarget];
const SMART_ENDINGS: [Ending; 2] = [Ending::StopPublisherSmart, Ending::StopTargetSmart];

/// A copy that takes a quarter of a minute, without a session of the test's.
const SLOW_COPY: &str = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN PERFORM pg_sleep(0.05); RETURN new; END'; \
    CREATE TRIGGER slow BEFORE INSERT ON joins FOR EACH ROW EXECUTE FUNCTION slow(); \
    ALTER TABLE joins ENABLE ALWAYS TRIGGER slow";

/// What is undone after the disturbance.
#[derive(Default)]
struct Held {
    sessions: Vec<Session>,
    other: Option<Service>,
}

async fn begin(world: &World, doing: Doing, ending: Ending, round: usize) -> Held {
    let mut held = Held::default();
    let target = async |sql: &str| {
        let session = world.target.session().await;
        session.batch(sql).await.unwrap();
        session
    };
    let many = |from: usize| {
        format!(
            "INSERT INTO t SELECT g, repeat(md5(g::text), 60) FROM generate_series({from}, {from} + 8499) g"
        )
    };
    let from = 100_000 * (round + 1);
    match doing {
        Doing::Copying if SMART_ENDINGS.contains(&ending) => {
            world.target.exec(SLOW_COPY).await;
            world.pgsluice(&["resync", &world.subscription, "public.joins"]).await.expect(0);
            until("it is copied", async || {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'sync$' AND wait_event = 'PgSleep'";
                world.target.value(sql).await.as_deref() == Some("1")
            })
            .await;
        }
        Doing::Copying => {
            held.sessions.push(target("BEGIN; LOCK TABLE joins IN ACCESS EXCLUSIVE MODE").await);
            world.pgsluice(&["resync", &world.subscription, "public.joins"]).await.expect(0);
            until("its copy waits", async || {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'sync$' AND wait_event_type = 'Lock'";
                world.target.value(sql).await.as_deref() == Some("1")
            })
            .await;
        }
        Doing::Idle => {}
        Doing::Streaming => {
            // Two hundred transactions that are on their way.
            let sql = format!(
                "DO $$ BEGIN FOR i IN 1..200 LOOP INSERT INTO t VALUES ({from} + i, 'x'); COMMIT; END LOOP; END $$"
            );
            world.publisher.query_text(sql).await;
        }
        Doing::Slices => {
            let session = world.publisher.session().await;
            session.batch(&format!("BEGIN; {}; {}", many(from), many(from + 20_000))).await.unwrap();
            held.sessions.push(session);
        }
        Doing::Locked => {
            held.sessions.push(target("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await);
            world.publisher.exec(many(from)).await;
        }
        Doing::PausedByOperator => {
            world.pgsluice(&["pause", &world.subscription]).await.expect(0);
            world.wait_paused("operator").await;
            world.publisher.exec(many(from)).await;
        }
        Doing::PausedOnConflict => {
            world.target.exec(format!("INSERT INTO other VALUES ({from})")).await;
            world.publisher.exec(format!("INSERT INTO other VALUES ({from})")).await;
            world.wait_paused("conflict").await;
            world.publisher.exec(many(from)).await;
        }
        Doing::StandingBy => {
            let other = world.run();
            until("it stands by", async || other.log().contains("standby: another instance applies")).await;
            held.other = Some(other);
        }
    }
    // Long enough for what was received to be on its way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    held
}

async fn disturb(world: &mut World, ending: Ending) {
    let began = Instant::now();
    match ending {
        Ending::Terminate => {
            let end =
                "SELECT pg_terminate_backend(active_pid), active_pid FROM pg_replication_slots WHERE active";
            let ended = world.publisher.lines(end).await;
            until("they have ended", async || {
                let active = "SELECT active_pid FROM pg_replication_slots WHERE active";
                let now = world.publisher.lines(active).await;
                let left = now.iter().filter(|pid| ended.contains(&format!("t|{pid}"))).count();
                if left == 0 { Ok(()) } else { Err(format!("{now:?}")) }
            })
            .await;
        }
        Ending::Checkpoint => {
            world.publisher.exec("CHECKPOINT").await;
            world.target.exec("CHECKPOINT").await;
        }
        Ending::StopPublisher => world.publisher_server().stop(StopMode::Fast).await.unwrap(),
        Ending::StopTarget => world.target_server().stop(StopMode::Fast).await.unwrap(),
        Ending::StopPublisherSmart => world.publisher_server().stop(StopMode::Smart).await.unwrap(),
        Ending::StopTargetSmart => world.target_server().stop(StopMode::Smart).await.unwrap(),
    }
    println!("{ending:?} took {:?}", began.elapsed());
    let soon = if SMART_ENDINGS.contains(&ending) { SMART } else { SOON };
    assert!(began.elapsed() < soon, "{ending:?} took {:?}", began.elapsed());
    match ending {
        Ending::Terminate | Ending::Checkpoint => {}
        Ending::StopPublisher | Ending::StopPublisherSmart => {
            world.publisher_server().launch().await.unwrap();
        }
        Ending::StopTarget | Ending::StopTargetSmart => world.target_server().launch().await.unwrap(),
    }
}

async fn go_on(world: &World, doing: Doing, held: Held) {
    world.target.exec("DROP FUNCTION IF EXISTS slow CASCADE").await;
    for session in held.sessions {
        // It may have ended with its server.
        drop(session.batch("COMMIT").await);
    }
    drop(held.other);
    match doing {
        Doing::PausedByOperator => {
            world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        }
        Doing::PausedOnConflict => {
            world.wait_conflict().await;
            world.target.exec("DELETE FROM other WHERE id = (SELECT max(id) FROM other)").await;
            world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        }
        _ => {}
    }
    world.wait_state_within(RECOVERY, "streaming").await;
    for table in ["t", "other", "joins"] {
        until_within(RECOVERY, "the rows are equal", async || world.same_rows(table).await).await;
    }
    let ready = "SELECT count(*) FROM pgsluice.table_sync WHERE state <> 'ready'";
    until_within(RECOVERY, "all tables are ready", async || {
        world.target.value(ready).await.as_deref() == Some("0")
    })
    .await;
}

async fn endings(doing: Doing, endings: &[Ending]) {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .both_sql(
            "CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL; \
             CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE joins (id int PRIMARY KEY)",
        )
        .publisher_sql("INSERT INTO joins SELECT generate_series(1, 300)")
        .subscription_line("stall_timeout = \"2s\"")
        .publisher_setting("logical_decoding_work_mem", "64kB")
        .publisher_setting("wal_sender_timeout", "0")
        .start()
        .await;
    let service = world.run();
    world.wait_state("streaming").await;
    for (round, ending) in endings.iter().copied().enumerate() {
        println!("{doing:?}, {ending:?}");
        let held = begin(&world, doing, ending, round).await;
        disturb(&mut world, ending).await;
        go_on(&world, doing, held).await;
    }
    assert_eq!(service.sigterm().await, 0);
}

macro_rules! states {
    ($($name:ident: $doing:ident, $endings:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                Box::pin(endings(Doing::$doing, &$endings)).await;
            }
        )*
    };
}

states! {
    while_a_table_is_copied: Copying, ENDINGS;
    while_the_stream_is_idle: Idle, ENDINGS;
    while_it_streams: Streaming, ENDINGS;
    while_a_slice_is_open: Slices, ENDINGS;
    while_the_target_is_locked: Locked, ENDINGS;
    while_an_operator_has_paused_it: PausedByOperator, ENDINGS;
    while_it_is_paused_on_a_conflict: PausedOnConflict, ENDINGS;
    while_another_instance_stands_by: StandingBy, ENDINGS;
    smart_while_a_table_is_copied: Copying, SMART_ENDINGS;
    smart_while_the_stream_is_idle: Idle, SMART_ENDINGS;
    smart_while_it_streams: Streaming, SMART_ENDINGS;
    // What holds it open, or locked, is a session of the server that would have to wait for that.
    smart_while_a_slice_is_open: Slices, [Ending::StopTargetSmart];
    smart_while_the_target_is_locked: Locked, [Ending::StopPublisherSmart];
    smart_while_an_operator_has_paused_it: PausedByOperator, SMART_ENDINGS;
    smart_while_it_is_paused_on_a_conflict: PausedOnConflict, SMART_ENDINGS;
    smart_while_another_instance_stands_by: StandingBy, SMART_ENDINGS;
}
