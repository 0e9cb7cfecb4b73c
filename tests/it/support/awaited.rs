//! Waits for a state as `status` shows it, without asking `status` all the time.
//!
//! Each `status` is a process that opens several sessions. It is asked once the target has the state on record, and
//! every few seconds before that: what it shows decides.

use std::time::{Duration, Instant};

use super::cli::StateView;
use super::database::Looks;
use super::world::World;

/// Longest time for which the record is looked at instead of asking `status`.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// Longest wait for the record.
const RECORD_PATIENCE: Duration = Duration::from_secs(1);

/// A state that `status` is to show.
#[derive(Debug)]
pub(crate) struct Awaited<'a> {
    world: &'a World,
    state: &'a str,
    record: Looks,
    asked: Instant,
    /// What `status` showed last.
    shown: String,
}

impl<'a> Awaited<'a> {
    pub(crate) fn new(world: &'a World, state: &'a str) -> Self {
        let shown = "status has not been asked yet".to_owned();
        Self { world, state, record: world.target.looks(), asked: Instant::now(), shown }
    }

    /// Returns what `status` shows if that is the state.
    pub(crate) async fn look(&mut self) -> Result<StateView, String> {
        if self.asked.elapsed() < STATUS_INTERVAL && self.is_otherwise_on_record().await {
            return Err(self.shown.clone());
        }
        self.asked = Instant::now();
        let view = self.world.status().await?;
        if view.state == self.state {
            return Ok(view);
        }
        self.shown = format!("{:#}", view.json);
        Err(self.shown.clone())
    }

    /// Ends the looks at the record.
    pub(crate) async fn end(self) {
        self.record.close().await;
    }

    /// Whether the record says that `status` can't show the state now; false if the record can't be read.
    async fn is_otherwise_on_record(&mut self) -> bool {
        // These are also shown of a subscription that does not run, whatever is on record.
        if matches!(self.state, "starting" | "disabled") {
            return false;
        }
        let state = tokio::time::timeout(RECORD_PATIENCE, self.on_record()).await;
        state.is_ok_and(|state| state.is_ok_and(|state| state.as_deref() != Some(self.state)))
    }

    async fn on_record(&mut self) -> Result<Option<String>, String> {
        let made = "SELECT pg_catalog.to_regclass('pgsluice.subscription') IS NOT NULL";
        if self.record.lines(made).await? != ["t"] {
            return Ok(None);
        }
        // The database's `search_path` may lead to operators that a test has planted.
        let state = format!(
            "SELECT state FROM pgsluice.subscription WHERE name OPERATOR(pg_catalog.=) '{}'",
            self.world.subscription
        );
        Ok(self.record.lines(&state).await?.pop())
    }
}
