//! The service: opens the store, runs one worker per subscription, handles signals, and stops in order.
//!
//! ```text
//! SIGTERM, SIGINT ─▶ shutdown ─▶ workers end (rolled back or committed) ─▶ store, HTTP close
//! SIGHUP ─▶ reload ─▶ workers of changed subscriptions end and start again
//! NOTIFY ─▶ signal ─▶ workers look for commands
//! ```
//! The HTTP service binds its address first, and answers while the service waits for the target.
//! Nothing here knows what a worker does. Every task belongs to a set that is joined or aborted.

mod removal;
mod side;

use std::collections::HashMap;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

pub use self::removal::drop_subscription;
pub(crate) use self::removal::unknown;
use self::side::Side;

use crate::config::{Config, Subscription};
use crate::error::{Diagnosis, Disposition, Exit, Failure};
use crate::http::Server;
use crate::net;
use crate::pg::SubscriptionName;
use crate::store::{Registration, State, Store, StoreError};
use crate::subscription::{Board, Instances, Reports, Shared, Turns, Wish, Worker, target_unavailable};
use crate::telemetry::{self, Attention, Bars};

/// Longest time for workers to stop, and then again for the other tasks.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between attempts to open the target's store.
const TARGET_RETRY: Duration = Duration::from_secs(2);
const NOT_TAKEN_OVER: &str = "the configuration was not taken over; the service goes on with the old one";

fn signals_failed(error: &std::io::Error) -> Failure {
    Failure::new(Exit::No, Diagnosis::new("signals cannot be received").detail(error.to_string()))
}

/// The process's signals, registered before anything else.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

enum Woken {
    Stop,
    Reload,
    Commands(String),
    WorkerEnded(SubscriptionName),
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| signals_failed(&error));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Woken {
        tokio::select! {
            _ = self.terminate.recv() => Woken::Stop,
            _ = self.interrupt.recv() => Woken::Stop,
            _ = self.hangup.recv() => Woken::Reload,
        }
    }
}

/// Runs every subscription of the configuration until SIGTERM or SIGINT. `reload` reads the
/// configuration again (SIGHUP); if it fails, it reports the problems itself and the old configuration
/// stays in force. `bars` show the progress of copies.
pub async fn run(
    mut config: Config,
    bars: Option<Bars>,
    reload: impl Fn() -> Option<Config>,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let server = Server::bind(&config.service).await?;
    let board = Board::default();
    announce(&config, &board, State::Starting);
    let side = Side::start(server, board.view(), bars);
    let store = loop {
        let woken = tokio::select! {
            store = open_store(&config, &board) => break store,
            woken = signals.next() => woken,
        };
        if matches!(woken, Woken::Stop) {
            side.stop().await;
            return Ok(());
        }
        // Only a signal can wake it, because nothing runs yet.
        config = reload_early(config, reload(), &board);
    };
    side.store_opened(&store);
    if let Some(budget) = config.budget() {
        net::places::bound(budget.copies);
        let (store, copies) = (budget.store, budget.copies);
        info!(
            max_connections = config.target.max_connections,
            store, copies, "sessions on the target are bounded"
        );
    }
    let mut service = Service::new(config, store, board);
    service.start_all().await;
    let mut commands = service.shared.store.listen();
    loop {
        let woken = tokio::select! {
            signal = signals.next() => signal,
            name = commands.recv() => Woken::Commands(name),
            Some(name) = service.ended() => Woken::WorkerEnded(name),
        };
        match woken {
            Woken::Stop => break,
            Woken::Reload => match reload() {
                Some(config) => service.reload(config).await,
                None => warn!("{NOT_TAKEN_OVER}"),
            },
            Woken::Commands(name) => service.signal(&name),
            Woken::WorkerEnded(name) => info!(subscription = %name, "subscription let go"),
        }
    }
    info!("stopping");
    service.stop_all().await;
    side.stop().await;
    Ok(())
}

/// Publishes a state for every subscription before anything runs.
fn announce(config: &Config, board: &Board, state: State) {
    for subscription in &config.subscriptions {
        let state = if subscription.enabled { state } else { State::Disabled };
        drop(board.add(&subscription.name, state));
        telemetry::register(subscription.name.as_str());
    }
}

/// Takes a configuration over before anything runs. The target's store is not open yet, so a new target takes
/// effect, too.
fn reload_early(config: Config, new: Option<Config>, board: &Board) -> Config {
    let Some(new) = new else {
        warn!("{NOT_TAKEN_OVER}");
        return config;
    };
    let changes = config.changes(&new);
    if changes.is_empty() {
        info!("reloaded: nothing has changed");
        return config;
    }
    if changes.service {
        warn!("[service] takes effect at the next start");
    }
    info!(
        added = changes.added.len(),
        changed = changes.changed.len(),
        ended = changes.removed.len(),
        "reloaded while waiting for the target"
    );
    for known in &config.subscriptions {
        board.remove(&known.name);
    }
    announce(&new, board, State::Starting);
    new
}

/// Publishes for every enabled subscription that the target's store cannot be opened.
fn announce_waiting(config: &Config, board: &Board, diagnosis: &Diagnosis) {
    for subscription in config.subscriptions.iter().filter(|subscription| subscription.enabled) {
        board.add(&subscription.name, State::Retrying).send_replace(target_unavailable(diagnosis));
    }
}

/// Opens the store, waiting for the target if need be, and upgrades schema `pgsluice`.
async fn open_store(config: &Config, board: &Board) -> Store {
    loop {
        let sessions = config.budget().map(|budget| budget.store);
        match Store::open(&config.target.conninfo, config.subscriptions.len(), sessions).await {
            Ok((store, applied)) => {
                for migration in applied {
                    info!(version = migration.version, "schema pgsluice: {}", migration.description);
                }
                return store;
            }
            Err(error) => {
                let diagnosis = error.diagnosis();
                announce_waiting(config, board, &diagnosis);
                let told = diagnosis.told_to_log();
                let (error_text, detail, hint) = (told.primary, told.detail, told.hint);
                warn!(error = error_text, detail, hint, "waiting for the target");
                if error.disposition() != Disposition::Retry {
                    // An operator has to act on the target; afterwards the service goes on without a
                    // restart.
                    tokio::time::sleep(TARGET_RETRY).await;
                }
                tokio::time::sleep(TARGET_RETRY).await;
            }
        }
    }
}

/// The running workers.
struct Service {
    config: Config,
    shared: Shared,
    board: Board,
    workers: HashMap<SubscriptionName, Handle>,
    tasks: JoinSet<SubscriptionName>,
    /// Reports the positions of all subscriptions, and shares them with other instances.
    reporting: JoinSet<()>,
}

/// The channels by which a worker is told something.
struct Handle {
    wish: watch::Sender<Wish>,
    /// Changes when commands may have come.
    signal: watch::Sender<u64>,
}

impl Service {
    fn new(config: Config, store: Store, board: Board) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = format!("{} (pid {})", host.trim(), std::process::id());
        let target = config.target.conninfo.clone();
        let (reports, turns, instances) = (Reports::default(), Turns::default(), Instances::default());
        let shared = Shared { target, store, instance, reports, turns, instances };
        let mut reporting = JoinSet::new();
        let Shared { reports, store, .. } = shared.clone();
        reporting.spawn(async move { reports.run(&store).await });
        let (after, Shared { instances, store, instance, .. }) = (config.service.share_after, shared.clone());
        reporting.spawn(async move { instances.run(&store, &instance, after).await });
        Self { config, shared, board, workers: HashMap::new(), tasks: JoinSet::new(), reporting }
    }

    /// Has a worker look for commands.
    fn signal(&self, name: &str) {
        let worker = name.parse::<SubscriptionName>().ok().and_then(|name| self.workers.get(&name));
        if let Some(worker) = worker {
            worker.signal.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    async fn start_all(&mut self) {
        for subscription in self.config.subscriptions.clone() {
            self.start(subscription).await;
        }
    }

    async fn start(&mut self, subscription: Subscription) {
        let name = subscription.name.clone();
        telemetry::register(name.as_str());
        if !subscription.enabled {
            drop(self.board.add(&name, State::Disabled));
            if let Err(error) = self.report_disabled(&subscription).await {
                let diagnosis = error.diagnosis();
                Attention { subscription: Some(name.as_str()), relation: None, diagnosis: &diagnosis }.emit();
            }
            return;
        }
        let (wish, signal) = (watch::Sender::new(Wish::Run), watch::Sender::new(0));
        let worker = Worker::new(
            subscription,
            self.shared.clone(),
            wish.subscribe(),
            signal.subscribe(),
            self.board.add(&name, State::Starting),
        );
        self.workers.insert(name.clone(), Handle { wish, signal });
        self.tasks.spawn(async move {
            Box::pin(worker.run()).await;
            name
        });
    }

    async fn report_disabled(&self, subscription: &Subscription) -> Result<(), StoreError> {
        self.shared
            .store
            .register_subscription(Registration {
                name: &subscription.name,
                slot: &subscription.slot,
                publications: &subscription.publications,
            })
            .await?;
        self.shared.store.set_disabled(subscription.name.as_str()).await?;
        Ok(())
    }

    /// Waits for the next worker to end; never completes while no worker runs.
    async fn ended(&mut self) -> Option<SubscriptionName> {
        match self.tasks.join_next().await? {
            Ok(name) => {
                self.workers.remove(&name);
                Some(name)
            }
            Err(panic) => {
                error!(error = %panic, "a worker ended unexpectedly; restart the service");
                None
            }
        }
    }

    async fn reload(&mut self, config: Config) {
        let changes = self.config.changes(&config);
        if changes.is_empty() {
            info!("reloaded: nothing has changed");
            return;
        }
        if changes.target || changes.service {
            warn!("[target] and [service] take effect at the next start");
        }
        let changed: Vec<Subscription> = changes.changed.iter().map(|(_, new)| (*new).clone()).collect();
        let added: Vec<Subscription> = changes.added.iter().map(|added| (*added).clone()).collect();
        let ending: Vec<SubscriptionName> = changes
            .removed
            .iter()
            .map(|removed| removed.name.clone())
            .chain(changed.iter().map(|subscription| subscription.name.clone()))
            .collect();
        info!(added = added.len(), changed = changed.len(), ended = ending.len(), "reloaded");
        let target = self.config.target.clone();
        self.stop(&ending).await;
        for name in &ending {
            self.board.remove(name);
        }
        self.config = Config { target, ..config };
        for subscription in changed.into_iter().chain(added) {
            self.start(subscription).await;
        }
    }

    async fn stop_all(&mut self) {
        let names: Vec<SubscriptionName> = self.workers.keys().cloned().collect();
        self.stop(&names).await;
        self.tasks.shutdown().await;
        self.reporting.shutdown().await;
        self.shared.instances.withdraw(&self.shared.store).await;
        self.shared.store.close().await;
    }

    /// Asks workers to stop, and waits for them for at most [`STOP_TIMEOUT`].
    async fn stop(&mut self, names: &[SubscriptionName]) {
        for name in names {
            if let Some(worker) = self.workers.get(name) {
                worker.wish.send_replace(Wish::ShutDown);
            }
        }
        let stopped = async {
            while names.iter().any(|name| self.workers.contains_key(name)) {
                if self.ended().await.is_none() && self.tasks.is_empty() {
                    break;
                }
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
            warn!("workers did not stop within {} s and are ended", STOP_TIMEOUT.as_secs());
        }
    }
}
