//! A throw-away PostgreSQL server on loopback and on a free port, removed without a trace.
//!
//! ```text
//! DIRECTORY/        removed at the end
//!   data/           a copy of a template (`template`)
//!   log             the server's log
//!   .s.PGSQL.PORT   its Unix-domain socket
//! ```
//! The demo and the integration tests run on these. Servers that are installed on the machine are not
//! touched.
//!
//! # Invariants
//! - The postmaster is a child of this process: its pid is known, and only that process is ever
//!   signalled.
//! - A [`Cluster`] is stopped and removed when it is dropped or when this process dies (`process`).
//! - It listens on 127.0.0.1 only. The superuser needs no password; every other role does.
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

/// Range of ports: above the well-known ones and below those that Linux gives to outgoing connections,
/// so that a server that restarts finds its port still free.
const PORTS: std::ops::Range<u16> = 15_432..32_000;
const PORT_ATTEMPTS_MAX: u32 = 64;
/// Largest number of ports that are tried, since another process may take a free port before the server
/// does.
const START_ATTEMPTS_MAX: u32 = 5;
const RESTART_ATTEMPTS_MAX: u32 = 50;
const RESTART_INTERVAL: Duration = Duration::from_millis(200);
/// The server's log message for a port in use, in the locale C that it runs in.
const PORT_TAKEN: &str = "Address already in use";
const CHILDREN_LEFT: &str = "pre-existing shared memory block";
const START_PATIENCE: Duration = Duration::from_mins(1);
/// Longest wait for a stop: a fast shutdown waits for a checkpoint and for the walsenders'
/// acknowledgements.
const STOP_PATIENCE: Duration = Duration::from_mins(1);
const DROP_PATIENCE: Duration = Duration::from_secs(5);
const READY_INTERVAL: Duration = Duration::from_millis(10);
/// Largest length of a Unix-domain socket's path (`sun_path` has 104 to 108 bytes, depending on the
/// system).
const SOCKET_PATH_LEN_MAX: usize = 100;
/// Number of log lines in an error.
const LOG_TAIL_LINES: usize = 15;

/// Settings of a server. Start from [`ClusterOptions::new`].
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

/// Whether the server's data would survive a crash of the machine. It survives a crash of the server in
/// either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `fsync = on`, as in production; slow on slow disks.
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
    /// Returns options for logical replication: `wal_level = logical`, UTF8, relaxed durability, little
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

    /// Sets the label, which is part of the directory's name and of error messages.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        label.clone_into(&mut self.label);
        self
    }

    /// Sets the directory in which the server's directory is created; the default is the temporary
    /// directory. Other accounts must be able to enter it.
    #[must_use]
    pub fn parent(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.parent);
        self
    }

    /// Sets the encoding of its databases by PostgreSQL's name: `LATIN1`, `SQL_ASCII`.
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

    /// Adds a line to `postgresql.conf` after the defaults, so that it takes precedence.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a line to `pg_hba.conf` before the defaults, so that it takes precedence.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }
}

/// A server, which may be running or stopped.
#[derive(Debug)]
pub struct Cluster {
    label: String,
    binaries: ServerBinaries,
    account: Account,
    port: u16,
    /// `None` while stopped. It is declared before `dir`, so that the server ends before its directory
    /// is removed.
    server: Option<Guarded>,
    dir: TempDir,
}

impl Cluster {
    /// Creates a server and waits until it accepts connections.
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
                // Another process took the port between the choice and the start.
                Err(ClusterError::Ended { log, .. })
                    if attempt < START_ATTEMPTS_MAX && log.contains(PORT_TAKEN) => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        Ok(cluster)
    }

    /// Starts a stopped server again on the same port.
    pub async fn launch(&mut self) -> Result<(), ClusterError> {
        for attempt in 1.. {
            match self.spawn().await {
                // The port is briefly in use, or children of a killed postmaster still run.
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

    /// Waits until the server is ready. `log_start` is the offset in the log at which this start
    /// begins.
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

    /// Whether this server answers, and not another one that took the port.
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

    /// Stops the server and waits until it has ended.
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

    /// Stops the server and starts it again on the same port.
    pub async fn restart(&mut self, mode: StopMode) -> Result<(), ClusterError> {
        self.stop(mode).await?;
        self.launch().await
    }

    /// Makes the server read its configuration files again.
    pub fn reload(&mut self) -> Result<(), ClusterError> {
        self.signal(Signal::Reload)
    }

    /// Sends a signal to the postmaster. After [`Signal::Kill`] its children end by themselves, and the
    /// next [`Cluster::launch`] recovers. [`StopMode::Immediate`] is the cleaner way to simulate a
    /// crash.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ClusterError> {
        let Some(server) = &mut self.server else { return Ok(()) };
        server.signal(signal).doing("signal", "the server")
    }

    /// Adds a line to `postgresql.conf`, which takes effect at the next reload or restart.
    pub fn set(&self, name: &str, value: &str) -> Result<(), ClusterError> {
        append(&self.data_dir().join("postgresql.conf"), &setting_line(name, value))
    }

    /// Replaces `pg_hba.conf`: `lines` come first, then the lines that admit the superuser and ask
    /// every other role for a password. It takes effect at the next reload.
    pub fn set_hba(&self, lines: &[&str]) -> Result<(), ClusterError> {
        write_hba(&self.data_dir(), self.binaries.major(), lines)
    }

    /// Returns everything that the server has logged so far.
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

    /// Returns the postmaster's process id; `None` while the server is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Guarded::pid)
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Returns the server's directory, which also holds its Unix-domain socket.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Returns a libpq connection string for `user`, without a password.
    #[must_use]
    pub fn conninfo(&self, dbname: &str, user: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user={} dbname={}",
            self.port,
            super::session::conninfo_value(user),
            super::session::conninfo_value(dbname)
        )
    }

    /// Opens a session as superuser.
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
    /// Stops the server at once. Its directory is removed with the field that holds it.
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            server.end(Signal::Quit, DROP_PATIENCE);
        }
    }
}

fn configure(dir: &Path, options: &ClusterOptions) -> Result<(), ClusterError> {
    // With a socket path that is too long the server would not start.
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

/// Writes `pg_hba.conf`. The file is opened, not replaced, so that it keeps its owner.
fn write_hba(data: &Path, major: u32, lines: &[&str]) -> Result<(), ClusterError> {
    // Before 14, passwords are stored as MD5 by default, and the method `md5` accepts both kinds.
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

/// Returns a TCP port on 127.0.0.1 that is free now. Another process may take it before it is used.
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

/// Returns the last lines of a log.
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
