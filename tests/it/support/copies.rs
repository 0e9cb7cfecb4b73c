//! Copies of a server's data directory: older states to go back to, and standbys.

use std::path::{Path, PathBuf};
use std::process::Command;

use pgsluice::demo::binaries::ServerBinaries;
use pgsluice::demo::cluster::{Cluster, SUPERUSER, StopMode};

use super::clusters::{options, publisher_binaries, start};

/// Server programs of 17 or later: the publisher's if they are, else fetched ones, if there are any.
pub(crate) fn with_failover_slots() -> Option<ServerBinaries> {
    let fetched = |major: u32| {
        let dir = format!("{}/target/pg/{major}/bin", env!("CARGO_MANIFEST_DIR"));
        ServerBinaries::at(Path::new(&dir)).ok()
    };
    Some(publisher_binaries())
        .filter(|found| found.major() >= 17)
        .or_else(|| [18, 17].into_iter().find_map(fetched))
}

/// Copies the data directory of a stopped server, owners and modes included.
pub(crate) fn save(server: &Cluster, to: &Path) -> PathBuf {
    assert!(server.pid().is_none(), "a running server's files change");
    let saved = to.join(super::world::unique("data"));
    copy(&server.data_dir(), &saved);
    saved
}

/// Replaces the data directory of a stopped server.
pub(crate) fn restore(server: &Cluster, saved: &Path) {
    assert!(server.pid().is_none(), "a running server's files are its own");
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    copy(saved, &server.data_dir());
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success(), "{} was not copied to {}", from.display(), to.display());
}

/// A physical standby of `primary`, which is stopped for the copy. `settings` are the standby's own.
pub(crate) async fn standby(primary: &mut Cluster, settings: &[(&str, &str)]) -> Cluster {
    let mut standby = start(options(primary.binaries().clone()).label("standby")).await;
    standby.stop(StopMode::Immediate).await.unwrap();
    primary.stop(StopMode::Fast).await.unwrap();
    restore(&standby, &primary.data_dir());
    primary.launch().await.unwrap();
    // As pg_basebackup leaves them out: a standby's slots are its own.
    for slot in std::fs::read_dir(standby.data_dir().join("pg_replslot")).unwrap() {
        std::fs::remove_dir_all(slot.unwrap().path()).unwrap();
    }
    let conninfo = format!(
        "host=127.0.0.1 port={} user={SUPERUSER} dbname=postgres application_name=standby",
        primary.port()
    );
    let own = standby.directory().display().to_string();
    let defaults = [("primary_conninfo", conninfo.as_str()), ("unix_socket_directories", own.as_str())];
    for (name, value) in defaults.iter().chain(settings) {
        standby.set(name, value).unwrap();
    }
    let signal = standby.data_dir().join("standby.signal");
    copy(&standby.data_dir().join("PG_VERSION"), &signal);
    standby.launch().await.unwrap_or_else(|error| panic!("{}", error.diagnosis()));
    standby
}

/// Promotes a standby and waits until it takes writes.
pub(crate) async fn promote(standby: &Cluster) {
    let session = standby.connect("postgres").await.unwrap();
    let done = session.value("SELECT pg_promote(true, 60)").await.unwrap();
    assert_eq!(done.as_deref(), Some("t"));
}

/// Waits until a standby has replayed all that `primary` has written.
pub(crate) async fn wait_replayed(primary: &Cluster, standby: &Cluster) {
    let now =
        primary.connect("postgres").await.unwrap().value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", now.unwrap());
    let session = standby.connect("postgres").await.unwrap();
    super::wait::until("the standby has replayed everything", async || {
        (session.value(&sql).await.unwrap().as_deref() == Some("t")).then_some(())
    })
    .await;
}
