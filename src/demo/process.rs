//! Child processes that never outlive this process.
//!
//! A server or a `pgsluice run` that the demo or a test started has to end when this process ends,
//! whether by return, by panic, by Ctrl-C or by SIGKILL. So each child
//!
//! - is its own process group: Ctrl-C in the terminal reaches only this process, which then stops its
//!   children in order;
//! - has a watchdog: a shell that waits for the end of a pipe that only this process holds open. The
//!   kernel closes the pipe when this process is gone, even after SIGKILL. (Linux's parent-death signal
//!   does not fit: it fires when the *thread* that started the child ends.)
//!
//! Signals other than SIGKILL are sent by `kill` of the POSIX shell, because the standard library
//! cannot send them and this crate has no unsafe code.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Interval at which a child is asked whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A signal, with its meaning for PostgreSQL's postmaster and for pgsluice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `SIGTERM`: pgsluice stops cleanly; a postmaster waits for its clients (smart shutdown).
    Terminate,
    /// `SIGINT`: pgsluice stops cleanly; a postmaster disconnects its clients (fast shutdown).
    Interrupt,
    /// `SIGQUIT`: a postmaster stops at once, recovery follows (immediate shutdown).
    Quit,
    /// `SIGHUP`: both read their configuration again.
    Reload,
    /// `SIGSTOP`: the process freezes, its connections stay open.
    Freeze,
    /// `SIGCONT`: a frozen process goes on.
    Thaw,
    /// `SIGKILL`.
    Kill,
}

impl Signal {
    /// Returns the name that POSIX's `kill -s` takes.
    const fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
            Self::Quit => "QUIT",
            Self::Reload => "HUP",
            Self::Freeze => "STOP",
            Self::Thaw => "CONT",
            Self::Kill => "KILL",
        }
    }
}

/// Sends `signal` to the process `pid`; fails if there is no such process.
pub fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let output = Command::new("/bin/sh")
        .args(["-c", r#"kill -s "$1" "$2""#, "sh", signal.name(), &pid.to_string()])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("kill -s {} {pid}: {}", signal.name(), text.trim())))
}

/// The watchdog's script, which acts once the pipe is closed. `$1` is the process, `$2` the signal,
/// `$3` a directory to remove (or nothing). The wait between the signal and SIGKILL is bounded.
const WATCHDOG: &str = r#"
read -r _
kill -s "$2" "$1" 2>/dev/null
i=0
while [ "$i" -lt 100 ] && kill -s 0 "$1" 2>/dev/null; do sleep 0.05; i=$((i + 1)); done
kill -s KILL "$1" 2>/dev/null
if [ -n "$3" ]; then rm -rf -- "$3"; fi
"#;

/// Ends a process and removes its directory if *this* process ends without having done so.
#[derive(Debug)]
struct Watchdog {
    /// The shell, whose standard input is the pipe.
    shell: Child,
}

impl Watchdog {
    fn over(pid: u32, signal: Signal, directory: Option<&Path>) -> io::Result<Self> {
        let shell = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "pgsluice-watchdog", &pid.to_string(), signal.name()])
            .arg(directory.unwrap_or_else(|| Path::new("")))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }
}

impl Drop for Watchdog {
    /// Disarms the watchdog. It is killed before its pipe is closed, so that it cannot act.
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A child process with its watchdog. It is killed when this is dropped.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    /// Declared after `child`, so that it is dropped only once `child` has ended.
    watchdog: Option<Watchdog>,
    status: Option<ExitStatus>,
}

impl Guarded {
    /// Starts `command` as its own process group, with empty input and output to `log`. If this process
    /// vanishes, the child gets `signal`, later SIGKILL, and `directory` is removed.
    pub fn spawn(
        command: &mut Command,
        log: &File,
        signal: Signal,
        directory: Option<&Path>,
    ) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .process_group(0)
            .spawn()?;
        match Watchdog::over(child.id(), signal, directory) {
            Ok(watchdog) => Ok(Self { child, watchdog: Some(watchdog), status: None }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Returns the process id. The system does not reuse it before the child's end has been noticed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how the child ended; `None` while it runs.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
            if self.status.is_some() {
                self.watchdog = None;
            }
        }
        Ok(self.status)
    }

    /// Sends `signal`; does nothing if the child has already ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        match (self.try_wait()?, signal) {
            (Some(_), _) => Ok(()),
            (None, Signal::Kill) => self.child.kill(),
            (None, signal) => match send(self.child.id(), signal) {
                // The child may have ended in between.
                Err(error) if self.try_wait()?.is_none() => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Waits for the child's end; returns `None` if it has not ended within `patience`.
    pub async fn wait(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.try_wait()? {
                None if Instant::now() < deadline => tokio::time::sleep(POLL_INTERVAL).await,
                ended => return Ok(ended),
            }
        }
    }

    /// Sends a signal, waits, and sends SIGKILL after `patience`. It blocks the thread, for use in
    /// `Drop`, where nothing can be awaited.
    pub fn end(&mut self, signal: Signal, patience: Duration) {
        let _ = self.signal(signal);
        let deadline = Instant::now() + patience;
        while matches!(self.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        if matches!(self.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
        self.watchdog = None;
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end(Signal::Kill, Duration::from_secs(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn sleeper(directory: Option<&Path>) -> Guarded {
        let log = tempfile::tempfile().unwrap();
        Guarded::spawn(Command::new("sleep").arg("600"), &log, Signal::Terminate, directory).unwrap()
    }

    #[tokio::test]
    async fn a_signal_ends_it_and_its_status_is_kept() {
        let mut child = sleeper(None);
        assert_eq!(child.try_wait().unwrap(), None);
        child.signal(Signal::Terminate).unwrap();
        let status = child.wait(PATIENCE).await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(15));
        assert_eq!(child.try_wait().unwrap(), Some(status));
        child.signal(Signal::Terminate).unwrap();
    }

    #[tokio::test]
    async fn waiting_is_bounded() {
        let mut child = sleeper(None);
        assert_eq!(child.wait(Duration::from_millis(20)).await.unwrap(), None);
    }

    #[test]
    fn dropped_it_is_killed() {
        let child = sleeper(None);
        let pid = child.pid();
        drop(child);
        assert!(send(pid, Signal::Thaw).is_err(), "process {pid} is still there");
    }

    #[tokio::test]
    async fn the_watchdog_acts_when_its_pipe_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = sleeper(Some(directory.path()));
        // Simulates what the kernel does to the pipe when its holder dies.
        drop(child.watchdog.as_mut().unwrap().shell.stdin.take());
        let status = child.child.wait().unwrap();
        assert_eq!(status.signal(), Some(15));
        child.watchdog.as_mut().unwrap().shell.wait().unwrap();
        assert!(!directory.path().exists());
    }
}
