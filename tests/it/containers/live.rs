//! Runs the set-up of `docker/compose.yaml` on two throw-away servers: its statements, secrets,
//! password file and configuration. Only hosts, ports and paths differ.

use std::path::{Path, PathBuf};
use std::process::Command;

use pgsluice::demo::cluster::{Cluster, SUPERUSER};

use super::{read, repository};
use crate::support::clusters::{options, publisher_binaries, start, target_binaries};
use crate::support::database::Database;
use crate::support::http::{get, get_with};
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::{cli, shown, world};

const WIDGETS: &str = "SELECT id, name, price FROM widgets ORDER BY id";

/// Returns psql of the server's programs or, if they come without it, the one on the PATH.
fn psql() -> Option<PathBuf> {
    let beside = target_binaries().dir().join("psql");
    let on_path = || {
        let found = Command::new("psql").arg("--version").output().is_ok();
        found.then(|| PathBuf::from("psql"))
    };
    beside.is_file().then_some(beside).or_else(on_path)
}

/// Runs an init script of docker/ as the image's entry point does, with this machine's path of the
/// secrets.
fn initialize(psql: &Path, server: &Cluster, script: &str, dir: &Path) {
    let secrets = format!("{}/", repository("docker/secrets").display());
    let path = dir.join(script.replace('/', "_"));
    std::fs::write(&path, read(script).replace("/run/secrets/", &secrets)).unwrap();
    let mut command = Command::new(psql);
    command.args(["--no-psqlrc", "--no-password", "--set=ON_ERROR_STOP=1", "--quiet", "--file"]);
    command.arg(&path).arg("--dbname").arg(server.conninfo("example", SUPERUSER));
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{script}: {output:?}");
}

/// Creates the password file as the container `prepare-secrets` does, for these servers.
fn password_file(dir: &Path, publisher: u16, target: u16) {
    let mut command = Command::new("sh");
    command.arg(repository("docker/prepare-secrets")).arg(repository("docker/secrets")).arg(dir);
    // It runs twice, because at each start of the containers it meets the result of the last one.
    for _ in 0..2 {
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
    let path = dir.join("pgpass");
    let text = std::fs::read_to_string(&path).unwrap();
    let passwords = ["sammy", "pgsluice_apply"].map(|role| read(&format!("docker/secrets/{role}_password")));
    let [sammy, apply] = passwords.each_ref().map(|password| password.trim());
    assert_eq!(
        text,
        format!("publisher:5432:example:sammy:{sammy}\ntarget:5432:example:pgsluice_apply:{apply}\n")
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let here = text
        .replace("publisher:5432", &format!("127.0.0.1:{publisher}"))
        .replace("target:5432", &format!("127.0.0.1:{target}"));
    // The file is written in place, so that its owner and mode stay.
    std::fs::write(&path, here).unwrap();
}

/// Colons and backslashes of a password are escaped.
#[test]
fn a_password_is_escaped_for_the_password_file() {
    let dir = tempfile::tempdir().unwrap();
    for (role, password) in [("sammy", r"a:b\c"), ("pgsluice_apply", "plain")] {
        std::fs::write(dir.path().join(format!("{role}_password")), format!("{password}\n")).unwrap();
    }
    let mut command = Command::new("sh");
    command.arg(repository("docker/prepare-secrets")).args([dir.path(), dir.path()]);
    assert!(command.status().unwrap().success());
    let text = std::fs::read_to_string(dir.path().join("pgpass")).unwrap();
    assert_eq!(text, "publisher:5432:example:sammy:a\\:b\\\\c\ntarget:5432:example:pgsluice_apply:plain\n");
}

#[tokio::test]
async fn the_walk_throughs_rows_arrive_with_what_compose_sets_up() {
    let Some(psql) = psql() else {
        println!("NOT CHECKED: psql is missing (Debian's package \"postgresql-client\" has it)");
        return;
    };
    let dir = tempfile::Builder::new().prefix("pgsluice-compose-").tempdir().unwrap();
    let (publisher, target) = tokio::join!(
        start(options(publisher_binaries()).label("publisher")),
        start(options(target_binaries()).label("target"))
    );
    let at_publisher = Database::create(&publisher, "example").await;
    let at_target = Database::create(&target, "example").await;
    initialize(&psql, &publisher, "docker/publisher/init.sql", dir.path());
    initialize(&psql, &target, "docker/target/init.sql", dir.path());
    password_file(dir.path(), at_publisher.port, at_target.port);

    let here = |port: u16| format!("host=127.0.0.1 port={port} ");
    let text = read("docker/pgsluice.toml")
        .replace("host=publisher ", &here(at_publisher.port))
        .replace("host=target ", &here(at_target.port))
        .replace("/run/pgsluice/", &format!("{}/", dir.path().display()))
        .replace("/run/secrets/", &format!("{}/", repository("docker/secrets").display()));
    let config = dir.path().join("pgsluice.toml");
    std::fs::write(&config, text).unwrap();
    let service = Service::start(&config, dir.path().join("log"), &[]);

    let arrived = ["1|Hammer|4.50", "2|Coffee Mug|6.20", "3|Cupholder|3.80"];
    wait_lines(&at_target, WIDGETS, &arrived).await;
    for line in readme_steps() {
        let server = |name: &str| if name == "publisher" { &publisher } else { &target };
        line.play(&psql, &config, server).await;
    }
    at_publisher.exec("UPDATE widgets SET price = 5.00 WHERE id = 1").await;
    wait_lines(&at_target, WIDGETS, &["1|Hammer|5.00", arrived[1], arrived[2], "4|Screwdriver|7.40"]).await;
    let shelves = "SELECT DISTINCT shelf FROM widgets WHERE loaded_at IS NOT NULL";
    assert_eq!(at_target.lines(shelves).await, ["A1"]);

    let status = cli::run(&config, &["status", "--json"]).await.expect(0).json();
    let subscription = &status["subscriptions"][0];
    assert_eq!(subscription["state"], "streaming", "{status:#}");
    assert_eq!(subscription["warnings"], serde_json::json!([]), "the roles lack nothing: {status:#}");
    let checked = cli::run(&config, &["check"]).await.expect(0);
    assert!(!checked.stdout.contains("warning"), "{}", checked.stdout);
    prometheus_and_the_health_check_are_answered(&config, service).await;
}

/// One command of README.md's steps with Compose, and the answer that the page shows.
#[derive(Debug)]
struct Step {
    /// The service in which it is executed.
    service: String,
    arguments: Vec<String>,
    shown: String,
}

/// Returns the commands in README.md, "Try it", between starting the containers and removing them.
fn readme_steps() -> Vec<Step> {
    let text = shown::blocks(&read("README.md"), "walk: compose").concat();
    let mut steps: Vec<Step> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ dc exec "), steps.last_mut()) {
            (Some(command), _) => {
                // Only the last argument may hold spaces; it is in double quotes.
                let (plain, quoted) = command.split_once(" \"").unwrap_or((command, ""));
                let mut words: Vec<String> = plain.split(' ').map(str::to_owned).collect();
                words.extend(quoted.strip_suffix('"').map(str::to_owned));
                steps.push(Step {
                    service: words[0].clone(),
                    arguments: words[1..].to_vec(),
                    shown: String::new(),
                });
            }
            (None, Some(step)) => step.shown.extend([line, "\n"]),
            (None, None) => panic!("{line:?} follows no command"),
        }
    }
    assert!(steps.len() >= 8, "{steps:#?}");
    steps
}

impl Step {
    /// Runs the command. One that only reads is repeated until it prints what the page shows.
    async fn play<'a>(&self, psql: &Path, config: &Path, server: impl Fn(&str) -> &'a Cluster) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let said = async || match arguments.as_slice() {
            ["pgsluice", command @ ..] => cli::run(config, command).await.stdout,
            ["psql", "-U", SUPERUSER, "example", "-c", sql] => {
                let mut command = Command::new(psql);
                command.args(["--no-psqlrc", "-c", sql]);
                let output =
                    command.arg(server(&self.service).conninfo("example", SUPERUSER)).output().unwrap();
                assert!(output.status.success(), "{self:?}: {output:?}");
                String::from_utf8(output.stdout).unwrap()
            }
            other => panic!("{other:?}: how is that done?"),
        };
        let only_looks = arguments.iter().any(|word| word.starts_with("SELECT") || *word == "status");
        if only_looks {
            until(&format!("{arguments:?}"), async || shown::was_said(&self.shown, &said().await)).await;
        } else {
            shown::was_said(&self.shown, &said().await)
                .unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        }
    }
}

async fn prometheus_and_the_health_check_are_answered(config: &Path, service: Service) {
    let port = service.http_port;
    let token = read("docker/secrets/pgsluice_token");
    let authorization = format!("Authorization: Bearer {}", token.trim());
    let lines = [authorization.as_str(), "Host: 127.0.0.1"];
    let metrics = get_with(port, "/metrics", &lines).await.expect(200);
    assert!(metrics.body.contains("pgsluice_state{subscription=\"my_subscription\",state=\"streaming\"} 1"));
    get(port, "/metrics").await.unwrap().expect(401);

    let asked = || {
        let mut command = cli::executable();
        command.arg("healthcheck").env("PGSLUICE_CONFIG", config);
        command.env("PGSLUICE__SERVICE__LISTEN", format!("127.0.0.1:{port}"));
        command.output().unwrap()
    };
    let healthy = asked();
    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
    assert_eq!(service.sigterm().await, 0);
    let gone = asked();
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    let told = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(told.contains("no healthy pgsluice") && told.contains("refused"), "{told}");
}

async fn wait_lines(database: &Database, sql: &str, expected: &[&str]) {
    until(&format!("{sql} gives {expected:?}"), async || {
        let seen = database.lines(sql).await;
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Compose and the tests' worlds use the same roles, so that the tests' results hold for both.
#[test]
fn the_roles_are_those_of_all_tests() {
    let publisher = read("docker/publisher/init.sql");
    assert!(publisher.contains(&format!("CREATE ROLE {} LOGIN REPLICATION ", world::PUBLISHER_ROLE)));
    let target = read("docker/target/init.sql");
    assert!(target.contains(&format!("CREATE ROLE {} LOGIN ", world::TARGET_ROLE)));
}
