//! Servers for tests.

use std::path::Path;

use pgsluice::demo::binaries::ServerBinaries;
use pgsluice::demo::cluster::{Cluster, ClusterOptions, TemplateStore};

/// Which server programs the publishers of this run use: `PGSLUICE_PUBLISHER_BIN`, else whatever
/// the machine has.
pub(crate) fn publisher_binaries() -> ServerBinaries {
    binaries("PGSLUICE_PUBLISHER_BIN")
}

/// Which server programs the targets of this run use: `PGSLUICE_TARGET_BIN`, else whatever the
/// machine has.
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

/// Options to start from; see [`start`].
pub(crate) fn options(binaries: ServerBinaries) -> ClusterOptions {
    let templates = TemplateStore::shared().unwrap_or_else(|error| panic!("{}", error.diagnosis()));
    ClusterOptions::new(binaries, templates).label("it")
}

/// A running server as `options` have it.
pub(crate) async fn start(options: ClusterOptions) -> Cluster {
    Cluster::start(options).await.unwrap_or_else(|error| panic!("{}", error.diagnosis()))
}

/// A running server with the defaults.
pub(crate) async fn cluster() -> Cluster {
    start(options(target_binaries())).await
}
