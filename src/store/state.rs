//! The words for states, as the database, `status --json` and the API use them.

use crate::words::words;

/// A subscription's state.
///
/// [`State::Standby`] is only shown by the instance itself. It is never written to the database, where the row
/// belongs to the instance that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Connecting and comparing schemas; also the state while no service runs.
    Starting,
    /// The initial copy is under way.
    Copying,
    /// Following the publisher.
    Streaming,
    /// A transient failure: it is tried again after a delay.
    Retrying,
    /// An operator is needed; the reason says why.
    Paused,
    /// Another instance applies.
    Standby,
    /// `enabled = false` in the configuration.
    Disabled,
}

/// How far one table has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableState {
    /// Not copied yet.
    Pending,
    /// Rows are being copied.
    Copying,
    /// Copied under a later snapshot than the others, and applied separately until the stream has reached it.
    CatchingUp,
    /// Applied by the stream with all the others.
    Ready,
    /// A gap holds it: its changes are passed over until the gap is settled.
    Paused,
    /// The publications do not publish it any more, and the stream has passed that. Only shown; it is never written.
    Left,
}

/// How a copy that was asked for treats the rows that the target table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resync {
    /// They are deleted in the transaction of the copy, so that readers see them until it commits.
    Replace,
    /// The table is truncated in that transaction, which locks it against readers.
    Truncate,
    /// Only rows that differ are written.
    Merge,
}

/// Published tables are to be taken up, because an operator asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refresh {
    /// The rows of tables that join are copied.
    Copy,
    /// Tables join without a copy.
    NoCopy,
}

/// The state that an operator has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Desired {
    Run,
    Pause,
}

impl State {
    pub const ALL: [Self; 7] = [
        Self::Starting,
        Self::Copying,
        Self::Streaming,
        Self::Retrying,
        Self::Paused,
        Self::Standby,
        Self::Disabled,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Copying => "copying",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Paused => "paused",
            Self::Standby => "standby",
            Self::Disabled => "disabled",
        }
    }
}

impl TableState {
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Copying, Self::CatchingUp, Self::Ready, Self::Paused, Self::Left];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Left => "left",
        }
    }
}

impl Resync {
    pub const ALL: [Self; 3] = [Self::Replace, Self::Truncate, Self::Merge];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Truncate => "truncate",
            Self::Merge => "merge",
        }
    }
}

impl Refresh {
    pub const ALL: [Self; 2] = [Self::Copy, Self::NoCopy];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::NoCopy => "no_copy",
        }
    }
}

impl Desired {
    pub const ALL: [Self; 2] = [Self::Run, Self::Pause];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Pause => "pause",
        }
    }
}

words!(State, "a subscription's state");
words!(TableState, "a table's state");
words!(Resync, "a way to synchronise a table again");
words!(Refresh, "a way to take up tables");
words!(Desired, "an operator's wish");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_as_themselves() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        for state in TableState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        for desired in Desired::ALL {
            assert_eq!(desired.as_str().parse(), Ok(desired));
        }
        assert_eq!(
            "napping".parse::<State>().unwrap_err().to_string(),
            "\"napping\" is not a subscription's state that this version of pgsluice knows"
        );
    }
}
