//! Measures the time from COMMIT on the publisher until the subscriber has applied the transaction.
//! Commits wait for that (`synchronous_commit = remote_apply`), one after another, on otherwise idle
//! servers.

use std::time::{Duration, Instant};

use crate::Result;
use crate::contestant::{Commits, Competitor, running};
use crate::stand::Stand;
use crate::workload::Workload;

const COMMITS: f64 = 3000.0;
const COMMITS_MIN: u32 = 200;
/// Number of commits before the measurement, which fill plans and caches on all sides.
const WARM_UP: u32 = 100;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
    pub(crate) commits: usize,
}

pub(crate) async fn run(
    stand: &Stand,
    scale: f64,
    commits_wait: Commits,
    profile: Option<&str>,
) -> Result<[Latency; 2]> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of commits")]
    let commits = ((COMMITS * scale) as u32).max(COMMITS_MIN);
    stand.databases().await?;
    Workload::Inserts.prepare(stand, scale).await?;
    let mut latencies = Vec::new();
    for of in [Competitor::Builtin, Competitor::Sluice] {
        let contestant = running(stand, of, commits_wait, profile).await?;
        stand.publisher.set("synchronous_standby_names", of.slot())?;
        reload(stand).await?;
        latencies.push(commit_all(stand, commits).await?);
        stand.publisher.set("synchronous_standby_names", "")?;
        reload(stand).await?;
        let session = stand.at_publisher().await?;
        session.batch("TRUNCATE orders").await?;
        contestant.remove(stand).await?;
        stand.at_target("builtin").await?.batch("TRUNCATE orders").await?;
    }
    match latencies[..] {
        [builtin, sluice] => Ok([builtin, sluice]),
        _ => Err("two contestants, two latencies".into()),
    }
}

async fn reload(stand: &Stand) -> Result<()> {
    let session = stand.publisher.connect("postgres").await?;
    let before = session.value("SELECT pg_conf_load_time()").await?;
    session.batch("SELECT pg_reload_conf()").await?;
    // The walsender becomes synchronous only once it has read the changed configuration file.
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let names = session.value("SHOW synchronous_standby_names").await?.unwrap_or_default();
        let state = session.value("SELECT bool_and(sync_state = 'sync') FROM pg_stat_replication").await?;
        let sync = state.as_deref() == Some("t");
        if session.value("SELECT pg_conf_load_time()").await? != before && names.is_empty() != sync {
            session.close().await;
            return Ok(());
        }
    }
    Err("the publisher has not taken up synchronous_standby_names".into())
}

async fn commit_all(stand: &Stand, commits: u32) -> Result<Latency> {
    let session = stand.at_publisher().await?;
    session.batch("SET synchronous_commit = remote_apply").await?;
    let insert = "INSERT INTO orders VALUES ($1, 1, 'new', 9.99, now(), 'latency')";
    let statement = session.client().prepare(insert).await?;
    let mut times = Vec::new();
    for n in 0..WARM_UP + commits {
        let began = Instant::now();
        let within = Duration::from_secs(30);
        tokio::time::timeout(within, session.client().execute(&statement, &[&i64::from(n)])).await??;
        if n >= WARM_UP {
            times.push(began.elapsed());
        }
    }
    times.sort_unstable();
    session.close().await;
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    Ok(Latency {
        p50: at(50),
        p99: at(99),
        max: times.last().copied().unwrap_or_default(),
        commits: times.len(),
    })
}
