//! The environment of the walk-through: two clusters, a configuration file, and this executable as the
//! service and as the command line. Dropping it stops and removes everything.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::distr::Alphanumeric;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::Command;

use super::binaries::ServerBinaries;
use super::cluster::{Cluster, ClusterError, ClusterOptions, Durability, TemplateStore, free_port};
use super::narrator::Side;
use super::process::{Guarded, Signal};
use super::session::TextTable;
use super::{DemoError, io_error};

/// Name of the database on both sides.
pub(super) const DATABASE: &str = "example";
pub(super) const SUBSCRIPTION: &str = "my_subscription";
pub(super) const PUBLISHER_ROLE: &str = "sammy";
pub(super) const TARGET_ROLE: &str = "pgsluice_apply";

/// Longest wait for anything that normally takes a second.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PASSWORD_LENGTH: usize = 24;
const LOG_TAIL_LINES: usize = 20;

/// The fields of one subscription in `status --json` that the demo uses.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Status {
    name: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) hint: Option<String>,
    conflict_id: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct StatusDocument {
    subscriptions: Vec<Status>,
}

impl Status {
    /// Returns the conflict's number as the command line takes it.
    pub(super) fn conflict_id(&self) -> Option<String> {
        match self.conflict_id.as_ref()? {
            serde_json::Value::String(id) => Some(id.clone()),
            id @ serde_json::Value::Number(_) => Some(id.to_string()),
            _ => None,
        }
    }
}

/// The two servers, the configuration and the service. Fields are dropped in this order.
#[derive(Debug)]
pub(super) struct Stage {
    /// `None` before the service starts and after it was stopped.
    service: Option<Guarded>,
    pub(super) publisher: Cluster,
    pub(super) target: Cluster,
    executable: PathBuf,
    password: String,
    output_width: usize,
    dir: TempDir,
}

impl Stage {
    /// Finds the server programs and starts both servers.
    pub(super) async fn set_up(output_width: usize) -> Result<Self, DemoError> {
        let binaries = ServerBinaries::find().map_err(ClusterError::from)?;
        let executable =
            std::env::current_exe().map_err(|source| io_error("find", "this executable", source))?;
        let dir = tempfile::Builder::new().prefix("pgsluice-demo-").tempdir();
        let dir = dir.map_err(|source| io_error("create", "a temporary directory", source))?;
        // If the servers have an account of their own, it has to be able to enter its directories.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711))
            .map_err(|source| io_error("open up", "the temporary directory", source))?;
        let templates = TemplateStore::private(dir.path().to_owned());
        let options =
            ClusterOptions::new(binaries, templates).parent(dir.path()).durability(Durability::Full);
        let (publisher, target) = tokio::join!(
            Cluster::start(options.clone().label("publisher")),
            Cluster::start(options.label("target"))
        );
        let password = rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect();
        Ok(Self {
            service: None,
            publisher: publisher?,
            target: target?,
            executable,
            password,
            output_width,
            dir,
        })
    }

    /// Returns the password of both roles, which is generated for this demo.
    pub(super) fn password(&self) -> &str {
        &self.password
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.dir.path().join("pgsluice.toml")
    }

    pub(super) fn server(&self, side: Side) -> &Cluster {
        match side {
            Side::Publisher => &self.publisher,
            Side::Target => &self.target,
        }
    }

    /// Runs statements on one side as superuser.
    pub(super) async fn execute(&self, side: Side, sql: &str) -> Result<(), DemoError> {
        let session = self.server(side).connect(DATABASE).await?;
        session.batch(sql).await?;
        session.close().await;
        Ok(())
    }

    /// Returns the result of a query on one side.
    pub(super) async fn query(&self, side: Side, sql: &str) -> Result<TextTable, DemoError> {
        let session = self.server(side).connect(DATABASE).await?;
        let table = session.table(sql).await?;
        session.close().await;
        Ok(table)
    }

    /// Writes the configuration file and returns its text without the password.
    pub(super) fn write_config(&self) -> Result<String, DemoError> {
        let listen = free_port()?;
        let text = |password: &str| {
            let url =
                |server: &Cluster, role| format!("{} password={password}", server.conninfo(DATABASE, role));
            format!(
                "[service]\nlisten = \"127.0.0.1:{listen}\"\n\n\
                 [target]\nurl = \"{}\"\n\n\
                 [[subscriptions]]\nname = \"{SUBSCRIPTION}\"\npublisher = \"{}\"\n\
                 publications = [\"my_publication\"]\n",
                url(&self.target, TARGET_ROLE),
                url(&self.publisher, PUBLISHER_ROLE),
            )
        };
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.config_path())
            .and_then(|mut file| file.write_all(text(&self.password).as_bytes()))
            .map_err(|source| io_error("write", "the configuration file", source))?;
        Ok(text("…"))
    }

    /// Starts `pgsluice run`.
    pub(super) fn start_service(&mut self) -> Result<(), DemoError> {
        let log = File::create(self.log_path()).map_err(|source| io_error("create", "the log", source))?;
        let mut command = self.pgsluice().into_std();
        command.arg("run").env_remove("CLICOLOR_FORCE");
        let service = Guarded::spawn(&mut command, &log, Signal::Terminate, Some(self.dir.path()))
            .map_err(|source| io_error("start", "pgsluice", source))?;
        self.service = Some(service);
        Ok(())
    }

    /// Stops the service by SIGTERM and returns how it ended.
    pub(super) async fn stop_service(&mut self) -> Result<ExitStatus, DemoError> {
        let wait = |source| io_error("stop", "pgsluice", source);
        let Some(mut service) = self.service.take() else {
            return Ok(ExitStatus::default());
        };
        service.signal(Signal::Terminate).map_err(wait)?;
        match service.wait(PATIENCE).await.map_err(wait)? {
            Some(status) => Ok(status),
            None => Err(self.timed_out("it stops", "it still runs".to_owned())),
        }
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.dir.path().join("pgsluice.log")
    }

    fn pgsluice(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .arg("--config")
            .arg(self.config_path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env("COLUMNS", self.output_width.to_string());
        if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            // The output is printed through the narrator, which removes colours if need be.
            command.env("CLICOLOR_FORCE", "1");
        }
        // Environment variables for the caller's own subscriptions or servers must not have an effect.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        command
    }

    /// Runs a command of pgsluice and returns its exit status, stdout and stderr.
    async fn ask(&self, arguments: &[&str]) -> Result<(ExitStatus, String, String), DemoError> {
        let output = self.pgsluice().args(arguments).output().await;
        let output = output.map_err(|source| io_error("run", "pgsluice", source))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status, text(&output.stdout), text(&output.stderr)))
    }

    /// Runs a command of pgsluice that changes something and returns its output.
    pub(super) async fn tell(&self, arguments: &[&str]) -> Result<String, DemoError> {
        let (status, stdout, stderr) = self.ask(arguments).await?;
        if status.success() {
            return Ok(stdout);
        }
        Err(DemoError::Command { command: arguments.join(" "), status, output: stderr })
    }

    /// Runs a command of pgsluice that shows something and returns its output. Exit code 1 is accepted:
    /// it means that something is paused.
    pub(super) async fn look(&self, arguments: &[&str]) -> Result<String, DemoError> {
        let (status, stdout, stderr) = self.ask(arguments).await?;
        match status.code() {
            Some(0 | 1) if !stdout.is_empty() => Ok(stdout),
            _ => Err(DemoError::Command { command: arguments.join(" "), status, output: stderr }),
        }
    }

    /// Returns the subscription from `status --json`, or what was seen in its place.
    async fn status(&self) -> Result<Result<Status, String>, DemoError> {
        let (_, stdout, stderr) = self.ask(&["status", "--json"]).await?;
        let Ok(document) = serde_json::from_str::<StatusDocument>(&stdout) else {
            return Ok(Err(stderr.trim().to_owned()));
        };
        let mut subscriptions = document.subscriptions.into_iter();
        Ok(subscriptions.find(|status| status.name == SUBSCRIPTION).ok_or(stdout))
    }

    /// Waits until the subscription is in `state` and, if it is paused, has `reason`.
    pub(super) async fn wait_state(
        &mut self,
        state: &str,
        reason: Option<&str>,
    ) -> Result<Status, DemoError> {
        let what =
            format!("the subscription is {state}{}", reason.map_or(String::new(), |r| format!(" ({r})")));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = match self.status().await? {
                Ok(status)
                    if status.state == state && (reason.is_none() || status.reason.as_deref() == reason) =>
                {
                    return Ok(status);
                }
                Ok(status) => format!("{status:?}"),
                Err(seen) => seen,
            };
            self.pause(&what, seen, deadline).await?;
        }
    }

    /// Waits until `sql` returns `expected` on the target.
    pub(super) async fn wait_rows(&mut self, sql: &str, expected: &TextTable) -> Result<(), DemoError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.query(Side::Target, sql).await?;
            if seen.rows == expected.rows {
                return Ok(());
            }
            self.pause("the target has the publisher's rows", format!("{:?}", seen.rows), deadline).await?;
        }
    }

    /// Waits before the next look; fails once the deadline has passed or the service has ended.
    async fn pause(&mut self, what: &str, seen: String, deadline: Instant) -> Result<(), DemoError> {
        let ended = match &mut self.service {
            Some(service) => service.try_wait().map_err(|source| io_error("wait for", "pgsluice", source))?,
            None => None,
        };
        if let Some(status) = ended {
            return Err(DemoError::Command { command: "run".to_owned(), status, output: self.log_tail() });
        }
        if Instant::now() >= deadline {
            return Err(self.timed_out(what, seen));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        Ok(())
    }

    fn timed_out(&self, what: &str, seen: String) -> DemoError {
        DemoError::TimedOut { what: what.to_owned(), patience: PATIENCE, seen, log: self.log_tail() }
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// Returns the directory of everything.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn executable(&self) -> &Path {
        &self.executable
    }
}
