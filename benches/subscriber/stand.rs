//! The servers: one publisher, one target with a database for each contestant.

use pgsluice::demo::Session;
use pgsluice::demo::binaries::ServerBinaries;
use pgsluice::demo::cluster::{Cluster, ClusterOptions, Durability, SUPERUSER, TemplateStore};

use crate::Result;

/// Settings of both servers, in addition to `fsync = on` and logical WAL. Autovacuum is off and vacuum
/// is run explicitly, because it would start at different moments for the two contestants. A worker of
/// the built-in subscriber may start again at once; by default it would wait until five seconds after
/// its last start.
const SETTINGS: &[(&str, &str)] = &[
    ("shared_buffers", "256MB"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "30min"),
    ("autovacuum", "off"),
    ("wal_retrieve_retry_interval", "100ms"),
];

/// The publisher's database.
pub(crate) const PUBLISHER_DB: &str = "bench";
pub(crate) const BUILTIN_DB: &str = "builtin";
pub(crate) const SLUICE_DB: &str = "sluice";
pub(crate) const PUBLICATION: &str = "bench";

/// `application_name` of the benchmark's own sessions, so that their work is not counted as a
/// contestant's.
const OWN_NAME: &str = "pgsluice_bench_stand";

#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) publisher: Cluster,
    pub(crate) target: Cluster,
}

impl Stand {
    pub(crate) async fn start() -> Result<Self> {
        let (publisher, target) = tokio::try_join!(server("publisher"), server("target"))?;
        Ok(Self { publisher, target })
    }

    /// Creates empty databases in place of existing ones.
    pub(crate) async fn databases(&self) -> Result<()> {
        for (server, names) in
            [(&self.publisher, [PUBLISHER_DB].as_slice()), (&self.target, &[BUILTIN_DB, SLUICE_DB])]
        {
            let session = server.connect("postgres").await?;
            for name in names {
                session.batch(&format!("DROP DATABASE IF EXISTS {name}")).await?;
                session.batch(&format!("CREATE DATABASE {name}")).await?;
            }
            session.close().await;
        }
        Ok(())
    }

    /// Opens a session on the publisher that is not counted. Its commits need not wait for a flush.
    pub(crate) async fn at_publisher(&self) -> Result<Session> {
        own_session(&self.publisher, PUBLISHER_DB).await
    }

    pub(crate) async fn at_target(&self, database: &str) -> Result<Session> {
        own_session(&self.target, database).await
    }

    /// Makes both servers write dirty pages, so that a contestant does not pay for earlier work.
    pub(crate) async fn settle(&self) -> Result<()> {
        for server in [&self.publisher, &self.target] {
            let session = own_session(server, "postgres").await?;
            session.batch("CHECKPOINT").await?;
            session.close().await;
        }
        Ok(())
    }

    /// Processes of a server that serve the contestants: backends, walsenders, workers of
    /// subscriptions.
    pub(crate) const BUSY_PIDS: &str = "SELECT pid, backend_type FROM pg_stat_activity \
        WHERE backend_type IN ('client backend', 'walsender', 'logical replication worker', \
            'logical replication apply worker', 'logical replication tablesync worker', \
            'logical replication parallel worker') \
        AND application_name <> 'pgsluice_bench_stand'";
}

async fn server(label: &str) -> Result<Cluster> {
    let binaries = ServerBinaries::find()?;
    let options = ClusterOptions::new(binaries, TemplateStore::shared()?)
        .label(&format!("bench-{label}"))
        .durability(Durability::Full);
    let options = SETTINGS.iter().fold(options, |options, (name, value)| options.setting(name, value));
    Ok(Cluster::start(options).await?)
}

async fn own_session(server: &Cluster, database: &str) -> Result<Session> {
    let conninfo = format!("{} application_name={OWN_NAME}", server.conninfo(database, SUPERUSER));
    let session = Session::connect(&conninfo).await?;
    session.batch("SET synchronous_commit = off").await?;
    Ok(session)
}
