//! A throw-away PostgreSQL server, shared by the tests that run at the same time.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tokio_postgres::{Client, Config, NoTls};

const START_MAX: Duration = Duration::from_mins(1);

/// A separate database and a connection to it with an empty `search_path`.
pub(super) struct Database {
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) version: u32,
    _server: Arc<Server>,
}

impl Database {
    pub(super) async fn create(purpose: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let server = Server::shared();
        let name = format!("schema_{purpose}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let admin = server.connect("postgres").await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a database");
        let client = server.connect(&name).await;
        let version = client.query_one("SHOW server_version_num", &[]).await.expect("version");
        let version = version.get::<_, String>(0).parse().expect("a number");
        Self { name, client, version, _server: server }
    }
}

struct Server {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Server {
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    fn start() -> Self {
        let directory =
            tempfile::Builder::new().prefix("pgsluice-schema-").tempdir_in("/tmp").expect("a directory");
        let data = directory.path().join("data");
        if let Some(user) = unprivileged() {
            chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        let initdb = command("initdb", directory.path())
            .args(["-U", "postgres", "-A", "trust", "-N", "--no-locale", "-E", "UTF8", "-D"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let log = std::fs::File::create(directory.path().join("log")).expect("a log");
        let child = command("postgres", directory.path())
            .arg("-D")
            .arg(&data)
            .args([
                "-p",
                &port.to_string(),
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
            ])
            .args(["-c", "wal_level=logical", "-c", "fsync=off", "-c", "max_replication_slots=20"])
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        Self { child, port, _directory: directory }
    }

    /// Connects, waiting for the server to come up.
    async fn connect(&self, database: &str) -> Client {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname(database).options("-c search_path=");
        let deadline = Instant::now() + START_MAX;
        loop {
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(Instant::now() < deadline, "the server does not come up: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // An immediate shutdown suffices, because the data is removed.
        let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}

fn command(program: &str, directory: &Path) -> Command {
    let mut command = Command::new(bin_directory().join(program));
    command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(user) = unprivileged() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// Returns a user to run as, since PostgreSQL refuses to run as root.
fn unprivileged() -> Option<User> {
    let named = |name| User::from_name(name).ok().flatten();
    geteuid().is_root().then(|| named("postgres").or_else(|| named("nobody")).expect("an unprivileged user"))
}

fn bin_directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("PGSLUICE_TEST_PG_BIN") {
        return directory.into();
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").expect("an installed PostgreSQL");
    let newest = installed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .expect("an installed PostgreSQL");
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}
