//! Finds PostgreSQL's server programs on this machine.
//!
//! Only `initdb` and `postgres` are used; client programs and running servers are not. `scripts/lib.sh`
//! looks in the same places.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::error::Diagnosis;

/// Environment variable with the directory that holds `initdb` and `postgres`; if it is set, nothing is
/// searched.
pub const BIN_VARIABLE: &str = "PGSLUICE_PG_BIN";

/// A directory with the server programs of one PostgreSQL version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinaries {
    dir: PathBuf,
    major: u32,
    /// Version as `postgres --version` prints it, such as `15.14` or `18beta1`.
    version: String,
}

/// Why there are no usable server programs.
#[derive(Debug, Error)]
pub enum BinariesError {
    #[error("PostgreSQL's server programs (initdb, postgres) were not found")]
    NotFound,
    #[error("{} has no executable {program}", dir.display())]
    Incomplete { dir: PathBuf, program: &'static str },
    #[error("{} does not run", program.display())]
    DoesNotRun { program: PathBuf, source: io::Error },
    #[error("{} does not say its version: {output:?}", program.display())]
    NoVersion { program: PathBuf, output: String },
}

impl BinariesError {
    /// Text for the operator.
    #[must_use]
    pub fn diagnosis(&self) -> Diagnosis {
        let diagnosis = Diagnosis::new(self.to_string());
        match self {
            Self::NotFound => diagnosis
                .detail("any version from 10 on will do; no running server is needed or touched")
                .hint(format!(
                    "install it (Debian, Ubuntu: apt-get install postgresql; Fedora, Red Hat: dnf install \
                     postgresql-server), or set {BIN_VARIABLE} to the directory that holds initdb"
                )),
            Self::Incomplete { .. } | Self::NoVersion { .. } => {
                diagnosis.hint(format!("set {BIN_VARIABLE} to the directory that holds initdb and postgres"))
            }
            Self::DoesNotRun { source, .. } => diagnosis.detail(source.to_string()),
        }
    }
}

impl ServerBinaries {
    /// Finds the programs that the environment names ([`BIN_VARIABLE`]); else those that `pg_config` or
    /// `initdb` on the PATH lead to; else the newest that packages of Debian or PGDG have installed.
    pub fn find() -> Result<Self, BinariesError> {
        if let Some(dir) = std::env::var_os(BIN_VARIABLE).filter(|dir| !dir.is_empty()) {
            return Self::at(Path::new(&dir));
        }
        let candidates = [pg_config_bindir(), initdb_on_path()]
            .into_iter()
            .flatten()
            .chain(packaged(Path::new("/usr/lib/postgresql"), ""))
            .chain(packaged(Path::new("/usr"), "pgsql-"));
        let found = candidates.into_iter().find(|dir| missing_program(dir).is_none());
        found.map_or(Err(BinariesError::NotFound), |dir| Self::at(&dir))
    }

    /// Checks the programs in `dir`.
    pub fn at(dir: &Path) -> Result<Self, BinariesError> {
        if let Some(program) = missing_program(dir) {
            return Err(BinariesError::Incomplete { dir: dir.to_owned(), program });
        }
        // The path has to be absolute, because servers run in directories of their own.
        let program = dir.join("postgres");
        let does_not_run = |source| BinariesError::DoesNotRun { program: program.clone(), source };
        let dir = std::path::absolute(dir).map_err(does_not_run)?;
        let output = Command::new(&program).arg("--version").output().map_err(does_not_run)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(does_not_run(io::Error::other(text)));
        }
        let output = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match parse_version(&output) {
            Some((major, version)) => Ok(Self { dir, major, version }),
            None => Err(BinariesError::NoVersion { program, output }),
        }
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the major version: 15 of 15.14.
    #[must_use]
    pub const fn major(&self) -> u32 {
        self.major
    }

    /// Returns the full version, such as `15.14`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn missing_program(dir: &Path) -> Option<&'static str> {
    ["initdb", "postgres"].into_iter().find(|program| !dir.join(program).is_file())
}

fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(dir.trim()))
}

fn initdb_on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // `initdb` on the PATH may be a link into the directory that also holds `postgres`.
    let initdb = std::env::split_paths(&path).map(|dir| dir.join("initdb")).find(|file| file.is_file())?;
    Some(initdb.canonicalize().ok()?.parent()?.to_owned())
}

/// Returns the directories `parent/PREFIX<version>/bin`, the newest version first.
fn packaged(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, dir)| dir).collect()
}

/// Reads `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` as 15 and `15.14`.
fn parse_version(output: &str) -> Option<(u32, String)> {
    let version = output.strip_prefix("postgres (PostgreSQL) ")?.split(' ').next()?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version[..digits].parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check = |output: &str, expected: Option<(u32, &str)>| {
            let parsed = parse_version(output);
            assert_eq!(parsed.as_ref().map(|(major, version)| (*major, version.as_str())), expected);
        };
        check("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", Some((15, "15.14")));
        check("postgres (PostgreSQL) 10.23", Some((10, "10.23")));
        check("postgres (PostgreSQL) 19devel", Some((19, "19devel")));
        check("postgres (PostgreSQL) ", None);
        check("something else", None);
    }

    #[test]
    fn packages_are_listed_newest_first_by_number() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pgsql-9", "pgsql-10", "pgsql-18", "pgsql-common", "share"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let names: Vec<_> = packaged(dir.path(), "pgsql-")
            .iter()
            .map(|bin| bin.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["pgsql-18", "pgsql-10", "pgsql-9"]);
    }

    #[test]
    fn a_directory_without_a_server_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = ServerBinaries::at(dir.path()).unwrap_err();
        assert!(matches!(error, BinariesError::Incomplete { program: "initdb", .. }));
        assert!(error.diagnosis().hint.unwrap().contains(BIN_VARIABLE));
    }
}
