//! When the worker's task last got to run.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How often the worker notes that it runs.
const INTERVAL: Duration = Duration::from_secs(1);

/// Noted by the worker's task itself, so that reports of a worker that hangs can be held back.
#[derive(Debug, Clone)]
pub(super) struct Beat(watch::Sender<Instant>);

impl Default for Beat {
    fn default() -> Self {
        Self(watch::Sender::new(Instant::now()))
    }
}

impl Beat {
    pub(super) fn subscribe(&self) -> watch::Receiver<Instant> {
        self.0.subscribe()
    }

    /// Notes the time again and again. Never completes.
    pub(super) async fn go_on(&self) {
        loop {
            self.0.send_replace(Instant::now());
            sleep(INTERVAL).await;
        }
    }
}
