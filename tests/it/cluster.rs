//! The throw-away servers start quickly, stop, start again, and leave nothing behind.

use std::time::Instant;

use pgsluice::demo::cluster::StopMode;
use pgsluice::demo::process::{Signal, send};

use crate::support::clusters::{cluster, options, start, target_binaries};
use crate::support::wait::until;

#[tokio::test]
async fn a_server_starts_stops_and_leaves_nothing() {
    let began = Instant::now();
    let server = cluster().await;
    println!("started in {:?}", began.elapsed());
    let directory = server.directory().to_owned();
    let pid = server.pid().unwrap();
    let session = server.connect("postgres").await.unwrap();
    assert_eq!(session.value("SHOW wal_level").await.unwrap().as_deref(), Some("logical"));
    assert_eq!(session.value("SHOW listen_addresses").await.unwrap().as_deref(), Some("127.0.0.1"));
    drop(server);
    assert!(!directory.exists(), "{} is still there", directory.display());
    assert!(send(pid, Signal::Thaw).is_err(), "the postmaster {pid} is still there");
}

#[tokio::test]
async fn what_was_committed_survives_each_kind_of_end() {
    let mut server = cluster().await;
    let port = server.port();
    server.connect("postgres").await.unwrap().batch("CREATE TABLE t (n int)").await.unwrap();
    for (n, mode) in [(1, StopMode::Fast), (2, StopMode::Immediate), (3, StopMode::Smart)] {
        let session = server.connect("postgres").await.unwrap();
        session.batch(&format!("INSERT INTO t VALUES ({n})")).await.unwrap();
        session.close().await;
        server.restart(mode).await.unwrap_or_else(|error| panic!("{}", error.diagnosis()));
    }
    server.signal(Signal::Kill).unwrap();
    server.stop(StopMode::Immediate).await.unwrap();
    server.launch().await.unwrap_or_else(|error| panic!("{}", error.diagnosis()));
    let session = server.connect("postgres").await.unwrap();
    let rows = session.value("SELECT string_agg(n::text, ',' ORDER BY n) FROM t").await.unwrap();
    assert_eq!(rows.as_deref(), Some("1,2,3"));
    assert_eq!(server.port(), port);
}

#[tokio::test]
async fn settings_and_admission_lines_win_over_the_defaults() {
    let options = options(target_binaries())
        .encoding("LATIN1")
        .setting("wal_level", "replica")
        .setting("cluster_name", "it's")
        .hba("host all nobody_else 127.0.0.1/32 reject");
    let mut server = start(options).await;
    let session = server.connect("postgres").await.unwrap();
    let settings = "SELECT current_setting('wal_level'), current_setting('server_encoding'), \
        current_setting('cluster_name')";
    assert_eq!(
        session.rows(settings).await.unwrap(),
        [["replica", "LATIN1", "it's"].map(|text| Some(text.to_owned()))]
    );
    session
        .batch("CREATE ROLE nobody_else LOGIN PASSWORD 'x'; CREATE ROLE other LOGIN PASSWORD 'secret'")
        .await
        .unwrap();
    let connect = async |user: &str| {
        let conninfo = format!("{} password=secret", server.conninfo("postgres", user));
        pgsluice::demo::Session::connect(&conninfo).await
    };
    assert!(connect("nobody_else").await.is_err());
    assert!(connect("other").await.is_ok());
    server.set_hba(&["host all other 127.0.0.1/32 reject"]).unwrap();
    server.reload().unwrap();
    let refused = async || connect_refused(&server, "other").await.then_some(());
    until("pg_hba.conf is read again", refused).await;
    assert!(server.log().unwrap().contains("received SIGHUP"));
}

async fn connect_refused(server: &pgsluice::demo::cluster::Cluster, user: &str) -> bool {
    let conninfo = format!("{} password=secret", server.conninfo("postgres", user));
    pgsluice::demo::Session::connect(&conninfo).await.is_err()
}
