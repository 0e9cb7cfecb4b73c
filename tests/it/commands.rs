//! What operators ask for is carried out once and in order, also if processes die meanwhile; what a `drop` leaves is
//! nothing, and a `drop` that has failed changes nothing later.

use std::time::Duration;

use pgsluice::demo::process::Signal;

use crate::support::cli;
use crate::support::service::Service;
use crate::support::wait::{until, until_within};
use crate::support::world::{Builder, Servers, World};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";

fn builder() -> Builder {
    World::builder()
        .both_sql(TABLE)
        .publisher_sql("INSERT INTO t SELECT n, 'copied' FROM generate_series(1, 100) n")
}

/// Records a command as one that a service left behind, `age` ago.
async fn leave(world: &World, verb: &str, taken_at: &str, age: &str) {
    let sql = format!(
        "INSERT INTO pgsluice.command (subscription, verb, created_by, taken_at, created_at) \
         SELECT name, '{verb}', 'somebody', {taken_at}, now() - interval '{age}' FROM pgsluice.subscription"
    );
    world.target.exec(sql).await;
}

async fn answers(world: &World) -> Vec<String> {
    let sql = "SELECT verb, ok, answer ->> 'primary' FROM pgsluice.command ORDER BY id";
    until("every command is answered", async || {
        let open = "SELECT count(*) FROM pgsluice.command WHERE done_at IS NULL";
        world.target.value(open).await.as_deref() == Some("0")
    })
    .await;
    world.target.lines(sql).await
}

async fn wait_standby(service: &Service) {
    until("it stands by", async || service.log().contains("standby: another instance applies")).await;
}

#[tokio::test]
async fn a_pause_that_a_dead_service_took_comes_before_a_later_resume() {
    let world = builder().start().await;
    world.take_up().await;
    leave(&world, "pause", "now()", "1 second").await;
    world.target.exec("UPDATE pgsluice.subscription SET desired = 'pause'").await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    let service = world.run();
    let answers = answers(&world).await;
    assert_eq!(answers, ["pause|t|paused", "resume|t|goes on from where it stopped"]);
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1000, 'after')").await;
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_wish_to_go_on_that_is_answered_survives_a_crash() {
    let world = builder().start().await;
    world.take_up().await;
    world.target.exec("INSERT INTO t VALUES (1000, 'local')").await;
    world.publisher.exec("INSERT INTO t VALUES (1000, 'remote')").await;
    for ask in ["resume", "retry"] {
        let service = world.run();
        let conflict = world.wait_paused("conflict").await.conflict_id().unwrap();
        service.kill9().await;
        if ask == "retry" {
            world.target.exec("DELETE FROM t WHERE id = 1000").await;
        }
        let mut service = world.run_with(&[("FAILPOINTS", "command::answer::after=1*return(crash)")]);
        until("the conflict is shown by a service", async || service.log().contains("LockedWhilePaused"))
            .await;
        let arguments = match ask {
            "resume" => vec!["resume", &world.subscription],
            _ => vec!["conflicts", "resolve", &conflict, "--with", "retry"],
        };
        world.pgsluice(&arguments).await.expect(0);
        service.ended().await;
        let state = world.target.value("SELECT state FROM pgsluice.subscription").await;
        assert_eq!(state.as_deref(), Some("starting"), "{ask} is recorded");
    }
    let service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_drop_ends_the_copies_of_an_owner_that_was_stopped() {
    let world = builder().servers(Servers::Separate).start().await;
    let blocker = world.target.session().await;
    blocker.batch("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut service = world.run();
    let copies = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{} copy' AND wait_event_type = 'Lock'",
        world.subscription
    );
    until("the copy waits", async || world.target.value(&copies).await.as_deref() == Some("1")).await;
    service.signal(Signal::Freeze);
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgsluice {}'",
        world.subscription
    );
    world.target.exec(&end).await;
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    assert_eq!(world.target.lines("SELECT roname FROM pg_replication_origin").await, Vec::<String>::new());
    assert_eq!(world.target.value(&copies).await.as_deref(), Some("0"));
    let slots = "SELECT slot_name FROM pg_replication_slots";
    assert_eq!(world.publisher.lines(slots).await, Vec::<String>::new());
    blocker.batch("COMMIT").await.unwrap();
    service.signal(Signal::Thaw);
    until("it has heard", async || service.log().contains("dropped while standing by")).await;
    assert_eq!(service.sigterm().await, 0);
    assert_eq!(world.target.value("SELECT count(*) FROM t").await.as_deref(), Some("0"));
}

/// The exit code of a `drop` with this failpoint, and what it said.
async fn dropped_with(world: &World, failpoint: &str) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::from(cli::executable());
    command.arg("--config").arg(&world.config).args(["drop", &world.subscription]).kill_on_drop(true);
    command.env("FAILPOINTS", failpoint);
    let output = tokio::time::timeout(Duration::from_mins(1), command.output()).await.unwrap().unwrap();
    (output.status.code(), format!("{output:?}"))
}

/// `drop` that is killed at this place.
async fn drop_dies(world: &World, boundary: &str) {
    let (code, said) = dropped_with(world, &format!("{boundary}=1*return(crash)")).await;
    assert_eq!(code, None, "{said}");
}

/// A `drop` holds the lock without a sign of life, and is no silent owner.
#[tokio::test]
async fn a_drop_that_takes_long_is_left_alone() {
    let world = builder().start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let (code, said) = dropped_with(&world, "drop::slot::before=1*sleep(7000)").await;
    assert_eq!(code, Some(0), "{said}");
    let log = service.log();
    assert!(!log.contains("shown no sign of life") && !log.contains("is carried on"), "{log}");
    assert_eq!(service.sigterm().await, 0);
}

/// But not for ever: one that hangs is ended, and its work is finished.
#[tokio::test]
async fn a_drop_that_hangs_is_finished_by_the_service() {
    let world = builder().start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let mut command = tokio::process::Command::from(cli::executable());
    command.arg("--config").arg(&world.config).args(["drop", &world.subscription]).kill_on_drop(true);
    command.env("FAILPOINTS", "drop::slot::before=1*sleep(120000)");
    let hangs = command.spawn().unwrap();
    until_within(Duration::from_mins(1), "it is dropped", async || {
        let log = service.log();
        log.contains("dropped while standing by").then_some(()).ok_or(log)
    })
    .await;
    assert!(service.log().contains("a drop that was begun is carried on"), "{}", service.log());
    assert_eq!(world.target.value("SELECT count(*) FROM pgsluice.subscription").await.as_deref(), Some("0"));
    assert_eq!(
        world.publisher.lines("SELECT slot_name FROM pg_replication_slots").await,
        Vec::<String>::new()
    );
    drop(hangs);
    assert_eq!(service.sigterm().await, 0);
}

/// Nobody is left to drop it, and nothing has been removed.
#[tokio::test]
async fn a_drop_that_dies_before_it_has_begun_changes_nothing() {
    let world = builder().start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    drop_dies(&world, "drop::begin::before").await;
    world.publisher.exec("INSERT INTO t VALUES (1000, 'after')").await;
    world.wait_same_rows("t").await;
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
}

/// The slot may be gone, so that there is no way back.
#[tokio::test]
async fn a_drop_that_dies_half_way_is_finished_by_the_service() {
    for boundary in ["drop::begin::after", "drop::slot::after"] {
        let world = builder().start().await;
        let service = world.run();
        world.wait_state("streaming").await;
        drop_dies(&world, boundary).await;
        until("it is dropped", async || {
            let log = service.log();
            log.contains("dropped while standing by").then_some(()).ok_or(log)
        })
        .await;
        assert_eq!(
            world.target.value("SELECT count(*) FROM pgsluice.subscription").await.as_deref(),
            Some("0")
        );
        assert_eq!(
            world.target.lines("SELECT roname FROM pg_replication_origin").await,
            Vec::<String>::new()
        );
        assert_eq!(
            world.publisher.lines("SELECT slot_name FROM pg_replication_slots").await,
            Vec::<String>::new()
        );
        assert_eq!(service.sigterm().await, 0);
    }
}

#[tokio::test]
async fn a_drop_that_nobody_waits_for_is_not_obeyed() {
    let world = builder().start().await;
    world.take_up().await;
    leave(&world, "drop", "NULL", "1 minute").await;
    let service = world.run();
    assert_eq!(answers(&world).await, ["drop|f|whoever was to drop the subscription no longer waits"]);
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (1000, 'after')").await;
    world.wait_same_rows("t").await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_standby_that_began_before_the_subscription_was_known_does_not_make_it_anew() {
    let world = builder().start().await;
    world.pgsluice(&["migrate"]).await.expect(0);
    let key = pgsluice::pg::lock_key(&world.subscription);
    let holder = world.target.session().await;
    holder.batch(&format!("SELECT pg_advisory_lock({key})")).await.unwrap();
    let services = [world.run(), world.run()];
    for service in &services {
        wait_standby(service).await;
    }
    holder.batch("SELECT pg_advisory_unlock_all()").await.unwrap();
    world.wait_state("streaming").await;
    world.wait_same_rows("t").await;
    let owner = "SELECT instance FROM pgsluice.subscription";
    let owner = world.target.value(owner).await.unwrap();
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    let standby = services.iter().find(|service| !owner.contains(&service.pid().to_string())).unwrap();
    // On a busy machine it may have taken the subscription over just before, and has then let go of it.
    let heard = ["dropped while standing by", "subscription let go"];
    until("the standby has heard", async || heard.iter().any(|text| standby.log().contains(text))).await;
    assert_eq!(world.target.value("SELECT count(*) FROM pgsluice.subscription").await.as_deref(), Some("0"));
    let slots = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{}'", world.subscription);
    assert_eq!(world.publisher.value(&slots).await, None);
    for service in services {
        assert_eq!(service.sigterm().await, 0);
    }
}
