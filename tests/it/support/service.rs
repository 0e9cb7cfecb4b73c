//! Runs `pgsluice run` as a process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgsluice::demo::cluster::free_port;
use pgsluice::demo::process::{Guarded, Signal};

use super::cli;

/// Longest time for a clean stop.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const LOG_TAIL_LINES: usize = 60;

/// A running `pgsluice run`. Dropping it kills the process and, if the test has failed, prints the end
/// of its log.
#[derive(Debug)]
pub(crate) struct Service {
    process: Guarded,
    log: PathBuf,
    /// Port of its HTTP service.
    pub(crate) http_port: u16,
}

impl Service {
    /// Starts the service with a configuration file and additional environment variables, logging into
    /// `log`.
    pub(crate) fn start(config: &Path, log: PathBuf, environment: &[(&str, &str)]) -> Self {
        let mut command = cli::executable();
        command.arg("--config").arg(config).arg("run");
        Self::spawn(command, log, environment)
    }

    /// Starts `command`, which must become a `pgsluice run`.
    pub(crate) fn spawn(
        mut command: std::process::Command,
        log: PathBuf,
        environment: &[(&str, &str)],
    ) -> Self {
        let http_port = free_port().unwrap();
        command
            .env("RUST_LOG", "pgsluice=debug,info")
            .env("RUST_BACKTRACE", "1")
            .env("PGSLUICE__SERVICE__LISTEN", format!("127.0.0.1:{http_port}"))
            .envs(environment.iter().copied());
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let process = Guarded::spawn(&mut command, &file, Signal::Kill, None)
            .unwrap_or_else(|error| panic!("pgsluice run could not be started: {error}"));
        Self { process, log, http_port }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns everything that it has logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns its exit code; `None` while it runs, and -1 if a signal ended it.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.process.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub(crate) async fn kill9(mut self) {
        self.signal(Signal::Kill);
        self.ended().await;
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn sigterm(mut self) -> i32 {
        self.signal(Signal::Terminate);
        self.ended().await
    }

    /// Waits until it ends by itself and returns the exit code.
    pub(crate) async fn ended(&mut self) -> i32 {
        let status = self.process.wait(STOP_PATIENCE).await.unwrap();
        let status = status.unwrap_or_else(|| panic!("pgsluice has not ended in {STOP_PATIENCE:?}"));
        status.code().unwrap_or(-1)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
            println!("---- the end of pgsluice's log ----\n{tail}\n----");
        }
    }
}
