//! Sets of the operations that a stream has.
//!
//! Pure. A table's plan notes in such a set which operations the target could not carry out when the plan was
//! made, so that testing for one of them costs nothing.

use super::PublishedActions;

/// A set of operations, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Operations(u8);

impl Operations {
    pub const NONE: Self = Self(0);
    pub const INSERT: Self = Self(1);
    pub const UPDATE: Self = Self(1 << 1);
    pub const DELETE: Self = Self(1 << 2);
    pub const TRUNCATE: Self = Self(1 << 3);
    /// The operations that change rows or remove them, and so have to find them.
    pub const OF_EXISTING_ROWS: Self = Self::UPDATE.or(Self::DELETE);
    pub const OF_ROWS: Self = Self::INSERT.or(Self::OF_EXISTING_ROWS);
    pub const ALL: Self = Self::OF_ROWS.or(Self::TRUNCATE);

    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets have an operation in common.
    #[must_use]
    #[inline]
    pub const fn meet(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl From<PublishedActions> for Operations {
    fn from(actions: PublishedActions) -> Self {
        let all = [
            (actions.insert, Self::INSERT),
            (actions.update, Self::UPDATE),
            (actions.delete, Self::DELETE),
            (actions.truncate, Self::TRUNCATE),
        ];
        all.into_iter().filter(|(published, _)| *published).fold(Self::NONE, |set, (_, one)| set.or(one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_operations_become_a_set() {
        assert_eq!(Operations::from(PublishedActions::ALL), Operations::ALL);
        let inserts = Operations::from(PublishedActions { insert: true, ..PublishedActions::default() });
        assert!(inserts.meet(Operations::OF_ROWS) && !inserts.meet(Operations::OF_EXISTING_ROWS));
        assert!(!Operations::NONE.meet(Operations::ALL));
    }
}
