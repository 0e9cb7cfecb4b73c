//! Time-outs that a role or a database imposes do not reach pgsluice's sessions, and what is called the
//! same in two databases of one cluster stays apart.

use std::time::Duration;

use pgsluice::demo::Session;
use pgsluice::demo::cluster::SUPERUSER;
use pgsluice::pg::quote_ident;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::database::Database;
use crate::support::http;
use crate::support::service::Service;
use crate::support::wait::{until, until_within};
use crate::support::world::{
    PUBLISHER_ROLE, Servers, TARGET_ROLE, World, conninfo, conninfo_through, unique,
};

/// What is imposed, and the first version that knows it. One second is shorter than anything below takes.
const IMPOSED: [(&str, u32); 7] = [
    ("statement_timeout", 10),
    ("lock_timeout", 10),
    ("idle_in_transaction_session_timeout", 10),
    ("tcp_user_timeout", 12),
    ("wal_sender_timeout", 12),
    ("idle_session_timeout", 14),
    ("transaction_timeout", 17),
];
const LIMIT: &str = "1s";
/// Longer than the limit, by some.
const LONGER: Duration = Duration::from_millis(1800);

/// Takes half a second for every 100 rows, in which the publisher's session cannot send either.
const SLOWLY: &str = "\
    CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    IF NEW.id % 100 = 0 THEN PERFORM pg_sleep(0.5); END IF; RETURN NEW; END $$; \
    CREATE TRIGGER slowly BEFORE INSERT ON first FOR EACH ROW EXECUTE FUNCTION slowly(); \
    ALTER TABLE first ENABLE ALWAYS TRIGGER slowly; \
    CREATE TRIGGER slowly BEFORE INSERT ON joining FOR EACH ROW EXECUTE FUNCTION slowly(); \
    ALTER TABLE joining ENABLE ALWAYS TRIGGER slowly";
/// Without keys: a row that is applied twice shows.
const TABLES: &str = "\
    CREATE TABLE first (id int, note text); ALTER TABLE first REPLICA IDENTITY FULL; \
    CREATE TABLE joining (id int, note text); ALTER TABLE joining REPLICA IDENTITY FULL";
const ROWS: &str = "\
    INSERT INTO first SELECT n, repeat('x', 5000) FROM generate_series(1, 500) n; \
    INSERT INTO joining SELECT n, repeat('x', 5000) FROM generate_series(1, 400) n; \
    CREATE PUBLICATION my_publication FOR TABLE first";

/// Whose time-outs they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Imposed {
    OnRole,
    OnDatabase,
}

async fn impose(database: &Database, role: &str, by: Imposed) {
    let version = database.value("SHOW server_version_num").await.unwrap().parse::<u32>().unwrap() / 10_000;
    for (name, _) in IMPOSED.iter().filter(|(_, since)| version >= *since) {
        let whom = match by {
            Imposed::OnRole => format!("ROLE {}", quote_ident(role)),
            Imposed::OnDatabase => format!("DATABASE {}", quote_ident(&database.name)),
        };
        // The test's own sessions wait as well.
        let sql = format!(
            "ALTER {whom} SET {name} = '{LIMIT}'; ALTER ROLE {SUPERUSER} IN DATABASE {} SET {name} = 0",
            quote_ident(&database.name)
        );
        database.exec(sql).await;
    }
    let session = Session::connect(&conninfo(database, role)).await.unwrap();
    let shown = session.rows("SHOW idle_in_transaction_session_timeout").await.unwrap();
    assert_eq!(shown[0][0].as_deref(), Some(LIMIT), "other sessions have the limit");
}

async fn reconnects(service: &Service) -> String {
    let page = http::get(service.http_port, "/metrics").await.unwrap().body;
    let lines: Vec<&str> =
        page.lines().filter(|line| line.starts_with("pgsluice_reconnects_total")).collect();
    lines.join("\n")
}

/// What a server has logged of time-outs and of sessions that it ended.
fn ended(log: &str) -> Vec<&str> {
    let tells = ["timeout", "timed out", "terminating", "canceling"];
    // The statements that impose them, and that lift them, are not it.
    let told = |line: &&str| !line.contains("STATEMENT") && !line.contains("statement:");
    log.lines().filter(told).filter(|line| tells.iter().any(|tell| line.contains(tell))).collect()
}

async fn nothing_reaches_a_session(by: Imposed) {
    let mut world = World::builder()
        .servers(Servers::Separate)
        .both_sql(TABLES)
        .publisher_sql(ROWS)
        .target_sql(SLOWLY)
        .subscription_line("auto_refresh = true")
        .start()
        .await;
    impose(&world.publisher, PUBLISHER_ROLE, by).await;
    impose(&world.target, TARGET_ROLE, by).await;
    // The copy waits for a lock on both sides, and then for the target's trigger.
    let lock = "BEGIN; LOCK TABLE first";
    let (on_publisher, on_target) = (world.publisher.session().await, world.target.session().await);
    on_target.batch(lock).await.unwrap();
    let service = world.run();
    until("the copy waits for the target's lock", async || waiting(&world.target).await).await;
    // Not synchronisation: what is tested is that time passes.
    tokio::time::sleep(LONGER).await;
    on_target.batch("COMMIT").await.unwrap();
    world.wait_state("streaming").await;
    world.wait_same_rows("first").await;
    let before = reconnects(&service).await;
    // It streams, waits for a lock, and idles.
    on_target.batch(lock).await.unwrap();
    world.publisher.exec("INSERT INTO first VALUES (1, 'streamed'); DELETE FROM first WHERE id = 2").await;
    until("a change waits for the target's lock", async || waiting(&world.target).await).await;
    tokio::time::sleep(LONGER).await;
    on_target.batch("COMMIT").await.unwrap();
    world.wait_same_rows("first").await;
    tokio::time::sleep(LONGER).await;
    // It is held, and goes on.
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    world.wait_paused("operator").await;
    world.publisher.exec("INSERT INTO first VALUES (3, 'while paused')").await;
    tokio::time::sleep(LONGER).await;
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    world.wait_same_rows("first").await;
    // A table joins: its copy waits for a lock of the publisher, and for the target.
    let add = "BEGIN; ALTER PUBLICATION my_publication ADD TABLE joining; COMMIT; BEGIN; LOCK TABLE joining";
    on_publisher.batch(add).await.unwrap();
    until("the joining table waits for its lock", async || waiting(&world.publisher).await).await;
    tokio::time::sleep(LONGER).await;
    on_publisher.batch("COMMIT").await.unwrap();
    world.wait_same_rows("joining").await;
    world
        .publisher
        .exec("INSERT INTO joining VALUES (1, 'streamed'); INSERT INTO first VALUES (5, 'a')")
        .await;
    world.wait_same_rows("joining").await;
    world.wait_same_rows("first").await;
    assert_eq!(reconnects(&service).await, before, "{by:?}");
    let log = service.log();
    let lost: Vec<&str> = worried(&log);
    assert_eq!(lost, [""; 0], "{by:?}");
    assert_eq!(service.sigterm().await, 0);
    let logs = [world.publisher_server().log().unwrap(), world.target_server().log().unwrap()];
    for log in &logs {
        assert_eq!(ended(log), [""; 0], "{by:?}");
    }
}

/// What a service has logged that it would not log if all went well. Tables without a key are meant to be.
fn worried(log: &str) -> Vec<&str> {
    let worry = |line: &&str| line.contains(" WARN ") || line.contains("lost");
    log.lines().filter(worry).filter(|line| !line.contains("reads the whole table")).collect()
}

/// Whether a session of pgsluice's waits for a lock.
async fn waiting(database: &Database) -> Result<(), String> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let count = database.value(sql).await.unwrap();
    if count == "0" { Err("nobody waits".to_owned()) } else { Ok(()) }
}

#[tokio::test]
async fn time_outs_of_the_roles_do_not_reach_any_session() {
    nothing_reaches_a_session(Imposed::OnRole).await;
}

#[tokio::test]
async fn time_outs_of_the_databases_do_not_reach_any_session() {
    nothing_reaches_a_session(Imposed::OnDatabase).await;
}

/// Forwards to a server, and changes one setting on the way as a connection pooler might.
async fn meddling_proxy(to: u16) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            connections.spawn(async move {
                let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
            });
            connections.spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                    meddle(&mut buffer[..read]);
                    to_server.write_all(&buffer[..read]).await.unwrap();
                }
            });
        }
    });
    (port, tasks)
}

fn meddle(bytes: &mut [u8]) {
    const SET: &[u8] = b"SET idle_in_transaction_session_timeout = 0";
    let places: Vec<usize> =
        (0..bytes.len().saturating_sub(SET.len())).filter(|&at| bytes[at..].starts_with(SET)).collect();
    for at in places {
        bytes[at + SET.len() - 1] = b'7';
    }
}

#[tokio::test]
async fn what_cannot_be_lifted_is_told_by_check() {
    let world = World::builder().both_sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    let (port, _tasks) = meddling_proxy(world.publisher.port).await;
    let config = std::fs::read_to_string(&world.config).unwrap();
    let ways = [(&world.publisher, PUBLISHER_ROLE), (&world.target, TARGET_ROLE)];
    let changed = ways.iter().fold(config.clone(), |config, (database, role)| {
        let quoted = |text: String| text.replace('\\', "\\\\").replace('"', "\\\"");
        config.replace(&quoted(conninfo(database, role)), &quoted(conninfo_through(database, role, port)))
    });
    assert_ne!(changed, config);
    std::fs::write(&world.config, changed).unwrap();
    let checked = world.pgsluice(&["check", "--json"]).await.expect(0).json();
    let steps = checked["subscriptions"][0]["steps"].as_array().unwrap().clone();
    let told: Vec<String> = steps
        .iter()
        .filter(|step| step["status"] == "warning")
        .map(|step| {
            let part = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
            [part("step"), part("primary"), part("detail"), part("hint")].join("\n")
        })
        .collect();
    insta::assert_snapshot!(told.join("\n\n"), @r#"
    database
    sessions on the publisher cannot lift idle_in_transaction_session_timeout
    there, idle_in_transaction_session_timeout = 7 ms after the session has set it otherwise; pgsluice's sessions or statements end by it
    connect to the server itself rather than through a connection pooler, which may not pass settings on; or, on the publisher: ALTER ROLE "sammy" SET idle_in_transaction_session_timeout = 0;

    target
    sessions on the target cannot lift idle_in_transaction_session_timeout
    there, idle_in_transaction_session_timeout = 7 ms after the session has set it otherwise; pgsluice's sessions or statements end by it
    connect to the server itself rather than through a connection pooler, which may not pass settings on; or, on the target: ALTER ROLE "pgsluice_apply" SET idle_in_transaction_session_timeout = 0;
    "#);
}

#[tokio::test]
async fn one_name_in_two_databases_of_a_cluster_is_two_subscriptions() {
    let table = "CREATE TABLE t (id int, note text); ALTER TABLE t REPLICA IDENTITY FULL";
    let mut world =
        World::builder().both_sql(table).publisher_sql("INSERT INTO t VALUES (1, 'a')").start().await;
    let other = Database::create(world.target_server(), &unique("other")).await;
    other.exec(table).await;
    let target = quote_ident(&other.name);
    other
        .exec(format!(
            "GRANT CREATE, CONNECT ON DATABASE {target} TO {TARGET_ROLE}; \
             GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON t TO {TARGET_ROLE}"
        ))
        .await;
    grant_origins(&other).await;
    let config = std::fs::read_to_string(&world.config).unwrap();
    let second = config.replace(&format!("dbname={}", world.target.name), &format!("dbname={}", other.name))
        + "slot = \"second\"\n";
    let path = world.dir().join("second.toml");
    std::fs::write(&path, second).unwrap();
    let first = world.run();
    world.wait_state("streaming").await;
    let second = Service::start(&path, world.dir().join("second.log"), &[]);
    let rows = async |database: &Database| database.lines("SELECT id, note FROM t ORDER BY id").await;
    until("the second one has its rows", async || rows(&other).await == ["1|a"]).await;
    for id in 2..5 {
        world.publisher.exec(format!("INSERT INTO t VALUES ({id}, 'b')")).await;
        until_within(Duration::from_secs(20), "both have the row", async || {
            let expected = rows(&world.publisher).await;
            let seen = [rows(&world.target).await, rows(&other).await];
            if seen.iter().all(|seen| *seen == expected) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
    for service in [&first, &second] {
        assert!(!service.log().contains("55006"), "they fight over an origin");
        assert_eq!(worried(&service.log()), [""; 0]);
    }
    let names = "SELECT roname FROM pg_replication_origin WHERE roname LIKE '%:apply:%'";
    assert_eq!(world.target.lines(names).await.len(), 2);
    // One is dropped, the other goes on with its origin. One that an earlier version left goes, too.
    let left = format!("SELECT pg_replication_origin_create('pgsluice_{}')", world.subscription);
    world.target.exec(left).await;
    world.pgsluice(&["drop", &world.subscription]).await.expect(0);
    assert_eq!(other.lines("SELECT roname FROM pg_replication_origin").await.len(), 1);
    world.publisher.exec("INSERT INTO t VALUES (9, 'c')").await;
    until("the other one goes on", async || rows(&other).await.len() == 5).await;
    assert_eq!(second.sigterm().await, 0);
    assert_eq!(first.sigterm().await, 0);
}

async fn grant_origins(database: &Database) {
    let sql = crate::support::privileges::documented("target-origins", &database.name, "");
    database.exec(sql).await;
}

/// A slot's name may begin with another one's: what one subscription has left half created is not the
/// other's to end.
#[tokio::test]
async fn only_its_own_half_created_slots_are_ended() {
    let table = "CREATE TABLE t (id int PRIMARY KEY)";
    let world = World::builder().both_sql(table).subscription_line("slot = \"sub\"").start().await;
    // A session of the same role that waits for an old transaction, as another subscription's would.
    let old = world.publisher.session().await;
    old.batch("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let foreign = "sub_sync_other_sync_00000000_12345678";
    let creating = Session::connect(&conninfo(&world.publisher, PUBLISHER_ROLE)).await.unwrap();
    let create = format!("SELECT pg_create_logical_replication_slot('{foreign}', 'pgoutput', true)");
    let creating = tokio::spawn(async move { creating.batch(&create).await });
    let there = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = '{foreign}'");
    until("the other one's slot is being created", async || world.publisher.value(&there).await).await;
    let service = world.run();
    until("its own slot is being created", async || {
        world.publisher.value("SELECT 1 FROM pg_replication_slots WHERE slot_name = 'sub'").await
    })
    .await;
    assert_eq!(world.publisher.value(&there).await.as_deref(), Some("1"), "it has been ended");
    old.batch("COMMIT").await.unwrap();
    creating.await.unwrap().unwrap();
    world.wait_state("streaming").await;
    assert_eq!(service.sigterm().await, 0);
}
