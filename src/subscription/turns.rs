//! Who may start now: hundreds of subscriptions that all start at once would wait for each other's queries until their
//! time-outs, and begin again.
//!
//! A turn counts for a short time only. So a subscription whose server does not answer delays no other one for longer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// How many subscriptions may start at the same time.
const TURNS: usize = 16;
/// For how long a turn counts.
const COUNTS: Duration = Duration::from_secs(2);

/// The turns that have been taken. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    taken: Mutex<Taken>,
    /// One turn has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    /// Until when each turn counts.
    until: BTreeMap<u64, Instant>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    number: u64,
}

impl Turns {
    /// Waits for a turn. Cancel-safe.
    pub(super) async fn take(&self) -> Turn {
        loop {
            let ended = self.0.ended.notified();
            let next = match self.try_take(Instant::now()) {
                Ok(number) => return Turn { turns: self.clone(), number },
                Err(next) => next,
            };
            // Either way it is tried again.
            drop(timeout_at(next, ended).await);
        }
    }

    /// Takes a turn, or returns when the next one ends at the latest.
    fn try_take(&self, now: Instant) -> Result<u64, Instant> {
        let mut taken = self.taken();
        let counting = || taken.until.values().filter(|until| **until > now);
        if counting().count() >= TURNS
            && let Some(next) = counting().min()
        {
            return Err(*next);
        }
        taken.last += 1;
        let number = taken.last;
        taken.until.insert(number, now + COUNTS);
        Ok(number)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.taken().until.remove(&self.number);
        self.turns.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_is_waited_for_and_counts_for_a_short_time() {
        let turns = Turns::default();
        let began = Instant::now();
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(turns.take().await);
        }
        // One that ends makes room at once, ...
        let (next, ()) = tokio::join!(turns.take(), async { drop(taken.pop()) });
        assert!(began.elapsed() < COUNTS);
        // ... and those that do not end make room later.
        let late = turns.take().await;
        assert!(began.elapsed() >= COUNTS);
        drop((next, late));
    }
}
