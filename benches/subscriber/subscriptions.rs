//! Many subscriptions in one process: how long they take to stream, and what each of them costs.

use std::fmt::Write as _;
use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::demo::binaries::ServerBinaries;
use pgsluice::demo::cluster::{Cluster, ClusterOptions, Durability, SUPERUSER, TemplateStore, free_port};
use pgsluice::demo::process::{Guarded, Signal};
use tempfile::TempDir;

use crate::Result;
use crate::contestant::stop;
use crate::measure::{cpu_time, peak_bytes};

const DATABASE: &str = "bench";
/// Number of tables of all subscriptions together.
const TABLES: usize = 10_000;
/// Longest time for all of them to stream.
const PATIENCE: Duration = Duration::from_mins(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// For how long they are watched while nothing happens.
const IDLE: Duration = Duration::from_secs(20);

struct Servers {
    publisher: Cluster,
    target: Cluster,
    subscriptions: usize,
    dir: TempDir,
}

/// Measures so many subscriptions, and returns the lines of the report.
pub(crate) async fn run(subscriptions: usize) -> Result<String> {
    let servers = Servers::start(subscriptions).await?;
    let each = TABLES / subscriptions;
    let mut report = format!(
        "| {subscriptions} subscriptions of {each} tables each, in one process | |\n| --- | ---: |\n"
    );
    let target = servers.target.connect(DATABASE).await?;
    let (process, first) = servers.streaming(None).await?;
    writeln!(report, "| first start: until all stream, their tables copied, s | {first:.1} |")?;
    stop(process).await?;
    let (process, again) = servers.streaming(Some(&target)).await?;
    writeln!(report, "| start: until all stream, s | {again:.1} |")?;
    let arrived = servers.rows_arrive(&target, 1).await?;
    writeln!(report, "| one row for each: until all have arrived, s | {arrived:.1} |")?;
    let before = cpu_time(process.pid()).unwrap_or_default();
    tokio::time::sleep(IDLE).await;
    let used = cpu_time(process.pid()).unwrap_or_default().saturating_sub(before);
    writeln!(
        report,
        "| idle: CPU of pgsluice, of one core | {:.1} % |",
        100.0 * used.div_duration_f64(IDLE)
    )?;
    for (side, server) in [("publisher", &servers.publisher), ("target", &servers.target)] {
        let session = server.connect(DATABASE).await?;
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('client backend', 'walsender') \
                   AND pid <> pg_backend_pid()";
        writeln!(report, "| sessions on the {side} | {} |", session.value(sql).await?.unwrap_or_default())?;
        session.close().await;
    }
    let held = servers.target.connect(DATABASE).await?;
    held.batch("BEGIN; LOCK TABLE t0_0 IN ACCESS EXCLUSIVE MODE").await?;
    let arrived = servers.rows_arrive(&target, 2).await?;
    writeln!(
        report,
        "| one row for each but one, whose table is locked: until all others have arrived, s | {arrived:.1} |"
    )?;
    held.close().await;
    let peak = peak_bytes(process.pid()).unwrap_or_default();
    writeln!(report, "| peak memory of pgsluice, MiB | {} |", peak >> 20)?;
    stop(process).await?;
    Ok(report)
}

impl Servers {
    async fn start(subscriptions: usize) -> Result<Self> {
        let (publisher, target) =
            tokio::try_join!(server("publisher", subscriptions), server("target", subscriptions))?;
        let dir = tempfile::Builder::new().prefix("pgsluice-bench-").tempdir()?;
        let servers = Self { publisher, target, subscriptions, dir };
        let each = TABLES / subscriptions;
        for server in [&servers.publisher, &servers.target] {
            server.create_database(DATABASE).await?;
            let session = server.connect(DATABASE).await?;
            // One transaction for each subscription: a single one would need too many locks.
            for number in 0..subscriptions {
                let tables: Vec<String> = (0..each).map(|table| format!("t{number}_{table}")).collect();
                let mut sql = String::new();
                for table in &tables {
                    write!(sql, "CREATE TABLE {table} (id int PRIMARY KEY, v text);")?;
                }
                if std::ptr::eq(server, &raw const servers.publisher) {
                    write!(sql, "CREATE PUBLICATION p{number} FOR TABLE {};", tables.join(", "))?;
                }
                session.batch(&sql).await?;
            }
            session.close().await;
        }
        servers.configure()?;
        Ok(servers)
    }

    fn configure(&self) -> Result<()> {
        let mut text = format!(
            "[service]\nlisten = \"127.0.0.1:{}\"\n[target]\nurl = \"{}\"\n",
            free_port()?,
            self.target.conninfo(DATABASE, SUPERUSER)
        );
        let publisher = self.publisher.conninfo(DATABASE, SUPERUSER);
        for number in 0..self.subscriptions {
            write!(
                text,
                "[[subscriptions]]\nname = \"s{number}\"\npublisher = \"{publisher}\"\npublications = [\"p{number}\"]\n"
            )?;
        }
        Ok(std::fs::write(self.dir.path().join("pgsluice.toml"), text)?)
    }

    /// Starts the service, and returns after how many seconds all subscriptions stream.
    async fn streaming(&self, target: Option<&Session>) -> Result<(Guarded, f64)> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgsluice"));
        command.arg("--config").arg(self.dir.path().join("pgsluice.toml")).arg("run");
        let began = Instant::now();
        let process = Guarded::spawn(&mut command, &log, Signal::Kill, None)?;
        if let Some(target) = target {
            // What the former process has reported does not count.
            target.batch("UPDATE pgsluice.subscription SET state = 'starting'").await?;
        }
        let streaming = format!(
            "SELECT count(*) = {} FROM pgsluice.subscription s WHERE s.state = 'streaming' \
             AND NOT EXISTS (SELECT FROM pgsluice.table_sync t WHERE t.state <> 'ready')",
            self.subscriptions
        );
        let own = self.target.connect(DATABASE).await?;
        loop {
            // The schema may not be there yet.
            if own.value(&streaming).await.ok().flatten().as_deref() == Some("t") {
                break;
            }
            if began.elapsed() > PATIENCE {
                let states = own
                    .rows("SELECT state, reason, count(*) FROM pgsluice.subscription GROUP BY 1, 2")
                    .await?;
                let log = std::fs::read_to_string(self.dir.path().join("log"))?;
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                return Err(
                    format!("not all stream within {PATIENCE:?}: {states:?}\n{}", tail.join("\n")).into()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        own.close().await;
        Ok((process, began.elapsed().as_secs_f64()))
    }

    /// Inserts a row for each subscription, and returns after how many seconds all are there; a locked table is left out.
    async fn rows_arrive(&self, target: &Session, row: u32) -> Result<f64> {
        let publisher = self.publisher.connect(DATABASE).await?;
        let began = Instant::now();
        for number in 0..self.subscriptions {
            publisher.batch(&format!("INSERT INTO t{number}_0 VALUES ({row}, 'bench')")).await?;
        }
        for number in usize::from(row > 1)..self.subscriptions {
            let there = format!("SELECT EXISTS (SELECT FROM t{number}_0 WHERE id = {row})");
            while target.value(&there).await?.as_deref() != Some("t") {
                if began.elapsed() > PATIENCE {
                    return Err(format!("the row of subscription {number} has not come").into());
                }
                tokio::time::sleep(POLL_INTERVAL / 10).await;
            }
        }
        publisher.close().await;
        Ok(began.elapsed().as_secs_f64())
    }
}

async fn server(label: &str, subscriptions: usize) -> Result<Cluster> {
    let options = ClusterOptions::new(ServerBinaries::find()?, TemplateStore::shared()?)
        .label(&format!("bench-{label}"))
        .durability(Durability::Full);
    let sessions = (subscriptions * 6 + 50).to_string();
    let slots = (subscriptions * 2 + 10).to_string();
    let settings = [
        ("shared_buffers", "256MB"),
        ("max_wal_size", "4GB"),
        ("max_connections", sessions.as_str()),
        ("max_wal_senders", &slots),
        ("max_replication_slots", &slots),
        ("max_locks_per_transaction", "512"),
    ];
    let options = settings.iter().fold(options, |options, (name, value)| options.setting(name, value));
    Ok(Cluster::start(options).await?)
}
