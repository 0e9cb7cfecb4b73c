//! A publisher, a target, and a configuration for a subscription between them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgsluice::demo::Session;
use pgsluice::demo::binaries::ServerBinaries;
use pgsluice::demo::cluster::{Cluster, ClusterOptions};
use tempfile::TempDir;

use super::awaited::Awaited;
use super::cli::{self, Outcome, StateView};
use super::clusters::{options, publisher_binaries, start, target_binaries};
use super::database::{Database, Looks, compare};
use super::privileges::documented;
use super::service::Service;
use super::wait::{PATIENCE, until_within};

/// The role that pgsluice uses on the publisher, and its password.
pub(crate) const PUBLISHER_ROLE: &str = "sammy";
/// The role that pgsluice uses on the target. Not a superuser.
pub(crate) const TARGET_ROLE: &str = "pgsluice_apply";
/// Password of both roles, with characters that connection strings and the configuration must quote.
pub(crate) const PASSWORD: &str = "pa'ss \\word";
pub(crate) const PUBLICATION: &str = "my_publication";

/// The number of servers that a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Servers {
    /// Both databases are on one server if their versions allow it, which starts faster.
    Shared,
    /// Each side has a server: for tests that stop one side, or whose roles, settings or versions
    /// differ.
    Separate,
}

/// Whether the target's role may set `session_replication_role`, which can be granted from PostgreSQL
/// 15 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplicaRole {
    Granted,
    Withheld,
}

/// Whether the target's role may give its transactions a replication origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origins {
    Granted,
    Withheld,
}

/// Everything that exists before a test begins.
#[derive(Debug)]
pub(crate) struct Builder {
    servers: Servers,
    publisher_binaries: Option<ServerBinaries>,
    replica_role: ReplicaRole,
    origins: Origins,
    encodings: [&'static str; 2],
    publisher_settings: Vec<(String, String)>,
    target_settings: Vec<(String, String)>,
    publisher_sql: Vec<String>,
    target_sql: Vec<String>,
    subscription_lines: Vec<String>,
    config_lines: Vec<String>,
}

impl Builder {
    pub(crate) fn servers(mut self, servers: Servers) -> Self {
        self.servers = servers;
        self
    }

    /// Other server programs for the publisher than the run's.
    pub(crate) fn publisher_binaries(mut self, binaries: ServerBinaries) -> Self {
        self.publisher_binaries = Some(binaries);
        self
    }

    pub(crate) fn replica_role(mut self, replica_role: ReplicaRole) -> Self {
        self.replica_role = replica_role;
        self
    }

    pub(crate) fn origins(mut self, origins: Origins) -> Self {
        self.origins = origins;
        self
    }

    /// Sets the two databases' encodings, the publisher's first. If the publisher's is not UTF8, or if
    /// they differ, the servers have to be separate.
    pub(crate) fn encodings(mut self, publisher: &'static str, target: &'static str) -> Self {
        self.encodings = [publisher, target];
        self
    }

    /// Adds a setting for the publisher's server, which may be shared with the target.
    pub(crate) fn publisher_setting(mut self, name: &str, value: &str) -> Self {
        self.publisher_settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a setting for the target's server, which may be shared with the publisher.
    pub(crate) fn target_setting(mut self, name: &str, value: &str) -> Self {
        self.target_settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds statements for the publisher that the superuser runs before anything else.
    pub(crate) fn publisher_sql(mut self, sql: &str) -> Self {
        self.publisher_sql.push(sql.to_owned());
        self
    }

    /// Adds statements for the target that the superuser runs before anything else.
    pub(crate) fn target_sql(mut self, sql: &str) -> Self {
        self.target_sql.push(sql.to_owned());
        self
    }

    /// Adds statements for both sides.
    pub(crate) fn both_sql(self, sql: &str) -> Self {
        self.publisher_sql(sql).target_sql(sql)
    }

    /// Adds a line to the subscription's section, such as `copy_data = false`.
    pub(crate) fn subscription_line(mut self, line: &str) -> Self {
        self.subscription_lines.push(line.to_owned());
        self
    }

    /// Adds lines at the end of the file: `[[subscriptions.tables]]`, further subscriptions.
    pub(crate) fn config_lines(mut self, lines: &str) -> Self {
        self.config_lines.push(lines.to_owned());
        self
    }

    /// Starts the servers, creates databases and roles, runs the statements, and writes the
    /// configuration. If no statement names [`PUBLICATION`], it is created with `FOR ALL TABLES`.
    pub(crate) async fn start(self) -> World {
        let shared = self.servers == Servers::Shared
            && self.publisher_binaries.is_none()
            && publisher_binaries() == target_binaries()
            && self.encodings[0] == self.encodings[1];
        let (publisher_server, target_server) = self.start_servers(shared).await;
        let at_target = target_server.as_ref().unwrap_or(&publisher_server);
        let names = if shared { ["publisher", "target"] } else { ["example", "example"] };
        let publisher = Database::create(&publisher_server, names[0]).await;
        let target = Database::create(at_target, names[1]).await;
        let major = at_target.binaries().major();
        let all_tables = format!(
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = '{PUBLICATION}') \
             THEN CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES; END IF; END $$"
        );
        let (on_publisher, on_target) = (publisher.session().await, target.session().await);
        run_each(&on_publisher, [&publisher_roles(&publisher.name)]).await;
        run_each(&on_target, [&target_roles(&target.name, major, self.replica_role, self.origins)]).await;
        run_each(&on_publisher, self.publisher_sql.iter().chain([&all_tables])).await;
        run_each(&on_target, &self.target_sql).await;
        on_publisher.close().await;
        on_target.close().await;
        let subscription = unique("sub");
        let dir = tempfile::Builder::new().prefix("pgsluice-world-").tempdir().unwrap();
        let config = dir.path().join("pgsluice.toml");
        std::fs::write(&config, self.config(&subscription, &publisher, &target)).unwrap();
        World { subscription, publisher, target, config, publisher_server, target_server, dir }
    }

    async fn start_servers(&self, shared: bool) -> (Cluster, Option<Cluster>) {
        let set = |options: ClusterOptions, settings: &[(String, String)]| {
            settings.iter().fold(options, |options, (name, value)| options.setting(name, value))
        };
        let binaries = self.publisher_binaries.clone().unwrap_or_else(publisher_binaries);
        let publisher = options(binaries).label("publisher").encoding(self.encodings[0]);
        let publisher = set(publisher, &self.publisher_settings);
        if shared {
            return (start(set(publisher.label("both"), &self.target_settings)).await, None);
        }
        let target = options(target_binaries()).label("target").encoding(self.encodings[1]);
        let target = set(target, &self.target_settings);
        let (publisher, target) = tokio::join!(start(publisher), start(target));
        (publisher, Some(target))
    }

    fn config(&self, subscription: &str, publisher: &Database, target: &Database) -> String {
        let mut text = format!(
            "[target]\nurl = {}\n\n[[subscriptions]]\nname = {}\npublisher = {}\npublications = [{}]\n",
            toml_string(&conninfo(target, TARGET_ROLE)),
            toml_string(subscription),
            toml_string(&conninfo(publisher, PUBLISHER_ROLE)),
            toml_string(PUBLICATION),
        );
        for lines in self.subscription_lines.iter().chain(&self.config_lines) {
            text.push_str(lines);
            text.push('\n');
        }
        text
    }
}

/// Runs statements in one session, each text as a transaction of its own.
async fn run_each(session: &Session, statements: impl IntoIterator<Item = &String>) {
    for sql in statements {
        session.batch(sql).await.unwrap_or_else(|error| panic!("{}", error.diagnosis()));
    }
}

/// Returns a connection string with the role's password, as in the configuration.
pub(crate) fn conninfo(database: &Database, role: &str) -> String {
    let password = PASSWORD.replace('\\', r"\\").replace('\'', r"\'");
    format!(
        "host=127.0.0.1 port={} user={role} password='{password}' dbname={}",
        database.port, database.name
    )
}

/// Returns a connection string for the same database and role through another port of this machine.
pub(crate) fn conninfo_through(database: &Database, role: &str, port: u16) -> String {
    conninfo(database, role).replace(&format!("port={}", database.port), &format!("port={port}"))
}

/// Returns the statements for the publisher's role in docs/security.md.
fn publisher_roles(database: &str) -> String {
    ["publisher-role", "publisher-future-tables"].map(|name| documented(name, database, PASSWORD)).concat()
}

/// Returns the statements for the target's role in docs/security.md.
fn target_roles(database: &str, major: u32, replica_role: ReplicaRole, origins: Origins) -> String {
    let mut names = vec!["target-role", "target-future-tables"];
    if major >= 15 && replica_role == ReplicaRole::Granted {
        names.push("target-replica-role");
    }
    if origins == Origins::Granted {
        names.push("target-origins");
    }
    names.into_iter().map(|name| documented(name, database, PASSWORD)).collect()
}

/// Writes a TOML basic string.
fn toml_string(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Returns a name for a subscription, slot or database that is unique in this process and almost
/// certainly among processes.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{prefix}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A publisher and a target with pgsluice's roles, and its configuration.
#[derive(Debug)]
pub(crate) struct World {
    /// Name of the subscription and of its slot.
    pub(crate) subscription: String,
    pub(crate) publisher: Database,
    pub(crate) target: Database,
    /// Path of the configuration file.
    pub(crate) config: PathBuf,
    publisher_server: Cluster,
    /// `None` if the target is on the publisher's server.
    target_server: Option<Cluster>,
    dir: TempDir,
}

impl World {
    pub(crate) fn builder() -> Builder {
        Builder {
            servers: Servers::Shared,
            publisher_binaries: None,
            replica_role: ReplicaRole::Granted,
            origins: Origins::Granted,
            encodings: ["UTF8", "UTF8"],
            publisher_settings: Vec::new(),
            target_settings: Vec::new(),
            publisher_sql: Vec::new(),
            target_sql: Vec::new(),
            subscription_lines: Vec::new(),
            config_lines: Vec::new(),
        }
    }

    pub(crate) fn publisher_server(&mut self) -> &mut Cluster {
        &mut self.publisher_server
    }

    /// Returns the target's server, which is the publisher's if they share one.
    pub(crate) fn target_server(&mut self) -> &mut Cluster {
        self.target_server.as_mut().unwrap_or(&mut self.publisher_server)
    }

    /// The configuration's publisher is another server from now on, with the same database and roles. Returns
    /// the former one.
    pub(crate) fn move_publisher(&mut self, server: Cluster) -> Cluster {
        let moved = Database::on(&server, &self.publisher.name);
        self.replace_port(self.publisher.port, moved.port);
        self.publisher = moved;
        std::mem::replace(&mut self.publisher_server, server)
    }

    /// The same with the target, which has a server of its own.
    pub(crate) fn move_target(&mut self, server: Cluster) -> Option<Cluster> {
        let moved = Database::on(&server, &self.target.name);
        self.replace_port(self.target.port, moved.port);
        self.target = moved;
        self.target_server.replace(server)
    }

    fn replace_port(&self, from: u16, to: u16) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        std::fs::write(&self.config, text.replace(&format!("port={from} "), &format!("port={to} "))).unwrap();
    }

    /// All servers, by what they are for.
    pub(crate) fn servers(&mut self) -> impl Iterator<Item = (&'static str, &mut Cluster)> {
        let target = self.target_server.as_mut().map(|server| ("target", server));
        [("publisher", &mut self.publisher_server)].into_iter().chain(target)
    }

    /// A directory for the test's own files.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Adds a subscription to the configuration, and returns its name.
    pub(crate) fn subscribe(&self, publication: &str) -> String {
        let (name, publisher) = (unique("further"), toml_string(&conninfo(&self.publisher, PUBLISHER_ROLE)));
        let text = std::fs::read_to_string(&self.config).unwrap();
        let added = format!(
            "[[subscriptions]]\nname = \"{name}\"\npublisher = {publisher}\npublications = [\"{publication}\"]\n"
        );
        std::fs::write(&self.config, text + &added).unwrap();
        name
    }

    /// Starts `pgsluice run`.
    pub(crate) fn run(&self) -> Service {
        self.run_with(&[])
    }

    /// Starts `pgsluice run` with additional environment variables.
    pub(crate) fn run_with(&self, environment: &[(&str, &str)]) -> Service {
        let log = self.dir.path().join(format!("{}.log", unique("run")));
        Service::start(&self.config, log, environment)
    }

    /// Runs a command of pgsluice to its end.
    pub(crate) async fn pgsluice(&self, arguments: &[&str]) -> Outcome {
        cli::run(&self.config, arguments).await
    }

    /// Returns the subscription from `status --json`; the error holds what was printed instead.
    pub(crate) async fn status(&self) -> Result<StateView, String> {
        let outcome = self.pgsluice(&["status", "--json"]).await;
        let document = serde_json::from_str(&outcome.stdout).map_err(|_| format!("{outcome:?}"))?;
        StateView::of(&document, &self.subscription).ok_or_else(|| format!("{outcome:?}"))
    }

    /// Waits until the subscription is in `state`.
    pub(crate) async fn wait_state(&self, state: &str) -> StateView {
        self.wait_state_within(PATIENCE, state).await
    }

    /// [`World::wait_state`] with another deadline.
    pub(crate) async fn wait_state_within(&self, patience: Duration, state: &str) -> StateView {
        let mut awaited = Awaited::new(self, state);
        let what = format!("the subscription is {state}");
        let view = until_within(patience, &what, async || awaited.look().await).await;
        awaited.end().await;
        view
    }

    /// Waits until the subscription is paused, and checks why.
    pub(crate) async fn wait_paused(&self, reason: &str) -> StateView {
        let view = self.wait_state("paused").await;
        assert_eq!(view.reason.as_deref(), Some(reason), "{:#}", view.json);
        view
    }

    /// Waits until the subscription is paused on a conflict, and returns the whole conflict.
    pub(crate) async fn wait_conflict(&self) -> serde_json::Value {
        let paused = self.wait_paused("conflict").await;
        let id = paused.conflict_id().expect("a paused conflict has a number");
        self.pgsluice(&["conflicts", "show", &id, "--json"]).await.expect(0).json()
    }

    /// Runs a service until it streams and stops it. Then the slot exists, and later changes arrive
    /// together at the next start.
    pub(crate) async fn take_up(&self) {
        let service = self.run();
        self.wait_state("streaming").await;
        assert_eq!(service.sigterm().await, 0);
    }

    /// Waits until everything that is committed on the publisher now has been applied.
    pub(crate) async fn wait_caught_up(&self) {
        self.wait_caught_up_within(PATIENCE).await;
    }

    /// Like [`World::wait_caught_up`] with another deadline. It asks the publisher's slot, as scripts
    /// do that wait until a subscriber has caught up.
    pub(crate) async fn wait_caught_up_within(&self, patience: Duration) {
        let now = self.publisher.value("SELECT pg_current_wal_lsn()").await.unwrap();
        let sql = format!(
            "SELECT confirmed_flush_lsn, confirmed_flush_lsn >= '{now}' \
             FROM pg_replication_slots WHERE slot_name = '{}'",
            self.subscription
        );
        let mut publisher = self.publisher.looks();
        until_within(patience, &format!("everything up to {now} is applied"), async || {
            let rows = publisher.rows(&sql).await?;
            match rows.first().map(|row| row[1].as_deref()) {
                Some(Some("t")) => Ok(()),
                _ => Err(format!("{rows:?}")),
            }
        })
        .await;
        publisher.close().await;
    }

    /// Repeated looks at the publisher and at the target.
    pub(crate) fn looks(&self) -> [Looks; 2] {
        [self.publisher.looks(), self.target.looks()]
    }

    /// Compares a table's rows on both sides, in the publisher's columns, sorted.
    pub(crate) async fn same_rows(&self, table: &str) -> Result<(), String> {
        same_rows(&mut self.looks(), table).await
    }

    /// Panics unless a table has the same rows on both sides.
    pub(crate) async fn assert_same_rows(&self, table: &str) {
        if let Err(difference) = self.same_rows(table).await {
            panic!("{difference}");
        }
    }

    /// Waits until a table has the same rows on both sides.
    pub(crate) async fn wait_same_rows(&self, table: &str) {
        let what = format!("{table} is the same on both sides");
        let mut sides = self.looks();
        until_within(PATIENCE, &what, async || same_rows(&mut sides, table).await).await;
        for side in sides {
            side.close().await;
        }
    }
}

async fn same_rows([publisher, target]: &mut [Looks; 2], table: &str) -> Result<(), String> {
    let columns = publisher.columns(table).await?;
    let found = target.sorted(table, &columns).await?;
    compare(table, &publisher.sorted(table, &columns).await?, &found)
}

#[test]
fn names_are_unique() {
    assert_ne!(unique("slot"), unique("slot"));
}

#[test]
fn strings_are_quoted_for_toml() {
    assert_eq!(toml_string(r#"a "b" \c"#), r#""a \"b\" \\c""#);
}

#[tokio::test]
async fn a_world_has_two_databases_and_roles_without_more_power_than_needed() {
    for servers in [Servers::Shared, Servers::Separate] {
        let world = World::builder()
            .servers(servers)
            .both_sql("CREATE TABLE widgets (id int PRIMARY KEY, name text)")
            .target_sql("ALTER TABLE widgets ADD COLUMN note text")
            .start()
            .await;
        assert_eq!(world.target_server.is_some(), servers == Servers::Separate);
        let superusers = "SELECT rolname FROM pg_roles WHERE rolsuper";
        assert_eq!(world.target.lines(superusers).await, ["postgres"]);
        let session = Session::connect(&conninfo(&world.target, TARGET_ROLE)).await.unwrap();
        session.batch("INSERT INTO widgets VALUES (1, 'Hammer'); CREATE SCHEMA mine").await.unwrap();
        let session = Session::connect(&conninfo(&world.publisher, PUBLISHER_ROLE)).await.unwrap();
        assert_eq!(session.rows("SELECT * FROM widgets").await.unwrap().len(), 0);
        assert!(session.batch("DELETE FROM widgets").await.is_err());
        let difference = world.same_rows("widgets").await.unwrap_err();
        assert!(difference.contains("on the target only (1):\n    1|Hammer"), "{difference}");
        world.publisher.exec("INSERT INTO widgets VALUES (1, 'Hammer')").await;
        world.assert_same_rows("widgets").await;
    }
}
