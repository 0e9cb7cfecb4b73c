//! Tasks beside the workers: the HTTP service, upkeep of metrics, progress bars.
//!
//! They only read. They begin before the target is reached and end after the workers, so that the whole
//! of a start and of a stop can be observed.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::info;

use crate::http::{Server, Sources};
use crate::store::Store;
use crate::subscription::View;
use crate::telemetry::{self, Bars};

/// Interval at which the metrics' samples are merged, which bounds their number.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Interval at which progress bars are drawn.
const BARS_INTERVAL: Duration = Duration::from_millis(250);
/// Longest time for requests in progress to finish.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The tasks beside the workers; dropping this ends them.
pub(super) struct Side {
    store: watch::Sender<Option<Store>>,
    stop: watch::Sender<Stop>,
    server: JoinSet<()>,
    helpers: JoinSet<()>,
    bars: Option<Bars>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    NotYet,
    Now,
}

impl Side {
    pub(super) fn start(server: Server, view: View, bars: Option<Bars>) -> Self {
        let store = watch::Sender::new(None);
        let stop = watch::Sender::new(Stop::NotYet);
        let mut asked = stop.subscribe();
        if let Some(address) = server.address() {
            info!(%address, "listening");
        }
        let mut tasks = JoinSet::new();
        let sources = Sources { view: view.clone(), store: store.subscribe() };
        tasks.spawn(server.serve(sources, async move {
            // A closed channel also means stop.
            let _ = asked.wait_for(|stop| *stop == Stop::Now).await;
        }));
        let mut helpers = JoinSet::new();
        helpers.spawn(keep_up());
        if let Some(bars) = bars.clone() {
            helpers.spawn(draw(bars, view));
        }
        Self { store, stop, server: tasks, helpers, bars }
    }

    /// Lets the API answer from the target's store from now on.
    pub(super) fn store_opened(&self, store: &Store) {
        self.store.send_replace(Some(store.clone()));
    }

    /// Ends all tasks; requests in progress have [`STOP_TIMEOUT`] to finish.
    pub(super) async fn stop(mut self) {
        self.helpers.shutdown().await;
        if let Some(bars) = &self.bars {
            bars.clear();
        }
        self.stop.send_replace(Stop::Now);
        let finished = async { while self.server.join_next().await.is_some() {} };
        // Idle connections are closed at once; after the time-out the others are aborted.
        let _ = tokio::time::timeout(STOP_TIMEOUT, finished).await;
        self.server.shutdown().await;
    }
}

async fn keep_up() {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        telemetry::upkeep();
    }
}

async fn draw(bars: Bars, view: View) {
    let mut ticks = tokio::time::interval(BARS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let snapshots = view.snapshots();
        let copies: Vec<_> =
            snapshots.iter().map(|(name, snapshot)| (name.as_str(), snapshot.copies())).collect();
        bars.update(copies.iter().flat_map(|(name, copies)| copies.iter().map(move |copy| (*name, copy))));
    }
}
