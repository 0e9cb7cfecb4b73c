//! Finds out which positions the target has flushed, with `synchronous_commit = off`, where commits do not
//! wait for it.
//!
//! It works as in PostgreSQL's apply worker (`get_flush_position` in `worker.c`): each applied position is
//! kept together with the target's WAL position after its commit. Once the target has flushed its WAL up to
//! there, the applied position is durable and is reported to the publisher.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use crate::pg::Lsn;
use crate::store::{Store, StoreError, WalPositions};

/// How often the target's flush position is read. Its WAL writer flushes every 200 ms by default
/// (`wal_writer_delay`).
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Applied positions that wait to be flushed.
#[derive(Debug, Default)]
struct Waiting(VecDeque<(Lsn, Lsn)>);

impl Waiting {
    /// Notes that everything up to `applied` was committed before the target's WAL position `target`.
    fn push(&mut self, applied: Lsn, target: Lsn) {
        self.0.push_back((applied, target));
    }

    /// Takes the target's flush position. Returns the applied position that is durable by that, if it has
    /// grown.
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

/// Reads the target's flush position while an applied position is not durable.
pub(super) struct Flushes {
    store: Store,
    applied: Lsn,
    durable: Lsn,
    waiting: Waiting,
    /// The unanswered query, and the position that had been applied when it was sent.
    asked: Option<(Lsn, Answer)>,
}

impl Flushes {
    /// `durable` is the first position, which is known to be durable.
    pub(super) fn new(store: Store, durable: Lsn) -> Self {
        Self { store, applied: durable, durable, waiting: Waiting::default(), asked: None }
    }

    /// Notes that everything up to `lsn` is committed.
    pub(super) fn note_applied(&mut self, lsn: Lsn) {
        self.applied = lsn.max(self.applied);
    }

    /// Waits for the next durable position; for ever while all applied positions are durable. Cancel-safe.
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
