//! When a connection last moved: for how long its server has given no sign of life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes that a connection has sent or received, by the time of the last ones.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// Nanoseconds since then.
    last: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }
}

impl Activity {
    /// Notes that bytes were sent, which the system has taken, or received.
    pub(super) fn note(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.last.store(self.now(), Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many bytes have been sent and received.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// For how long nothing has moved.
    pub(super) fn quiet_for(&self) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
