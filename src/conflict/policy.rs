//! What is done about a conflict: automatically ([`Policy`]) or by a person ([`Resolution`]).

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::ParseConflictNameError;

/// What happens automatically, per conflict type and table. Named as in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// Stop, keep the evidence and wait for a person.
    #[default]
    Pause,
    /// The publisher's row replaces the target's.
    ApplyRemote,
    /// The target's row stays; the change is dropped.
    KeepLocal,
    /// The row with the later commit time stays.
    LastUpdateWins,
}

/// A person's decision about one conflict. Named as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Apply the transaction again as it was published: the target has been fixed.
    Retry,
    /// The publisher's row replaces the target's.
    ApplyRemote,
    /// The target's row stays; this change is dropped.
    KeepLocal,
    /// Pass over this whole transaction and no other.
    SkipTransaction,
}

impl Policy {
    pub const ALL: [Self; 4] = [Self::Pause, Self::ApplyRemote, Self::KeepLocal, Self::LastUpdateWins];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::ApplyRemote => "apply_remote",
            Self::KeepLocal => "keep_local",
            Self::LastUpdateWins => "last_update_wins",
        }
    }
}

impl Resolution {
    pub const ALL: [Self; 4] = [Self::Retry, Self::ApplyRemote, Self::KeepLocal, Self::SkipTransaction];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::ApplyRemote => "apply-remote",
            Self::KeepLocal => "keep-local",
            Self::SkipTransaction => "skip-transaction",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Policy {
    type Err = ParseConflictNameError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == word).ok_or_else(|| {
            ParseConflictNameError::new(word, "a conflict policy", Self::ALL.iter().map(|it| it.as_str()))
        })
    }
}

impl FromStr for Resolution {
    type Err = ParseConflictNameError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|resolution| resolution.as_str() == word).ok_or_else(|| {
            ParseConflictNameError::new(word, "a resolution", Self::ALL.iter().map(|it| it.as_str()))
        })
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for Resolution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_themselves() {
        for policy in Policy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        for resolution in Resolution::ALL {
            assert_eq!(resolution.as_str().parse(), Ok(resolution));
        }
        assert!("skip_transaction".parse::<Resolution>().is_err());
    }
}
