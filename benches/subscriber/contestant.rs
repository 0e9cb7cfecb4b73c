//! The two subscribers: creates, starts, measures and removes them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::demo::cluster::{SUPERUSER, free_port};
use pgsluice::demo::process::{Guarded, Signal};
use tempfile::TempDir;

use crate::Result;
use crate::measure::{self, Cpu};
use crate::stand::{BUILTIN_DB, PUBLICATION, PUBLISHER_DB, SLUICE_DB, Stand};
use crate::workload::Workload;

/// Longest time for a contestant to catch up.
const PATIENCE: Duration = Duration::from_mins(20);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Interval between two looks at the position, which limits the resolution of every time.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Interval between two looks at CPU time, so that little is lost of processes that end.
const CPU_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) const BUILTIN: &str = "bench_builtin";
pub(crate) const SLUICE: &str = "bench_sluice";

/// Figures of one contestant for one workload.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) cpu: Cpu,
    /// Peak memory of pgsluice's process.
    pub(crate) peak_bytes: Option<u64>,
}

/// What the contestants' commits wait for (`synchronous_commit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commits {
    /// Each contestant's default: the built-in subscriber waits for nothing, pgsluice for the disk.
    AsTheyCome,
    /// Commits wait for nothing.
    Off,
    /// Commits wait for the target's disk.
    On,
}

impl Commits {
    fn setting(self) -> Option<&'static str> {
        match self {
            Self::AsTheyCome => None,
            Self::Off => Some("off"),
            Self::On => Some("on"),
        }
    }
}

/// A subscriber with its slot that does not apply anything yet.
#[derive(Debug)]
pub(crate) struct Contestant {
    kind: Kind,
    copies: bool,
    profile: Option<String>,
}

#[derive(Debug)]
enum Kind {
    Builtin,
    Sluice(Service),
}

impl Contestant {
    pub(crate) async fn builtin(stand: &Stand, workload: Workload, commits: Commits) -> Result<Self> {
        let copies = workload.copies();
        if !copies {
            create_slot(stand, BUILTIN).await?;
            let options = match commits.setting() {
                None => String::new(),
                Some(setting) => format!(", synchronous_commit = {setting}"),
            };
            let options = format!("copy_data = false, create_slot = false, enabled = false{options}");
            create_subscription(stand, &options).await?;
        }
        Ok(Self { kind: Kind::Builtin, copies, profile: None })
    }

    /// Creates a stopped service. It is started once, so that its schema exists and it uses the slot.
    pub(crate) async fn sluice(
        stand: &Stand,
        workload: Workload,
        commits: Commits,
        profile: Option<&str>,
    ) -> Result<Self> {
        let copies = workload.copies();
        let service = Service::new(stand, copies, commits)?;
        if copies {
            service.migrate()?;
        } else {
            create_slot(stand, SLUICE).await?;
            let process = service.start()?;
            let publisher = stand.at_publisher().await?;
            wait(&publisher, &active(SLUICE)).await?;
            stop(process).await?;
            wait(&publisher, &format!("SELECT NOT ({})", active(SLUICE))).await?;
        }
        Ok(Self { kind: Kind::Sluice(service), copies, profile: profile.map(str::to_owned) })
    }

    /// Starts the subscriber, waits until it has caught up with the publisher, and removes it.
    pub(crate) async fn catch_up(self, stand: &Stand) -> Result<Run> {
        stand.settle().await?;
        let publisher = stand.at_publisher().await?;
        let target = stand.at_target("postgres").await?;
        let (slot, database) = match &self.kind {
            Kind::Builtin => (BUILTIN, BUILTIN_DB),
            Kind::Sluice(_) => (SLUICE, SLUICE_DB),
        };
        let own = stand.at_target(database).await?;
        let end = publisher.value("SELECT pg_current_wal_flush_lsn()").await?.unwrap_or_default();
        let began = Instant::now();
        let process = self.start(stand).await?;
        let mut profiler = self.profiler(process.as_ref())?;
        let pid = process.as_ref().map(Guarded::pid);
        let mut cpu = Cpu::default();
        let mut looked = Instant::now();
        loop {
            if self.has_caught_up(&publisher, &own, slot, &end).await? {
                break;
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{slot} has not caught up with {end} within {PATIENCE:?}").into());
            }
            if looked.elapsed() > CPU_INTERVAL {
                cpu.look(&publisher, &target, pid).await?;
                looked = Instant::now();
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        cpu.look(&publisher, &target, pid).await?;
        let peak_bytes = pid.and_then(measure::peak_bytes);
        if let Some(process) = process {
            stop(process).await?;
        }
        if let Some(profiler) = &mut profiler {
            profiler.wait()?;
        }
        for session in [publisher, target, own] {
            session.close().await;
        }
        self.remove(stand, slot).await?;
        Ok(Run { seconds, cpu, peak_bytes })
    }

    async fn start(&self, stand: &Stand) -> Result<Option<Guarded>> {
        match &self.kind {
            Kind::Builtin if self.copies => create_subscription(stand, "copy_data = true").await?,
            Kind::Builtin => {
                let session = stand.at_target(BUILTIN_DB).await?;
                session.batch(&format!("ALTER SUBSCRIPTION {BUILTIN} ENABLE")).await?;
            }
            Kind::Sluice(service) => return Ok(Some(service.start()?)),
        }
        Ok(None)
    }

    fn profiler(&self, process: Option<&Guarded>) -> Result<Option<Child>> {
        let (Some(command), Some(process)) = (&self.profile, process) else { return Ok(None) };
        let command = command.replace("{}", &process.pid().to_string());
        Ok(Some(Command::new("/bin/sh").args(["-c", &command]).spawn()?))
    }

    async fn has_caught_up(&self, publisher: &Session, own: &Session, slot: &str, end: &str) -> Result<bool> {
        if !self.copies {
            return is_true(publisher, &confirmed(slot, end)).await;
        }
        // The end of the copy is measured; catching up with later changes is not.
        let sql = match &self.kind {
            Kind::Builtin => "SELECT bool_and(srsubstate IN ('f', 's', 'r')) FROM pg_subscription_rel",
            Kind::Sluice(_) => "SELECT bool_and(state = 'ready') FROM pgsluice.table_sync",
        };
        is_true(own, sql).await
    }

    async fn remove(self, stand: &Stand, slot: &str) -> Result<()> {
        if matches!(self.kind, Kind::Builtin) {
            let session = stand.at_target(BUILTIN_DB).await?;
            session.batch(&format!("ALTER SUBSCRIPTION {BUILTIN} DISABLE")).await?;
            session.batch(&format!("ALTER SUBSCRIPTION {BUILTIN} SET (slot_name = NONE)")).await?;
            session.batch(&format!("DROP SUBSCRIPTION {BUILTIN}")).await?;
            session.close().await;
        } else {
            let session = stand.at_target("postgres").await?;
            // The service has ended, but its sessions may briefly hold an origin.
            let ended =
                format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{SLUICE_DB}')");
            wait(&session, &ended).await?;
            let sql = "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin \
                       WHERE roname LIKE 'pgsluice%'";
            session.rows(sql).await?;
            session.close().await;
        }
        let publisher = stand.at_publisher().await?;
        wait(&publisher, &format!("SELECT NOT ({})", active(slot))).await?;
        publisher.rows(&format!("SELECT pg_drop_replication_slot('{slot}')")).await?;
        publisher.close().await;
        Ok(())
    }
}

async fn create_slot(stand: &Stand, slot: &str) -> Result<()> {
    let session = stand.at_publisher().await?;
    session.rows(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
    session.close().await;
    Ok(())
}

async fn create_subscription(stand: &Stand, options: &str) -> Result<()> {
    let session = stand.at_target(BUILTIN_DB).await?;
    let sql = format!(
        "CREATE SUBSCRIPTION {BUILTIN} CONNECTION '{}' PUBLICATION {PUBLICATION} \
         WITH (slot_name = '{BUILTIN}', {options})",
        stand.publisher.conninfo(PUBLISHER_DB, SUPERUSER)
    );
    session.batch(&sql).await?;
    session.close().await;
    Ok(())
}

/// pgsluice's process and its configuration.
#[derive(Debug)]
struct Service {
    dir: TempDir,
    config: PathBuf,
}

impl Service {
    fn new(stand: &Stand, copies: bool, commits: Commits) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pgsluice-bench-").tempdir()?;
        let config = dir.path().join("pgsluice.toml");
        let commits = match commits.setting() {
            None => String::new(),
            Some(setting) => format!("synchronous_commit = \"{setting}\"\n"),
        };
        let text = format!(
            "[service]\nlisten = \"127.0.0.1:{}\"\n[target]\nurl = \"{}\"\n[[subscriptions]]\n\
             name = \"{SLUICE}\"\npublisher = \"{}\"\npublications = [\"{PUBLICATION}\"]\n\
             copy_data = {copies}\ncreate_slot = {copies}\n{commits}",
            free_port()?,
            stand.target.conninfo(SLUICE_DB, SUPERUSER),
            stand.publisher.conninfo(PUBLISHER_DB, SUPERUSER),
        );
        std::fs::write(&config, text)?;
        Ok(Self { dir, config })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgsluice"));
        command.arg("--config").arg(&self.config).arg(name);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        command
    }

    fn migrate(&self) -> Result<()> {
        let output = self.command("migrate").output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("pgsluice migrate: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    fn start(&self) -> Result<Guarded> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        Ok(Guarded::spawn(&mut self.command("run"), &log, Signal::Kill, None)?)
    }
}

impl Drop for Service {
    /// Prints the service's log if something went wrong or if it was requested.
    fn drop(&mut self) {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        if std::env::var_os("RUST_LOG").is_some() || log.contains("WARN") || log.contains("ERROR") {
            eprintln!("{log}");
        }
    }
}

pub(crate) async fn stop(mut process: Guarded) -> Result<()> {
    process.signal(Signal::Terminate)?;
    match process.wait(STOP_PATIENCE).await? {
        Some(status) if status.success() => Ok(()),
        status => Err(format!("pgsluice did not stop as asked: {status:?}").into()),
    }
}

fn active(slot: &str) -> String {
    format!("SELECT coalesce((SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'), false)")
}

fn confirmed(slot: &str, end: &str) -> String {
    format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{slot}'")
}

async fn is_true(session: &Session, sql: &str) -> Result<bool> {
    Ok(session.value(sql).await?.as_deref() == Some("t"))
}

async fn wait(session: &Session, sql: &str) -> Result<()> {
    let began = Instant::now();
    while !is_true(session, sql).await? {
        if began.elapsed() > STOP_PATIENCE {
            return Err(format!("not true within {STOP_PATIENCE:?}: {sql}").into());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Creates a contestant that keeps running, to measure the latency of single commits.
pub(crate) async fn running(
    stand: &Stand,
    of: Competitor,
    commits: Commits,
    profile: Option<&str>,
) -> Result<Running> {
    let contestant = match of {
        Competitor::Builtin => Contestant::builtin(stand, Workload::Inserts, commits).await?,
        Competitor::Sluice => Contestant::sluice(stand, Workload::Inserts, commits, profile).await?,
    };
    let process = contestant.start(stand).await?;
    let publisher = stand.at_publisher().await?;
    wait(&publisher, &active(of.slot())).await?;
    publisher.close().await;
    let profiler = contestant.profiler(process.as_ref())?;
    Ok(Running { contestant, process, profiler, slot: of.slot() })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Competitor {
    Builtin,
    Sluice,
}

impl Competitor {
    /// Name of its slot, subscription and `application_name` on the publisher.
    pub(crate) fn slot(self) -> &'static str {
        match self {
            Self::Builtin => BUILTIN,
            Self::Sluice => SLUICE,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Running {
    contestant: Contestant,
    process: Option<Guarded>,
    profiler: Option<Child>,
    slot: &'static str,
}

impl Running {
    pub(crate) async fn remove(self, stand: &Stand) -> Result<()> {
        if let Some(process) = self.process {
            stop(process).await?;
        }
        if let Some(mut profiler) = self.profiler {
            profiler.wait()?;
        }
        self.contestant.remove(stand, self.slot).await
    }
}
