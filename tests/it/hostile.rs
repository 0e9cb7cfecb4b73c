//! Servers and names that mean harm: lengths that nothing stands behind, floods of bytes, long messages, and names that
//! would forge log lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgsluice::net::{ClientOptions, ConnectError, client};
use pgsluice::pg::conninfo::{ConnInfo, Defaults, parse};
use pgsluice::replication::{ReplicationConnection, SessionOptions};
use pgsluice::text::is_hidden;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::cli;
use crate::support::http::get;
use crate::support::world::World;

/// A server that answers the start-up packet with `answer` and then sends bytes for as long as somebody takes them.
struct Flood {
    port: u16,
    sent_bytes: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Flood {
    async fn start(answer: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent_bytes = Arc::new(AtomicUsize::new(0));
        let sent = Arc::clone(&sent_bytes);
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, sent) = (answer.clone(), Arc::clone(&sent));
                tokio::spawn(async move {
                    let mut start_up = [0; 1024];
                    let _ = stream.read(&mut start_up).await;
                    let mut bytes = answer;
                    while stream.write_all(&bytes).await.is_ok() {
                        sent.fetch_add(bytes.len(), Ordering::Relaxed);
                        bytes = vec![b'x'; 1 << 16];
                    }
                });
            }
        });
        Self { port, sent_bytes, server }
    }

    fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} dbname=example user=sammy password=secret sslmode=disable", self.port)
    }

    fn info(&self) -> ConnInfo {
        let files = pgsluice::pg::conninfo::DefaultFiles::default();
        let env = |_: &str| None;
        parse(&self.conninfo(), &Defaults { env: &env, os_user: None, files: &files }).unwrap().conninfo
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn message(tag: u8, length: u32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes()].concat()
}

/// Parameters without an end, each of a size that is taken.
fn parameters() -> Vec<u8> {
    let mut parameter = message(b'S', 60_004);
    parameter.extend(b"application_name\0");
    parameter.resize(parameter.len() + 60_000 - 18, b'x');
    parameter.push(0);
    [&[b'R', 0, 0, 0, 8, 0, 0, 0, 0][..], &parameter.repeat(1000)].concat()
}

/// Anybody may answer on the server's address. Every kind of connection lets go at once.
#[tokio::test]
async fn before_authentication_a_server_cannot_take_memory() {
    /// What the sockets' buffers hold, with room.
    const SENT_BYTES_MAX: usize = 16 << 20;
    let options = SessionOptions { application_name: "walk".to_owned(), client_encoding: "UTF8".to_owned() };
    let answers = [
        message(b'R', u32::MAX),
        message(b'R', 0x3fff_fff0),
        message(b'E', 0x3fff_fff0),
        message(b'S', 0x7fff_ffff),
        parameters(),
    ];
    for answer in answers {
        let flood = Flood::start(answer.clone()).await;
        let info = flood.info();
        let tell = |error: ConnectError| error.diagnosis().to_string();
        let from_sql = client(&info, &ClientOptions::default()).await.map(drop).map_err(tell).unwrap_err();
        let replication = ReplicationConnection::connect(&info, &options).await;
        let from_replication = replication.map(drop).map_err(tell).unwrap_err();
        for told in [from_sql, from_replication] {
            assert!(told.contains("does not speak PostgreSQL's protocol"), "{told}");
            assert!(told.contains("bytes"), "{told}");
        }
        let sent = flood.sent_bytes.load(Ordering::Relaxed);
        assert!(sent < SENT_BYTES_MAX, "{sent} bytes were taken after {:?}", &answer[..5]);
    }
}

/// The session for the state in the target is opened by another driver, which takes any length.
#[tokio::test]
async fn the_connection_for_the_state_does_not_take_memory_either() {
    let flood = Flood::start(message(b'R', 0xffff_fff0)).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("pgsluice.toml");
    std::fs::write(&config, format!("[target]\nurl = \"{}\"\n", flood.conninfo())).unwrap();
    let outcome = cli::run(&config, &["status"]).await.expect(3);
    assert!(outcome.stderr.contains("does not speak PostgreSQL's protocol"), "{outcome:?}");
    let sent = flood.sent_bytes.load(Ordering::Relaxed);
    assert!(sent < 16 << 20, "{sent} bytes were taken");
}

/// A name that begins a log line of its own, clears the screen, and turns the direction of text.
const TABLE: &str = "t\n2024-01-01T00:00:00Z ERROR pgsluice: forged\r\x1b[2J\u{202e}drow";

fn assert_shown(what: &str, text: &str) {
    let hidden = text.chars().find(|&c| is_hidden(c) && c != '\n');
    assert_eq!(hidden, None, "{what}: {text:?}");
    let forged = text.lines().find(|line| line.starts_with("2024-01-01"));
    assert_eq!(forged, None, "{what}");
}

#[tokio::test]
async fn a_name_forges_no_line_and_reaches_no_terminal() {
    let create = format!("CREATE TABLE \"{TABLE}\" (id int PRIMARY KEY, \"c\u{202e}\x1b[31m\" text)");
    let world = World::builder().both_sql(&create).start().await;
    let quoted = format!("\"{TABLE}\"");
    world.publisher.exec(format!("INSERT INTO {quoted} VALUES (1, 'one')")).await;
    for format in ["text", "json"] {
        let service = world.run_with(&[("PGSLUICE__SERVICE__LOG_FORMAT", format), ("RUST_LOG", "debug")]);
        world.wait_state("streaming").await;
        // A conflict, so that the name is told of as often as possible.
        world.target.exec(format!("INSERT INTO {quoted} VALUES (2, 'in the way')")).await;
        world.publisher.exec(format!("INSERT INTO {quoted} VALUES (2, 'two')")).await;
        world.wait_paused("conflict").await;
        assert!(service.log().contains("forged"), "the name is not in the log: {}", service.log());
        assert_shown(&format!("{format} log"), &service.log());
        for path in ["/api/v1/subscriptions", "/readyz"] {
            let body = get(service.http_port, path).await.unwrap().body;
            assert!(path == "/readyz" || body.contains("forged"), "{body}");
            assert_shown(path, &body);
        }
        for arguments in [
            &["status", &world.subscription][..],
            &["status", "--json"],
            &["check"],
            &["check", "--json"],
            &["conflicts"],
            &["conflicts", "--json"],
            &["conflicts", "show", "1"],
            &["conflicts", "show", "1", "--json"],
        ] {
            let outcome = world.pgsluice(arguments).await;
            let told = format!("{}{}", outcome.stdout, outcome.stderr);
            assert!(told.contains("forged") || arguments[0] != "status", "{arguments:?}: {told}");
            assert_shown(&format!("{arguments:?}"), &told);
        }
        let json = world.pgsluice(&["status", "--json"]).await.json();
        assert!(json.to_string().contains('\u{202e}'), "the document still has the name: {json}");
        world.target.exec(format!("DELETE FROM {quoted} WHERE id = 2")).await;
        world.pgsluice(&["resume", &world.subscription]).await.expect(0);
        world.wait_caught_up().await;
        world.publisher.exec(format!("DELETE FROM {quoted} WHERE id = 2")).await;
        world.wait_caught_up().await;
        assert_eq!(service.sigterm().await, 0);
    }
}

/// The message of a server that has 20 MB is cut wherever it is told.
#[tokio::test]
async fn a_long_message_is_told_in_short() {
    const MESSAGE_CHARS: usize = 20_000_000;
    let world = World::builder()
        .both_sql("CREATE TABLE widgets (id int PRIMARY KEY, name text)")
        .target_sql(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.id = 1 THEN RAISE EXCEPTION 'no % here', repeat('x', {MESSAGE_CHARS}) \
             USING ERRCODE = '0A000', DETAIL = repeat('y', {MESSAGE_CHARS}), CONSTRAINT = 'my_rule'; END IF; \
             RETURN NEW; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON widgets FOR EACH ROW EXECUTE FUNCTION refuse(); \
             ALTER TABLE widgets ENABLE ALWAYS TRIGGER refuse"
        ))
        .start()
        .await;
    let service = world.run_with(&[("RUST_LOG", "debug")]);
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO widgets VALUES (1, 'one')").await;
    world.wait_state("paused").await;
    let status = world.pgsluice(&["status", "--json"]).await;
    assert!(status.stdout.contains("xxx"), "{}", status.stdout);
    for (what, text, bytes_max) in [
        ("status", world.pgsluice(&["status"]).await.stdout, 10_000),
        ("status --json", status.stdout, 10_000),
        ("conflicts show", world.pgsluice(&["conflicts", "show", "1"]).await.stdout, 40_000),
        ("API", get(service.http_port, "/api/v1/subscriptions").await.unwrap().body, 10_000),
    ] {
        assert!(text.len() < bytes_max, "{what}: {} bytes", text.len());
    }
    let longest = service.log().lines().map(str::len).max().unwrap_or_default();
    assert!(longest < 40_000, "a line of the log has {longest} bytes");
    let recorded = "SELECT coalesce(max(octet_length(message)), 0) < 20000 FROM pgsluice.conflict";
    assert_eq!(world.target.value(recorded).await.as_deref(), Some("t"));
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), service.sigterm()).await, Ok(0));
}
