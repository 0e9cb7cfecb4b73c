//! Sets of the operations that a stream has.
//!
//! Pure. A publication has the set of those that it publishes. A table's plan has the set of those that the target
//! could not carry out when the plan was made, so that testing for one of them costs nothing.

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

impl FromIterator<Self> for Operations {
    fn from_iter<I: IntoIterator<Item = Self>>(sets: I) -> Self {
        sets.into_iter().fold(Self::NONE, Self::or)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_meet_in_common_operations() {
        assert!(Operations::INSERT.meet(Operations::OF_ROWS));
        assert!(!Operations::INSERT.meet(Operations::OF_EXISTING_ROWS));
        assert!(!Operations::NONE.meet(Operations::ALL));
        let all = [Operations::INSERT, Operations::UPDATE, Operations::DELETE, Operations::TRUNCATE];
        assert_eq!(all.into_iter().collect::<Operations>(), Operations::ALL);
    }
}
