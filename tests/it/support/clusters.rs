//! Servers for tests.

use std::path::Path;

use pgsluice::demo::binaries::ServerBinaries;
use pgsluice::demo::cluster::{Cluster, ClusterOptions, TemplateStore};

/// Returns the server programs for publishers: those in `PGSLUICE_PUBLISHER_BIN`, else the machine's.
pub(crate) fn publisher_binaries() -> ServerBinaries {
    binaries("PGSLUICE_PUBLISHER_BIN")
}

/// Returns the server programs for targets: those in `PGSLUICE_TARGET_BIN`, else the machine's.
pub(crate) fn target_binaries() -> ServerBinaries {
    binaries("PGSLUICE_TARGET_BIN")
}

fn binaries(variable: &str) -> ServerBinaries {
    let found = match std::env::var_os(variable).filter(|dir| !dir.is_empty()) {
        Some(dir) => ServerBinaries::at(Path::new(&dir)),
        None => ServerBinaries::find(),
    };
    found.unwrap_or_else(|error| panic!("{}", error.diagnosis()))
}

/// Returns the options to start from; see [`start`].
pub(crate) fn options(binaries: ServerBinaries) -> ClusterOptions {
    let templates = TemplateStore::shared().unwrap_or_else(|error| panic!("{}", error.diagnosis()));
    ClusterOptions::new(binaries, templates).label("it")
}

/// Starts a server with these options.
pub(crate) async fn start(options: ClusterOptions) -> Cluster {
    Cluster::start(options).await.unwrap_or_else(|error| panic!("{}", error.diagnosis()))
}

/// Starts a server with the default options.
pub(crate) async fn cluster() -> Cluster {
    start(options(target_binaries())).await
}
