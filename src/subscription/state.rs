//! The states of a subscription: a pure function from state and event to state and action.
//!
//! ```text
//!            ┌──────────── lock held elsewhere ───────────▶ standby ──lock──┐
//! starting ──┤                                                             │
//!    ▲       └─▶ copying ──▶ streaming                                      │
//!    │               │           │                                         ▼
//!    │               ├── Retry ──┴──▶ retrying ──back-off, resume──▶ starting
//!    │               └── Pause ─────▶ paused ──resume, target fits, retry due──▶ starting
//!    └─────────────────────────────────────────────────────────────────────┘
//! any ──taken over by another instance──▶ standby
//! any ──shutdown──▶ stopped
//! ```
//!
//! No clock and no I/O: the worker decides how long to back off, and runs the attempts. An event that cannot
//! happen in a state is returned as an error.

use crate::error::{Disposition, PauseReason};

/// The subscription's state, with the names that `status` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Connecting, comparing, finding the slot.
    Starting {
        failures: u32,
    },
    /// Another instance applies.
    Standby,
    /// Existing rows are being copied.
    Copying {
        failures: u32,
    },
    Streaming,
    /// Waiting for the next attempt, after this number of consecutive failures.
    Retrying {
        failures: u32,
    },
    /// Waiting for an operator, or, after schema differences, until the target fits.
    Paused(PauseReason),
    Stopped,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// This instance has taken the subscription's lock, and the subscription is not paused.
    Locked,
    /// This instance has taken the lock, and the subscription is paused.
    LockedWhilePaused(PauseReason),
    LockHeldElsewhere,
    CopyStarted,
    StreamStarted,
    /// The attempt ended in a failure.
    Failed(Disposition),
    /// An operator asked for a pause.
    PauseAsked,
    /// An operator asked to go on.
    ResumeAsked,
    /// The target's tables may fit now.
    TargetFits,
    /// A back-off is over, or a paused conflict is due to be tried again.
    RetryDue,
    /// The tables or the configuration have changed, so a new attempt is needed.
    RestartAsked,
    ShutdownAsked,
}

/// The worker's next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on with the current action.
    Continue,
    /// Start an attempt: connect, compare, copy, stream.
    Attempt,
    /// Try to take the lock until that succeeds.
    AwaitLock,
    /// Wait, longer after each consecutive failure, then begin an attempt.
    BackOff {
        failures: u32,
    },
    /// Wait, with the lock, for an operator or a change.
    Hold,
    Finish,
}

/// An event that cannot happen in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen in state {state:?}")]
pub struct Illegal {
    pub state: State,
    pub event: Event,
}

/// Takes one step.
pub fn step(state: State, event: Event) -> Result<(State, Action), Illegal> {
    use Event as E;
    use State as S;
    Ok(match (state, event) {
        (S::Stopped, event) => return Err(Illegal { state, event }),
        (_, E::ShutdownAsked) => (S::Stopped, Action::Finish),

        // This event also comes if another instance has taken over a subscription that this one applied.
        (_, E::LockHeldElsewhere) => (S::Standby, Action::AwaitLock),
        (S::Starting { failures }, E::Locked) => (S::Starting { failures }, Action::Attempt),

        (S::Starting { failures }, E::CopyStarted) => (S::Copying { failures }, Action::Continue),
        (S::Starting { .. } | S::Copying { .. }, E::StreamStarted) => (S::Streaming, Action::Continue),

        (S::Starting { failures } | S::Copying { failures }, E::Failed(Disposition::Retry)) => {
            let failures = failures.saturating_add(1);
            (S::Retrying { failures }, Action::BackOff { failures })
        }
        (S::Streaming | S::Standby, E::Failed(Disposition::Retry)) => {
            (S::Retrying { failures: 1 }, Action::BackOff { failures: 1 })
        }
        (S::Starting { .. } | S::Standby, E::LockedWhilePaused(reason))
        | (
            S::Starting { .. } | S::Copying { .. } | S::Streaming | S::Standby,
            E::Failed(Disposition::Pause(reason)),
        ) => (S::Paused(reason), Action::Hold),

        (_, E::PauseAsked) => (S::Paused(PauseReason::Operator), Action::Hold),

        (S::Paused(_), E::ResumeAsked)
        | (S::Standby, E::Locked)
        | (S::Paused(PauseReason::Schema), E::TargetFits)
        | (S::Paused(PauseReason::Conflict), E::RetryDue)
        | (S::Starting { .. } | S::Copying { .. } | S::Streaming, E::RestartAsked) => {
            (S::Starting { failures: 0 }, Action::Attempt)
        }
        (S::Retrying { failures }, E::ResumeAsked | E::RetryDue | E::RestartAsked) => {
            (S::Starting { failures }, Action::Attempt)
        }
        (S::Starting { .. } | S::Copying { .. } | S::Streaming | S::Standby, E::ResumeAsked) => {
            (state, Action::Continue)
        }
        (S::Paused(_) | S::Standby, E::RestartAsked) => (state, Action::Continue),

        (
            S::Starting { .. }
            | S::Standby
            | S::Copying { .. }
            | S::Streaming
            | S::Retrying { .. }
            | S::Paused(_),
            event,
        ) => return Err(Illegal { state, event }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFLICT: Disposition = Disposition::Pause(PauseReason::Conflict);

    fn check(state: State, event: Event, expected: (State, Action)) {
        assert_eq!(step(state, event), Ok(expected), "{state:?} + {event:?}");
    }

    #[test]
    fn a_conflict_waits_for_a_person_and_goes_on_from_there() {
        check(
            State::Streaming,
            Event::Failed(CONFLICT),
            (State::Paused(PauseReason::Conflict), Action::Hold),
        );
        check(
            State::Paused(PauseReason::Conflict),
            Event::ResumeAsked,
            (State::Starting { failures: 0 }, Action::Attempt),
        );
    }

    #[test]
    fn failures_in_a_row_are_counted_until_it_streams() {
        let mut state = State::Starting { failures: 0 };
        for failures in 1..=3 {
            check(
                state,
                Event::Failed(Disposition::Retry),
                (State::Retrying { failures }, Action::BackOff { failures }),
            );
            state = State::Starting { failures };
            check(State::Retrying { failures }, Event::RetryDue, (state, Action::Attempt));
        }
        check(state, Event::StreamStarted, (State::Streaming, Action::Continue));
        check(
            State::Streaming,
            Event::Failed(Disposition::Retry),
            (State::Retrying { failures: 1 }, Action::BackOff { failures: 1 }),
        );
    }

    #[test]
    fn only_a_schema_pause_ends_because_the_target_fits() {
        check(
            State::Paused(PauseReason::Schema),
            Event::TargetFits,
            (State::Starting { failures: 0 }, Action::Attempt),
        );
        for reason in [PauseReason::Conflict, PauseReason::Operator, PauseReason::SlotLost] {
            assert!(step(State::Paused(reason), Event::TargetFits).is_err(), "{reason:?}");
        }
    }

    #[test]
    fn an_operators_pause_survives_a_change_of_owner() {
        check(
            State::Standby,
            Event::LockedWhilePaused(PauseReason::Operator),
            (State::Paused(PauseReason::Operator), Action::Hold),
        );
    }

    #[test]
    fn an_owner_that_is_taken_over_stands_by() {
        for state in [
            State::Starting { failures: 2 },
            State::Standby,
            State::Copying { failures: 0 },
            State::Streaming,
            State::Retrying { failures: 1 },
            State::Paused(PauseReason::Conflict),
        ] {
            check(state, Event::LockHeldElsewhere, (State::Standby, Action::AwaitLock));
        }
    }

    #[test]
    fn shutdown_ends_every_state_and_nothing_follows_it() {
        for state in [
            State::Starting { failures: 2 },
            State::Standby,
            State::Copying { failures: 0 },
            State::Streaming,
            State::Retrying { failures: 1 },
            State::Paused(PauseReason::Schema),
        ] {
            check(state, Event::ShutdownAsked, (State::Stopped, Action::Finish));
        }
        for event in [Event::ShutdownAsked, Event::ResumeAsked, Event::Locked] {
            assert_eq!(step(State::Stopped, event), Err(Illegal { state: State::Stopped, event }));
        }
    }

    #[test]
    fn impossible_pairs_are_returned_to_the_caller() {
        for (state, event) in [
            (State::Streaming, Event::Locked),
            (State::Paused(PauseReason::Operator), Event::StreamStarted),
            (State::Retrying { failures: 1 }, Event::CopyStarted),
            (State::Streaming, Event::RetryDue),
        ] {
            assert_eq!(step(state, event), Err(Illegal { state, event }));
        }
    }
}
