//! Creates data directories quickly: `initdb` runs once, then its result is copied.
//!
//! ```text
//! STORE/15.14-UTF8-101-5f3e….lock      locked shared to copy, exclusively to create
//! STORE/15.14-UTF8-101-5f3e…/          the result of initdb
//! ```
//! # Invariants
//! - Any number of processes may use one store at the same time: a template appears complete, by
//!   `rename`, and is replaced only under the exclusive lock.
//! - The shared store lies in the temporary directory under a name that others can guess, so it is used
//!   only if it is a directory of this user that no one else may write to.
//! - A template is created again after a day, because cleaners of temporary directories may have
//!   removed some of its files.
//!
//! `cluster` configures the copies.

use std::fs::{DirBuilder, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;

use super::account::Account;
use super::binaries::ServerBinaries;
use super::cluster_error::{ClusterError, Doing};

/// Name of the superuser that initdb creates.
pub const SUPERUSER: &str = "postgres";

const AGE_MAX: Duration = Duration::from_hours(24);
/// Longest wait for a lock: initdb takes a second or two, and several may wait for one another on a
/// loaded machine.
const LOCK_PATIENCE: Duration = Duration::from_mins(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The directory in which templates are kept.
#[derive(Debug, Clone)]
pub struct TemplateStore {
    dir: PathBuf,
}

impl TemplateStore {
    /// Returns a store in the temporary directory that all processes of this user share.
    pub fn shared() -> Result<Self, ClusterError> {
        // The user is known only as the owner of a file that this process has created.
        let probe = tempfile::tempfile().and_then(|file| file.metadata()).doing("look at", "a new file")?;
        let dir = std::env::temp_dir().join(format!("pgsluice-templates-{}", probe.uid()));
        match DirBuilder::new().mode(0o711).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).doing("create", &dir)?,
            _ => {}
        }
        let found = std::fs::symlink_metadata(&dir).doing("look at", &dir)?;
        if !found.is_dir() || found.uid() != probe.uid() || found.mode() & 0o022 != 0 {
            return Err(ClusterError::ForeignStore { dir });
        }
        Ok(Self { dir })
    }

    /// Returns a store in `dir`, which must exist and which other accounts may enter.
    #[must_use]
    pub const fn private(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Fills `destination`, which must not exist yet, with a new data directory that `account` owns.
    /// Its locale is C.
    pub(super) async fn instantiate(
        &self,
        binaries: &ServerBinaries,
        encoding: &str,
        account: Account,
        destination: &Path,
    ) -> Result<(), ClusterError> {
        let mut hasher = DefaultHasher::new();
        binaries.dir().hash(&mut hasher);
        let build = hasher.finish();
        let key = format!("{}-{encoding}-{}-{build:016x}", binaries.version(), account.uid());
        let template = self.dir.join(&key);
        let lock_file = self.dir.join(format!("{key}.lock"));
        let lock = File::create(&lock_file).doing("create", &lock_file)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            acquire(|| lock.try_lock_shared(), &lock_file, deadline).await?;
            if is_fresh(&template) {
                // The lock is released when its file is closed, at the end of this function.
                return copy(&template, destination, account).await;
            }
            lock.unlock().doing("unlock", &lock_file)?;
            acquire(|| lock.try_lock(), &lock_file, deadline).await?;
            if !is_fresh(&template) {
                self.make(&template, binaries, encoding, account).await?;
            }
            lock.unlock().doing("unlock", &lock_file)?;
        }
    }

    async fn make(
        &self,
        template: &Path,
        binaries: &ServerBinaries,
        encoding: &str,
        account: Account,
    ) -> Result<(), ClusterError> {
        let work = tempfile::Builder::new().prefix("new-").tempdir_in(&self.dir);
        let work = work.doing("create a directory in", &self.dir)?;
        account.give(work.path()).doing("hand over", work.path())?;
        let data = work.path().join("data");
        let mut command = Command::new(binaries.program("initdb"));
        command
            .arg("--pgdata")
            .arg(&data)
            .args(["--username", SUPERUSER, "--auth", "trust", "--no-sync"])
            .args(["--encoding", encoding, "--locale", "C"]);
        run(command, work.path(), account).await?;
        if template.exists() {
            std::fs::remove_dir_all(template).doing("remove", template)?;
        }
        std::fs::rename(&data, template).doing("rename", &data)
    }
}

async fn acquire(
    attempt: impl Fn() -> Result<(), TryLockError>,
    file: &Path,
    deadline: Instant,
) -> Result<(), ClusterError> {
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error).doing("lock", file),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::from(io::ErrorKind::TimedOut)).doing("lock", file);
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Whether the template exists and is not too old.
fn is_fresh(template: &Path) -> bool {
    // PG_VERSION is written once, while the directory's own time changes with its entries.
    let modified = std::fs::metadata(template.join("PG_VERSION")).and_then(|file| file.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < AGE_MAX))
}

async fn copy(template: &Path, destination: &Path, account: Account) -> Result<(), ClusterError> {
    let parent = destination.parent().unwrap_or(destination);
    let mut quick = Command::new("cp");
    quick.args(["-a", "--reflink=auto"]).arg(template).arg(destination);
    if run(quick, parent, account).await.is_ok() {
        return Ok(());
    }
    // This cp does not know GNU's options, so POSIX's are used.
    let _ = std::fs::remove_dir_all(destination);
    let mut portable = Command::new("cp");
    portable.arg("-pR").arg(template).arg(destination);
    run(portable, parent, account).await
}

/// Runs `command` to its end as `account` in `dir`, which that account may enter.
async fn run(mut command: Command, dir: &Path, account: Account) -> Result<(), ClusterError> {
    account.run_as(command.as_std_mut());
    command.current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let program = PathBuf::from(command.as_std().get_program());
    let output = match command.output().await {
        Ok(output) => output,
        Err(error) => return Err(ClusterError::CannotRun { program, account, source: error }),
    };
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ClusterError::ProgramFailed { program, output })
}
