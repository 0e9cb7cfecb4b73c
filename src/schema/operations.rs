//! Sets of the operations that a stream has.
//!
//! Pure. A publication has the set of those that it publishes. A table's plan has the set of those that the target
//! could not carry out when the plan was made, so that testing for one of them costs nothing.

use serde::{Deserialize, Serialize};

/// A set of operations, one bit each. It is recorded as the list of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Name>", into = "Vec<Name>")]
pub struct Operations(u8);

/// The name of an operation, as a publication's parameter `publish` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Insert,
    Update,
    Delete,
    Truncate,
}

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

    /// The operations that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The operations that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
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

impl Name {
    const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    const fn operation(self) -> Operations {
        match self {
            Self::Insert => Operations::INSERT,
            Self::Update => Operations::UPDATE,
            Self::Delete => Operations::DELETE,
            Self::Truncate => Operations::TRUNCATE,
        }
    }
}

impl From<Vec<Name>> for Operations {
    fn from(names: Vec<Name>) -> Self {
        names.into_iter().map(Name::operation).collect()
    }
}

impl From<Operations> for Vec<Name> {
    fn from(set: Operations) -> Self {
        Name::ALL.into_iter().filter(|name| set.meet(name.operation())).collect()
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
        assert_eq!(Operations::OF_ROWS.and(Operations::OF_EXISTING_ROWS), Operations::OF_EXISTING_ROWS);
    }

    #[test]
    fn sets_are_recorded_by_their_names() {
        let check = |set: Operations, recorded: &str| {
            assert_eq!(serde_json::to_string(&set).unwrap(), recorded);
            assert_eq!(serde_json::from_str::<Operations>(recorded).unwrap(), set);
        };
        check(Operations::NONE, "[]");
        check(Operations::INSERT.or(Operations::TRUNCATE), r#"["insert","truncate"]"#);
        check(Operations::ALL, r#"["insert","update","delete","truncate"]"#);
    }
}
