//! What runs beside the workers: the HTTP service, the metrics' upkeep, the progress bars.
//!
//! All of it only reads. It begins before the target is reached and ends after the workers, so that
//! whoever watches sees the whole of a start and of a stop.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::info;

use crate::http::{Server, Sources};
use crate::store::Store;
use crate::subscription::View;
use crate::telemetry::{self, Bars};

/// How often the metrics' samples are gathered up, so that they stay few.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How often progress bars are drawn.
const BARS_INTERVAL: Duration = Duration::from_millis(250);
/// How long requests under way may take to finish.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The tasks beside the workers. Dropped, they end.
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
            // Also done when the sender has gone: nobody will ask any more.
            let _ = asked.wait_for(|stop| *stop == Stop::Now).await;
        }));
        let mut helpers = JoinSet::new();
        helpers.spawn(keep_up());
        if let Some(bars) = bars.clone() {
            helpers.spawn(draw(bars, view));
        }
        Self { store, stop, server: tasks, helpers, bars }
    }

    /// From now on the API answers from the target's record.
    pub(super) fn store_opened(&self, store: &Store) {
        self.store.send_replace(Some(store.clone()));
    }

    /// Ends everything; requests under way have [`STOP_TIMEOUT`].
    pub(super) async fn stop(mut self) {
        self.helpers.shutdown().await;
        if let Some(bars) = &self.bars {
            bars.clear();
        }
        self.stop.send_replace(Stop::Now);
        let finished = async { while self.server.join_next().await.is_some() {} };
        // An idle connection is closed at once; what still runs after that is cut off.
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
