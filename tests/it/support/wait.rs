//! Waiting for a condition, with a deadline.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Longest wait for what should take a second, generous because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Longest pause between two looks.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// The result of looking at a condition: it holds, or what was seen instead.
pub(crate) trait Observation {
    type Value;
    fn observe(self) -> Result<Self::Value, String>;
}

impl<T> Observation for Option<T> {
    type Value = T;
    fn observe(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Observation for Result<T, E> {
    type Value = T;
    fn observe(self) -> Result<T, String> {
        self.map_err(|seen| seen.to_string())
    }
}

impl Observation for bool {
    type Value = ();
    fn observe(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not so".to_owned()) }
    }
}

/// Waits up to [`PATIENCE`] until `condition` holds. Otherwise panics with what it saw last.
pub(crate) async fn until<O: Observation>(what: &str, condition: impl AsyncFnMut() -> O) -> O::Value {
    until_within(PATIENCE, what, condition).await
}

/// [`until`] with another deadline.
pub(crate) async fn until_within<O: Observation>(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> O,
) -> O::Value {
    let deadline = Instant::now() + patience;
    let mut last = "nothing, not even once".to_owned();
    loop {
        let began = Instant::now();
        // The deadline also ends a look that hangs.
        let remaining = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(remaining.max(POLL_INTERVAL), condition()).await {
            Ok(observation) => match observation.observe() {
                Ok(value) => return value,
                Err(seen) => last = seen,
            },
            Err(_) => last.push_str(" (and then no answer)"),
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain until {what}; last seen: {last}");
        // A look takes long where it costs much or where the machine is busy. Then the pause leaves room for others.
        tokio::time::sleep(began.elapsed().clamp(POLL_INTERVAL, POLL_INTERVAL_MAX)).await;
    }
}

#[tokio::test]
async fn it_returns_what_the_condition_gives() {
    let mut tries = 0;
    let value = until("the third try", async || {
        tries += 1;
        (tries == 3).then_some(tries)
    });
    assert_eq!(value.await, 3);
}

#[tokio::test]
#[should_panic(expected = "until pigs fly; last seen: they walk")]
async fn it_panics_with_what_it_saw_last() {
    until_within(Duration::from_millis(50), "pigs fly", async || Err::<(), _>("they walk")).await;
}

#[tokio::test]
#[should_panic(expected = "no answer")]
async fn a_condition_that_hangs_is_bounded() {
    until_within(Duration::from_millis(50), "it answers", std::future::pending::<Option<()>>).await;
}
