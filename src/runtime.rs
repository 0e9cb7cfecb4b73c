//! The service: opens the store, runs one worker per subscription, handles signals, and stops in order.
//!
//! ```text
//! SIGTERM, SIGINT ─▶ shutdown ─▶ workers end (rolled back or committed) ─▶ store, HTTP close
//! SIGHUP ─▶ reload ─▶ workers of changed subscriptions end and start again
//! NOTIFY ─▶ signal ─▶ workers look for commands
//! ```
//! The HTTP service binds its address first, and answers while the service waits for the target.
//! Nothing here knows what a worker does. Every task belongs to a set that is joined or aborted.

mod side;

use std::collections::HashMap;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use self::side::Side;

use crate::boundary;
use crate::config::{Config, Subscription};
use crate::error::{Diagnosis, Disposition, Exit, Failure};
use crate::http::Server;
use crate::net::{self, ClientOptions, PgClient};
use crate::pg::SubscriptionName;
use crate::store::{Registration, State, Store, StoreError, Verb};
use crate::subscription::findings::obstructed;
use crate::subscription::{Board, Wish, Worker, end_abandoned_creations, target_unavailable};
use crate::target::{Lock, TargetSession};
use crate::telemetry::{self, Attention, Bars};

/// Longest time for workers to stop, and then again for the other tasks.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between attempts to open the target's store.
const TARGET_RETRY: Duration = Duration::from_secs(2);
/// Longest time that `drop` waits for a running service to release the subscription.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(15);
const LET_GO_POLL: Duration = Duration::from_millis(200);
/// Longest wait for one instance's answer that it releases the subscription.
const LET_GO_ANSWER: Duration = Duration::from_secs(3);
const NOT_TAKEN_OVER: &str = "the configuration was not taken over; the service goes on with the old one";
/// SQLSTATE of a slot that is still active.
const OBJECT_IN_USE: &str = "55006";

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
    Commands,
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
    let mut service = Service::new(config, store, board);
    service.start_all().await;
    let mut commands = service.store.listen();
    loop {
        let woken = tokio::select! {
            signal = signals.next() => signal,
            _ = commands.recv() => Woken::Commands,
            Some(name) = service.ended() => Woken::WorkerEnded(name),
        };
        match woken {
            Woken::Stop => break,
            Woken::Reload => match reload() {
                Some(config) => service.reload(config).await,
                None => warn!("{NOT_TAKEN_OVER}"),
            },
            Woken::Commands => service.signal.send_modify(|count| *count = count.wrapping_add(1)),
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
        match Store::open(&config.target.conninfo).await {
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
    store: Store,
    instance: String,
    signal: watch::Sender<u64>,
    board: Board,
    workers: HashMap<SubscriptionName, watch::Sender<Wish>>,
    tasks: JoinSet<SubscriptionName>,
}

impl Service {
    fn new(config: Config, store: Store, board: Board) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let instance = format!("{} (pid {})", host.trim(), std::process::id());
        Self {
            config,
            store,
            instance,
            signal: watch::Sender::new(0),
            board,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
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
        let wish = watch::Sender::new(Wish::Run);
        let worker = Worker::new(
            subscription,
            self.config.target.conninfo.clone(),
            self.store.clone(),
            self.instance.clone(),
            wish.subscribe(),
            self.signal.subscribe(),
            self.board.add(&name, State::Starting),
        );
        self.workers.insert(name.clone(), wish);
        self.tasks.spawn(async move {
            Box::pin(worker.run()).await;
            name
        });
    }

    async fn report_disabled(&self, subscription: &Subscription) -> Result<(), StoreError> {
        self.store
            .register_subscription(Registration {
                name: &subscription.name,
                slot: &subscription.slot,
                publications: &subscription.publications,
            })
            .await?;
        self.store.set_disabled(subscription.name.as_str()).await?;
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
        self.store.close().await;
    }

    /// Asks workers to stop, and waits for them for at most [`STOP_TIMEOUT`].
    async fn stop(&mut self, names: &[SubscriptionName]) {
        for name in names {
            if let Some(wish) = self.workers.get(name) {
                wish.send_replace(Wish::ShutDown);
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

/// Removes a subscription: its slot on the publisher and its state in the target. The target's rows
/// stay. A running service is asked to release it only after the publisher has been reached, so that a
/// drop that cannot be finished changes nothing.
pub async fn drop_subscription(config: &Config, name: &SubscriptionName) -> Result<(), Failure> {
    let store = Store::connect(&config.target.conninfo).await?;
    store.require_schema().await?;
    let configured = config.subscriptions.iter().find(|known| known.name == *name);
    let known = store.subscription(name.as_str()).await?.is_some();
    let subscription = match (configured, known) {
        (Some(subscription), true) => subscription,
        (Some(_), false) => {
            return Err(Failure::new(
                Exit::No,
                Diagnosis::new(format!("subscription \"{name}\" has never run: there is nothing to drop")),
            ));
        }
        (None, true) => {
            return Err(Failure::new(
                Exit::Usage,
                Diagnosis::new(format!("subscription \"{name}\" is not in the configuration"))
                    .detail("its slot can only be removed with the publisher's address")
                    .hint(format!(
                        "put it back into the configuration (enabled = false), then \"pgsluice drop {name}\""
                    )),
            ));
        }
        (None, false) => return Err(unknown(name)),
    };
    let publisher = net::client(&subscription.publisher, &ClientOptions::default())
        .await
        .map_err(|error| Failure::new(Exit::Unreachable, error.diagnosis()))?;
    let session = take_over(&store, config, name).await?;
    // A process that has lost the lock, but was stopped, does not end its copies itself.
    if let Err(error) = session.end_copies(name).await {
        warn!(subscription = %name, %error, "copies of former owners may still run on the target");
    }
    drop_slot(&publisher, subscription).await?;
    if let Err(error) = session.drop_origins(name).await {
        // Harmless but for the room that they take.
        warn!(subscription = %name, %error, "replication origins named pgsluice:…:{name} stay on the target");
    }
    store.remove_subscription(name.as_str()).await?;
    drop(session);
    store.close().await;
    Ok(())
}

/// The error for a name that neither the configuration nor the target knows.
pub(crate) fn unknown(name: &SubscriptionName) -> Failure {
    let diagnosis = Diagnosis::new(format!("there is no subscription \"{name}\""))
        .detail("neither the configuration nor the target's state knows it")
        .hint("\"pgsluice status\" lists them");
    Failure::new(Exit::Usage, diagnosis)
}

/// Takes the subscription's lock after asking its holder to release it. The first holder is the
/// instance that applies. A standby instance may take the lock before this process, and is then asked
/// as well.
async fn take_over(
    store: &Store,
    config: &Config,
    name: &SubscriptionName,
) -> Result<TargetSession, Failure> {
    let failed = |failure: crate::subscription::Failure| {
        let exit = match failure.disposition {
            Disposition::Retry => Exit::Unreachable,
            Disposition::Pause(_) => Exit::No,
        };
        Failure::new(exit, failure.diagnosis)
    };
    let session = TargetSession::open(&config.target.conninfo, &format!("pgsluice drop {name}"))
        .await
        .map_err(|error| failed(error.into()))?;
    let deadline = tokio::time::Instant::now() + LET_GO_TIMEOUT;
    loop {
        match session.try_lock(name).await {
            Ok(Lock::Held) => return Ok(session),
            Ok(Lock::HeldElsewhere) if tokio::time::Instant::now() < deadline => {
                if let Some(pid) =
                    session.end_silent_owner(name).await.map_err(|error| failed(error.into()))?
                {
                    warn!(subscription = %name, pid, "the owner has shown no sign of life, so its session on the target has been ended");
                    continue;
                }
                let id = store.submit(name.as_str(), Verb::Drop, &serde_json::json!({}), "drop").await?;
                store.wait_answer(id, LET_GO_ANSWER).await?;
                tokio::time::sleep(LET_GO_POLL).await;
            }
            Ok(Lock::HeldElsewhere) => {
                // It must not be let go of later, when nobody drops it any more.
                store.withdraw_drops(name.as_str()).await?;
                return Err(Failure::new(
                    Exit::No,
                    Diagnosis::new(format!(
                        "another instance of pgsluice runs \"{name}\" and does not let go of it"
                    ))
                    .hint("stop that service, then drop the subscription"),
                ));
            }
            Ok(Lock::Obstructed(outsider)) => {
                store.withdraw_drops(name.as_str()).await?;
                return Err(Failure::new(Exit::No, obstructed(&outsider)));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

const DROP_SLOT: &str = "SELECT pg_catalog.pg_drop_replication_slot(s.slot_name) \
    FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::pg_catalog.text";

/// Drops the replication slot; one that is not there is no error.
async fn drop_slot(client: &PgClient, subscription: &Subscription) -> Result<(), Failure> {
    end_abandoned_creations(client, &subscription.slot)
        .await
        .map_err(|error| Failure::new(Exit::Unreachable, error.diagnosis()))?;
    let slot = subscription.slot.as_str();
    let deadline = tokio::time::Instant::now() + LET_GO_TIMEOUT;
    loop {
        // The walsender may need a moment to notice that its subscriber has gone.
        let dropped = boundary::deed!(
            "drop::slot",
            client.execute(DROP_SLOT, &[&slot]).await,
            Err(client.lose().await)
        );
        let Err(error) = dropped else { return Ok(()) };
        let Some(server) = net::server_error(&error) else {
            return Err(Failure::new(Exit::Unreachable, Diagnosis::new(error.to_string())));
        };
        if server.code == OBJECT_IN_USE && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LET_GO_POLL).await;
            continue;
        }
        return Err(Failure::new(Exit::No, server.diagnosis()));
    }
}
