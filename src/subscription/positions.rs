//! The positions of a running stream, and the lag that follows from them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pg::Lsn;
use crate::store::Walsender;

/// Maximum number of samples of the publisher's position: those of an hour with one each second.
const SAMPLES_MAX: usize = 3600;

/// Minimum time between two records of an idle stream's position. Each is a small transaction on the target,
/// and a publisher that is busy with other tables would cause thousands each second.
const IDLE_RECORD_INTERVAL: Duration = Duration::from_secs(1);
/// That time if commits on the publisher may wait for the report.
const IDLE_RECORD_INTERVAL_SYNCHRONOUS: Duration = Duration::from_millis(5);

/// How soon the publisher needs the report of a position without changes for the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Promptness {
    #[default]
    Relaxed,
    /// The publisher has synchronous standbys: its commits may wait for the position that is reported.
    CommitsWait,
}

impl Promptness {
    /// Minimum time between two records of an idle stream's position.
    pub(super) fn idle_record_interval(self) -> Duration {
        match self {
            Self::Relaxed => IDLE_RECORD_INTERVAL,
            Self::CommitsWait => IDLE_RECORD_INTERVAL_SYNCHRONOUS,
        }
    }
}

/// Positions of a running stream. A position that is not known yet is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamPositions {
    pub received: Option<Lsn>,
    pub applied: Option<Lsn>,
    pub flushed: Option<Lsn>,
    /// The walsender of the subscription's last stream, as far as is known.
    pub walsender: Option<Walsender>,
}

/// Computes the lag in seconds from samples of the publisher's position.
#[derive(Debug, Default)]
pub struct LagClock {
    /// The publisher's positions, oldest first, with the monotonic time of each.
    samples: VecDeque<(Duration, Lsn)>,
}

impl LagClock {
    /// Takes a sample and returns the lag of `flushed`, in seconds: the age of the oldest
    /// publisher position that has not been reached. `now` is a monotonic time.
    pub fn lag_seconds(&mut self, now: Duration, publisher: Lsn, flushed: Lsn) -> f64 {
        while self.samples.front().is_some_and(|&(_, lsn)| lsn <= flushed) {
            self.samples.pop_front();
        }
        if publisher > flushed && self.samples.back().is_none_or(|&(_, lsn)| lsn < publisher) {
            if self.samples.len() == SAMPLES_MAX {
                // Every second sample is dropped, but the oldest is kept, so the lag stays right.
                let mut keep = false;
                self.samples.retain(|_| {
                    keep = !keep;
                    keep
                });
            }
            self.samples.push_back((now, publisher));
        }
        self.samples.front().map_or(0.0, |&(since, _)| now.saturating_sub(since).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_position_not_reached() {
        let mut clock = LagClock::default();
        let mut check = |now, publisher, flushed, expected: f64| {
            let lag = clock.lag_seconds(at(now), Lsn::new(publisher), Lsn::new(flushed));
            assert!((lag - expected).abs() < f64::EPSILON, "at {now}: {lag}");
        };
        check(0, 100, 100, 0.0);
        check(1, 200, 100, 0.0);
        check(2, 300, 100, 1.0);
        check(5, 300, 100, 4.0);
        // Position 200 has been reached; 300, which was sampled at 2, has not.
        check(6, 400, 250, 4.0);
        check(7, 400, 400, 0.0);
    }

    #[test]
    fn a_long_outage_stays_bounded_and_keeps_its_start() {
        let mut clock = LagClock::default();
        for second in 0..20_000 {
            clock.lag_seconds(at(second), Lsn::new(1000 + second), Lsn::new(1));
        }
        assert!(clock.samples.len() <= SAMPLES_MAX);
        let lag = clock.lag_seconds(at(20_000), Lsn::new(30_000), Lsn::new(1));
        assert!((lag - 20_000.0).abs() < f64::EPSILON, "{lag}");
    }
}
