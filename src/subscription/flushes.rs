//! What the target has flushed, where its commits don't wait for that (`synchronous_commit = off`).
//!
//! As PostgreSQL's apply worker does (`get_flush_position` in `worker.c`): each position that has been
//! applied is remembered together with the target's own WAL position after its commit; once the target
//! has flushed its WAL up to there, the publisher is told. An answer may come late, never early.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use crate::pg::Lsn;
use crate::store::{Store, StoreError, WalPositions};

/// How often the target is asked. Its WAL writer flushes every 200 ms by default (`wal_writer_delay`).
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Applied positions that wait to be flushed.
#[derive(Debug, Default)]
struct Waiting(VecDeque<(Lsn, Lsn)>);

impl Waiting {
    /// Everything up to `applied` was committed before the target's WAL had come to `target`.
    fn push(&mut self, applied: Lsn, target: Lsn) {
        self.0.push_back((applied, target));
    }

    /// The target has flushed so far: what is durable by that, if it is more than before.
    fn flushed(&mut self, target: Lsn) -> Option<Lsn> {
        let mut durable = None;
        while let Some(&(applied, _)) = self.0.front().filter(|(_, needs)| *needs <= target) {
            durable = Some(applied);
            self.0.pop_front();
        }
        durable
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<WalPositions, StoreError>> + Send>>;

/// Asks the target as long as something waits.
pub(super) struct Flushes {
    store: Store,
    applied: Lsn,
    durable: Lsn,
    waiting: Waiting,
    /// The question under way, and what had been applied when it was put.
    asked: Option<(Lsn, Answer)>,
}

impl Flushes {
    /// Everything up to `durable` is known to be.
    pub(super) fn new(store: Store, durable: Lsn) -> Self {
        Self { store, applied: durable, durable, waiting: Waiting::default(), asked: None }
    }

    /// Everything up to `lsn` is committed.
    pub(super) fn note_applied(&mut self, lsn: Lsn) {
        self.applied = lsn.max(self.applied);
    }

    /// The next position that is durable. Waits for ever while none is left to become so. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Lsn, StoreError> {
        loop {
            if self.asked.is_none() {
                if self.durable >= self.applied {
                    return std::future::pending().await;
                }
                let store = self.store.clone();
                let ask = async move {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    store.wal_positions().await
                };
                self.asked = Some((self.applied, Box::pin(ask)));
            }
            let Some((applied, answer)) = &mut self.asked else { continue };
            let (applied, positions) = (*applied, answer.await);
            self.asked = None;
            let positions = positions?;
            self.waiting.push(applied, positions.inserted);
            if let Some(durable) = self.waiting.flushed(positions.flushed) {
                self.durable = durable;
                return Ok(durable);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_counts_once_the_targets_wal_is_flushed() {
        let mut waiting = Waiting::default();
        let lsn = Lsn::new;
        waiting.push(lsn(10), lsn(1000));
        waiting.push(lsn(20), lsn(2000));
        waiting.push(lsn(30), lsn(2000));
        assert_eq!(waiting.flushed(lsn(999)), None);
        assert_eq!(waiting.flushed(lsn(1999)), Some(lsn(10)));
        assert_eq!(waiting.flushed(lsn(1999)), None, "once is enough");
        assert_eq!(waiting.flushed(lsn(2000)), Some(lsn(30)));
        assert!(waiting.0.is_empty());
    }
}
