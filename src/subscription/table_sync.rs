//! Synchronises a table that joins a running stream: copies it under its own snapshot, applies its changes
//! from its own stream, and hands it over at a position that both streams have reached. The other tables are
//! applied meanwhile.
//!
//! ```text
//! temporary slot + snapshot ─▶ COPY ─▶ stream of the slot, this table's changes only ─┐
//!                              └──────────── one open target transaction ─────────────┤
//! main stream at M, between transactions ◀── sync at L ≥ M: mark ready at L, COMMIT ◀──┘
//! ```
//! Everything is one target transaction, so an interrupted synchronisation leaves nothing behind. From L on
//! the main stream applies the table's changes; before L it passes over them.
//!
//! Here are the queue of tables, and how the stream waits for the running synchronisation, which is a task of its own
//! (`sync`).

mod sync;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::Diagnosis;
use crate::pg::{Lsn, QualifiedName};
use crate::schema::catalog::PublisherSettings;
use crate::store::TableState;

use self::sync::{Report, Sync};
use super::context::Context;
use super::failure::{Cause, Failure};
use super::publisher::{Encoding, Publisher};
use super::take_up::PendingTable;

/// Delay before a failed synchronisation is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Maximum number of events in the channel.
const EVENTS_MAX: usize = 16;
/// Maximum lag of a synchronisation behind the stream, in bytes of WAL, at which the stream waits for it.
const CLOSE_BYTES: u64 = 1 << 20;
/// How often the lag is compared. A synchronisation works row by row, and the stream by sets may be faster.
/// If the lag does not shrink, the stream waits, too.
const PACE_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum time without progress of a synchronisation for which the stream waits. If it is blocked by a lock
/// on its table, the other tables must not wait.
const STALL_MAX: Duration = Duration::from_secs(3);

/// A table to synchronise.
pub(super) struct SyncJob {
    table: PendingTable,
    not_before: Instant,
}

impl SyncJob {
    pub(super) fn new(table: PendingTable) -> Self {
        Self { table, not_before: Instant::now() }
    }
}

/// An event of a synchronisation for the stream.
#[derive(Debug)]
pub(super) enum SyncEvent {
    State {
        source: QualifiedName,
        /// The number of the copy.
        attempt: i32,
        state: TableState,
    },
    /// The running synchronisation may have reached the stream's position.
    CaughtUp,
    Done {
        source: QualifiedName,
        position: Lsn,
    },
    /// The synchronisation has failed and is tried again.
    Failed {
        source: QualifiedName,
        /// The number of the copy.
        attempt: i32,
        diagnosis: Diagnosis,
    },
    /// The attempt has to end, because the table's record has to be read again before more is streamed.
    Ended(Failure),
}

/// The tables still to be synchronised, one at a time.
pub(super) struct TableSyncs {
    context: Context,
    settings: PublisherSettings,
    encoding: Encoding,
    /// The publications that the streams are asked for.
    publications: Vec<String>,
    queue: VecDeque<SyncJob>,
    running: Option<Running>,
}

/// The running synchronisation. Dropping it ends its task; its connections close, and its transaction is
/// rolled back.
struct Running {
    task: JoinSet<(PendingTable, Result<Lsn, Failure>)>,
    source: QualifiedName,
    reports: mpsc::Receiver<Report>,
    finish: Option<oneshot::Sender<()>>,
    /// The position that it has reached.
    reached: Option<Lsn>,
    /// When it last made progress.
    progressed: Option<Instant>,
    pace: Option<Pace>,
}

/// How a synchronisation's lag behind the stream changes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    looked_at: Instant,
    /// Its lag behind the stream then, in bytes of WAL.
    lag_bytes: u64,
    gain: Gain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gain {
    Nearer,
    NoNearer,
}

impl Pace {
    /// Compares the lag again, if that is due. Once it has not shrunk, that stays noted: that it shrinks
    /// while the stream waits says nothing.
    fn look(before: Option<Self>, now: Instant, lag_bytes: u64) -> Self {
        match before {
            None => Self { looked_at: now, lag_bytes, gain: Gain::Nearer },
            Some(pace) if pace.gain == Gain::NoNearer => pace,
            Some(pace) if now.saturating_duration_since(pace.looked_at) < PACE_INTERVAL => pace,
            Some(pace) => {
                // It must shrink by a tenth each time, or catching up would take too long.
                let nearer = lag_bytes <= pace.lag_bytes / 10 * 9;
                let gain = if nearer { Gain::Nearer } else { Gain::NoNearer };
                Self { looked_at: now, lag_bytes, gain }
            }
        }
    }
}

impl TableSyncs {
    pub(super) fn new(
        context: &Context,
        publisher: &Publisher,
        publications: Vec<String>,
        jobs: Vec<SyncJob>,
    ) -> Self {
        Self {
            context: context.clone(),
            settings: publisher.settings.clone(),
            encoding: publisher.encoding,
            publications,
            queue: jobs.into(),
            running: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.running.is_none()
    }

    /// Whether a synchronisation runs.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether the running synchronisation has reached `position` and can be handed over there.
    pub(super) fn is_waiting_at(&self, position: Lsn) -> bool {
        self.running
            .as_ref()
            .is_some_and(|run| run.finish.is_some() && run.reached.is_some_and(|reached| reached >= position))
    }

    /// Until when a stream that has been received up to `position` should wait, so that the running
    /// synchronisation reaches it; none if it should go on.
    pub(super) fn worth_waiting_until(&mut self, position: Lsn) -> Option<Instant> {
        let run = self.running.as_mut().filter(|run| run.finish.is_some())?;
        let (reached, progressed) = (run.reached?, run.progressed?);
        let now = Instant::now();
        let lag_bytes = position.bytes_since(reached);
        let pace = Pace::look(run.pace, now, lag_bytes);
        run.pace = Some(pace);
        if lag_bytes > CLOSE_BYTES && pace.gain == Gain::Nearer {
            return None;
        }
        Some(progressed + STALL_MAX).filter(|until| *until > now)
    }

    /// Waits for the next event; for ever if there is nothing to synchronise. Cancel-safe.
    pub(super) async fn next(&mut self) -> SyncEvent {
        loop {
            if self.running.is_none() {
                self.begin().await;
            }
            let Some(run) = &mut self.running else { continue };
            let report = tokio::select! {
                biased;
                report = run.reports.recv() => report,
                Some(ended) = run.task.join_next() => return self.ended(ended),
            };
            match report {
                Some(Report::Reached(lsn)) => {
                    run.reached = Some(lsn);
                    run.progressed = Some(Instant::now());
                    return SyncEvent::CaughtUp;
                }
                Some(Report::CatchingUp(attempt)) => {
                    let (source, state) = (run.source.clone(), TableState::CatchingUp);
                    return SyncEvent::State { source, attempt, state };
                }
                None => {
                    if let Some(ended) = run.task.join_next().await {
                        return self.ended(ended);
                    }
                }
            }
        }
    }

    /// Asks the running synchronisation to finish at its position, and waits until it has.
    pub(super) async fn finish(&mut self) -> SyncEvent {
        if let Some(finish) = self.running.as_mut().and_then(|run| run.finish.take()) {
            let _ = finish.send(());
        }
        loop {
            match self.next().await {
                SyncEvent::CaughtUp | SyncEvent::State { .. } => {}
                event => return event,
            }
        }
    }

    /// Starts the next synchronisation when it is due.
    async fn begin(&mut self) {
        let Some(due) = self.queue.front().map(|job| job.not_before) else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(due).await;
        let Some(mut job) = self.queue.pop_front() else { return };
        let source = job.table.published.relation.name.clone();
        let (reports, received) = mpsc::channel(EVENTS_MAX);
        let (finish, finish_asked) = oneshot::channel();
        let sync = Sync {
            context: self.context.clone(),
            settings: self.settings.clone(),
            encoding: self.encoding,
            publications: self.publications.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            let result = sync.run(&mut job.table, reports, finish_asked).await;
            (job.table, result)
        });
        self.running = Some(Running {
            task,
            source,
            reports: received,
            finish: Some(finish),
            reached: None,
            progressed: None,
            pace: None,
        });
    }

    fn ended(
        &mut self,
        ended: Result<(PendingTable, Result<Lsn, Failure>), tokio::task::JoinError>,
    ) -> SyncEvent {
        let source = self.running.take().map(|run| run.source);
        match ended {
            Ok((table, Ok(position))) => SyncEvent::Done { source: table.published.relation.name, position },
            Ok((_, Err(failure))) if failure.ends_attempt() => SyncEvent::Ended(failure),
            Ok((table, Err(failure))) => {
                let (source, attempt) = (table.published.relation.name.clone(), table.attempt);
                self.queue.push_back(SyncJob { table, not_before: Instant::now() + RETRY_DELAY });
                SyncEvent::Failed { source, attempt, diagnosis: failure.diagnosis }
            }
            // After a panic it is unknown what the task has done.
            Err(panic) => {
                let source = source.unwrap_or_else(|| QualifiedName::new("", ""));
                let diagnosis =
                    Diagnosis::new(format!("the synchronisation of table {source} ended unexpectedly"))
                        .detail(panic.to_string())
                        .hint("the table is taken up again by itself");
                SyncEvent::Ended(Failure::retry(diagnosis).because_of(Cause::Record))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_comes_no_nearer_is_known() {
        let start = Instant::now();
        let look = |pace, seconds, lag| Pace::look(pace, start + Duration::from_secs(seconds), lag);
        let first = look(None, 0, 1000);
        assert_eq!(first.gain, Gain::Nearer);
        assert_eq!(look(Some(first), 4, 5000).gain, Gain::Nearer, "too early to tell");
        let behind = look(Some(first), 5, 950);
        assert_eq!(behind.gain, Gain::NoNearer);
        assert_eq!(look(Some(behind), 10, 10).gain, Gain::NoNearer, "the stream has waited for it");
        assert_eq!(look(Some(first), 5, 900).gain, Gain::Nearer);
    }
}
