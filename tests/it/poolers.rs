//! A connection pooler before the target: in session mode it serves, in any other it is refused before
//! anything has been set in a session that belongs to other applications, too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgsluice::demo::Session;
use pgsluice::demo::cluster::free_port;
use tempfile::TempDir;

use crate::support::cli;
use crate::support::service::Service;
use crate::support::wait::until_within;
use crate::support::world::{Servers, World};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const START: Duration = Duration::from_secs(20);

/// PgBouncer before the target of a world. Everybody is let in as the superuser.
struct PgBouncer {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl PgBouncer {
    /// Starts it; returns none if it is not installed.
    async fn start(world: &World, mode: &str, pool_size: u32) -> Option<Self> {
        let program = program()?;
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (port, server) = (free_port().unwrap(), world.target.port);
        let settings = [
            "[databases]".to_owned(),
            format!("* = host=127.0.0.1 port={server} user=postgres pool_mode={mode} pool_size={pool_size}"),
            "[pgbouncer]".to_owned(),
            format!("listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any"),
            "ignore_startup_parameters = extra_float_digits".to_owned(),
        ];
        let file = dir.path().join("pgbouncer.ini");
        fs::write(&file, settings.join("\n") + "\n").unwrap();
        let mut command = Command::new(program);
        // It refuses to run as root; as another user it does not know how to become nobody.
        if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
            command.args(["--user", "nobody"]);
        }
        let process = command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pooler = Self { process, port, _dir: dir };
        until_within(START, "the pooler answers", async || {
            Session::connect(&pooler.application(world)).await.is_ok()
        })
        .await;
        Some(pooler)
    }

    /// The connection string of another application.
    fn application(&self, world: &World) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={}", self.port, world.target.name)
    }

    /// Writes a configuration that reaches the target through the pooler.
    fn config(&self, world: &World) -> PathBuf {
        let direct = fs::read_to_string(&world.config).unwrap();
        let pooled = direct.replace(&format!("port={}", world.target.port), &format!("port={}", self.port));
        assert_ne!(direct, pooled);
        let path = world.dir().join("pooled.toml");
        fs::write(&path, pooled).unwrap();
        path
    }

    /// Checks that the pool's sessions have their defaults.
    async fn is_untouched(&self, world: &World, after: &str) {
        for _ in 0..3 {
            let session = Session::connect(&self.application(world)).await.unwrap();
            let path = session.value("SHOW search_path").await.unwrap();
            assert_eq!(path.as_deref(), Some("\"$user\", public"), "after {after}");
            let set = "SELECT string_agg(name, ' ') FROM pg_settings WHERE source = 'session' AND name NOT IN \
                       ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', \
                        'standard_conforming_strings', 'extra_float_digits')";
            assert_eq!(session.value(set).await.unwrap(), None, "set after {after}");
            session.close().await;
        }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Finds PgBouncer on the PATH, or where scripts/test puts it.
fn program() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([fetched, "/usr/sbin".into()])
        .map(|directory| directory.join("pgbouncer"))
        .find(|program| program.is_file());
    if found.is_none() {
        println!("NOT CHECKED: pgbouncer is missing (Debian's package \"pgbouncer\" has it)");
    }
    found
}

#[track_caller]
fn refused(told: &str) {
    assert!(told.contains("is a connection pooler that gives each transaction another session"), "{told}");
    assert!(told.contains("pool_mode = session"), "{told}");
}

async fn world() -> World {
    World::builder().servers(Servers::Separate).both_sql(TABLE).start().await
}

#[tokio::test]
async fn a_pooler_that_is_not_in_session_mode_is_refused_before_anything_is_set() {
    let world = world().await;
    for mode in ["transaction", "statement"] {
        let Some(pooler) = PgBouncer::start(&world, mode, 20).await else { return };
        let config = pooler.config(&world);
        for command in [&["check", "--json"][..], &["migrate"], &["status"], &["pause", &world.subscription]]
        {
            let outcome = cli::run(&config, command).await;
            assert_ne!(outcome.code, 0, "{mode} {command:?}: {outcome:?}");
            refused(&format!("{}{}", outcome.stdout, outcome.stderr));
            pooler.is_untouched(&world, &format!("{command:?} in mode {mode}")).await;
        }
        let service = Service::start(&config, world.dir().join(format!("{mode}.log")), &[]);
        until_within(START, "the service waits", async || service.log().contains("waiting for the target"))
            .await;
        refused(&service.log());
        drop(service);
        pooler.is_untouched(&world, &format!("run in mode {mode}")).await;
        let schema = "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgsluice'";
        assert_eq!(world.target.value(schema).await.as_deref(), Some("0"), "{mode}");
    }
}

#[tokio::test]
async fn a_busy_pool_in_transaction_mode_is_recognised_too() {
    let world = world().await;
    let Some(pooler) = PgBouncer::start(&world, "transaction", 6).await else { return };
    let config = pooler.config(&world);
    let applications = (0..4).map(|_| async {
        let session = Session::connect(&pooler.application(&world)).await.unwrap();
        loop {
            session.batch("SELECT pg_sleep(0.001)").await.unwrap();
        }
    });
    let checks = async {
        for _ in 0..20 {
            let outcome = cli::run(&config, &["status"]).await;
            assert!(outcome.stderr.contains("is a connection pooler"), "{outcome:?}");
        }
    };
    tokio::select! {
        _ = futures_util::future::join_all(applications) => {}
        () = checks => {}
    }
    pooler.is_untouched(&world, "twenty commands").await;
}

#[tokio::test]
async fn a_pool_in_session_mode_serves() {
    let world = world().await;
    let Some(pooler) = PgBouncer::start(&world, "session", 40).await else { return };
    let config = pooler.config(&world);
    world.publisher.exec("INSERT INTO t VALUES (1, 'copied')").await;
    cli::run(&config, &["check"]).await.expect(0);
    let _service = Service::start(&config, world.dir().join("pooled.log"), &[]);
    world.wait_state("streaming").await;
    world.publisher.exec("INSERT INTO t VALUES (2, 'streamed')").await;
    world.wait_same_rows("t").await;
    cli::run(&config, &["pause", &world.subscription]).await.expect(0);
    world.wait_state("paused").await;
}
