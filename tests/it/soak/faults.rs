//! What each fault does, and what ends it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use pgsluice::demo::Session;
use pgsluice::demo::cluster::StopMode;
use rand::Rng as _;

use super::kinds::Fault;
use super::schema::COMPARED;
use super::stage::{Lasting, Stage};
use crate::support::database::Database;
use crate::support::faulty_proxy::FaultyProxy;
use crate::support::world::{PUBLISHER_ROLE, TARGET_ROLE};

/// A lost answer needs a COMMIT that comes by.
const LOSS_PATIENCE: Duration = Duration::from_secs(4);
/// In three faults of four that stop something, it is started again at once.
const REST_MS_MAX: u64 = 2_000;
const HELD_MS_MAX: u64 = 3_000;
const LOCK_MS: std::ops::Range<u64> = 300..6_000;
const NETWORK_MS: std::ops::Range<u64> = 200..6_000;
const FREEZE_MS: std::ops::Range<u64> = 2_000..12_000;
const SECOND_MS: std::ops::Range<u64> = 500..8_000;
/// How long a fault may wait for its own lock on the target.
pub(super) const LOCK_TIMEOUT: &str = "SET lock_timeout = '5s'";

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Publisher,
    Target,
}

/// What ends a fault that lasts.
#[derive(Debug)]
pub(super) enum Cure {
    /// Connections to this side go on.
    Open(Side),
    /// The frozen instances go on; then there are two.
    Thaw,
    /// One of two instances ends.
    One,
    /// The session ends, and with it its locks.
    Release(Session),
}

/// What came of a fault.
pub(super) enum Done {
    Over(String),
    /// For so long, or until the round ends.
    Lasts(String, Duration, Cure),
    /// Nothing happened, and why.
    Not(String),
}

impl Stage {
    /// Does it, and notes it. An error is what must not be.
    pub(super) async fn perform(&mut self, fault: Fault) -> Result<(), String> {
        let number = self.journal.fault(fault);
        match self.done(fault).await? {
            Done::Over(text) => {
                self.journal.about(number, &text);
                self.is_over(number).await;
            }
            Done::Lasts(text, duration, cure) => {
                self.journal.about(number, &format!("{text}, for {:.1} s", duration.as_secs_f64()));
                self.lasting.push(Lasting { number, until: Instant::now() + duration, cure });
            }
            Done::Not(why) => self.journal.not_done(number, &why),
        }
        Ok(())
    }

    async fn done(&mut self, fault: Fault) -> Result<Done, String> {
        Ok(match fault {
            Fault::Kill => {
                let text = self.instances.kill(&mut self.random).await;
                self.start_again(text).await
            }
            Fault::Stop => {
                let text = self.instances.terminate(&mut self.random).await?;
                self.start_again(text).await
            }
            Fault::Freeze => self.freeze(),
            Fault::Second => self.second(),
            Fault::TargetBackend => self.end_backend(Side::Target).await,
            Fault::PublisherBackend => self.end_backend(Side::Publisher).await,
            Fault::CutTarget => self.cut(Side::Target),
            Fault::CutPublisher => self.cut(Side::Publisher),
            Fault::StallTarget => self.slow(Side::Target, "stalled", FaultyProxy::stall),
            Fault::StallPublisher => self.slow(Side::Publisher, "stalled", FaultyProxy::stall),
            Fault::MuteTarget => self.slow(Side::Target, "answers vanish", FaultyProxy::mute),
            Fault::MutePublisher => self.slow(Side::Publisher, "answers vanish", FaultyProxy::mute),
            Fault::LostAnswer => self.lose_answer().await,
            Fault::FastTarget => self.restart(Side::Target, StopMode::Fast).await?,
            Fault::FastPublisher => self.restart(Side::Publisher, StopMode::Fast).await?,
            Fault::HeldPublisher => self.restart_held().await?,
            Fault::ImmediateTarget => self.restart(Side::Target, StopMode::Immediate).await?,
            Fault::ImmediatePublisher => self.restart(Side::Publisher, StopMode::Immediate).await?,
            Fault::LockTable => self.lock("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").await,
            Fault::LockRows => self.lock("SELECT FROM {} LIMIT 50 FOR UPDATE").await,
            Fault::VacuumFull => self.vacuum_full().await,
            Fault::AddColumn => self.add_column().await,
            Fault::Index => self.index().await,
            Fault::Retype => self.retype().await,
            Fault::Join => self.join().await,
            Fault::Leave => self.leave().await,
        })
    }

    pub(super) fn proxy(&self, side: Side) -> &FaultyProxy {
        match side {
            Side::Publisher => &self.to_publisher,
            Side::Target => &self.to_target,
        }
    }

    async fn start_again(&mut self, ended: String) -> Done {
        self.rest().await;
        let number = self.instances.start();
        Done::Over(format!("{ended}, instance {number} started"))
    }

    /// Not synchronisation: how long something is gone is what is random.
    async fn rest(&mut self) {
        if self.random.random_range(0..4) == 0 {
            let rest = self.random.random_range(0..REST_MS_MAX);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
    }

    fn for_some(&mut self, ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(ms))
    }

    fn freeze(&mut self) -> Done {
        if self.instances.has_frozen() {
            return Done::Not("one is frozen already".to_owned());
        }
        let Some(frozen) = self.instances.freeze(&mut self.random) else {
            return Done::Not("none is awake".to_owned());
        };
        let mut text = format!("instance {frozen} frozen");
        if self.instances.awake() == 0 {
            let _ = write!(text, ", instance {} started", self.instances.start());
        }
        // Its sessions are open and hold the lock: the other takes over once they have ended.
        if self.random.random_range(0..3) > 0 {
            self.to_target.cut();
            text += ", connections to the target cut";
        }
        Done::Lasts(text, self.for_some(FREEZE_MS), Cure::Thaw)
    }

    fn second(&mut self) -> Done {
        if self.instances.awake() > 1 {
            return Done::Not("there are two".to_owned());
        }
        let number = self.instances.start();
        Done::Lasts(format!("instance {number} started"), self.for_some(SECOND_MS), Cure::One)
    }

    async fn end_backend(&mut self, side: Side) -> Done {
        let (database, role) = match side {
            Side::Publisher => (self.world.publisher.clone(), PUBLISHER_ROLE),
            Side::Target => (self.world.target.clone(), TARGET_ROLE),
        };
        let sql = format!(
            "SELECT pid, application_name FROM pg_stat_activity WHERE usename = '{role}' ORDER BY pid"
        );
        let sessions = database.try_lines(&sql).await.unwrap_or_default();
        if sessions.is_empty() {
            return Done::Not("there is no session".to_owned());
        }
        let session = &sessions[self.random.random_range(0..sessions.len())];
        let pid = session.split('|').next().unwrap_or_default();
        let ended = database.try_value(&format!("SELECT pg_terminate_backend({pid})")).await;
        Done::Over(format!("{session} terminated: {ended:?}"))
    }

    fn cut(&mut self, side: Side) -> Done {
        self.proxy(side).cut();
        Done::Over("all connections cut".to_owned())
    }

    fn slow(&mut self, side: Side, text: &str, order: impl FnOnce(&FaultyProxy)) -> Done {
        let is_slow = |lasting: &Lasting| matches!(lasting.cure, Cure::Open(other) if other == side);
        if self.lasting.iter().any(is_slow) {
            return Done::Not("its connections are disturbed already".to_owned());
        }
        order(self.proxy(side));
        Done::Lasts(text.to_owned(), self.for_some(NETWORK_MS), Cure::Open(side))
    }

    async fn lose_answer(&mut self) -> Done {
        let nth = self.random.random_range(1..8);
        if self.to_target.lose_answer(nth, LOSS_PATIENCE).await {
            Done::Over(format!("the answer to COMMIT number {nth} was lost"))
        } else {
            Done::Not("no COMMIT came by; connections to the target were cut".to_owned())
        }
    }

    /// The target does not answer, and yet the publisher stops: a stream that is not read is let go of.
    async fn restart_held(&mut self) -> Result<Done, String> {
        self.open_connections().await?;
        self.to_target.stall();
        tokio::time::sleep(self.for_some(0..HELD_MS_MAX)).await;
        let done = self.restart_now(Side::Publisher, StopMode::Fast).await;
        self.to_target.open();
        done
    }

    async fn restart(&mut self, side: Side, mode: StopMode) -> Result<Done, String> {
        self.open_connections().await?;
        self.restart_now(side, mode).await
    }

    async fn open_connections(&mut self) -> Result<(), String> {
        let is_slow = |lasting: &Lasting| matches!(lasting.cure, Cure::Open(_));
        while let Some(slow) = self.lasting.iter().position(is_slow) {
            let lasting = self.lasting.remove(slow);
            self.cure(lasting).await?;
        }
        Ok(())
    }

    async fn restart_now(&mut self, side: Side, mode: StopMode) -> Result<Done, String> {
        let rest = if self.random.random_range(0..3) == 0 { REST_MS_MAX } else { 0 };
        let server = match side {
            Side::Publisher => self.world.publisher_server(),
            Side::Target => self.world.target_server(),
        };
        let began = Instant::now();
        server.stop(mode).await.map_err(|error| error.diagnosis().to_string())?;
        let stopped = began.elapsed().as_secs_f64();
        tokio::time::sleep(Duration::from_millis(rest)).await;
        server.launch().await.map_err(|error| error.diagnosis().to_string())?;
        Ok(Done::Over(format!("stopped ({mode}) in {stopped:.2} s and started again")))
    }

    async fn lock(&mut self, sql: &str) -> Done {
        let mut tables: Vec<String> = COMPARED.iter().map(ToString::to_string).collect();
        tables.extend(self.load.shared.joined());
        let table = &tables[self.random.random_range(0..tables.len())];
        let sql = format!("{LOCK_TIMEOUT}; BEGIN; {}", sql.replace("{}", table));
        match locked(&self.world.target, &sql).await {
            Ok(session) => Done::Lasts(table.clone(), self.for_some(LOCK_MS), Cure::Release(session)),
            Err(error) => Done::Not(error),
        }
    }

    /// Ends the faults that have lasted long enough.
    pub(super) async fn cure_due(&mut self, now: Instant) -> Result<(), String> {
        while let Some(due) = self.lasting.iter().position(|lasting| lasting.until <= now) {
            let lasting = self.lasting.remove(due);
            self.cure(lasting).await?;
        }
        Ok(())
    }

    /// Ends all faults: connections are open, the servers run, and one instance.
    pub(super) async fn cure_all(&mut self) -> Result<(), String> {
        while let Some(lasting) = self.lasting.pop() {
            self.cure(lasting).await?;
        }
        // Curing one may have begun another.
        while let Some(lasting) = self.lasting.pop() {
            self.cure(lasting).await?;
        }
        if self.instances.awake() == 0 {
            self.instances.start();
        }
        while self.instances.awake() > 1 {
            let text = self.instances.terminate(&mut self.random).await?;
            self.journal.note(&format!("for the verdict: {text}"));
        }
        Ok(())
    }

    async fn cure(&mut self, lasting: Lasting) -> Result<(), String> {
        let Lasting { number, cure, .. } = lasting;
        let text = match cure {
            Cure::Open(side) => {
                self.proxy(side).open();
                "over".to_owned()
            }
            Cure::Thaw => {
                self.instances.thaw();
                let until = Instant::now() + self.for_some(SECOND_MS);
                self.lasting.push(Lasting { number, until, cure: Cure::One });
                self.journal.about(number, "goes on");
                return Ok(());
            }
            Cure::One => self.one().await?,
            Cure::Release(session) => {
                session.close().await;
                "released".to_owned()
            }
        };
        self.journal.about(number, &text);
        self.is_over(number).await;
        Ok(())
    }

    async fn one(&mut self) -> Result<String, String> {
        if self.instances.awake() < 2 {
            return Ok("there is one only".to_owned());
        }
        match self.random.random_range(0..2) {
            0 => Ok(self.instances.kill(&mut self.random).await),
            _ => self.instances.terminate(&mut self.random).await,
        }
    }
}

/// A session in whose open transaction these statements were run.
async fn locked(database: &Database, sql: &str) -> Result<Session, String> {
    let session = database.try_session().await?;
    session.batch(sql).await.map_err(|error| error.diagnosis().to_string())?;
    Ok(session)
}
