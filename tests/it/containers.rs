//! Tests of docker/ without a container engine: the Compose file against the specification's schema and
//! against everything that it names, the Dockerfile against the repository, the systemd unit, and the
//! whole set-up on throw-away servers.
//!
//! `scripts/image-steps` runs the Dockerfile's steps, which takes too long for every change.

mod compose;
mod image;
mod live;
mod unit;
mod yaml;

use std::path::{Path, PathBuf};

/// Returns a path in the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads a file of the repository.
#[track_caller]
fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Checks that the executable accepts these arguments.
#[track_caller]
fn assert_parses(arguments: &[&str]) {
    let output = crate::support::cli::executable().args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "pgsluice {arguments:?}: {output:?}");
}
