//! The HTTP service of a real `pgsluice run`: access, and its answers while servers are down.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgsluice::demo::cluster::StopMode;
use pgsluice::demo::process::{Guarded, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::cli;
use crate::support::http::{get, get_with, send};
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{Servers, World};

const TABLE: &str = "CREATE TABLE widgets (id int PRIMARY KEY, name text)";
const TOKEN: &str = "a-token-of-more-than-16";

async fn world(servers: Servers) -> World {
    World::builder().servers(servers).both_sql(TABLE).start().await
}

async fn wait_ready(service: &Service) {
    until("the service is ready", async || match get(service.http_port, "/readyz").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Waits until readiness is refused with a state and a reason, and returns the first reason.
async fn wait_unready(service: &Service, state: &str, reason: &str) -> serde_json::Value {
    until(&format!("readiness is refused: {state}, {reason}"), async || {
        let answer = get(service.http_port, "/readyz").await?;
        let found = answer.json()["reasons"][0].clone();
        let fits = answer.status == 503 && found["state"] == state && found["reason"] == reason;
        if fits { Ok(found) } else { Err(format!("{answer:?}")) }
    })
    .await
}

#[tokio::test]
async fn it_tells_health_readiness_and_status() {
    let world = world(Servers::Shared).await;
    world.publisher.exec("INSERT INTO widgets VALUES (1, 'one')").await;
    let service = world.run();
    wait_ready(&service).await;
    world.wait_state("streaming").await;
    let port = service.http_port;

    let health = get(port, "/healthz").await.unwrap().expect(200);
    assert_eq!(health.json()["status"], "ok");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(health.header(name), Some(value), "{health:?}");
    }
    assert!(health.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));

    // The API returns the same as the command line.
    let list = get(port, "/api/v1/subscriptions").await.unwrap().expect(200).json();
    let told = cli::StateView::of(&list, &world.subscription).unwrap();
    let shown = world.status().await.unwrap();
    let keys = |view: &cli::StateView| view.json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&told), keys(&shown));
    assert_eq!((told.state, &told.json["tables"]), (shown.state, &shown.json["tables"]));
    let one = get(port, &format!("/api/v1/subscriptions/{}", world.subscription)).await.unwrap().expect(200);
    assert_eq!(one.json()["name"], world.subscription.as_str());

    // Unknown paths and methods are answered as such.
    for (request, status) in [
        ("GET /api/v1/subscriptions/none HTTP/1.1", 404),
        ("GET /nothing HTTP/1.1", 404),
        ("POST /healthz HTTP/1.1", 405),
    ] {
        let request = format!("{request}\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = send(port, &request).await.unwrap().expect(status);
        assert!(answer.json()["error"]["primary"].is_string(), "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
    }

    // A page whose name resolves to loopback is refused.
    for host in ["Host: evil.example", "Host: localhost.evil.example:9650", "X-None: 1"] {
        get_with(port, "/api/v1/subscriptions", &[host]).await.expect(421);
    }
    get_with(port, "/healthz", &["Host: [::1]"]).await.expect(200);
    get_with(port, "/healthz", &["Host: localhost", "Content-Length: 10000000"]).await.expect(413);

    // While paused, the service is not ready and says what to do; after a resume it is ready again.
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    let reason = wait_unready(&service, "paused", "operator").await;
    assert_eq!(reason["subscription"], world.subscription.as_str());
    assert!(reason["hint"].as_str().unwrap().contains("pgsluice resume"), "{reason}");
    get(port, "/healthz").await.unwrap().expect(200);
    world.pgsluice(&["resume", &world.subscription]).await.expect(0);
    wait_ready(&service).await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn it_answers_while_the_target_is_down() {
    let mut world = world(Servers::Separate).await;
    world.target_server().stop(StopMode::Fast).await.unwrap();

    // If the target is down from the start, the service is healthy but not ready, with a reason.
    let service = world.run();
    let reason = wait_unready(&service, "retrying", "target").await;
    assert!(reason["detail"].as_str().is_some_and(|text| !text.is_empty()), "{reason}");
    get(service.http_port, "/healthz").await.unwrap().expect(200);
    world.target_server().launch().await.unwrap();
    wait_ready(&service).await;

    // If the target goes down later, the WAL that the publisher retains is still reported.
    world.target_server().stop(StopMode::Immediate).await.unwrap();
    world.publisher.exec("INSERT INTO widgets VALUES (2, 'two')").await;
    wait_unready(&service, "retrying", "target").await;
    let status = until("the API tells what the service sees itself", async || {
        let answer = get(service.http_port, "/api/v1/subscriptions").await?.json();
        let status = answer["subscriptions"][0].clone();
        let told = status["warnings"][0].as_str().is_some_and(|text| text.contains("target does not answer"));
        if told { Ok(status) } else { Err(format!("{answer}")) }
    })
    .await;
    assert_eq!(status["state"], "retrying", "{status}");
    until("metrics say that the target is down, and what the slot retains", async || {
        let text = get(service.http_port, "/metrics").await?.body;
        let value = |name: &str| {
            let line =
                text.lines().find(|line| line.starts_with(name) && line.as_bytes()[name.len()] == b'{');
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        let seen = (value("pgsluice_target_up"), value("pgsluice_slot_retained_bytes"));
        if seen.0 == Some(0.0) && seen.1.is_some() { Ok(()) } else { Err(format!("{seen:?}\n{text}")) }
    })
    .await;
    world.target_server().launch().await.unwrap();
    wait_ready(&service).await;
    world.wait_same_rows("widgets").await;
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn away_from_loopback_everything_but_health_needs_the_token() {
    let world = world(Servers::Shared).await;
    let token = world.dir().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let port = pgsluice::demo::cluster::free_port().unwrap();
    let listen = format!("0.0.0.0:{port}");

    // Without a token the service does not start.
    let mut refused = world.run_with(&[("PGSLUICE__SERVICE__LISTEN", &listen)]);
    assert_eq!(refused.ended().await, 2);
    assert!(refused.log().contains("api_token_file"), "{}", refused.log());
    let missing = world.dir().join("missing").display().to_string();
    let mut refused = world
        .run_with(&[("PGSLUICE__SERVICE__LISTEN", &listen), ("PGSLUICE__SERVICE__API_TOKEN_FILE", &missing)]);
    assert_eq!(refused.ended().await, 2);
    assert!(refused.log().contains("openssl rand"), "{}", refused.log());

    let environment = [
        ("PGSLUICE__SERVICE__LISTEN", &*listen),
        ("PGSLUICE__SERVICE__API_TOKEN_FILE", token.to_str().unwrap()),
    ];
    let service = world.run_with(&environment);
    let host = "Host: pgsluice.example:9650";
    let authorization = format!("Authorization: Bearer {TOKEN}");
    until("it listens", async || get(port, "/healthz").await.map(|_| ())).await;
    until("it is ready", async || get_with(port, "/readyz", &[host]).await.status == 200).await;
    get_with(port, "/healthz", &[host]).await.expect(200);
    for path in ["/metrics", "/api/v1/subscriptions", "/api/v1/subscriptions/x"] {
        for lines in [
            &[host][..],
            &[host, "Authorization: Bearer wrong"],
            &[host, &format!("Authorization: Basic {TOKEN}")],
            &[host, &format!("X-Token: {TOKEN}")],
        ] {
            let answer = get_with(port, path, lines).await.expect(401);
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"), "{answer:?}");
        }
    }
    get_with(port, "/metrics", &[host, &authorization]).await.expect(200);
    get_with(port, "/api/v1/subscriptions", &[host, &authorization]).await.expect(200);

    // Readiness is open to everyone, but details are not.
    world.pgsluice(&["pause", &world.subscription]).await.expect(0);
    let open = until("it is not ready", async || {
        let answer = get_with(port, "/readyz", &[host]).await;
        (answer.status == 503).then_some(answer)
    })
    .await
    .json();
    assert_eq!(open["reasons"][0]["reason"], "operator", "{open}");
    assert!(open["reasons"][0].get("detail").is_none(), "{open}");
    let whole = get_with(port, "/readyz", &[host, &authorization]).await.expect(503).json();
    assert!(whole["reasons"][0]["detail"].is_string(), "{whole}");

    // If the address is taken, the second service ends with a clear message and the first one keeps
    // running.
    let mut second = world.run_with(&environment);
    assert_eq!(second.ended().await, 2);
    let log = second.log();
    assert!(
        log.contains(&listen) && log.contains("another process") && log.contains("service.listen"),
        "{log}"
    );
    get_with(port, "/healthz", &[host]).await.expect(200);
    assert!(!service.log().contains(TOKEN), "the token is in the log");
    assert_eq!(service.sigterm().await, 0);
}

/// Clients that begin a request and never finish it. Each connects again as soon as it is closed.
struct SlowClients {
    clients: tokio::task::JoinSet<()>,
    closed: Arc<AtomicUsize>,
}

impl SlowClients {
    async fn start(port: u16, address: &str, count: usize) -> Self {
        let closed = Arc::new(AtomicUsize::new(0));
        let connected = Arc::new(AtomicUsize::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (closed, connected) = (Arc::clone(&closed), Arc::clone(&connected));
            let source = format!("{address}:0").parse().unwrap();
            clients.spawn(async move {
                loop {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind(source).unwrap();
                    let Ok(mut stream) = socket.connect(([127, 0, 0, 1], port).into()).await else {
                        continue;
                    };
                    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await;
                    connected.fetch_add(1, Ordering::Relaxed);
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                    closed.fetch_add(1, Ordering::Relaxed);
                    // Slow, but not a flood.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
        until("all slow clients have connected", async || connected.load(Ordering::Relaxed) >= count).await;
        Self { clients, closed }
    }
}

/// Asks for health and readiness for some seconds; each answer has to come at once.
async fn answers_at_once(port: u16) {
    const ANSWER_MAX: Duration = Duration::from_secs(2);
    const ROUNDS: u32 = 60;
    for round in 0..ROUNDS {
        for path in ["/healthz", "/readyz"] {
            let answer = tokio::time::timeout(ANSWER_MAX, get(port, path)).await;
            answer
                .unwrap_or_else(|_| panic!("{path} does not answer, round {round}"))
                .unwrap_or_else(|error| panic!("{path}: {error}, round {round}"))
                .expect(200);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The health check comes from the same address as the slow clients, as it may behind address translation.
#[tokio::test]
async fn slow_clients_do_not_keep_health_from_answering() {
    const CLIENTS: usize = 300;
    let world = world(Servers::Shared).await;
    let service = world.run();
    wait_ready(&service).await;
    let slow = SlowClients::start(service.http_port, "127.0.0.1", CLIENTS).await;
    answers_at_once(service.http_port).await;
    let mut check = tokio::process::Command::from(cli::executable());
    check.arg("--config").arg(&world.config).arg("healthcheck");
    check.env("PGSLUICE__SERVICE__LISTEN", format!("127.0.0.1:{}", service.http_port));
    let checked = check.output().await.unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert!(slow.closed.load(Ordering::Relaxed) >= CLIENTS, "connections that send no request stay open");
    drop(slow.clients);
    assert_eq!(service.sigterm().await, 0);
}

#[tokio::test]
async fn slow_clients_of_one_address_close_no_connection_of_another() {
    const CLIENTS: usize = 300;
    let world = world(Servers::Shared).await;
    let service = world.run();
    wait_ready(&service).await;
    let mut kept = TcpStream::connect(("127.0.0.1", service.http_port)).await.unwrap();
    let slow = SlowClients::start(service.http_port, "127.0.0.2", CLIENTS).await;
    for _ in 0..40 {
        kept.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 4096];
        let bytes = kept.read(&mut answer).await.unwrap();
        assert!(
            answer[..bytes].starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer[..bytes])
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    answers_at_once(service.http_port).await;
    // These connections do not keep the service from stopping.
    assert_eq!(service.sigterm().await, 0);
    drop(slow);
}

/// Nothing else connects, so only the deadline can close it.
#[tokio::test]
async fn a_request_that_is_never_finished_is_given_up() {
    let world = world(Servers::Shared).await;
    let service = world.run();
    wait_ready(&service).await;
    let mut slow = TcpStream::connect(("127.0.0.1", service.http_port)).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.unwrap();
    let began = std::time::Instant::now();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), slow.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a connection that sends no request stays open");
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(service.sigterm().await, 0);
}

/// `status --watch` in a terminal (script(1) makes one) and in a pipe.
#[tokio::test]
async fn watching_redraws_on_a_terminal_and_writes_lines_elsewhere() {
    let world = world(Servers::Shared).await;
    let service = world.run();
    world.wait_state("streaming").await;

    let mut piped = Watch::start(&world, Terminal::No);
    until("a line is written", async || piped.told().contains(" streaming ")).await;
    assert_eq!(piped.interrupted().await, Some(0));
    assert!(!piped.told().contains('\x1b'), "{:?}", piped.told());
    assert!(piped.told().lines().all(|line| line.starts_with(&world.subscription)), "{}", piped.told());

    let mut drawn = Watch::start(&world, Terminal::Yes);
    until("it is drawn twice", async || drawn.told().matches("\x1b[H").count() > 2).await;
    assert!(drawn.told().contains("streaming"), "{:?}", drawn.told());
    // NO_COLOR is set, so there are cursor movements but no colours.
    assert!(!drawn.told().contains("\x1b[3") && !drawn.told().contains("\x1b[1m"), "{:?}", drawn.told());
    drawn.interrupted().await;
    assert_eq!(service.sigterm().await, 0);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terminal {
    Yes,
    No,
}

struct Watch {
    process: Guarded,
    output: tempfile::NamedTempFile,
}

impl Watch {
    fn start(world: &World, terminal: Terminal) -> Self {
        let output = tempfile::NamedTempFile::new().unwrap();
        let mut command = cli::executable();
        let config = world.config.to_str().unwrap();
        if terminal == Terminal::Yes {
            let line =
                format!("exec {} --config {config} status --watch", command.get_program().to_str().unwrap());
            command = std::process::Command::new("script");
            command.args(["-q", "-f", "-e", "-c", &line, "/dev/null"]);
            command.env("NO_COLOR", "1").env("TERM", "xterm");
        } else {
            command.args(["--config", config, "status", "--watch"]);
        }
        let process = Guarded::spawn(&mut command, output.as_file(), Signal::Kill, None).unwrap();
        Self { process, output }
    }

    fn told(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.output.path()).unwrap()).into_owned()
    }

    /// Sends Ctrl-C and returns the exit code.
    async fn interrupted(&mut self) -> Option<i32> {
        self.process.signal(Signal::Interrupt).unwrap();
        let status = self.process.wait(Duration::from_secs(20)).await.unwrap();
        status.expect("--watch has not ended on Ctrl-C").code()
    }
}
