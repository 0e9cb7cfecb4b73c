//! What an operator does with a running service: ask, pause, stop, reload, drop; and a second instance
//! that stands by.

use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::demo::cluster::StopMode;
use pgsluice::demo::process::Signal;

use crate::support::cli::{self, Outcome};
use crate::support::database::Database;
use crate::support::service::Service;
use crate::support::wait::{until, until_within};
use crate::support::world::{Builder, PUBLISHER_ROLE, Servers, World, conninfo};

const TABLE: &str = "CREATE TABLE item (id int PRIMARY KEY, note text)";
/// Bound for a stop, a takeover, and a pause of a blocked apply.
const SECONDS: Duration = Duration::from_secs(10);
/// Time for a command to reach the service and be answered, seconds.
const ANSWER_SECONDS: f64 = 1.0;
/// Bound for the slowest command on a machine that is busy with other tests, seconds.
const ANSWER_SECONDS_MAX: f64 = 5.0;

fn world() -> Builder {
    World::builder().both_sql(TABLE)
}

async fn insert(world: &World, id: i32) {
    world.publisher.exec(format!("INSERT INTO item VALUES ({id}, 'row {id}')")).await;
}

async fn wait_row(world: &World, id: i32) {
    let sql = format!("SELECT 1 FROM item WHERE id = {id}");
    until(&format!("row {id} is in the target"), async || world.target.value(&sql).await).await;
}

async fn command(world: &World, verb: &str) -> Outcome {
    world.pgsluice(&[verb, &world.subscription]).await
}

/// Returns the median and the longest time until commands were answered, as the target recorded it, in
/// seconds.
async fn answers(world: &World) -> (f64, f64) {
    let sql = "SELECT percentile_cont(ARRAY[0.5, 1.0]) WITHIN GROUP (ORDER BY extract(epoch FROM done_at - created_at)) \
               FROM pgsluice.command";
    let text = world.target.value(sql).await.unwrap();
    let (median, slowest) = text.trim_matches(['{', '}']).split_once(',').unwrap();
    (median.parse().unwrap(), slowest.parse().unwrap())
}

/// Opens a session that locks the table.
async fn locked(database: &Database) -> Session {
    let session = database.session().await;
    session.batch("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE").await.unwrap();
    session
}

/// Waits until a session of pgsluice waits for a lock in the target.
async fn wait_blocked(world: &World) {
    let sql = "SELECT pid FROM pg_stat_activity WHERE usename = 'pgsluice_apply' \
               AND wait_event_type = 'Lock' AND wait_event = 'relation'";
    until("pgsluice waits for a lock", async || world.target.value(sql).await).await;
}

#[tokio::test]
async fn commands_are_answered_within_a_second_whatever_is_under_way() {
    let world = world().start().await;
    let service = world.run();
    world.wait_state("streaming").await;

    let paused = command(&world, "pause").await.expect(0);
    assert!(paused.stdout.contains("paused"), "{paused:#?}");
    world.wait_paused("operator").await;
    insert(&world, 1).await;
    let resumed = command(&world, "resume").await.expect(0);
    assert!(resumed.stdout.contains("goes on"), "{resumed:#?}");
    wait_row(&world, 1).await;
    let again = command(&world, "resume").await.expect(0);
    assert!(again.stdout.contains("running already"), "{again:#?}");

    // During a large transaction, nothing of it stays, and all of it is applied later.
    world.publisher.exec("INSERT INTO item SELECT n, 'large' FROM generate_series(1000, 60999) n").await;
    let open = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pgsluice%' \
                AND backend_xid IS NOT NULL AND query SIMILAR TO '(INSERT INTO|COPY) %item%'";
    until("the large transaction is being applied", async || world.target.value(open).await).await;
    command(&world, "pause").await.expect(0);
    world.wait_paused("operator").await;
    until("its target transaction has ended", async || world.target.value(open).await.is_none()).await;
    // The transaction may have been applied before the pause; then all of it is there.
    let rows = world.target.value("SELECT count(*) FROM item").await.unwrap();
    assert!(["1", "60001"].contains(&rows.as_str()), "{rows} rows");
    command(&world, "resume").await.expect(0);
    world.wait_same_rows("item").await;

    // A wait for another session's lock is cancelled.
    let blocker = locked(&world.target).await;
    insert(&world, 2).await;
    wait_blocked(&world).await;
    let asked = Instant::now();
    command(&world, "pause").await.expect(0);
    until_within(SECONDS, "the pause is reported", async || {
        let view = world.status().await?;
        if view.state == "paused" && view.json["running"] == true {
            Ok(())
        } else {
            Err(format!("{:#}", view.json))
        }
    })
    .await;
    assert!(asked.elapsed() < SECONDS, "{:?}", asked.elapsed());
    let waiting =
        "SELECT 1 FROM pg_stat_activity WHERE usename = 'pgsluice_apply' AND wait_event_type = 'Lock'";
    assert_eq!(world.target.value(waiting).await, None, "nobody waits for the lock any more");
    command(&world, "resume").await.expect(0);
    wait_blocked(&world).await;
    blocker.batch("COMMIT").await.unwrap();
    wait_row(&world, 2).await;
    world.assert_same_rows("item").await;

    let (median, slowest) = answers(&world).await;
    println!("answers: median {median:.3} s, slowest {slowest:.3} s");
    assert!(
        median < ANSWER_SECONDS && slowest < ANSWER_SECONDS_MAX,
        "median {median} s, slowest {slowest} s"
    );
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn an_operators_pause_outlives_restarts_and_precedes_the_first_run() {
    let world = world().publisher_sql("INSERT INTO item VALUES (1, 'there before')").start().await;
    let unready = command(&world, "pause").await.expect(1);
    assert!(unready.stderr.contains("pgsluice migrate"), "{unready:#?}");
    let first = world.pgsluice(&["migrate"]).await.expect(0);
    assert!(first.stdout.contains("applied 0001"), "{first:#?}");
    let second = world.pgsluice(&["migrate"]).await.expect(0);
    assert!(second.stdout.contains("was already at version"), "{second:#?}");

    // The subscription has never run.
    let recorded = command(&world, "pause").await.expect(0);
    assert!(recorded.stdout.contains("no service runs the subscription"), "{recorded:#?}");
    let service = world.run();
    let view = world.wait_paused("operator").await;
    assert!(view.told().contains("pgsluice resume"), "{:#}", view.json);
    assert_eq!(world.target.value("SELECT count(*) FROM item").await.as_deref(), Some("0"));
    assert_eq!(
        world.publisher.value("SELECT count(*) FROM pg_replication_slots").await.as_deref(),
        Some("0")
    );

    // After a clean stop and after a kill it is still paused, also while no service runs.
    assert_eq!(service.sigterm().await, 0);
    let view = world.wait_paused("operator").await;
    assert_eq!(view.json["running"], false, "{:#}", view.json);
    world.run().kill9().await;
    let service = world.run();
    until("it is paused and running", async || {
        let view = world.status().await?;
        if view.state == "paused" && view.json["running"] == true {
            Ok(())
        } else {
            Err(format!("{:#}", view.json))
        }
    })
    .await;
    assert_eq!(service.sigterm().await, 0);

    // The command is recorded while no service runs.
    command(&world, "resume").await.expect(0);
    let service = world.run();
    world.wait_state("streaming").await;
    world.assert_same_rows("item").await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn status_has_every_field_of_the_contract_in_every_state() {
    let world = world()
        .servers(Servers::Separate)
        .publisher_sql("INSERT INTO item SELECT n, 'x' FROM generate_series(1, 500) n")
        .start()
        .await;
    let never = document(&world, 1).await;
    assert_eq!((&never["state"], &never["reason"]), (&"starting".into(), &"not_running".into()), "{never:#}");

    let blocker = locked(&world.target).await;
    let service = world.run();
    let copying = world.wait_state("copying").await;
    assert_eq!(copying.json["tables"][0]["state"], "copying", "{:#}", copying.json);
    document(&world, 0).await;
    blocker.batch("COMMIT").await.unwrap();

    world.wait_state("streaming").await;
    let streaming = until("positions are known", async || {
        let document = document(&world, 0).await;
        let known = ["received_lsn", "applied_lsn", "flushed_lsn", "publisher_lsn"];
        let known = known.iter().all(|lsn| document[lsn].as_str().is_some_and(|text| text.contains('/')));
        if known && document["lag_bytes"].is_u64() { Ok(document) } else { Err(format!("{document:#}")) }
    })
    .await;
    assert!(streaming["lag_bytes"].is_u64() && streaming["lag_seconds"].is_number(), "{streaming:#}");
    assert_eq!(streaming["slot"]["wal_status"], "reserved", "{streaming:#}");
    assert!(streaming["slot"]["retained_bytes"].is_u64(), "{streaming:#}");
    assert_eq!(streaming["reason"], serde_json::Value::Null, "{streaming:#}");
    let table = &streaming["tables"][0];
    assert_eq!((&table["state"], &table["rows_copied"]), (&"ready".into(), &500.into()), "{streaming:#}");

    // The publisher sees the subscription's name, so waiting for its position works there.
    let name = &world.subscription;
    world.publisher.exec(format!("ALTER SYSTEM SET synchronous_standby_names = '\"{name}\"'")).await;
    world.publisher.exec("SELECT pg_reload_conf()").await;
    let sync = "SELECT sync_state FROM pg_stat_replication WHERE application_name <> ''";
    until("it is a synchronous standby", async || {
        world.publisher.value(sync).await.as_deref() == Some("sync")
    })
    .await;
    let session = world.publisher.session().await;
    session.batch("SET synchronous_commit = remote_apply").await.unwrap();
    session.batch("INSERT INTO item VALUES (501, 'waited for')").await.unwrap();
    assert_eq!(
        world.target.value("SELECT note FROM item WHERE id = 501").await.as_deref(),
        Some("waited for")
    );
    session.close().await;
    world.publisher.exec("ALTER SYSTEM RESET synchronous_standby_names").await;
    world.publisher.exec("SELECT pg_reload_conf()").await;

    command(&world, "pause").await.expect(0);
    world.wait_paused("operator").await;
    let paused = document(&world, 1).await;
    assert!(paused["hint"].as_str().is_some_and(|hint| hint.contains("resume")), "{paused:#}");
    command(&world, "resume").await.expect(0);
    world.wait_state("streaming").await;

    assert_eq!(service.sigterm().await, 0);
    let stopped = document(&world, 1).await;
    assert_eq!(stopped["reason"], "not_running", "{stopped:#}");
    assert!(stopped["lag_bytes"].is_null() && stopped["applied_lsn"].is_string(), "{stopped:#}");
    let text = command(&world, "status").await.expect(1);
    assert!(text.stdout.contains("not_running") && text.stdout.contains("pgsluice run"), "{text:#?}");
}

/// Returns the subscription in `status NAME --json` after checking its fields and the exit code.
async fn document(world: &World, code: i32) -> serde_json::Value {
    const FIELDS: [&str; 15] = [
        "name",
        "state",
        "reason",
        "detail",
        "hint",
        "received_lsn",
        "applied_lsn",
        "flushed_lsn",
        "publisher_lsn",
        "lag_bytes",
        "lag_seconds",
        "slot",
        "tables",
        "gaps",
        "conflict_id",
    ];
    let document = world.pgsluice(&["status", &world.subscription, "--json"]).await.expect(code).json();
    let subscription = document["subscriptions"][0].clone();
    for field in FIELDS {
        assert!(subscription.get(field).is_some(), "{field} is missing: {subscription:#}");
    }
    for field in ["wal_status", "retained_bytes"] {
        assert!(subscription["slot"].get(field).is_some(), "slot.{field} is missing: {subscription:#}");
    }
    for table in subscription["tables"].as_array().unwrap() {
        for field in ["source", "target", "state", "rows_copied", "rows_estimated"] {
            assert!(table.get(field).is_some(), "tables.{field} is missing: {subscription:#}");
        }
    }
    subscription
}

#[tokio::test]
async fn exit_codes_tell_usage_from_a_no_from_an_unreachable_server() {
    let world = world().start().await;
    world.pgsluice(&["migrate"]).await.expect(0);
    let name = world.subscription.as_str();
    let of = |name: &'static str| -> Vec<Vec<&'static str>> {
        vec![
            vec!["status", name],
            vec!["status", name, "--json"],
            vec!["pause", name],
            vec!["resume", name],
            vec!["skip", name, "--lsn", "0/1234"],
            vec!["drop", name],
        ]
    };
    for arguments in of("nobody") {
        let outcome = world.pgsluice(&arguments).await.expect(2);
        assert!(outcome.stderr.contains("nobody") && outcome.stderr.contains("hint:"), "{outcome:#?}");
        assert_eq!(outcome.stdout, "", "{arguments:?}");
    }
    for arguments in [vec!["conflicts", "show", "7"], vec!["conflicts", "resolve", "7", "--with", "retry"]] {
        world.pgsluice(&arguments).await.expect(2);
    }
    world.pgsluice(&["conflicts"]).await.expect(0);
    world.pgsluice(&["status"]).await.expect(1);
    let never = world.pgsluice(&["drop", name]).await.expect(1);
    assert!(never.stderr.contains("never run"), "{never:#?}");
    for arguments in [vec!["statsu"], vec!["pause"], vec!["skip", name, "--lsn", "here"]] {
        world.pgsluice(&arguments).await.expect(2);
    }

    let broken = world.dir().join("broken.toml");
    std::fs::write(&broken, "[target]\nurl = 5\n[[subscriptions]]\nnmae = \"x\"\n").unwrap();
    for arguments in [vec!["run"], vec!["status"], vec!["migrate"]] {
        let outcome = cli::run(&broken, &arguments).await.expect(2);
        assert!(outcome.stderr.contains("nmae"), "{outcome:#?}");
    }
    cli::run(&world.dir().join("absent.toml"), &["status"]).await.expect(2);

    // No server listens on port 1.
    let text = std::fs::read_to_string(&world.config).unwrap();
    let port = format!("port={}", world.target.port);
    let away = world.dir().join("away.toml");
    std::fs::write(&away, text.replace(&port, "port=1")).unwrap();
    let mut all = of("nobody");
    all.extend([vec!["migrate"], vec!["conflicts"], vec!["conflicts", "show", "7"]]);
    for arguments in all {
        let outcome = cli::run(&away, &arguments).await.expect(3);
        assert!(outcome.stderr.contains("could not be reached"), "{outcome:#?}");
        assert!(!outcome.stderr.contains("pa'ss"), "the password is shown: {outcome:#?}");
    }
}

#[tokio::test]
async fn a_skip_passes_over_exactly_the_transaction_that_finishes_there() {
    let world = world().start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    insert(&world, 1).await;
    world.wait_caught_up().await;
    let past = world.status().await.unwrap().json["applied_lsn"].as_str().unwrap().to_owned();
    let refused = world.pgsluice(&["skip", &world.subscription, "--lsn", &past]).await.expect(1);
    assert!(refused.stderr.contains("has been applied already"), "{refused:#?}");

    // The skip comes ahead of time: the finish LSN is read from the WAL before the service receives it.
    command(&world, "pause").await.expect(0);
    world.wait_paused("operator").await;
    insert(&world, 2).await;
    let finish = last_commit(&world).await;
    insert(&world, 3).await;
    let armed = world.pgsluice(&["skip", &world.subscription, "--lsn", &finish]).await.expect(0);
    assert!(armed.stdout.contains("passed over"), "{armed:#?}");
    assert_eq!(world.status().await.unwrap().json["skip_lsn"], finish.as_str());
    world.wait_paused("operator").await;
    command(&world, "resume").await.expect(0);
    wait_row(&world, 3).await;
    world.wait_caught_up().await;
    assert_eq!(world.target.lines("SELECT id FROM item ORDER BY id").await, ["1", "3"]);
    assert!(world.status().await.unwrap().json["skip_lsn"].is_null(), "a skip is spent once");
    // The skip is used up, and its position has been passed.
    world.pgsluice(&["skip", &world.subscription, "--lsn", &finish]).await.expect(1);
    assert_eq!(service.sigterm().await, 0);
}

/// Returns the position at which the publisher's last committed transaction finishes, as a second slot
/// decodes it.
async fn last_commit(world: &World) -> String {
    let slot = &world.subscription;
    let sql = format!(
        "SELECT lsn FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, 'proto_version', '1', \
         'publication_names', 'my_publication') WHERE get_byte(data, 0) = ascii('C') ORDER BY lsn DESC LIMIT 1"
    );
    // The paused service holds its slot and has to release it for a moment.
    world.publisher.exec(format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
    )).await;
    let free = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT active");
    until("the slot is free", async || world.publisher.value(&free).await).await;
    // The position of the message is the commit record's end; the message itself contains its start.
    let data = sql.replacen("SELECT lsn", "SELECT encode(substring(data FROM 3 FOR 8), 'hex')", 1);
    let hex = world.publisher.value(&data).await.unwrap();
    let high = u32::from_str_radix(&hex[..8], 16).unwrap();
    let low = u32::from_str_radix(&hex[8..], 16).unwrap();
    format!("{high:X}/{low:X}")
}

#[tokio::test]
async fn a_drop_removes_slot_and_state_and_everything_starts_over() {
    let world = world().publisher_sql("INSERT INTO item VALUES (1, 'there before')").start().await;
    let service = world.run();
    world.wait_state("streaming").await;
    let standby = world.run();
    until("the second instance stands by", async || standby.log().contains("standby")).await;

    // A drop that cannot reach the publisher changes nothing.
    let text = std::fs::read_to_string(&world.config).unwrap();
    let publisher = conninfo(&world.publisher, PUBLISHER_ROLE);
    let elsewhere = world.dir().join("elsewhere.toml");
    let port = format!("port={} user={PUBLISHER_ROLE}", world.publisher.port);
    assert!(publisher.contains(&port));
    std::fs::write(&elsewhere, text.replace(&port, &format!("port=1 user={PUBLISHER_ROLE}"))).unwrap();
    cli::run(&elsewhere, &["drop", &world.subscription]).await.expect(3);
    insert(&world, 2).await;
    wait_row(&world, 2).await;

    let dropped = command(&world, "drop").await.expect(0);
    assert!(dropped.stdout.contains("rows stay"), "{dropped:#?}");
    assert_gone(&world).await;
    // No instance creates the subscription again by itself, because the target still has its rows.
    until("the second instance has let go, too", async || standby.log().contains("subscription let go"))
        .await;
    assert_gone(&world).await;
    command(&world, "drop").await.expect(1);
    assert_eq!(service.sigterm().await, 0);
    assert_eq!(standby.sigterm().await, 0);

    world.target.exec("TRUNCATE item").await;
    let service = world.run();
    world.wait_state("streaming").await;
    world.wait_same_rows("item").await;
    assert_eq!(service.sigterm().await, 0);

    // The drop works without a running service.
    command(&world, "drop").await.expect(0);
    assert_gone(&world).await;
}

async fn assert_gone(world: &World) {
    assert_eq!(
        world.publisher.value("SELECT count(*) FROM pg_replication_slots").await.as_deref(),
        Some("0")
    );
    for table in ["subscription", "progress", "table_sync", "conflict", "command"] {
        let sql = format!("SELECT count(*) FROM pgsluice.{table}");
        assert_eq!(world.target.value(&sql).await.as_deref(), Some("0"), "{table}");
    }
    assert_ne!(world.target.value("SELECT count(*) FROM item").await.as_deref(), Some("0"), "the rows stay");
}

async fn stops_cleanly(service: Service, doing: &str) {
    let asked = Instant::now();
    assert_eq!(service.sigterm().await, 0, "while {doing}");
    let took = asked.elapsed();
    println!("stopped while {doing}: {took:?}");
    assert!(took < SECONDS, "a stop while {doing} took {took:?}");
}

#[tokio::test]
async fn a_stop_is_clean_and_quick_in_every_state() {
    let mut world = world()
        .servers(Servers::Separate)
        .publisher_sql("INSERT INTO item VALUES (1, 'there before')")
        .start()
        .await;
    // While the target is down, only the log can report anything.
    world.target_server().stop(StopMode::Fast).await.unwrap();
    let service = world.run();
    until("it says what it waits for", async || service.log().contains("waiting for the target")).await;
    stops_cleanly(service, "the target is away").await;
    world.target_server().launch().await.unwrap();

    let blocker = locked(&world.target).await;
    let service = world.run();
    world.wait_state("copying").await;
    wait_blocked(&world).await;
    stops_cleanly(service, "copying").await;
    // The slot exists now: the stream goes on without the table, which is copied at the same time.
    let service = world.run();
    until("it streams", async || service.log().contains("streaming")).await;
    wait_blocked(&world).await;
    stops_cleanly(service, "copying again").await;
    blocker.batch("COMMIT").await.unwrap();
    blocker.close().await;

    let service = world.run();
    wait_row(&world, 1).await;
    world.wait_state("streaming").await;
    let standby = world.run();
    until("the second instance stands by", async || standby.log().contains("standby")).await;
    stops_cleanly(standby, "standing by").await;
    stops_cleanly(service, "streaming").await;

    // During a transaction that waits for a lock, the next instance need not wait for that.
    let blocker = locked(&world.target).await;
    let service = world.run();
    world.wait_state("streaming").await;
    insert(&world, 2).await;
    wait_blocked(&world).await;
    stops_cleanly(service, "blocked").await;
    let service = world.run();
    wait_blocked(&world).await;
    service.kill9().await;
    let service = world.run();
    wait_blocked(&world).await;
    blocker.batch("COMMIT").await.unwrap();
    blocker.close().await;
    wait_row(&world, 2).await;

    command(&world, "pause").await.expect(0);
    world.wait_paused("operator").await;
    stops_cleanly(service, "paused").await;

    command(&world, "resume").await.expect(0);
    world.publisher_server().stop(StopMode::Fast).await.unwrap();
    let service = world.run();
    let view = world.wait_state("retrying").await;
    assert_eq!(view.reason.as_deref(), Some("port"), "{:#}", view.json);
    stops_cleanly(service, "retrying").await;
    world.publisher_server().launch().await.unwrap();
    let mut service = world.run();
    world.wait_state("streaming").await;
    service.signal(Signal::Interrupt);
    assert_eq!(service.ended().await, 0, "SIGINT is a clean stop as well");
    world.assert_same_rows("item").await;
}

#[tokio::test]
async fn a_reload_adds_changes_and_removes_subscriptions() {
    let world = world()
        .both_sql("CREATE TABLE other (id int PRIMARY KEY)")
        .publisher_sql(
            "CREATE PUBLICATION my_publication FOR TABLE item; CREATE PUBLICATION others FOR TABLE other",
        )
        .start()
        .await;
    let publisher = conninfo(&world.publisher, PUBLISHER_ROLE).replace('\\', "\\\\");
    let first = std::fs::read_to_string(&world.config).unwrap();
    let more = |enabled: bool| {
        format!(
            "{first}\n[[subscriptions]]\nname = \"second\"\npublisher = \"{publisher}\"\npublications = [\"others\"]\n\
             enabled = {enabled}\n"
        )
    };
    let state = async |name: &str| {
        let outcome = world.pgsluice(&["status", "--json"]).await;
        if outcome.stdout.is_empty() {
            // The service has not finished the migration of the target's schema yet.
            return outcome.stderr;
        }
        let view = cli::StateView::of(&outcome.json(), name);
        view.map_or("absent".to_owned(), |view| {
            view.reason.map_or(view.state.clone(), |why| format!("{} {why}", view.state))
        })
    };
    let becomes = async |name: &str, expected: &str| {
        until(&format!("{name} is {expected}"), async || {
            let seen = state(name).await;
            if seen == expected { Ok(()) } else { Err(seen) }
        })
        .await;
    };

    std::fs::write(&world.config, more(false)).unwrap();
    let mut service = world.run();
    becomes(&world.subscription, "streaming").await;
    becomes("second", "disabled").await;
    world.pgsluice(&["status"]).await.expect(0);

    std::fs::write(&world.config, more(true)).unwrap();
    service.signal(Signal::Reload);
    becomes("second", "streaming").await;
    world.publisher.exec("INSERT INTO other VALUES (1)").await;
    world.wait_same_rows("other").await;
    assert_eq!(state(&world.subscription).await, "streaming", "the other one is left alone");

    // A file with a mistake changes nothing.
    std::fs::write(&world.config, "nonsense = 1").unwrap();
    service.signal(Signal::Reload);
    until("it is said", async || service.log().contains("goes on with the old one")).await;
    world.publisher.exec("INSERT INTO other VALUES (2)").await;
    world.wait_same_rows("other").await;

    std::fs::write(&world.config, more(false)).unwrap();
    service.signal(Signal::Reload);
    becomes("second", "disabled").await;
    std::fs::write(&world.config, &first).unwrap();
    service.signal(Signal::Reload);
    until("it is taken over", async || service.log().matches("reloaded").count() >= 3).await;
    insert(&world, 1).await;
    wait_row(&world, 1).await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn a_second_instance_stands_by_and_takes_over() {
    let world = world().publisher_setting("wal_sender_timeout", "3s").start().await;
    let first = world.run();
    world.wait_state("streaming").await;
    let second = world.run();
    until("it says so", async || second.log().contains("standby: another instance applies")).await;
    let view = world.status().await.unwrap();
    assert_eq!(view.state, "streaming", "a standby leaves the status to the owner: {:#}", view.json);
    let owner = |view: &cli::StateView| view.json["instance"].as_str().unwrap_or_default().to_owned();
    assert!(owner(&view).contains(&first.pid().to_string()), "{:#}", view.json);
    insert(&world, 1).await;
    wait_row(&world, 1).await;

    let killed = Instant::now();
    first.kill9().await;
    insert(&world, 2).await;
    wait_row(&world, 2).await;
    println!("took over {:?} after kill -9", killed.elapsed());
    assert!(killed.elapsed() < SECONDS, "{:?}", killed.elapsed());
    let view = world.wait_state("streaming").await;
    assert!(owner(&view).contains(&second.pid().to_string()), "{:#}", view.json);

    // A frozen owner keeps its lock for as long as its connection lives. Once that is gone, another
    // instance applies, and the first one, awake again, notices that before it writes.
    let third = world.run();
    until("it stands by", async || third.log().contains("standby")).await;
    let mut second = second;
    second.signal(Signal::Freeze);
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgsluice%' \
               AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)";
    world.target.exec(end).await;
    insert(&world, 3).await;
    wait_row(&world, 3).await;
    second.signal(Signal::Thaw);
    for id in 4..20 {
        insert(&world, id).await;
    }
    until("the first stands by now", async || second.log().contains("standby")).await;
    world.wait_same_rows("item").await;
    let view = world.wait_state("streaming").await;
    assert!(owner(&view).contains(&third.pid().to_string()), "{:#}", view.json);
    let transactions = "SELECT transactions FROM pgsluice.progress";
    assert_eq!(world.target.value(transactions).await.as_deref(), Some("19"), "none was applied twice");

    // If the connection is lost and no other instance runs, the same one resumes.
    assert_eq!(second.sigterm().await, 0);
    world.target.exec(end).await;
    insert(&world, 20).await;
    wait_row(&world, 20).await;
    assert_eq!(third.sigterm().await, 0);
}
