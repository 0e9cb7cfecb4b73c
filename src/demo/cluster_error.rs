//! Errors of throw-away servers, with remedies.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use thiserror::Error;

use super::account::Account;
use super::binaries::BinariesError;
use super::cluster::StopMode;
use crate::error::Diagnosis;

/// Why a throw-away server cannot be created, or does not do what it should.
#[derive(Debug, Error)]
pub enum ClusterError {
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    #[error("could not {doing} {what}")]
    Io { doing: &'static str, what: String, source: io::Error },
    #[error("{} belongs to somebody else, or others may write to it", dir.display())]
    ForeignStore { dir: PathBuf },
    #[error("could not run {}", program.display())]
    CannotRun { program: PathBuf, account: Account, source: io::Error },
    #[error("{} failed", program.display())]
    ProgramFailed { program: PathBuf, output: String },
    #[error("no free TCP port was found on 127.0.0.1")]
    NoPort,
    #[error("the throw-away server \"{label}\" ended while starting ({status})")]
    Ended { label: String, status: ExitStatus, log: String },
    #[error("the throw-away server \"{label}\" did not accept connections in time")]
    NotReady { label: String, log: String },
    #[error("the throw-away server \"{label}\" did not stop in time ({mode} shutdown)")]
    NotStopped { label: String, mode: StopMode, log: String },
    #[error("a statement on a throw-away server failed")]
    Sql { statement: String, source: tokio_postgres::Error },
}

impl ClusterError {
    /// Text for the operator.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let diagnosis = Diagnosis::new(self.to_string());
        match self {
            Self::Binaries(error) => error.diagnosis(),
            Self::ForeignStore { .. } => diagnosis.hint("remove it, or set TMPDIR to a directory of your own"),
            Self::CannotRun { account: Account::Other { uid, .. }, source, .. } => {
                diagnosis.detail(format!("{source} (as the user with id {uid}, because root may not run a server)")).hint(
                    "the program, and each directory above it, must be readable and executable for other users",
                )
            }
            Self::Io { source, .. } | Self::CannotRun { source, .. } => diagnosis.detail(source.to_string()),
            Self::ProgramFailed { output, .. } => diagnosis.detail(output.clone()),
            Self::NoPort => diagnosis.hint("close programs that listen on many ports, then try again"),
            Self::Ended { log, .. } | Self::NotReady { log, .. } | Self::NotStopped { log, .. } => {
                diagnosis.detail(format!("its log ends:\n{log}"))
            }
            Self::Sql { statement, source } => {
                let detail = source.as_db_error().map_or_else(|| source.to_string(), ToString::to_string);
                diagnosis.detail(format!("{statement}: {detail}"))
            }
        }
    }
}

/// Adds context to an I/O error: "could not *open* */the/file*".
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, what: impl AsRef<OsStr>) -> Result<T, ClusterError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, what: impl AsRef<OsStr>) -> Result<T, ClusterError> {
        self.map_err(|source| ClusterError::Io { doing, what: what.as_ref().display().to_string(), source })
    }
}
