//! What docker/ ships, tested as far as that goes without a container engine: the Compose file
//! against the specification's own schema and against everything that it names, the Dockerfile
//! against the repository, the systemd unit, and the set-up of it all for real on throw-away servers.
//!
//! `scripts/image-steps` runs the Dockerfile's steps; that takes too long for every change.

mod compose;
mod image;
mod live;
mod unit;
mod yaml;

use std::path::{Path, PathBuf};

/// A path of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A text of the repository.
#[track_caller]
fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether the executable understands these arguments.
#[track_caller]
fn assert_parses(arguments: &[&str]) {
    let output = crate::support::cli::executable().args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "pgsluice {arguments:?}: {output:?}");
}
