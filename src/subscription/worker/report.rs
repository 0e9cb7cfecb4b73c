//! Shows the worker's state: in the snapshot of this process, and in the target for everybody else.

use tokio::time::timeout;
use tracing::debug;

use super::super::failure::Cause;
use super::super::instances::Role;
use super::super::state::{Event, State};
use super::waiting::STORE_TIMEOUT;
use super::{Look, Owner, Worker};
use crate::store::{self, StateChange};

impl Worker {
    /// Reports the state, unless that has been done; returns an event if another instance owns the subscription.
    ///
    /// What the target did not take in time is reported again when commands are looked for.
    pub(super) async fn report(&mut self) -> Option<Event> {
        self.show_role();
        let change = self.state_change()?;
        // The snapshot comes first: it must not wait for a target that does not answer.
        self.context.snapshot.send_if_modified(|snapshot| {
            let is_new = snapshot.shown != change;
            snapshot.shown.clone_from(&change);
            is_new
        });
        if self.owner != Owner::Us {
            // Only the owner writes the state to the target.
            return None;
        }
        if self.reported.as_ref() == Some(&change) {
            return None;
        }
        let name = self.context.name();
        match timeout(STORE_TIMEOUT, self.store.set_state(&self.context.owner, &change)).await {
            Ok(Ok(_)) => self.reported = Some(change),
            Ok(Err(error)) if error.is_not_owner() => return Some(self.deposed()),
            Ok(Err(error)) => debug!(subscription = name, %error, "state not reported"),
            Err(_elapsed) => debug!(subscription = name, "state not reported in time"),
        }
        None
    }

    /// Shows the other instances what this worker is to its subscription.
    pub(super) fn show_role(&self) {
        let is_well = self.stalled.is_none() && self.held_back.is_none();
        self.seat.set(match (self.owner, self.state) {
            (Owner::Us, State::Streaming) if is_well => Role::Streams,
            (Owner::Us, _) => Role::Owns,
            (Owner::Other, State::Standby) if self.session.is_some() => Role::StandsBy,
            (Owner::Other, _) => Role::None,
        });
    }

    /// Whether the target has the state, or does not get it from this instance.
    pub(super) fn is_reported(&self) -> bool {
        self.owner != Owner::Us || self.reported == self.state_change()
    }

    /// Returns the state to report; none once the worker has stopped.
    fn state_change(&self) -> Option<StateChange> {
        let shown = match self.state {
            State::Stopped => return None,
            State::Standby => store::State::Standby,
            State::Starting { .. } if self.look == Look::Again => store::State::Paused,
            State::Starting { failures: 0 } => store::State::Starting,
            State::Starting { .. } | State::Retrying { .. } => store::State::Retrying,
            State::Copying { .. } => store::State::Copying,
            State::Streaming => store::State::Streaming,
            State::Paused(_) => store::State::Paused,
        };
        if let (store::State::Streaming, Some(diagnosis)) = (shown, &self.stalled) {
            return Some(StateChange::new(store::State::Retrying).because(Cause::Target.as_str(), diagnosis));
        }
        if let (store::State::Streaming, Some(diagnosis)) = (shown, &self.held_back) {
            return Some(StateChange::new(store::State::Retrying).because("copy", diagnosis));
        }
        if let (State::Starting { .. }, Some((reason, diagnosis))) = (self.state, &self.start_waits) {
            return Some(StateChange::new(store::State::Starting).because(*reason, diagnosis));
        }
        let change = StateChange::new(shown);
        Some(match (&self.because, shown) {
            (Some(because), store::State::Retrying | store::State::Paused) => StateChange {
                conflict_id: because.conflict_id,
                ..change.because(because.reason.clone(), &because.diagnosis)
            },
            _ => change,
        })
    }
}
