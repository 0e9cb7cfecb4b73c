//! The servers, the proxies before them, the service's instances and the load; and a run's rounds.

use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::pg::Lsn;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::faults::Cure;
use super::instances::Instances;
use super::journal::{Journal, Number};
use super::kinds::Selection;
use super::load::Load;
use super::schema::{COMPARED, RESET, rows, tables};
use super::verdict::{self, Counted};
use crate::support::clusters::publisher_binaries;
use crate::support::faulty_proxy::FaultyProxy;
use crate::support::world::{PUBLISHER_ROLE, Servers, TARGET_ROLE, World, conninfo_through};

const ROUND: Duration = Duration::from_mins(1);
const FIRST_COPY: Duration = Duration::from_mins(1);
/// Between two faults: usually, and where they are to strike while the service deals with the one before.
const GAP_MS: std::ops::Range<u64> = 100..2_500;
const SHORT_GAP_MS: std::ops::Range<u64> = 10..300;
/// In the third case, the service is let recover first, but not for longer than this.
const RECOVERY_GAP: Duration = Duration::from_secs(12);
const TICK: Duration = Duration::from_millis(20);
/// Subtransactions spill from here on; transactions are streamed from here on.
const FIRST_MAJOR_WITH_WORK_MEM: u32 = 13;
const OUTSTANDING_MAX: usize = 64;

pub(super) struct StageOptions {
    pub(super) seed: u64,
    pub(super) selection: Selection,
    pub(super) bulk_rows_max: u64,
}

/// A fault that is over, and what was committed by then.
struct Outstanding {
    number: Number,
    committed: Lsn,
    ended: Instant,
}

/// A fault that goes on until it is cured.
pub(super) struct Lasting {
    pub(super) number: Number,
    pub(super) until: Instant,
    pub(super) cure: Cure,
}

/// When the next fault strikes: once the service has recovered, between these two.
struct Gap {
    not_before: Instant,
    at_latest: Instant,
}

#[derive(Default)]
struct Sum {
    rounds: u64,
    counted: Counted,
    catch_up: Vec<Duration>,
}

pub(super) struct Stage {
    pub(super) world: World,
    pub(super) to_publisher: FaultyProxy,
    pub(super) to_target: FaultyProxy,
    pub(super) instances: Instances,
    pub(super) load: Load,
    pub(super) journal: Journal,
    pub(super) random: StdRng,
    selection: Selection,
    pub(super) lasting: Vec<Lasting>,
    outstanding: Vec<Outstanding>,
    /// Looks at progress on the target.
    watcher: Option<Session>,
    /// Tables that have left the publication in this round.
    pub(super) left: Vec<String>,
    /// The number of the next table that joins, and of the next index.
    pub(super) next: u64,
    sum: Sum,
}

impl Stage {
    /// Starts servers, proxies and one instance, and waits until it streams.
    pub(super) async fn start(options: StageOptions) -> Self {
        let StageOptions { seed, selection, bulk_rows_max } = options;
        let mut builder = World::builder()
            .servers(Servers::Separate)
            .both_sql(&tables())
            .publisher_sql(&rows())
            // Locks and stalls of the faults last longer than that.
            .subscription_line("stall_timeout = \"1s\"")
            .publisher_setting("wal_sender_timeout", "10s")
            .publisher_setting("deadlock_timeout", "100ms");
        if publisher_binaries().major() >= FIRST_MAJOR_WITH_WORK_MEM {
            builder = builder.publisher_setting("logical_decoding_work_mem", "64kB");
        }
        let world = builder.start().await;
        let to_publisher = FaultyProxy::start(world.publisher.port).await;
        let to_target = FaultyProxy::start(world.target.port).await;
        let publisher = conninfo_through(&world.publisher, PUBLISHER_ROLE, to_publisher.port());
        let target = conninfo_through(&world.target, TARGET_ROLE, to_target.port());
        let environment =
            [("PGSLUICE__TARGET__URL", target), ("PGSLUICE__SUBSCRIPTIONS__0__PUBLISHER", publisher)];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
        let mut instances = Instances::new(&world.config, world.dir(), environment);
        instances.start();
        world.wait_state_within(FIRST_COPY, "streaming").await;
        Self {
            load: Load::new(&world.publisher, &selection, seed, bulk_rows_max),
            world,
            to_publisher,
            to_target,
            instances,
            journal: Journal::new(),
            random: StdRng::seed_from_u64(seed),
            selection,
            lasting: Vec::new(),
            outstanding: Vec::new(),
            watcher: None,
            left: Vec::new(),
            next: 0,
            sum: Sum::default(),
        }
    }

    /// Rounds of load and faults, each with its verdict, for so long in all. An error is what must not be.
    pub(super) async fn run(&mut self, duration: Duration) -> Result<(), String> {
        let mut left = duration;
        while !left.is_zero() {
            let round = left.min(ROUND);
            self.load.start();
            let attacked = self.attack(round).await;
            self.load.stop().await;
            attacked?;
            self.judge().await?;
            left -= round;
        }
        Ok(())
    }

    /// Ends the load and the service.
    pub(super) async fn end(&mut self) {
        self.load.stop().await;
        self.instances.note_memory();
        self.instances.end().await;
    }

    /// One fault after the other.
    async fn attack(&mut self, duration: Duration) -> Result<(), String> {
        let until = Instant::now() + duration;
        let mut next = Gap { not_before: Instant::now(), at_latest: Instant::now() };
        while Instant::now() < until {
            self.cure_due(Instant::now()).await?;
            self.instances.check()?;
            self.watch().await?;
            let now = Instant::now();
            let has_recovered = self.outstanding.is_empty() && self.lasting.is_empty();
            if (now >= next.at_latest || (now >= next.not_before && has_recovered))
                && let Some(fault) = self.selection.choose(&mut self.random)
            {
                self.perform(fault).await?;
                next = self.gap();
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    fn gap(&mut self) -> Gap {
        let mut after = |ms| Instant::now() + Duration::from_millis(self.random.random_range(ms));
        let (usual, short) = (after(GAP_MS), after(SHORT_GAP_MS));
        match self.random.random_range(0..4) {
            0 => Gap { not_before: short, at_latest: short },
            1 => Gap { not_before: usual, at_latest: usual + RECOVERY_GAP },
            _ => Gap { not_before: usual, at_latest: usual },
        }
    }

    async fn judge(&mut self) -> Result<(), String> {
        self.cure_all().await?;
        let took = verdict::caught_up(&self.world, &self.left).await?;
        self.instances.check()?;
        self.instances.note_memory();
        for outstanding in self.outstanding.drain(..) {
            self.journal.recovered(outstanding.number, outstanding.ended.elapsed());
        }
        let mut tables: Vec<String> = COMPARED.iter().map(ToString::to_string).collect();
        tables.extend(self.load.shared.joined());
        let counted = verdict::compare(&self.world, &tables).await?;
        self.sum.rounds += 1;
        self.sum.counted.transactions += counted.transactions;
        self.sum.catch_up.push(took);
        let peak = self.instances.peak_rss_kib / 1024;
        self.journal.note(&format!(
            "round {} is fine: {} transactions, caught up in {:.1} s, {} tables compared, peak RSS {peak} MiB",
            self.sum.rounds,
            counted.transactions,
            took.as_secs_f64(),
            tables.len(),
        ));
        for table in std::mem::take(&mut self.left) {
            self.world.publisher.exec(format!("DROP TABLE {table}")).await;
            self.world.target.exec(format!("DROP TABLE {table}")).await;
        }
        self.world.publisher.exec(RESET).await;
        self.instances.forget_logs();
        Ok(())
    }

    /// Notes that a fault is over, and what has to be applied until it is recovered from.
    pub(super) async fn is_over(&mut self, number: Number) {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            return;
        }
        let sql = "SELECT pg_current_wal_lsn()";
        if let Some(committed) =
            self.world.publisher.try_value(sql).await.ok().and_then(|lsn| lsn.parse().ok())
        {
            self.outstanding.push(Outstanding { number, committed, ended: Instant::now() });
        }
    }

    /// Looks at the target: a conflict is what must not be, and what is applied tells who has recovered.
    async fn watch(&mut self) -> Result<(), String> {
        if self.watcher.is_none() {
            self.watcher = self.world.target.try_session().await.ok();
        }
        let Some(session) = &self.watcher else { return Ok(()) };
        let sql = "SELECT applied_lsn, reason = 'conflict' FROM pgsluice.progress p \
                   JOIN pgsluice.subscription s ON s.name = p.subscription";
        let Ok(rows) = session.rows(sql).await else {
            self.watcher = None;
            return Ok(());
        };
        let Some([Some(applied), conflict]) = rows.first().map(Vec::as_slice) else { return Ok(()) };
        if conflict.as_deref() == Some("t") {
            return Err(verdict::paused(&self.world).await);
        }
        let Ok(applied) = applied.parse::<Lsn>() else { return Ok(()) };
        let (recovered, outstanding) =
            self.outstanding.drain(..).partition(|outstanding| applied >= outstanding.committed);
        self.outstanding = outstanding;
        let recovered: Vec<Outstanding> = recovered;
        for outstanding in recovered {
            self.journal.recovered(outstanding.number, outstanding.ended.elapsed());
        }
        Ok(())
    }

    /// What the run has come to, as tables.
    pub(super) fn summary(&mut self) -> String {
        self.sum.catch_up.sort();
        let longest = self.sum.catch_up.last().copied().unwrap_or_default();
        format!(
            "{}\nrounds that were fine: {}; in these, {} transactions, 0 lost, 0 twice\nload: {}\n\
             longest time to catch up at a round's end: {:.1} s\npeak RSS of the service: {} KiB",
            self.journal.table(),
            self.sum.rounds,
            self.sum.counted.transactions,
            self.load.told(),
            longest.as_secs_f64(),
            self.instances.peak_rss_kib,
        )
    }
}
