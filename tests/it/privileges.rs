//! The privileges in docs/security.md suffice for everything, and missing ones have the documented
//! effect. The page's statements are run as they stand there.

use pgsluice::demo::cluster::{Cluster, SUPERUSER};

use crate::support::clusters::{options, publisher_binaries, start, target_binaries};
use crate::support::database::Database;
use crate::support::privileges::{documented, names};
use crate::support::service::Service;
use crate::support::wait::until;
use crate::support::world::{PASSWORD, PUBLISHER_ROLE, TARGET_ROLE, conninfo};
use crate::support::{cli, world};

const WIDGETS: &str = "SELECT id, name, price FROM widgets ORDER BY id";
const TABLE: &str = "CREATE TABLE widgets (id serial PRIMARY KEY, name text, price decimal)";

/// Two servers on which the page's statements were run by hand after the tables were created, as an
/// operator would.
struct Operated {
    publisher: Database,
    target: Database,
    target_url: String,
    dir: tempfile::TempDir,
    _servers: [Cluster; 2],
}

impl Operated {
    async fn new(target_blocks: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("pgsluice-privileges-").tempdir().unwrap();
        let (publisher_server, target_server) = tokio::join!(
            start(options(publisher_binaries()).label("publisher")),
            start(options(target_binaries()).label("target"))
        );
        let publisher = Database::create(&publisher_server, "example").await;
        let target = Database::create(&target_server, "example").await;
        // PUBLIC's default privileges on a new database must not help.
        for database in [&publisher, &target] {
            database.exec("REVOKE ALL ON DATABASE example FROM PUBLIC").await;
            database.exec("REVOKE ALL ON SCHEMA public FROM PUBLIC").await;
            database.exec(TABLE).await;
        }
        publisher
            .exec(
                "INSERT INTO widgets (name) VALUES ('Lamp'); CREATE PUBLICATION my_publication FOR TABLE widgets",
            )
            .await;
        for name in ["publisher-role", "publisher-tables"] {
            publisher.exec(documented(name, "example", PASSWORD)).await;
        }
        for name in target_blocks {
            target.exec(documented(name, "example", PASSWORD)).await;
        }
        let target_url = conninfo(&target, TARGET_ROLE);
        Self { publisher, target, target_url, dir, _servers: [publisher_server, target_server] }
    }

    /// A configuration file whose target is reached as `url` says.
    fn config(&self, url: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(format!("{}.toml", world::unique("config")));
        let quoted = |text: &str| format!("'''{text}'''");
        let text = format!(
            "target.url = {}\n[[subscriptions]]\nname = \"my_subscription\"\npublisher = {}\n\
             publications = [\"my_publication\"]\n",
            quoted(url),
            quoted(&conninfo(&self.publisher, PUBLISHER_ROLE)),
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, config: &std::path::Path) -> Service {
        Service::start(config, self.dir.path().join(format!("{}.log", world::unique("run"))), &[])
    }

    /// Waits for the subscription to be as `expected`: `state`, or `state reason`.
    async fn wait(&self, config: &std::path::Path, expected: &str) -> serde_json::Value {
        until(&format!("the subscription is {expected}"), async || {
            let outcome = cli::run(config, &["status", "--json"]).await;
            let document: serde_json::Value =
                serde_json::from_str(&outcome.stdout).map_err(|_| format!("{outcome:?}"))?;
            let found = document["subscriptions"][0].clone();
            let words = [&found["state"], &found["reason"]].map(|word| word.as_str().unwrap_or_default());
            if words.join(" ").trim() == expected { Ok(found) } else { Err(format!("{found:#}")) }
        })
        .await
    }

    async fn wait_lines(&self, expected: &[&str]) {
        until(&format!("the target has {expected:?}"), async || {
            let seen = self.target.lines(WIDGETS).await;
            if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
}

fn has_parameter_privileges() -> bool {
    target_binaries().major() >= 15
}

fn all_for_the_target() -> Vec<&'static str> {
    let mut blocks = vec!["target-role", "target-tables", "target-origins"];
    if has_parameter_privileges() {
        blocks.push("target-replica-role");
    }
    blocks
}

#[tokio::test]
async fn the_documented_privileges_suffice_for_the_whole_walk_through() {
    let operated = Operated::new(&all_for_the_target()).await;
    let config = operated.config(&operated.target_url);
    let service = operated.run(&config);
    operated.wait_lines(&["1|Lamp|∅"]).await;
    for sql in [
        "INSERT INTO widgets (name, price) VALUES ('Hammer', 4.50), ('Coffee Mug', 6.20), ('Cupholder', 3.80)",
        "UPDATE widgets SET price = 5 WHERE name = 'Hammer'",
        "DELETE FROM widgets WHERE name = 'Lamp'",
    ] {
        operated.publisher.exec(sql).await;
    }
    operated.wait_lines(&["2|Hammer|5", "3|Coffee Mug|6.20", "4|Cupholder|3.80"]).await;
    let view = operated.wait(&config, "streaming").await;
    if has_parameter_privileges() {
        assert_eq!(view["warnings"], serde_json::json!([]), "{view:#}");
        let checked = cli::run(&config, &["check"]).await.expect(0);
        assert!(!checked.stdout.contains("warning"), "{}", checked.stdout);
    }

    operated.target.exec("INSERT INTO widgets VALUES (5, 'in the way')").await;
    operated.publisher.exec("INSERT INTO widgets (name) VALUES ('Ruler')").await;
    operated.wait(&config, "paused conflict").await;
    operated.target.exec("DELETE FROM widgets WHERE id = 5").await;
    cli::run(&config, &["resume", "my_subscription"]).await.expect(0);
    operated.publisher.exec("TRUNCATE widgets; INSERT INTO widgets VALUES (9, 'Nine')").await;
    operated.wait_lines(&["9|Nine|∅"]).await;

    cli::run(&config, &["drop", "my_subscription"]).await.expect(0);
    assert_eq!(operated.publisher.lines("SELECT slot_name FROM pg_replication_slots").await, [""; 0]);
    assert_eq!(operated.target.lines("SELECT roname FROM pg_replication_origin").await, [""; 0]);
    drop(service);
}

#[tokio::test]
async fn a_role_that_may_not_create_runs_on_what_the_owner_has_migrated() {
    let operated = Operated::new(&all_for_the_target()).await;
    operated.target.exec(format!("REVOKE CREATE ON DATABASE example FROM {TARGET_ROLE}")).await;
    let config = operated.config(&operated.target_url);
    let mut service = operated.run(&config);
    until("the service says what it waits for", async || {
        let log = service.log();
        if log.contains("waiting for the target") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(service.exit_code(), None, "it waits");

    let owner = format!("host=127.0.0.1 port={} user={SUPERUSER} dbname=example", operated.target.port);
    cli::run(&operated.config(&owner), &["migrate"]).await.expect(0);
    operated.target.exec(documented("target-migrated-by-owner", "example", PASSWORD)).await;
    operated.wait_lines(&["1|Lamp|∅"]).await;
    operated.wait(&config, "streaming").await;
    operated.publisher.exec("UPDATE widgets SET price = 1").await;
    operated.wait_lines(&["1|Lamp|1"]).await;
    assert_eq!(service.sigterm().await, 0);
}

/// Tests the rows of the page's tables that no other test covers.
#[tokio::test]
async fn what_a_missing_privilege_costs_is_as_the_page_says() {
    let operated = Operated::new(&all_for_the_target()).await;
    operated.target.exec(format!("REVOKE TRUNCATE ON widgets FROM {TARGET_ROLE}")).await;
    operated.target.exec("ALTER TABLE widgets ADD number bigserial").await;
    let config = operated.config(&operated.target_url);
    let service = operated.run(&config);
    let view = operated.wait(&config, "paused schema").await;
    let hint = view["hint"].as_str().unwrap();
    assert!(hint.contains("GRANT TRUNCATE ON TABLE"), "{hint}");
    operated.target.exec(documented("target-tables", "example", PASSWORD)).await;

    let view = operated.wait(&config, "retrying copy").await;
    assert!(view.to_string().contains("widgets_number_seq"), "{view:#}");
    let usage = "USAGE ON SEQUENCE widgets_number_seq";
    operated.target.exec(format!("GRANT {usage} TO {TARGET_ROLE}")).await;
    operated.wait_lines(&["1|Lamp|∅"]).await;
    operated.wait(&config, "streaming").await;
    operated.target.exec(format!("REVOKE {usage} FROM {TARGET_ROLE}")).await;
    operated.publisher.exec("INSERT INTO widgets (name) VALUES ('Hammer')").await;
    let view = operated.wait(&config, "paused conflict").await;
    assert!(view.to_string().contains("permission denied"), "{view:#}");
    drop(service);
}

/// All statements of the page are run, by this file and by `support::world` for every test.
#[test]
fn no_statement_of_the_page_is_left_out() {
    let mut run = vec![
        "publisher-role",
        "publisher-tables",
        "publisher-future-tables",
        "target-future-tables",
        "target-replica-role",
        "target-migrated-by-owner",
    ];
    run.extend(all_for_the_target());
    run.sort_unstable();
    run.dedup();
    let mut found = names();
    found.sort_unstable();
    assert_eq!(found, run);
}

/// The hint at run time, the page and the demonstration name the same functions for origins.
#[test]
fn everybody_names_the_same_functions_for_origins() {
    let hint = pgsluice::target::no_origin("pgsluice_apply", pgsluice::target::OriginLack::Privilege);
    let hint = hint.hint.unwrap();
    let page = documented("target-origins", "example", PASSWORD);
    let compose = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/target/init.sql"),
    )
    .unwrap();
    let readme =
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for function in ["oid(text)", "create(text)", "drop(text)", "session_setup(text)", "session_reset()"] {
        let function = format!("pg_replication_origin_{function}");
        for (place, text) in
            [("hint", &hint), ("security.md", &page), ("init.sql", &compose), ("README.md", &readme)]
        {
            assert!(text.contains(&function), "{place} lacks {function}:\n{text}");
        }
    }
}
