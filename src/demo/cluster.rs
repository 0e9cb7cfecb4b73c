//! A PostgreSQL server to throw away: on loopback, on a free port, gone without a trace.
//!
//! ```text
//! DIRECTORY/        removed at the end
//!   data/           a copy of a template (`template`)
//!   log             what the server writes
//!   .s.PGSQL.PORT   its Unix-domain socket
//! ```
//! The demo and the integration tests run on these. The machine's own servers are neither used nor
//! noticed.
//!
//! # Invariants
//! - The postmaster is our own child: its pid is known, and only that process is ever signalled.
//! - A [`Cluster`] that is dropped is stopped and removed; so is one whose process dies
//!   (`process`).
//! - It listens on 127.0.0.1 only. The superuser needs no password; everybody else does.
//! - Every wait is bounded.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::account::Account;
use super::binaries::ServerBinaries;
pub use super::cluster_error::ClusterError;
use super::cluster_error::Doing;
use super::process::{Guarded, Signal};
use super::session::Session;
pub use super::template::{SUPERUSER, TemplateStore};
use crate::pg::{quote_ident, quote_literal};
use rand::Rng;
use tempfile::TempDir;

/// Ports to choose from: above the well-known ones, below those that Linux gives to outgoing
/// connections, so that a server that restarts finds its port still free.
const PORTS: std::ops::Range<u16> = 15_432..32_000;
const PORT_ATTEMPTS_MAX: u32 = 64;
/// How often another port is tried because somebody took the one that was free a moment ago.
const START_ATTEMPTS_MAX: u32 = 5;
const RESTART_ATTEMPTS_MAX: u32 = 50;
const RESTART_INTERVAL: Duration = Duration::from_millis(200);
/// What the server logs, in the locale C that it runs in.
const PORT_TAKEN: &str = "Address already in use";
const CHILDREN_LEFT: &str = "pre-existing shared memory block";
const START_PATIENCE: Duration = Duration::from_mins(1);
/// A fast shutdown waits for a checkpoint and for walsenders' acknowledgements.
const STOP_PATIENCE: Duration = Duration::from_mins(1);
const DROP_PATIENCE: Duration = Duration::from_secs(5);
const READY_INTERVAL: Duration = Duration::from_millis(10);
/// What a Unix-domain socket's path may hold (`sun_path`, 104 to 108 bytes by system).
const SOCKET_PATH_LEN_MAX: usize = 100;
/// How much of a log goes into an error.
const LOG_TAIL_LINES: usize = 15;

/// What a server is to be like. Start from [`ClusterOptions::new`].
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    binaries: ServerBinaries,
    templates: TemplateStore,
    parent: PathBuf,
    label: String,
    encoding: String,
    durability: Durability,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
}

/// Whether the server's data would survive a crash of the machine. A crash of the server alone it
/// survives either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `fsync = on`: what production has; slow on slow disks.
    Full,
    /// `fsync = off`, `full_page_writes = off`.
    Relaxed,
}

/// How a server is stopped (pg_ctl's three modes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for every client to leave.
    Smart,
    /// Disconnects clients, lets walsenders send what is left, writes a checkpoint.
    Fast,
    /// Stops at once, as a crash would; the next start recovers.
    Immediate,
}

impl StopMode {
    const fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::Terminate,
            Self::Fast => Signal::Interrupt,
            Self::Immediate => Signal::Quit,
        }
    }
}

impl ClusterOptions {
    /// A server for logical replication: `wal_level = logical`, UTF8, relaxed durability, modest
    /// memory.
    #[must_use]
    pub fn new(binaries: ServerBinaries, templates: TemplateStore) -> Self {
        Self {
            binaries,
            templates,
            parent: std::env::temp_dir(),
            label: "cluster".to_owned(),
            encoding: "UTF8".to_owned(),
            durability: Durability::Relaxed,
            settings: Vec::new(),
            hba: Vec::new(),
        }
    }

    /// Part of the directory's name and of error messages.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// Where the server's directory is made; the temporary directory otherwise. Other accounts
    /// must be able to enter it.
    #[must_use]
    pub fn parent(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.parent);
        self
    }

    /// The encoding of its databases, by PostgreSQL's name: `LATIN1`, `SQL_ASCII`.
    #[must_use]
    pub fn encoding(mut self, encoding: &str) -> Self {
        encoding.clone_into(&mut self.encoding);
        self
    }

    #[must_use]
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// A line of `postgresql.conf`, later than the defaults: it wins.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A line of `pg_hba.conf`, before the defaults: it wins.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }
}

/// A server, running or stopped.
#[derive(Debug)]
pub struct Cluster {
    label: String,
    binaries: ServerBinaries,
    account: Account,
    port: u16,
    /// `None` while stopped. Declared before `dir`, and so gone before it is removed.
    server: Option<Guarded>,
    dir: TempDir,
}

impl Cluster {
    /// Makes a server and waits until it accepts connections.
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        let prefix = format!("pgsluice-{}-", options.label);
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(&options.parent);
        let dir = dir.doing("create a directory in", &options.parent)?;
        let account = Account::for_owner_of(dir.path()).doing("look at", dir.path())?;
        account.give(dir.path()).doing("hand over", dir.path())?;
        let data = dir.path().join("data");
        options.templates.instantiate(&options.binaries, &options.encoding, account, &data).await?;
        configure(dir.path(), &options)?;
        let mut cluster =
            Self { label: options.label, binaries: options.binaries, account, port: 0, server: None, dir };
        for attempt in 1.. {
            cluster.port = free_port()?;
            match cluster.spawn().await {
                // Somebody took the port that was free a moment ago.
                Err(ClusterError::Ended { log, .. })
                    if attempt < START_ATTEMPTS_MAX && log.contains(PORT_TAKEN) => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(cluster)
    }

    /// Starts a stopped server again, on the port that it had.
    pub async fn launch(&mut self) -> Result<(), ClusterError> {
        for attempt in 1.. {
            match self.spawn().await {
                // The port is in use for a moment, or children of a killed postmaster still are there.
                Err(ClusterError::Ended { log, .. })
                    if attempt < RESTART_ATTEMPTS_MAX
                        && (log.contains(PORT_TAKEN) || log.contains(CHILDREN_LEFT)) =>
                {
                    tokio::time::sleep(RESTART_INTERVAL).await;
                }
                result => return result,
            }
        }
        Ok(())
    }

    async fn spawn(&mut self) -> Result<(), ClusterError> {
        let log_path = self.log_path();
        let log = File::options().append(true).create(true).open(&log_path).doing("open", &log_path)?;
        let log_start = log.metadata().map_or(0, |log| log.len());
        let program = self.binaries.program("postgres");
        let mut command = Command::new(&program);
        command
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port.to_string()])
            .current_dir(self.dir.path())
            .env_remove("PGDATA")
            .env("LC_ALL", "C");
        self.account.run_as(&mut command);
        let server = Guarded::spawn(&mut command, &log, Signal::Quit, Some(self.dir.path()))
            .map_err(|source| ClusterError::CannotRun { program, account: self.account, source })?;
        self.server = Some(server);
        self.ready(log_start).await
    }

    /// `log_start`: where in the log this start of the server begins.
    async fn ready(&mut self, log_start: u64) -> Result<(), ClusterError> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if let Some(status) = self.try_wait()? {
                self.server = None;
                let log = self.log()?;
                let start = usize::try_from(log_start).unwrap_or(usize::MAX);
                let log = tail(log.get(start..).unwrap_or(&log));
                return Err(ClusterError::Ended { label: self.label.clone(), status, log });
            }
            if self.answers().await {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ClusterError::NotReady { label: self.label.clone(), log: tail(&self.log()?) });
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    /// Whether this very server answers, and not another one that took the port.
    async fn answers(&self) -> bool {
        let data = self.data_dir();
        let data = data.canonicalize().unwrap_or(data);
        match self.connect("postgres").await {
            Ok(session) => session.value("SHOW data_directory").await.is_ok_and(|dir| {
                dir.is_some_and(|dir| Path::new(&dir).canonicalize().unwrap_or(dir.into()) == data)
            }),
            Err(_) => false,
        }
    }

    fn try_wait(&mut self) -> Result<Option<std::process::ExitStatus>, ClusterError> {
        let Some(server) = &mut self.server else { return Ok(None) };
        server.try_wait().doing("wait for", "the server")
    }

    /// Stops the server and waits for its end.
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), ClusterError> {
        let Some(server) = &mut self.server else { return Ok(()) };
        server.signal(mode.signal()).doing("signal", "the server")?;
        let ended = server.wait(STOP_PATIENCE).await.doing("wait for", "the server")?;
        if ended.is_none() {
            return Err(ClusterError::NotStopped {
                label: self.label.clone(),
                mode,
                log: tail(&self.log()?),
            });
        }
        self.server = None;
        Ok(())
    }

    /// Stops the server and starts it again, on the same port.
    pub async fn restart(&mut self, mode: StopMode) -> Result<(), ClusterError> {
        self.stop(mode).await?;
        self.launch().await
    }

    /// Has the server read its configuration files again.
    pub fn reload(&mut self) -> Result<(), ClusterError> {
        self.signal(Signal::Reload)
    }

    /// Sends the postmaster a signal. (After [`Signal::Kill`] its children end by themselves; the
    /// next [`Cluster::launch`] recovers. A crash is simulated more tidily by
    /// [`StopMode::Immediate`].)
    pub fn signal(&mut self, signal: Signal) -> Result<(), ClusterError> {
        let Some(server) = &mut self.server else { return Ok(()) };
        server.signal(signal).doing("signal", "the server")
    }

    /// Adds a line to `postgresql.conf`; takes effect at the next reload or restart.
    pub fn set(&self, name: &str, value: &str) -> Result<(), ClusterError> {
        append(&self.data_dir().join("postgresql.conf"), &setting_line(name, value))
    }

    /// Replaces `pg_hba.conf`: `lines` first, then the lines that let the superuser in and ask
    /// everybody else for a password. Takes effect at the next reload.
    pub fn set_hba(&self, lines: &[&str]) -> Result<(), ClusterError> {
        write_hba(&self.data_dir(), self.binaries.major(), lines)
    }

    /// The whole of what the server has logged so far.
    pub fn log(&self) -> Result<String, ClusterError> {
        let path = self.log_path();
        let bytes = std::fs::read(&path).doing("read", &path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub const fn binaries(&self) -> &ServerBinaries {
        &self.binaries
    }

    /// The postmaster's process id; `None` while the server is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Guarded::pid)
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The directory of its Unix-domain socket, and of all that is its own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// A libpq connection string for `user`, without a password.
    #[must_use]
    pub fn conninfo(&self, dbname: &str, user: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={} dbname={}",
            self.port,
            super::session::conninfo_value(user),
            super::session::conninfo_value(dbname)
        )
    }

    /// A session of the superuser.
    pub async fn connect(&self, dbname: &str) -> Result<Session, ClusterError> {
        Session::connect(&self.conninfo(dbname, SUPERUSER)).await
    }

    /// Creates an empty database.
    pub async fn create_database(&self, name: &str) -> Result<(), ClusterError> {
        let session = self.connect("postgres").await?;
        session.batch(&format!("CREATE DATABASE {}", quote_ident(name))).await?;
        session.close().await;
        Ok(())
    }
}

impl Drop for Cluster {
    /// Stops the server at once. Its directory goes with the field that holds it.
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            server.end(Signal::Quit, DROP_PATIENCE);
        }
    }
}

fn configure(dir: &Path, options: &ClusterOptions) -> Result<(), ClusterError> {
    // A socket path that does not fit would keep the server from starting.
    let socket_dir = if dir.as_os_str().len() + "/.s.PGSQL.65535.lock".len() > SOCKET_PATH_LEN_MAX {
        String::new()
    } else {
        dir.display().to_string()
    };
    let fsync = match options.durability {
        Durability::Full => "on",
        Durability::Relaxed => "off",
    };
    let defaults = [
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", &socket_dir),
        ("wal_level", "logical"),
        ("max_wal_senders", "20"),
        ("max_replication_slots", "20"),
        ("max_connections", "80"),
        ("shared_buffers", "32MB"),
        ("fsync", fsync),
        ("full_page_writes", fsync),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_line_prefix", "%m [%p] %q%a %u@%d "),
        ("log_replication_commands", "on"),
    ];
    let own = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let text: String =
        defaults.into_iter().chain(own).map(|(name, value)| setting_line(name, value)).collect();
    let data = dir.join("data");
    append(&data.join("postgresql.conf"), &text)?;
    let hba: Vec<&str> = options.hba.iter().map(String::as_str).collect();
    write_hba(&data, options.binaries.major(), &hba)
}

fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = {}\n", quote_literal(value))
}

fn append(path: &Path, text: &str) -> Result<(), ClusterError> {
    let file = File::options().append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).doing("write", path)
}

/// Keeps the file's owner: it is opened, not replaced.
fn write_hba(data: &Path, major: u32, lines: &[&str]) -> Result<(), ClusterError> {
    // Before 14, passwords are stored as MD5 unless told otherwise; `md5` there accepts both.
    let method = if major >= 14 { "scram-sha-256" } else { "md5" };
    let own: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
    let text = format!(
        "{own}local all,replication {SUPERUSER} trust\n\
         host all,replication {SUPERUSER} 127.0.0.1/32 trust\n\
         local all,replication all {method}\n\
         host all,replication all 127.0.0.1/32 {method}\n"
    );
    let path = data.join("pg_hba.conf");
    std::fs::write(&path, text).doing("write", &path)
}

/// A TCP port on 127.0.0.1 that is free at this moment. Somebody may take it before it is used.
pub fn free_port() -> Result<u16, ClusterError> {
    let mut random = rand::rng();
    for _ in 0..PORT_ATTEMPTS_MAX {
        let port = random.random_range(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(ClusterError::NoPort)
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

impl fmt::Display for StopMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        })
    }
}
